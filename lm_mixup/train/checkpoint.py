"""The files of a training stage, and checkpoints that count only once every rank has written its share."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from lm_mixup.config import ModelConfig, SftConfig
from lm_mixup.core.run_dir import StageDir, write_whole

MARK = "complete.json"


@dataclass(frozen=True)
class SftJob:
    """What the driver passes to every worker.

    Attributes:
        out: The stage directory; its parts hold the token rows.
        config: The `sft` or `finetune` section.
        model: The `model` section.
        base: Folder or Hub name of the weights to start from.
        seed: Of the data order, dropout and adapters.
    """

    out: StageDir
    config: SftConfig
    model: ModelConfig
    base: str
    seed: int

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.out.local / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log: one JSON line per step and per evaluation."""
        return self.out.local / "metrics.jsonl"

    @property
    def refusal(self) -> str:
        """The error of a worker that cannot continue and would fail again: a file of the run directory."""
        return f"{self.out.name}/refusal.txt"

    @property
    def final(self) -> Path:
        """Folder of the finished model."""
        return self.out.local / "model"

    @property
    def best(self) -> Path:
        """Folder of the model with the best evaluation, with `keep_best`."""
        return self.out.local / "best"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    return max(_complete(folder), key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint folder `checkpoint-N`; 0 for none."""
    return int(checkpoint.name.rsplit("-", 1)[-1]) if checkpoint else 0


def drop_incomplete(folder: Path, keep: Path | None) -> None:
    """Removes checkpoints that a killed run left incomplete, and those newer than `keep`."""
    for found in folder.glob("checkpoint-*"):
        if step_of(found) > step_of(keep) or not (found / MARK).is_file():
            shutil.rmtree(found)


def mark_complete(folder: Path, step: int, ranks: int) -> None:
    """Records that every rank has written its share of a checkpoint."""
    mark = folder / f"checkpoint-{step}" / MARK
    write_whole(mark, json.dumps({"ranks": ranks}) + "\n")


def ranks_of(checkpoint: Path) -> int:
    """How many ranks wrote a complete checkpoint."""
    ranks: int = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))["ranks"]
    return ranks


def drop_oldest(folder: Path, limit: int) -> None:
    """Removes all complete checkpoints except the newest `limit`."""
    for old in sorted(_complete(folder), key=step_of)[:-limit]:
        (old / MARK).unlink()
        shutil.rmtree(old)


def _complete(folder: Path) -> list[Path]:
    return [found for found in folder.glob("checkpoint-*") if (found / MARK).is_file()]
