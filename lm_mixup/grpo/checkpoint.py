"""GRPO checkpoints: the learner's state, the run's progress, and the rollouts that ran ahead.

Prompts, seeds and the schedule are functions of (seed, step). So beside the step and the token count the
driver saves only what older weights produced: in `async` mode, the rollouts of later steps. The driver's own
file is written last; a checkpoint without it is incomplete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm_mixup.core.run_dir import write_whole
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.models.engine import Completion

_STATE = "state.json"
_BUFFERED = "buffered.parquet"
_COMPLETION = pa.struct(
    [
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("finished", pa.bool_()),
    ]
)
_GROUP = pa.schema(
    [
        ("ahead", pa.int32()),  # 0: for the step after the checkpoint, 1: for the one after that
        ("id", pa.string()),
        ("task_type", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("reference", pa.string()),
        ("entities", pa.list_(pa.string())),
        ("inputs", pa.list_(pa.string())),
        ("weight_version", pa.int32()),
        ("completions", pa.list_(_COMPLETION)),
    ]
)


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Steps the learner's weights have been trained for.
        num_tokens: Prompt and completion tokens so far.
        buffered: Rollouts not trained on yet, one list per step, the next step first.
    """

    step: int = 0
    num_tokens: int = 0
    buffered: tuple[list[Group], ...] = ()


def save(folder: Path, learner: Learner, progress: Progress, limit: int) -> None:
    """Writes a checkpoint, then removes all but the newest `limit`."""
    tag = _tag(progress.step)
    learner.save(folder, tag)
    if progress.buffered:
        write_groups(folder / tag / _BUFFERED, progress.buffered)
    state = {"step": progress.step, "num_tokens": progress.num_tokens, "buffered": len(progress.buffered)}
    write_whole(folder / tag / _STATE, json.dumps(state))
    for old in _complete(folder)[:-limit]:
        shutil.rmtree(folder / _tag(old))


def load_latest(folder: Path, learner: Learner) -> Progress:
    """Restores the newest complete checkpoint, or returns the initial progress if there is none."""
    step = newest_step(folder)
    if not step:
        return Progress()
    learner.load(folder, _tag(step))
    state = json.loads((folder / _tag(step) / _STATE).read_text(encoding="utf-8"))
    buffered = tuple(read_groups(folder / _tag(step) / _BUFFERED)) if state["buffered"] else ()
    return Progress(state["step"], state["num_tokens"], buffered)


def newest_step(folder: Path) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    return max(_complete(folder), default=0)


def write_groups(path: Path, buffered: Sequence[list[Group]]) -> None:
    """Writes the buffered rollouts as Parquet, one row per group."""
    rows = [
        {
            "ahead": ahead,
            **vars(group.prompt),
            "weight_version": group.weight_version,
            "completions": [vars(completion) for completion in group.completions],
        }
        for ahead, groups in enumerate(buffered)
        for group in groups
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_GROUP), path)


def read_groups(path: Path) -> list[list[Group]]:
    """Reads what `write_groups` wrote."""
    buffered: list[list[Group]] = []
    for row in pq.read_table(path).to_pylist():
        ahead, version, completions = (row.pop(key) for key in ("ahead", "weight_version", "completions"))
        if ahead == len(buffered):
            buffered.append([])
        for completion in completions:
            completion["logprobs"] = np.array(completion["logprobs"], dtype=np.float32)
        prompt = Prompt(**row | {key: tuple(row[key]) for key in ("entities", "inputs")})
        buffered[ahead].append(Group(prompt, [Completion(**c) for c in completions], version))
    return buffered


def _complete(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob(f"step-*/{_STATE}"))


def _tag(step: int) -> str:
    return f"step-{step:06d}"
