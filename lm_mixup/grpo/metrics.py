"""The metrics of a GRPO step, by the names other trainers use, and the file they are appended to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lm_mixup.grpo.batch import Batch
from lm_mixup.grpo.rollout_actor import Group
from lm_mixup.whole_file import write_whole

UPDATE_KEYS = (
    "kl",
    "entropy",
    "clip_ratio/region_mean",
    "loss",
    "grad_norm",
    "sampling/logp_difference/mean",
    "sampling/logp_difference/max",
    "sampling/importance_sampling_ratio/mean",
)


class Clock:
    """Seconds spent in the parts of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a part."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def metrics(self, *, rolled_out: int, learned: int) -> dict[str, float]:
        """`timing_s/…` of every part and of the step so far, and `tokens_per_second/…`.

        Args:
            rolled_out: Completion tokens that were sampled.
            learned: Prompt and completion tokens of the update.
        """
        total = time.perf_counter() - self._started
        times = {f"timing_s/{name}": round(s, 4) for name, s in (*self.seconds.items(), ("step", total))}
        return times | {
            "tokens_per_second/rollout": rolled_out / self.seconds["rollout"],
            "tokens_per_second/update": learned / self.seconds["update"],
        }


def rollout_metrics(first: Batch, more: Sequence[Batch], step: int) -> dict[str, float]:
    """What the rollouts of one step look like.

    Rewards are those of the step's own draw: refills stand in for groups without a signal and would bend the
    mean.

    Args:
        first: The step's own draw.
        more: Its refills.
        step: Counted from 1.
    """
    groups, scores = first.groups, first.scores
    completions = [c for group in groups for c in group.completions]
    staleness = [step - 1 - group.weight_version for group in groups]
    return {
        "reward": float(scores.total.mean()),
        "reward_std": float(scores.total.std(ddof=1)),
        **{f"rewards/{name}/mean": float(values.mean()) for name, values in scores.components.items()},
        "frac_reward_zero_std": float(first.silent.mean()),
        "refilled_groups": float(sum((~batch.silent).sum() for batch in more)),
        "completions/mean_length": float(np.mean([len(c.token_ids) for c in completions])),
        "completions/duplicate_ratio": float(np.mean([_duplicates(group) for group in groups])),
        "completions/clipped_ratio": float(np.mean([not c.finished for c in completions])),
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": float(max(staleness)),
    }


def update_metrics(update: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """What an update reports; `kl` comes from the batch where it was taken off the rewards."""
    reported = {key: update[key] for key in UPDATE_KEYS}
    if batch.kl is not None:
        reported["kl"] = float(batch.kl.sum() / rollout_tokens(batch)[1])
    return reported


def _duplicates(group: Group) -> float:
    """The share of a group's completions that repeat another of the group."""
    return 1 - len({tuple(c.token_ids) for c in group.completions}) / len(group.completions)


def rollout_tokens(*batches: Batch) -> tuple[int, int]:
    """Prompt tokens (counted for each completion) and completion tokens."""
    groups = [group for batch in batches for group in batch.groups]
    prompts = sum(len(g.prompt.token_ids) * len(g.completions) for g in groups)
    completions = sum(len(c.token_ids) for g in groups for c in g.completions)
    return prompts, completions


class MetricsLog:
    """An append-only JSONL file, a line a step."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Opens the log, dropping lines after `resume_step`: those steps are done again."""
        self._path = path
        self.lines = [line for line in read_metrics(path) if line["step"] <= resume_step]
        write_whole(path, "".join(_line(metrics) for metrics in self.lines))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends one step."""
        self.lines.append(dict(metrics))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(metrics))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            lines.append(json.loads(line))
    return lines


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(dict(metrics), allow_nan=False) + "\n"
