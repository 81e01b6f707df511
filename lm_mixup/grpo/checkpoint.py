"""GRPO checkpoints: the learner's state and how far the run has come.

Prompts, seeds and the schedule are functions of (seed, step), so step and token count are all the driver has
to keep. The driver's file is written last: a checkpoint without it is not one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from lm_mixup.grpo.learner import Learner

_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    num_tokens: int = 0


def save(folder: Path, learner: Learner, progress: Progress, limit: int) -> None:
    """Writes a checkpoint, then removes those beyond the newest `limit`."""
    tag = _tag(progress.step)
    learner.save(folder, tag)
    scratch = folder / tag / f"{_STATE}.tmp"
    scratch.write_text(json.dumps(asdict(progress)), encoding="utf-8")
    os.replace(scratch, folder / tag / _STATE)  # noqa: PTH105 - atomic
    for old in _complete(folder)[:-limit]:
        shutil.rmtree(folder / _tag(old))


def load_latest(folder: Path, learner: Learner) -> Progress:
    """Restores the newest whole checkpoint; without one, the start."""
    steps = _complete(folder)
    if not steps:
        return Progress()
    tag = _tag(steps[-1])
    learner.load(folder, tag)
    return Progress(**json.loads((folder / tag / _STATE).read_text(encoding="utf-8")))


def _complete(folder: Path) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob(f"step-*/{_STATE}"))


def _tag(step: int) -> str:
    return f"step-{step:06d}"
