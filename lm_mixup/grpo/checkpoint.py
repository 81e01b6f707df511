"""GRPO checkpoints: the learner's state, how far the run has come, and the rollouts that ran ahead.

Prompts, seeds and the schedule are functions of (seed, step), so beside step and token count the driver keeps
only what came of older weights: rollouts of steps to come, in `async` mode. The driver's own file is written
last: a checkpoint without it is not one.
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
_UNSPENT = "unspent.parquet"
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
        ("ahead", pa.int32()),  # 0: of the step after the checkpoint, 1: of the one after that
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
        step: Steps that the learner's weights have seen.
        num_tokens: Prompt and completion tokens so far.
        unspent: Rollouts that nothing was learned from yet, those of the next step first.
    """

    step: int = 0
    num_tokens: int = 0
    unspent: tuple[list[Group], ...] = ()


def save(folder: Path, learner: Learner, progress: Progress, limit: int) -> None:
    """Writes a checkpoint, then removes those beyond the newest `limit`."""
    tag = _tag(progress.step)
    learner.save(folder, tag)
    if progress.unspent:
        write_groups(folder / tag / _UNSPENT, progress.unspent)
    state = {"step": progress.step, "num_tokens": progress.num_tokens, "unspent": len(progress.unspent)}
    write_whole(folder / tag / _STATE, json.dumps(state))
    for old in _complete(folder)[:-limit]:
        shutil.rmtree(folder / _tag(old))


def load_latest(folder: Path, learner: Learner) -> Progress:
    """Restores the newest whole checkpoint; without one, the start."""
    step = newest_step(folder)
    if not step:
        return Progress()
    learner.load(folder, _tag(step))
    state = json.loads((folder / _tag(step) / _STATE).read_text(encoding="utf-8"))
    unspent = tuple(read_groups(folder / _tag(step) / _UNSPENT)) if state["unspent"] else ()
    return Progress(state["step"], state["num_tokens"], unspent)


def newest_step(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0 if there is none."""
    return max(_complete(folder), default=0)


def write_groups(path: Path, unspent: Sequence[list[Group]]) -> None:
    """Writes the rollouts of steps to come as Parquet, a row a group."""
    rows = [
        {
            "ahead": ahead,
            **vars(group.prompt),
            "weight_version": group.weight_version,
            "completions": [vars(completion) for completion in group.completions],
        }
        for ahead, groups in enumerate(unspent)
        for group in groups
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_GROUP), path)


def read_groups(path: Path) -> list[list[Group]]:
    """What `write_groups` wrote."""
    unspent: list[list[Group]] = []
    for row in pq.read_table(path).to_pylist():
        ahead, version, completions = (row.pop(key) for key in ("ahead", "weight_version", "completions"))
        if ahead == len(unspent):
            unspent.append([])
        for completion in completions:
            completion["logprobs"] = np.array(completion["logprobs"], dtype=np.float32)
        prompt = Prompt(**row | {key: tuple(row[key]) for key in ("entities", "inputs")})
        unspent[ahead].append(Group(prompt, [Completion(**c) for c in completions], version))
    return unspent


def _complete(folder: Path) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob(f"step-*/{_STATE}"))


def _tag(step: int) -> str:
    return f"step-{step:06d}"
