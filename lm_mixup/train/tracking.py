"""Training metrics: the JSONL log of a stage, and its trackers (TensorBoard, Weights & Biases).

The JSONL file is the record. A resumed run first trims it to the step it resumes from. TensorBoard is then
written again from the start; Weights & Biases cannot delete steps, so each step is sent to it once.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lm_mixup.config import TrackingConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import StageDir, write_whole

Line = Mapping[str, Any]


class _Tracker(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def check_tracking(config: TrackingConfig) -> None:
    """Refuses a tracker whose package is not installed, before anything is started.

    Raises:
        InputError: It names the package.
    """
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"tracking.report_to: the package {name} is not installed; install it (pip install "
                f"'lm-mixup[{name}]') or remove {name} from the list"
            )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, none if there is no file; a last line that a kill cut short is ignored."""
    if not path.is_file():
        return []
    return _parsed(path.read_text(encoding="utf-8"))


def read_stage_metrics(out: StageDir, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a log of a stage in the run directory, local or at a URI."""
    if out.run.is_local:
        return read_metrics(out.local / name)
    return _parsed(out.run.read_bytes(f"{out.name}/{name}").decode("utf-8")) if out.exists(name) else []


def _parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def trim_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines after a step from a log, because a resumed run writes them again; returns the rest."""
    lines = [line for line in read_metrics(path) if line["step"] <= step]
    write_whole(path, "".join(_json_line(line) for line in lines))
    return lines


def append_metrics(path: Path, line: Line) -> None:
    """Appends one line to a log.

    Raises:
        ValueError: A value is NaN or infinite, which JSON cannot hold.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(_json_line(line))


def _json_line(line: Line) -> str:
    return json.dumps(dict(line), allow_nan=False) + "\n"


@contextmanager
def stage_trackers(
    out: StageDir, config: TrackingConfig, settings: Mapping[str, Any], lines: Iterable[Line]
) -> Iterator[Callable[[Line], None]]:
    """As `open_trackers`, for a stage; of a run at a URI their files are kept there."""
    out.fetch("wandb.json")
    try:
        with open_trackers(out.local, config, settings, lines) as write:
            out.upload("wandb.json")
            yield write
    finally:
        for name in ("wandb.json", "tensorboard"):
            out.upload(name)


@contextmanager
def open_trackers(
    folder: Path, config: TrackingConfig, settings: Mapping[str, Any], lines: Iterable[Line]
) -> Iterator[Callable[[Line], None]]:
    """Opens the trackers of a stage and sends them the lines already in its log.

    Args:
        folder: The stage's folder; the trackers' files go there.
        config: Which trackers, and their names.
        settings: The configuration that Weights & Biases shows.
        lines: Of the log, up to the step the run resumes from.

    Yields:
        `write(line)`, which logs the numbers of a line under its `step`.

    Raises:
        InputError: A tracker is not installed or does not start.
    """
    check_tracking(config)
    trackers: list[_Tracker] = []
    failed = True
    try:
        for name in dict.fromkeys(config.report_to):
            trackers.append(
                _TensorBoard(folder) if name == "tensorboard" else _WandB(folder, config, settings)
            )

        def write(line: Line) -> None:
            numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
            step = int(numbers.pop("step"))
            for tracker in trackers:
                tracker.write(step, numbers)

        for line in sorted(lines, key=lambda line: line["step"]):
            write(line)
        yield write
        failed = False
    finally:
        for tracker in trackers:
            tracker.close(failed=failed)


class _TensorBoard:
    """Event files under `tensorboard/`. Earlier ones are purged: `open_trackers` writes every line again."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0, flush_secs=5)

    def write(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """A W&B run; `wandb.json` holds its id and the last step sent, so that a resumed stage continues it."""

    def __init__(self, folder: Path, config: TrackingConfig, settings: Mapping[str, Any]) -> None:
        import wandb

        self._file = folder / "wandb.json"
        kept = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._id, self._sent = kept.get("id", uuid.uuid4().hex[:12]), kept.get("step", -1)
        self._keep(self._sent)
        run, stage = config.name or folder.parent.name, folder.name
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=run,
                job_type=stage,
                name=f"{run}/{stage}",
                id=self._id,
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                settings=wandb.Settings(console="off"),  # progress bars would flood its log
            )
        except wandb.Error as error:
            line = " ".join(str(error).split())
            raise InputError(
                f"tracking.report_to: wandb failed to start ({line:.200}); log in (`wandb login`, or "
                "WANDB_API_KEY), or set WANDB_MODE=offline"
            ) from error

    def write(self, step: int, values: dict[str, float]) -> None:
        if step <= self._sent:
            return
        self._run.log(values, step=step)
        self._keep(step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _keep(self, step: int) -> None:
        write_whole(self._file, json.dumps({"id": self._id, "step": step}))
