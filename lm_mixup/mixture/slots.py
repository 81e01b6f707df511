"""The plan of a sample's poor variants: what each tells, and what is poor about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import pyarrow as pa

from lm_mixup.backends.wording import Claim
from lm_mixup.config import BuildConfig
from lm_mixup.mixture.samples import CLAIMS
from lm_mixup.records import INSTRUCTION, RATING, extend
from lm_mixup.tasks import Mcq, parse_answer
from lm_mixup.world.poor import Fault, Options

SCHEMA = extend(
    INSTRUCTION,
    RATING,
    pa.schema([(name, pa.string()) for name in ("answer", "target_id", "entity", "split")]),
    pa.schema([("position", pa.int16())]),
    CLAIMS,
)
_TELLING: tuple[Fault, ...] = ("incomplete", "incomplete", "register", "redundant")


@dataclass(frozen=True)
class Slot:
    """A variant to be written: what it tells and what is poor about it.

    Attributes:
        position: Its place among the variants of its target, in the order in which the target tells its
            facts.
        claims: What it tells; none for a vague one.
        fault: What is poor about it.
        options: The target's options, where it asks the target's question.
    """

    position: int
    claims: tuple[Claim, ...]
    fault: Fault
    options: Options | None = None


def slots(target: dict[str, Any], config: BuildConfig, seed: int) -> list[Slot]:
    """Plans the variants of a target: its claims are dealt out in order, the rest is vague or repeats.

    Args:
        target: A row of `generate`.
        config: Fewest and most variants.
        seed: With the target's id, makes the choices.
    """
    rng = Random(f"degrade/{seed}/{target['id']}")
    claims = claims_of(target)
    sample = parse_answer(target["task_type"], target["answer"])
    options = sample.options if isinstance(sample, Mcq) else None
    count = rng.randint(config.min_inputs, config.max_inputs)
    telling = min(count, len(claims))
    if count > 2 and telling == count and rng.random() < 0.3:
        telling -= 1
    planned = [
        Slot(0, group, rng.choice(_TELLING), options if options and group[0] == claims[0] else None)
        for group in _dealt(claims, telling, alone=options is not None)
    ]
    for _ in range(count - telling):
        planned.insert(rng.randint(0, len(planned)), _spare(claims, options is not None, rng))
    if options:  # the question stands anywhere among them
        planned.insert(rng.randrange(len(planned)), planned.pop(_asking(planned)))
    return [Slot(i, slot.claims, slot.fault, slot.options) for i, slot in enumerate(planned)]


def _asking(planned: Sequence[Slot]) -> int:
    return next(i for i, slot in enumerate(planned) if slot.options)


def _spare(claims: Sequence[Claim], closed: bool, rng: Random) -> Slot:
    """A variant that adds nothing: vague, or one more telling of a claim."""
    if rng.random() < 0.5:
        return Slot(0, (), "vague")
    return Slot(0, (rng.choice(claims[1:] if closed and claims[1:] else claims),), "redundant")


def _dealt(claims: Sequence[Claim], groups: int, alone: bool) -> list[tuple[Claim, ...]]:
    """Deals claims into groups of neighbours, as even as can be, none empty.

    Args:
        claims: At least as many as groups.
        groups: How many groups, at least one.
        alone: Whether the first claim is to have a group of its own, where there are two groups or more.
    """
    if alone and groups > 1:
        return [tuple(claims[:1]), *_dealt(claims[1:], groups - 1, alone=False)]
    cuts = [round(i * len(claims) / groups) for i in range(groups + 1)]
    return [tuple(claims[a:b]) for a, b in pairwise(cuts)]


def claims_of(row: dict[str, Any]) -> tuple[Claim, ...]:
    """The claims that a row's `attributes` and `values` list."""
    return tuple(map(Claim, row["attributes"], row["values"]))
