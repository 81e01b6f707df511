"""The metrics of a GRPO step, under the names other trainers use, and the alarms raised from them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lm_mixup.grpo.scored_batch import ScoredBatch
from lm_mixup.grpo.types import Episode

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

    def metrics(self, *, rollout_tokens: int, update_tokens: int) -> dict[str, float]:
        """`timing_s/…` of every part and of the step so far, and `tokens_per_second/…`.

        Args:
            rollout_tokens: Sampled completion tokens.
            update_tokens: Prompt and completion tokens of the update.
        """
        total = time.perf_counter() - self._started
        times = {f"timing_s/{name}": round(s, 4) for name, s in (*self.seconds.items(), ("step", total))}
        return times | {
            "tokens_per_second/rollout": rollout_tokens / self.seconds["rollout"],
            "tokens_per_second/update": update_tokens / self.seconds["update"],
        }


def step_metrics(
    step: int,
    first: ScoredBatch,
    refills: Sequence[ScoredBatch],
    batch: ScoredBatch,
    update: Mapping[str, Any] | None,
    episodes: Sequence[Episode],
    clock: Clock,
) -> dict[str, Any]:
    """The metrics of one step.

    Args:
        step: Counted from 1.
        first: The step's own draw.
        refills: Groups drawn in place of zero-std ones.
        batch: What the learner trained on.
        update: What the learner reports; None if there was no episode to train on.
        episodes: The episodes of the update.
        clock: Seconds of each part.
    """
    return {
        "step": step,
        **rollout_metrics(first, refills, step),
        **update_metrics(update, batch),
        **clock.metrics(
            rollout_tokens=rollout_tokens(first, *refills)[1],
            update_tokens=sum(episode.length for episode in episodes),
        ),
    }


def rollout_metrics(first: ScoredBatch, refills: Sequence[ScoredBatch], step: int) -> dict[str, float]:
    """Metrics of the rollouts of one step, counted from 1.

    Rewards are those of the step's own draw: refills replace zero-std groups and would bias the mean.
    """
    groups, scores = first.groups, first.scores
    completions = [c for group in groups for c in group.completions]
    staleness = [step - 1 - group.weight_version for group in groups]
    # The share of a group's completions that repeat another one of the group.
    duplicates = [1 - len({tuple(c.token_ids) for c in g.completions}) / len(g.completions) for g in groups]
    return {
        "reward": float(scores.reported.mean()),
        "reward_std": float(scores.reported.std(ddof=1)),
        **{f"rewards/{name}/mean": float(values.mean()) for name, values in scores.components.items()},
        "frac_reward_zero_std": float(first.zero_std.mean()),
        "refilled_groups": float(sum((~batch.zero_std).sum() for batch in refills)),
        "completions/mean_length": float(np.mean([len(c.token_ids) for c in completions])),
        "completions/duplicate_ratio": float(np.mean(duplicates)),
        "completions/clipped_ratio": float(np.mean([not c.finished for c in completions])),
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": float(max(staleness)),
    }


def update_metrics(update: Mapping[str, Any] | None, batch: ScoredBatch) -> dict[str, Any]:
    """Metrics of an update, None each without one; `kl` is the batch's if it was subtracted from rewards."""
    reported = {key: None if update is None else update[key] for key in UPDATE_KEYS}
    if batch.kl is not None:
        reported["kl"] = float(batch.kl.sum() / rollout_tokens(batch)[1])
    return reported


def rollout_tokens(*batches: ScoredBatch) -> tuple[int, int]:
    """Prompt tokens (counted once per completion) and completion tokens."""
    groups = [group for batch in batches for group in batch.groups]
    prompts = sum(len(g.prompt.token_ids) * len(g.completions) for g in groups)
    completions = sum(len(c.token_ids) for g in groups for c in g.completions)
    return prompts, completions


Metrics = Sequence[Mapping[str, Any]]

WINDOW = 5  # steps averaged: single steps are noisy


def new_alarms(lines: Metrics, synchronous: bool) -> dict[str, str]:
    """The alarms that start at the last step.

    Args:
        lines: The metrics of every step, oldest first.
        synchronous: Whether rollouts use the current weights: engine and learner must then agree closely.

    Returns:
        Name → what was observed, its likely cause, what to do.
    """
    before = set(_active_alarms(lines[:-1], synchronous))
    return {name: text for name, text in _active_alarms(lines, synchronous).items() if name not in before}


def alarm_history(lines: Metrics, synchronous: bool) -> list[tuple[int, str]]:
    """Every alarm of a run: the step at which it started, and its text."""
    found = []
    for step in range(WINDOW, len(lines) + 1):
        texts = new_alarms(lines[:step], synchronous)
        found += [(int(lines[step - 1]["step"]), text) for text in texts.values()]
    return found


def _active_alarms(lines: Metrics, synchronous: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if len(lines) >= WINDOW:
        last = _means(lines[-WINDOW:])
        found = {name: check(last) for name, check in _OF_STATE.items()}
    if len(lines) >= 2 * WINDOW:
        first = _means(lines[:WINDOW])
        found |= {name: check(first, last) for name, check in _OF_TREND.items()}
    if not synchronous:
        found.pop("logp_mismatch", None)
    return {name: text for name, text in found.items() if text}


def _means(lines: Metrics) -> Mapping[str, float]:
    """Means over steps; a value missing from a step (nothing to train on) does not count.

    A metric that no step has is NaN, and every comparison with NaN is false: it raises no alarm.
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
    if entropy < 0.2 * start and duplicates >= 0.5:  # of two completions at most half can be copies
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
            f"quality rose by {quality:.2f} while alignment fell by {-alignment:.2f}: answers drift "
            "from their inputs towards the library; raise rewards.weights.alignment or grpo.beta"
        )
    return ""


def _length_blow_up(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    start, length = first["completions/mean_length"], last["completions/mean_length"]
    clipped = last["completions/clipped_ratio"]
    if length > 1.5 * start and clipped > 0.2:
        return (
            f"completions grew from {start:.0f} to {length:.0f} tokens and {clipped:.0%} are truncated: "
            "raise grpo.max_completion_length, or use grpo.loss dr_grpo, which does not favor length"
        )
    return ""


def _logp_mismatch(last: Mapping[str, float]) -> str:
    difference = last["sampling/logp_difference/mean"]
    if difference > 0.05:
        return (
            f"engine and learner differ by {difference:.2f} nats per token: gradients are off-policy; "
            "use the same model.dtype on both sides or grpo.importance_correction: sequence"
        )
    return ""


def _no_signal(last: Mapping[str, float]) -> str:
    zero_std = last["frac_reward_zero_std"]
    if zero_std > 0.8:
        return (
            f"{zero_std:.0%} of the groups have equal rewards and give no gradient: raise "
            "grpo.num_generations or grpo.temperature, or stop if the reward has reached its maximum"
        )
    return ""


# What the last steps alone show, and what they show against the first ones.
_OF_STATE: dict[str, Callable[[Mapping[str, float]], str]] = {
    "logp_mismatch": _logp_mismatch,
    "no_signal": _no_signal,
}
_OF_TREND: dict[str, Callable[[Mapping[str, float], Mapping[str, float]], str]] = {
    "mode_collapse": _mode_collapse,
    "semantic_drift": _semantic_drift,
    "length_blow_up": _length_blow_up,
}


def steps_without_update(lines: Metrics) -> int:
    """Steps in which no group had different rewards: the learner had nothing to train on."""
    return sum(line.get("loss") is None for line in lines)
