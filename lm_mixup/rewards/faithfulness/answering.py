"""Answering: a distilled prompt must ask for what its answer tells, and the answer tell what it asks.

Each part of the answer is matched with the sources that it comes from, and those sources' questions with the
distilled prompt. Only words that tell the sources apart count: what all of them ask (the same entity, "write
about") matches everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from lm_mixup.core.words import sentences
from lm_mixup.rewards.faithfulness.facts import Reading, read, stem
from lm_mixup.rewards.faithfulness.sources import SourceReading
from lm_mixup.rewards.faithfulness.support import is_close

_ASKED: Final = 0.34
_UNASKED: Final = 0.15
_TYPED: Final = 0.75


def answering(
    prompt: Reading, completion: Reading, sources: Sequence[SourceReading]
) -> tuple[float, list[tuple[int, int]]]:
    """How well a prompt and its answer fit each other, in [0, 1], and the parts of the answer not asked for.

    The score is the product of the share of the answer that is asked for and the share of what is asked that
    is answered. It is 1 where the sources' questions do not differ, or the prompt names none of what tells
    them apart: then nothing is known.
    """
    fits = question_fits(prompt, sources)
    if max(fits, default=0.0) < _ASKED:
        return 1.0, []
    parts = _parts(completion)
    unasked: list[tuple[int, int]] = []
    weight = unasked_weight = 0
    answered: set[int] = set()
    profiles = [_terms(source.told) for source in sources]
    spread = Counter(term for profile in profiles for term in profile)
    for start, end, terms in parts:
        owners = _owners(terms, profiles, spread)
        if not owners:
            continue
        answered |= owners
        weight += len(terms)
        if all(fits[owner] < _UNASKED for owner in owners):
            unasked.append((start, end))
            unasked_weight += len(terms)
    wanted = [number for number, fit in enumerate(fits) if fit >= _ASKED and profiles[number]]
    told = {term for _, _, terms in parts for term in terms}
    met = sum(number in answered or bool(profiles[number] & told) for number in wanted)
    asked_share = 1 - unasked_weight / weight if weight else 1.0
    met_share = met / len(wanted) if wanted else 1.0
    return asked_share * met_share, unasked


def question_fits(prompt: Reading, sources: Sequence[SourceReading]) -> list[float]:
    """For each source the share of the words that set its question apart which the prompt holds, in [0, 1].

    Sources with no question of their own words fit as well as the best.
    """
    asked = [_terms(source.asked) for source in sources]
    known: set[str] = set().union(*asked)
    spread = Counter(term for terms in asked for term in terms)
    mine = _terms(prompt)
    new = mine - known  # a word that no source asks with may be what one of them asks for, misspelt
    fits: list[float | None] = []
    for terms in asked:
        weights = {term: 1 / spread[term] for term in terms if spread[term] < len(sources)}
        total = sum(weights.values())
        met = (
            w
            for term, w in weights.items()
            if is_close(term, mine) or get_close_matches(term, new, 1, _TYPED)
        )
        fits.append(sum(met) / total if total else None)
    best = max((fit for fit in fits if fit is not None), default=0.0)
    return [best if fit is None else fit for fit in fits]


def _terms(reading: Reading) -> set[str]:
    facts = {
        stem(f.key) if f.kind == "name" else f.key for f in reading.facts if f.kind not in ("quoted", "unit")
    }
    return {w.stem for w in reading.words} | facts


def _parts(completion: Reading) -> list[tuple[int, int, set[str]]]:
    """The sentences of an answer; a single one is taken clause by clause."""
    places = sentences(completion.text)
    if len(places) < 2:
        places = [(start, end) for start, end, _ in completion.clauses]
    parts = []
    for start, end in places:
        terms = _terms(read(completion.text[start:end]))
        if terms:
            parts.append((start, end, terms))
    return parts


def _owners(terms: set[str], profiles: Sequence[set[str]], spread: Counter[str]) -> set[int]:
    """The sources that a part comes from: those that hold most of its rare terms."""
    weights = [sum(1 / spread[term] for term in terms & profile) for profile in profiles]
    best = max(weights, default=0.0)
    if best <= 0:
        return set()
    return {number for number, weight in enumerate(weights) if weight >= 0.75 * best}
