"""Which pieces of a text each of its poor variants keeps: together all, in an order that they tell."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

_TRIES: Final = 12
_STRAY: Final = 0.25  # chance that a piece goes to another variant than the next in order
_OVERLAP: Final = 0.3  # chance that a variant also keeps a piece that another brings


def merge_order(variants: Sequence[Sequence[int]]) -> list[int]:
    """The pieces of all variants in the order in which a reader puts them together.

    The first variant's come first; what another adds stands behind the piece that it follows there, in front
    of the one that it precedes, or at the end.
    """
    merged: list[int] = []
    for variant in variants:
        for place, piece in enumerate(variant):
            if piece in merged:
                continue
            before = next((p for p in reversed(variant[:place]) if p in merged), None)
            after = next((p for p in variant[place + 1 :] if p in merged), None)
            if before is not None:
                merged.insert(merged.index(before) + 1, piece)
            elif after is not None:
                merged.insert(merged.index(after), piece)
            else:
                merged.append(piece)
    return merged


def deal_pieces(pieces: int, variants: int, rng: Random) -> list[list[int]]:
    """Deals pieces 0 … `pieces` − 1 out to variants, each an ascending list.

    Every piece is in a variant, no variant is empty, and `merge_order` gives the pieces in their own order.
    With at least two pieces, none of the first `min(pieces, variants)` variants to bring something new holds
    them all. Where there are fewer pieces than variants, some bring nothing new.

    Args:
        pieces: At least 1.
        variants: At least 1.
        rng: Makes all choices.
    """
    for _ in range(_TRIES):
        dealt = _draw(pieces, variants, rng)
        if merge_order(dealt) == list(range(pieces)):
            return dealt
    return _in_blocks(pieces, variants, rng)


def _draw(pieces: int, variants: int, rng: Random) -> list[list[int]]:
    bringing = min(pieces, variants)
    bounds = sorted(rng.sample(range(1, pieces), bringing - 1))
    chosen: list[set[int]] = [set() for _ in range(variants)]
    home = 0
    for piece in range(pieces):
        home += piece in bounds
        owner = rng.randrange(bringing) if rng.random() < _STRAY else home
        chosen[owner].add(piece)
        for other in range(bringing):
            if rng.random() < _OVERLAP:
                chosen[other].add(piece)
    for owner in range(variants):
        if owner >= bringing or not chosen[owner]:
            chosen[owner] = set(rng.sample(range(pieces), rng.randint(1, max(1, pieces // 2))))
    for owner in range(variants):
        while len(chosen[owner]) == pieces > 1:
            others = set().union(*(kept for kept in chosen if kept is not chosen[owner]))
            spare = sorted(chosen[owner] & others)
            if not spare:
                break
            chosen[owner].discard(rng.choice(spare))
    return [sorted(kept) for kept in chosen]


def _in_blocks(pieces: int, variants: int, rng: Random) -> list[list[int]]:
    """Consecutive runs, each also keeping the last piece of the run before it now and then."""
    bringing = min(pieces, variants)
    bounds = [0, *sorted(rng.sample(range(1, pieces), bringing - 1)), pieces]
    dealt = [list(range(bounds[i], bounds[i + 1])) for i in range(bringing)]
    for number in range(1, bringing):
        if rng.random() < _OVERLAP and len(dealt[number]) + 1 < pieces:
            dealt[number].insert(0, bounds[number] - 1)
    dealt += [[rng.randrange(pieces)] for _ in range(variants - bringing)]
    return dealt
