"""The run's log: JSON lines under `RUN/logs/`, one file for each process, with run, stage and node.

Ray's own logs are on the node that wrote them, and go with it. These stay with the run: what the driver
says, which part of a stage each worker had, and the tracebacks of workers. A file is named after its node and
process; of a run at a URI it is written anew every few seconds.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from lm_mixup.core.redact import hide
from lm_mixup.core.remote import storage_errors
from lm_mixup.core.run_dir import RunDir

LOGS = "logs"
VARIABLE = "LM_MIXUP_RUN_LOG"
_FLUSH_S = 10.0
_KEPT_LINES = 10_000  # of those that cannot be written now
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
_LEAST_SECRET = 8  # characters: shorter values are words such as `true`
_logger = logging.getLogger("lm_mixup.run")


@dataclass(frozen=True)
class LogPlace:
    """What every line of a process has.

    Attributes:
        uri: The run directory.
        run: The run's id: `run_id` in run.json.
        stage: The stage; of the driver, the one that it is at.
        role: What the process does in it.
    """

    uri: str
    run: str
    stage: str
    role: str

    def environment(self) -> dict[str, str]:
        """The variable by which a Ray actor finds the log (`open_from_environment`)."""
        return {VARIABLE: json.dumps(asdict(self))}


def _secrets() -> list[str]:
    """The values of environment variables that are named as keys: an error may quote one."""
    named = (value for name, value in os.environ.items() if _SECRET.search(name.upper()))
    return [value for value in named if len(value) >= _LEAST_SECRET]


class _Writer(logging.Handler):
    """Appends JSON lines to a file of the run directory."""

    def __init__(self, place: LogPlace) -> None:
        super().__init__(logging.INFO)
        self.place = place
        self._run = RunDir(place.uri)
        self._node = socket.gethostname()
        self._name = f"{LOGS}/{self._node}-{os.getpid()}-{int(time.time())}.jsonl"
        self._lines: list[str] = []
        self._written = 0.0
        self._failing = self._unwritten = False

    def emit(self, record: logging.LogRecord) -> None:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            **{key: value for key, value in asdict(self.place).items() if key != "uri"},
            "node": self._node,
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._lines.append(hide(json.dumps(line, ensure_ascii=False), *_secrets()) + "\n")
        self._unwritten = True
        if self._run.is_local or record.levelno >= logging.ERROR or time.time() - self._written > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what has been said. A disk that is full or away ends no run: the next line tries again."""
        self.acquire()
        try:
            if not self._unwritten:
                return
            text = "".join(self._lines).encode("utf-8", "backslashreplace")
            if self._run.is_local:
                folder = f"{self._run.path}/{LOGS}"
                os.makedirs(folder, exist_ok=True)  # noqa: PTH103
                with open(f"{self._run.path}/{self._name}", "ab") as file:  # noqa: PTH123
                    file.write(text)
                self._lines.clear()
            else:  # an object is written whole
                self._run.write_bytes(self._name, text)
            self._written, self._unwritten = time.time(), False
        except storage_errors() as error:
            if not self._failing:
                sys.stderr.write(f"the run's log {self._run.uri}/{self._name} cannot be written ({error})\n")
            self._failing = True
            del self._lines[:-_KEPT_LINES]
        finally:
            self.release()


_writer: _Writer | None = None


def open_log(place: LogPlace) -> None:
    """Starts, or renames, the log of this process."""
    global _writer
    if _writer is not None and (_writer.place.uri, _writer.place.run) == (place.uri, place.run):
        _writer.place = place
        return
    close_log()
    _writer = _Writer(place)
    _logger.addHandler(_writer)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    atexit.register(_writer.flush)


def open_from_environment() -> None:
    """As `open_log`, for an actor whose runtime environment names the place; else does nothing."""
    if told := os.environ.get(VARIABLE):
        open_log(LogPlace(**json.loads(told)))


def close_log() -> None:
    """Writes what is left and ends the log of this process."""
    global _writer
    if _writer is not None:
        _writer.flush()
        _logger.removeHandler(_writer)
        atexit.unregister(_writer.flush)
        _writer = None


def flush_log() -> None:
    """Writes what has been said: before the process ends without its exit handlers."""
    if _writer is not None:
        _writer.flush()


def current_place() -> LogPlace | None:
    """Where this process logs; None where it does not."""
    return None if _writer is None else _writer.place


def log(message: str, *arguments: Any, level: int = logging.INFO, error: BaseException | None = None) -> None:
    """Writes a line into the run's log, if this process has one."""
    if _writer is not None:
        _logger.log(level, message, *arguments, exc_info=error)
