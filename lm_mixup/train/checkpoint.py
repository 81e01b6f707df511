"""Checkpoints that count only when every rank has written its share, and a log that a resume continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lm_mixup.core.run_dir import write_whole

_MARK = "complete.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, if there is one."""
    return max(_whole(folder), key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint folder `checkpoint-N`; 0 for none."""
    return int(checkpoint.name.rsplit("-", 1)[-1]) if checkpoint else 0


def drop_others(folder: Path, keep: Path | None) -> None:
    """Removes checkpoints that a killed run left half-written, or newer ones than `keep`."""
    for found in folder.glob("checkpoint-*"):
        if step_of(found) > step_of(keep) or not (found / _MARK).is_file():
            shutil.rmtree(found)


def trim_metrics(path: Path, step: int) -> None:
    """Cuts the log back to a step: what a killed run did after its last checkpoint is done again."""
    kept = [json.dumps(line) for line in read_metrics(path) if line["step"] <= step]
    write_whole(path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The log's lines; a last line that is cut short by a kill is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def mark_whole(folder: Path, step: int, ranks: int) -> None:
    """Says that every rank has written its share of a checkpoint."""
    mark = folder / f"checkpoint-{step}" / _MARK
    write_whole(mark, json.dumps({"ranks": ranks}) + "\n")


def ranks_of(checkpoint: Path) -> int:
    """How many ranks wrote a whole checkpoint."""
    ranks: int = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))["ranks"]
    return ranks


def drop_oldest(folder: Path, limit: int) -> None:
    """Removes whole checkpoints but the newest `limit`."""
    for old in sorted(_whole(folder), key=step_of)[:-limit]:
        (old / _MARK).unlink()
        shutil.rmtree(old)


def _whole(folder: Path) -> list[Path]:
    return [found for found in folder.glob("checkpoint-*") if (found / _MARK).is_file()]
