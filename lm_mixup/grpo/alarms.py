"""Alarms: what goes wrong in GRPO runs, said in plain words when it begins.

Each alarm is a condition on the metrics so far. It is raised at the first step where it holds and again only
after it has ceased to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

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
