"""The metrics of a GRPO step, by the names other trainers use, and the file they are appended to."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lm_mixup.grpo.scored_batch import Batch
from lm_mixup.grpo.types import Group

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


Metrics = Sequence[Mapping[str, Any]]


WINDOW = 5  # steps that are averaged: single steps are noisy


FEWEST_STEPS = 2 * WINDOW


def raised(lines: Metrics, synchronous: bool) -> dict[str, str]:
    """The alarms that begin at the last step.

    Args:
        lines: The metrics of every step, oldest first.
        synchronous: Whether rollouts use the current weights: engine and learner must then agree closely.

    Returns:
        Name → what is seen, what it may mean, what to do.
    """
    before = set(_holding(lines[:-1], synchronous))
    return {name: text for name, text in _holding(lines, synchronous).items() if name not in before}


def history(lines: Metrics, synchronous: bool) -> list[tuple[int, str]]:
    """Every alarm of a run: the step where it began, and its text."""
    found = []
    for step in range(FEWEST_STEPS, len(lines) + 1):
        texts = raised(lines[:step], synchronous)
        found += [(int(lines[step - 1]["step"]), text) for text in texts.values()]
    return found


def _holding(lines: Metrics, synchronous: bool) -> dict[str, str]:
    if len(lines) < FEWEST_STEPS:
        return {}
    first, last = _means(lines[:WINDOW]), _means(lines[-WINDOW:])
    found = {name: check(first, last) for name, check in _CHECKS.items()}
    if not synchronous:
        found.pop("logp_mismatch")
    return {name: text for name, text in found.items() if text}


def _means(lines: Metrics) -> Mapping[str, float]:
    """Means over steps; a value that a step lacks (no group with a signal) does not count.

    A metric that no step has is nan, with which no comparison holds: it raises no alarm.
    """
    means: defaultdict[str, float] = defaultdict(lambda: math.nan)
    for key in {key for line in lines for key in line}:
        values = [line[key] for line in lines if isinstance(line.get(key), int | float)]
        if values:
            means[key] = float(np.mean(values))
    return means


def _mode_collapse(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    entropy, start = last["entropy"], first["entropy"]
    duplicates = last["completions/duplicate_ratio"]
    if entropy < 0.2 * start and duplicates >= 0.5:  # of two completions, half is all that may be copies
        return (
            f"entropy fell from {start:.3g} to {entropy:.3g} and {duplicates:.0%} of completions are copies: "
            "the policy has collapsed to one answer; lower grpo.learning_rate or raise grpo.beta"
        )
    return ""


def _semantic_drift(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    alignment = last["rewards/alignment/mean"] - first["rewards/alignment/mean"]
    quality = last["rewards/quality/mean"] - first["rewards/quality/mean"]
    if alignment < -0.1 and quality > 0.1:
        return (
            f"quality rose by {quality:.2f} while alignment fell by {-alignment:.2f}: answers please the "
            "library and leave their inputs; raise rewards.weights.alignment or grpo.beta"
        )
    return ""


def _length_blow_up(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    start, length = first["completions/mean_length"], last["completions/mean_length"]
    clipped = last["completions/clipped_ratio"]
    if length > 1.5 * start and clipped > 0.2:
        return (
            f"completions grew from {start:.0f} to {length:.0f} tokens and {clipped:.0%} are cut off: raise "
            "grpo.max_completion_length, or use grpo.loss dr_grpo, which does not favour length"
        )
    return ""


def _logp_mismatch(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    difference = last["sampling/logp_difference/mean"]
    if difference > 0.05:
        return (
            f"engine and learner differ by {difference:.2f} nats a token: gradients are off-policy; use the "
            "same model.dtype on both sides or grpo.importance_correction: sequence"
        )
    return ""


def _no_signal(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    silent = last["frac_reward_zero_std"]
    if silent > 0.8:
        return (
            f"{silent:.0%} of the groups have equal rewards and teach nothing: raise grpo.num_generations or "
            "grpo.temperature, or stop, if the reward is as high as it gets"
        )
    return ""


_CHECKS: dict[str, Callable[[Mapping[str, float], Mapping[str, float]], str]] = {
    "mode_collapse": _mode_collapse,
    "semantic_drift": _semantic_drift,
    "length_blow_up": _length_blow_up,
    "logp_mismatch": _logp_mismatch,
    "no_signal": _no_signal,
}
