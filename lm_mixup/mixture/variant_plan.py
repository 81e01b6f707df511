"""The plan of a sample's poor variants: what each tells, and what is poor about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any

import pyarrow as pa

from lm_mixup.config import BuildConfig
from lm_mixup.core.claims import OPTIONS, Claim, claims_of
from lm_mixup.core.schemas import INSTRUCTION, RATING, extend
from lm_mixup.core.task_types import LETTERS, Fault, Mcq, parse_answer
from lm_mixup.mixture.schemas import CLAIMS

SCHEMA = extend(
    INSTRUCTION,
    RATING,
    pa.schema([(name, pa.string()) for name in ("answer", "target_id", "entity", "split")]),
    pa.schema([("position", pa.int16())]),
    CLAIMS,
)
Options = tuple[str, str, str, str]
_TELLING: tuple[Fault, ...] = ("incomplete", "incomplete", "register", "redundant")


@dataclass(frozen=True)
class VariantPlan:
    """A variant to be written: what it tells and what is poor about it.

    Attributes:
        position: Its place among the variants of its target, in the order in which the target tells its
            facts.
        claims: What it tells; none for a vague one.
        fault: What is poor about it.
        options: The target's options, where it asks the target's question.
        shown: Those of them that it shows; none: all.
    """

    position: int
    claims: tuple[Claim, ...]
    fault: Fault
    options: Options | None = None
    shown: tuple[str, ...] = ()


def plan_variants(target: dict[str, Any], config: BuildConfig, seed: int) -> list[VariantPlan]:
    """Plans the variants of a target: its claims are shared out in order, the rest is vague or repeats.

    Args:
        target: A row of `generate`.
        config: Fewest and most variants.
        seed: With the target's id, makes the choices.
    """
    rng = Random(f"degrade/{seed}/{target['id']}")
    claims = claims_of(target)
    sample = parse_answer(target["task_type"], target["answer"])
    options = sample.options if isinstance(sample, Mcq) else None
    right = sample.options[LETTERS.index(sample.answer)] if isinstance(sample, Mcq) else ""
    count = _count(config, rng)
    head = _asked(claims) if options else 0
    telling = min(count, len(claims) - max(0, head - 1))
    if count > 2 and telling == count and rng.random() < 0.3:
        telling -= 1
    divided = options is not None and count > 1 and _divides(config, rng)
    if divided:
        telling = min(telling, count - 1)
    plans = [
        VariantPlan(0, group, _fault(config, rng), options if options and group[0] == claims[0] else None)
        for group in _in_groups(claims, telling, head)
    ]
    if options:
        plans[:1] = _asking(plans[0], options, right, head, rng) if divided else [plans[0]]
    for _ in range(count - len(plans)):
        plans.insert(rng.randint(0, len(plans)), _spare(claims[head:] or claims, rng))
    if options:  # the question stands anywhere among them
        at = next(place for place, plan in enumerate(plans) if plan.options)
        plans.insert(rng.randrange(len(plans)), plans.pop(at))
    return [replace(plan, position=place) for place, plan in enumerate(plans)]


def _count(config: BuildConfig, rng: Random) -> int:
    """How many variants a target gets."""
    if config.size_mix is None:
        return rng.randint(config.min_inputs, config.max_inputs)
    return rng.choices(list(config.size_mix), list(config.size_mix.values()))[0]


def _fault(config: BuildConfig, rng: Random) -> Fault:
    """What is poor about a variant that tells something."""
    if config.fault_mix is None:
        return rng.choice(_TELLING)
    mix = {fault: share for fault, share in config.fault_mix.items() if fault != "options"}
    return rng.choices(list(mix), list(mix.values()))[0]


def _divides(config: BuildConfig, rng: Random) -> bool:
    """Whether the options of a question are split between two variants."""
    mix = config.fault_mix or {}
    return mix.get("options", 0) > 0 and rng.random() < mix["options"] / sum(mix.values())


def _asked(claims: Sequence[Claim]) -> int:
    """How many claims the question of a multiple-choice sample stands for: its options, or what it asks."""
    return max(1, sum(claim.attribute == OPTIONS for claim in claims))


def _asking(plan: VariantPlan, options: Options, right: str, head: int, rng: Random) -> list[VariantPlan]:
    """Two variants that ask the question and share its wrong options out; both show the right one."""
    wrong = [option for option in options if option != right]
    given = set(rng.sample(wrong, rng.randint(1, 2)))
    first = tuple(option for option in options if option == right or option in given)
    second = tuple(option for option in options if option not in given)
    asked, rest = plan.claims[:head], plan.claims[head:]
    return [
        replace(plan, claims=(*_asks_for(asked, first), *rest), fault="options", shown=first),
        replace(plan, claims=_asks_for(asked, second), fault="options", shown=second),
    ]


def _asks_for(asked: Sequence[Claim], shown: Sequence[str]) -> tuple[Claim, ...]:
    """What a variant with some of the options tells: those, or what is asked."""
    return tuple(claim for claim in asked if claim.attribute != OPTIONS or claim.value in shown)


def _spare(claims: Sequence[Claim], rng: Random) -> VariantPlan:
    """A variant that adds nothing: vague, or one more telling of a claim."""
    if rng.random() < 0.5:
        return VariantPlan(0, (), "vague")
    return VariantPlan(0, (rng.choice(claims),), "redundant")


def _in_groups(claims: Sequence[Claim], groups: int, head: int) -> list[tuple[Claim, ...]]:
    """Splits claims into groups of neighbours, as even as can be, none empty.

    Args:
        claims: At least as many as groups, those of the head taken as one.
        groups: How many groups, at least one.
        head: How many of the first claims are to have a group of their own, where there are two groups or
            more.
    """
    if head and groups > 1:
        return [tuple(claims[:head]), *_in_groups(claims[head:], groups - 1, 0)]
    cuts = [round(i * len(claims) / groups) for i in range(groups + 1)]
    return [tuple(claims[a:b]) for a, b in pairwise(cuts)]
