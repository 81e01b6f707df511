"""Which prompts a step draws, with which seeds and learning rate: stateless functions of (seed, step)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from lm_mixup.config import GrpoConfig

P = TypeVar("P")


def prompts_of_step(prompts: Sequence[P], step: int, count: int, seed: int) -> list[P]:
    """The prompts of a step, counted from 1: epoch after epoch, each shuffled anew, none skipped or repeated.

    `count` may exceed the number of prompts.
    """
    total = len(prompts)
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for position in range((step - 1) * count, step * count):
        epoch, offset = divmod(position, total)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(total)
        chosen.append(prompts[orders[epoch][offset]])
    return chosen


def refill_prompts(prompts: Sequence[P], step: int, draw: int, count: int, seed: int) -> list[P]:
    """Prompts drawn at random in place of a step's zero-std groups, outside the order of the epochs.

    Args:
        prompts: All prompts.
        step: Counted from 1.
        draw: Which refill of the step, counted from 1.
        count: How many; at most all prompts are returned, none twice.
        seed: The run's seed.
    """
    generator = np.random.default_rng([seed, step, draw])
    chosen = generator.choice(len(prompts), min(count, len(prompts)), replace=False)
    return [prompts[index] for index in chosen]


def refills_allowed(config: GrpoConfig) -> bool:
    """Whether other prompts may be drawn in place of zero-std groups."""
    return config.drop_zero_std and config.max_refills > 0


def steps_ahead(config: GrpoConfig, step: int, buffered: int) -> range:
    """The later steps whose rollouts start during this step: none except in `async` mode.

    Args:
        config: The `grpo` section.
        step: The current step.
        buffered: Steps whose rollouts are already there, the current step included.
    """
    last = step + (config.max_staleness if config.mode == "async" else 0)
    return range(step + max(1, buffered), min(last, config.max_steps) + 1)


def prompt_seeds(prompts: Sequence, step: int, seed: int, draw: int = 0) -> list[int]:
    """A sampling seed per prompt, from (seed, step, position in the draw, prompt id, refill)."""
    seeds = []
    for place, prompt in enumerate(prompts):
        key = f"{seed}:{step}:{place}:{prompt.id}" + (f":{draw}" if draw else "")
        digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
        seeds.append(int.from_bytes(digest, "little") >> 1)
    return seeds


def learning_rate(step: int, config: GrpoConfig) -> float:
    """The learning rate of a step, counted from 1: linear warm-up, then `lr_scheduler`.

    `linear` and `cosine` decay to 0 over the steps after the warm-up; the last step is the one before 0.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - 1 - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    match config.lr_scheduler:
        case "linear":
            return config.learning_rate * (1 - done)
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
        case "constant":
            return config.learning_rate
