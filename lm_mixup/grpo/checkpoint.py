"""GRPO checkpoints: the learner's state, the run's progress, and the rollouts that ran ahead.

Prompts, seeds and the schedule are functions of (seed, step). So beside the step and the token count the
driver saves only what older weights produced: in `async` mode, the rollouts of later steps. The driver's own
file is written last; a checkpoint without it is incomplete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm_mixup.core.run_dir import StageDir
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.models.engine import Completion
from lm_mixup.train.remote_checkpoint import complete, drop_oldest, step_of

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


def save(out: StageDir, learner: Learner, progress: Progress, limit: int) -> None:
    """Writes a checkpoint, then removes all but the newest `limit`."""
    tag = _tag(progress.step)
    folder = f"{out.name}/checkpoints/{tag}"
    learner.save(out, tag)
    if progress.buffered:
        sink = pa.BufferOutputStream()
        write_groups(sink, progress.buffered)
        out.run.write_bytes(f"{folder}/{_BUFFERED}", sink.getvalue().to_pybytes())
    state = {"step": progress.step, "num_tokens": progress.num_tokens, "buffered": len(progress.buffered)}
    out.run.write_json(f"{folder}/{_STATE}", state)
    drop_oldest(out, _STATE, limit)


def load_latest(out: StageDir, learner: Learner) -> Progress:
    """Restores the newest complete checkpoint, or returns the initial progress if there is none."""
    step = newest_step(out)
    if not step:
        return Progress()
    folder = f"{out.name}/checkpoints/{_tag(step)}"
    learner.load(out, _tag(step))
    state = out.run.read_json(f"{folder}/{_STATE}")
    buffered: tuple[list[Group], ...] = ()
    if state["buffered"]:
        buffered = tuple(read_groups(pa.BufferReader(out.run.read_bytes(f"{folder}/{_BUFFERED}"))))
    return Progress(state["step"], state["num_tokens"], buffered)


def newest_step(out: StageDir) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    return max(map(step_of, complete(out, _STATE)), default=0)


def write_groups(target: Path | Any, buffered: Sequence[list[Group]]) -> None:
    """Writes the buffered rollouts as Parquet, one row per group, to a path or a stream of pyarrow."""
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
    pq.write_table(pa.Table.from_pylist(rows, schema=_GROUP), target)


def read_groups(source: Path | Any) -> list[list[Group]]:
    """Reads what `write_groups` wrote."""
    buffered: list[list[Group]] = []
    for row in pq.read_table(source).to_pylist():
        ahead, version, completions = (row.pop(key) for key in ("ahead", "weight_version", "completions"))
        if ahead == len(buffered):
            buffered.append([])
        for completion in completions:
            completion["logprobs"] = np.array(completion["logprobs"], dtype=np.float32)
        prompt = Prompt(**row | {key: tuple(row[key]) for key in ("entities", "inputs")})
        buffered[ahead].append(Group(prompt, [Completion(**c) for c in completions], version))
    return buffered


def _tag(step: int) -> str:
    return f"step-{step:06d}"
