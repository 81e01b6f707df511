"""Cross-topic synthesis: two close samples of a task type become one target about both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lm_mixup.config import BuildConfig
from lm_mixup.core.claims import Claim, claims_of, is_from_chat_model
from lm_mixup.core.task_types import Mcq, parse_answer
from lm_mixup.demo.facts import entities_by_name
from lm_mixup.demo.offline_teacher import Draft, merge_samples

Row = dict[str, Any]
_WINDOW = 24
_MOST_CLAIMS = 2


@dataclass(frozen=True)
class Bundle:
    """A target and its poor variants, in order."""

    target: Row
    variants: list[Row]


@dataclass(frozen=True)
class Merged:
    """A target made of two, and the variants that hold its facts."""

    draft: Draft
    first: Row
    second: Row
    variants: list[Row]


def pair_up(bundles: Sequence[Bundle], count: int, rng: Random) -> list[tuple[int, int]]:
    """Pairs targets of the closed world that may be merged: same split, task type and topic, another entity.

    Nearness is the number of attributes that both speak of: each target takes the nearest of the next few
    free ones in random order.

    Returns:
        Pairs of positions in `bundles`; no target is in two.
    """
    # Only the facts of the closed world have sentence templates that can be combined.
    drawn = rng.sample(range(len(bundles)), len(bundles))
    order = [index for index in drawn if not is_from_chat_model(bundles[index].target)]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in order:
        target = bundles[index].target
        groups.setdefault((target["split"], target["task_type"], target["topic"]), []).append(index)
    group_of = {index: group for group in groups.values() for index in group}
    taken: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for index in order:
        if len(pairs) >= count:
            break
        if index in taken:
            continue
        partner = _nearest(index, group_of[index], taken, bundles)
        if partner is not None:
            taken |= {index, partner}
            pairs.append((index, partner))
    return pairs


def _nearest(index: int, group: Sequence[int], taken: Iterable[int], bundles: Sequence[Bundle]) -> int | None:
    target = bundles[index].target
    free = [
        other for other in group if other not in taken and bundles[other].target["entity"] != target["entity"]
    ]
    ours = set(target["attributes"])
    return max(
        free[:_WINDOW], key=lambda other: len(ours & set(bundles[other].target["attributes"])), default=None
    )


def merge(first: Bundle, second: Bundle, config: BuildConfig, rng: Random) -> Merged | None:
    """Merges two targets into one about both entities.

    The merged target states exactly the claims of the chosen variants, so nothing in it is invented.

    Args:
        first: The target that leads; a multiple-choice question asks what it asks.

    Returns:
        The merged target, or None if these two cannot be merged within the bounds.
    """
    sample = parse_answer(first.target["task_type"], first.target["answer"])
    closed = isinstance(sample, Mcq)
    share = config.max_inputs // 2
    asked = claims_of(first.target)[:1] if closed else ()
    ours = _select_variants(first.variants, share, asked)
    theirs = _select_variants(
        [v for v in second.variants if not (closed and _asks(v, second.target))], share, ()
    )
    spare = [v for v in (*first.variants, *second.variants) if not v["attributes"]]
    variants = [*ours, *theirs]
    variants += spare[: max(0, config.min_inputs - len(variants))]
    if not ours or not theirs or len(variants) < config.min_inputs:
        return None
    draft = merge_samples(
        sample,
        (entities_by_name()[first.target["entity"]], _claims(ours, asked)),
        (entities_by_name()[second.target["entity"]], _claims(theirs, ())),
        rng,
        held_out=first.target["split"] == "test",
    )
    return Merged(draft, first.target, second.target, variants) if draft else None


def _asks(variant: Row, target: Row) -> bool:
    """Whether a multiple-choice variant asks the target's question."""
    return variant["attributes"][:1] == target["attributes"][:1]


def _select_variants(variants: Sequence[Row], most: int, asked: Sequence[Claim]) -> list[Row]:
    """The first variants with a new claim, up to `_MOST_CLAIMS` claims; `asked` must be among them.

    Two variants ask it where they share the options out: then both are needed.
    """
    first = [v for v in variants if asked and claims_of(v)[:1] == tuple(asked)]
    chosen: list[Row] = []
    stated: set[Claim] = set()
    for variant in [*first, *(v for v in variants if v not in first)]:
        claims = set(claims_of(variant))
        if (
            (variant in first or claims - stated)
            and len(claims | stated) <= _MOST_CLAIMS
            and len(chosen) < most
        ):
            chosen.append(variant)
            stated |= claims
    return chosen if not asked or (first and chosen[: len(first)] == first) else []


def _claims(variants: Sequence[Row], asked: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims of the variants in order, what is asked first."""
    return tuple(dict.fromkeys([*asked, *(claim for variant in variants for claim in claims_of(variant))]))
