"""The replies of a chat model, stored as they arrive in append-only JSONL files of the run directory.

Each process appends to its own file, so any number of actors can write at a time. A line is written before
its reply is used, so a killed run does not pay for a request twice. Lines are found by the key of their
request, whichever process wrote them. A truncated line is skipped. On a local or mounted file system a
line is one `write`; object stores cannot append, so there the present segment is put again as it grows.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_mixup.core.run_dir import RunDir

_SEGMENT_LINES = 1000  # of one object, where files cannot grow
_SEGMENTS_HELD = 64  # objects kept in memory while their replies are read
_PLACE = np.dtype([("key", "<u8"), ("file", "<u4"), ("start", "<u8"), ("length", "<u4")])
_COUNTED = ("replies", "prompt_tokens", "completion_tokens", "failures", "retries", "cache_hits")


class ReplyLog:
    """The replies in one folder of a run directory.

    Only places are held in memory, 24 bytes a reply; texts are read when asked for.

    Args:
        run: The run directory; None keeps replies in this process's memory.
        folder: Folder in it, e.g. `replies/rate`.
        stage: The stage on whose account new lines are written.
    """

    def __init__(self, run: RunDir | None, folder: str = "replies", stage: str = "") -> None:
        self._run = run or RunDir(f"memory://{uuid.uuid4().hex}")
        self._folder, self._stage = folder, stage
        self._files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._read_to: dict[str, int] = {}
        self._places = np.empty(0, _PLACE)
        self._recent: dict[int, list[tuple[int, int, int]]] = {}
        self._totals: dict[str, Counter[str]] = {}
        self._segments: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._writer: _Appender | _Segments = (
            _Appender(self._run, folder) if self._run.is_local else _Segments(self._run, folder)
        )
        self.refresh()

    def add(
        self, key: str, text: str, prompt_tokens: int, completion_tokens: int, cost: float | None = None
    ) -> None:
        """Keeps a reply; on return it is in the file.

        Args:
            key: Of the request: hexadecimal, 16 digits or more.
            cost: At the prices of the day; None where there are no prices.
        """
        figures: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        if cost is not None:
            figures["cost"] = cost
        self._append({"key": key, "text": text, "replies": 1, **figures})

    def count(self, **figures: int) -> None:
        """Keeps figures that are summed by stage: `failures`, `retries`, `cache_hits`."""
        self._append(figures)

    def _append(self, event: dict[str, Any]) -> None:
        event = {"stage": self._stage, **event}
        line = json.dumps(event, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        name, start = self._writer.append(line)
        with self._lock:
            self._sum(event)
            if "key" in event:
                place = (self._number(name), start, len(line))
                self._recent.setdefault(_prefix(event["key"]), []).append(place)

    def recall(self, key: str) -> list[str]:
        """The texts of the replies to a request, oldest first."""
        prefix = _prefix(key)
        with self._lock:
            # Both sides of one dtype: numpy would compare other integers as floats, which lose digits.
            bounds = np.array([prefix, prefix + 1], dtype=_PLACE["key"])
            first, stop = np.searchsorted(self._places["key"], bounds)
            places = [(int(p["file"]), int(p["start"]), int(p["length"])) for p in self._places[first:stop]]
            places += self._recent.get(prefix, [])
        events = (json.loads(self._read(*place)) for place in places)
        return [event["text"] for event in events if event["key"] == key]

    def refresh(self) -> None:
        """Takes note of what other processes have written since."""
        with self._lock:
            found: list[tuple[int, int, int, int]] = []
            for name in self._run.listing(self._folder):
                if name.endswith(".jsonl") and not name.startswith(self._writer.prefix):
                    self._scan(name, found)
            if found:
                new = np.array(found, dtype=_PLACE)
                joined = np.concatenate([self._places, new])
                self._places = joined[np.argsort(joined["key"], kind="stable")]

    def _scan(self, name: str, found: list[tuple[int, int, int, int]]) -> None:
        path, start = f"{self._run.path}/{self._folder}/{name}", self._read_to.get(name, 0)
        if int(self._run.fs.size(path) or 0) <= start:
            return
        file_number = self._number(name)
        with self._run.fs.open(path, "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut off by a kill, or still being written
                try:
                    event = json.loads(line)
                    self._sum(event)
                    if "key" in event:
                        found.append((_prefix(event["key"]), file_number, start, len(line)))
                except (ValueError, TypeError, KeyError, AttributeError):
                    pass  # not a line of ours, or damaged: the reply is asked for again
                start += len(line)
        self._read_to[name] = start

    def _sum(self, event: dict[str, Any]) -> None:
        total = self._totals.setdefault(event["stage"], Counter())
        figures: dict[str, Any] = {name: int(event[name]) for name in _COUNTED if name in event}
        if "cost" in event:
            priced = {f"priced_{name}": figures[name] for name in ("prompt_tokens", "completion_tokens")}
            figures |= priced | {"cost": float(event["cost"])}
        total.update(figures)

    def totals(self, stage: str | None = None) -> Counter[str]:
        """Sums over the lines of a stage, or of all: replies, tokens, retries, cache hits.

        And `cost` (a float) of those replies that had prices, with their tokens (`priced_…`).
        """
        with self._lock:
            chosen = [total for name, total in self._totals.items() if stage in (None, name)]
            return sum(chosen, Counter())

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._files)
            self._files.append(name)
        return self._numbers[name]

    def _read(self, file_number: int, start: int, length: int) -> bytes:
        path = f"{self._run.path}/{self._folder}/{self._files[file_number]}"
        if self._run.is_local:
            with open(path, "rb") as file:  # noqa: PTH123
                file.seek(start)
                return file.read(length)
        # Rows of one part were rated together, so their replies lie in few segments.
        content = self._segments.get(file_number, b"")
        if len(content) < start + length:
            content = self._segments[file_number] = self._run.fs.cat_file(path)
            while len(self._segments) > _SEGMENTS_HELD:
                self._segments.popitem(last=False)
        return content[start : start + length]


def _prefix(key: str) -> int:
    return int(key[:16], 16) >> 1  # one bit less, so that the next number still fits


class _Appender:
    """A file of this process on a local or mounted file system."""

    def __init__(self, run: RunDir, folder: str) -> None:
        self.prefix = uuid.uuid4().hex
        self._run, self._folder = run, folder
        self._file = -1
        self._size = 0
        self._lock = threading.Lock()

    def append(self, line: bytes) -> tuple[str, int]:
        """Writes a line; returns the file's name and where in it the line starts."""
        with self._lock:
            name = f"{self.prefix}.jsonl"
            if self._file < 0:
                folder = f"{self._run.path}/{self._folder}"
                self._run.fs.makedirs(folder, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._file = os.open(f"{folder}/{name}", flags, 0o644)
            written = os.write(self._file, line)
            self._size += written
            if written < len(line):
                raise OSError(f"{self._run.uri}/{self._folder}: a reply could not be written whole")
            return name, self._size - len(line)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


@dataclass
class _Segment:
    """An object that is put again as it grows."""

    name: str
    content: bytes = b""
    lines: int = 0
    put: int = 0
    putting: threading.Lock = field(default_factory=threading.Lock)


class _Segments:
    """Objects of this process in a store: lines that arrive while one is put go into the next put."""

    def __init__(self, run: RunDir, folder: str) -> None:
        self.prefix = uuid.uuid4().hex
        self._run, self._folder = run, folder
        self._segments = 0
        self._open = self._next()
        self._lock = threading.Lock()

    def _next(self) -> _Segment:
        self._segments += 1
        return _Segment(f"{self.prefix}-{self._segments:06d}.jsonl")

    def append(self, line: bytes) -> tuple[str, int]:
        """Puts a line; returns the object's name and where in it the line starts."""
        with self._lock:
            if self._open.lines >= _SEGMENT_LINES:
                self._open = self._next()
            segment, start = self._open, len(self._open.content)
            segment.content += line
            segment.lines += 1
        with segment.putting:
            if segment.put < start + len(line):
                content = segment.content
                self._run.write_bytes(f"{self._folder}/{segment.name}", content)
                segment.put = len(content)
        return segment.name, start
