"""Polarity: negations that the sources do not hold, and those that were lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import regex

from lm_mixup.core.words import Token, tokens
from lm_mixup.rewards.faithfulness.facts import Reading, read, stem
from lm_mixup.rewards.faithfulness.lexicon import FUNCTION_WORDS, NEGATION_MARKS, NEGATIONS
from lm_mixup.rewards.faithfulness.sources import SourceReading

_MARKS: Final = regex.compile("|".join(sorted(NEGATION_MARKS, key=len, reverse=True)))
_NO_NEGATION: Final = regex.compile(
    r"(?i:\bnot (?:only|just|merely|to mention)\b|\bno\.\s?\d|\bwhether or not\b|\bif not\b|(?<!\w)\.no\b)"
    r"|(?<=[a-z] )No\b"  # the symbol, or part of a name
)
_REACH: Final = 4
_FIT: Final = 0.5


@dataclass(frozen=True)
class Negation:
    """A negation and the content words around it."""

    start: int
    end: int
    before: frozenset[str]
    after: frozenset[str]

    @property
    def around(self) -> frozenset[str]:
        """The words on both sides."""
        return self.before | self.after


def negations(text: str) -> list[Negation]:
    """The negations of a text, each with the nearest content words on both sides."""
    spared = [m.span() for m in _NO_NEGATION.finditer(text)]
    listed = list(tokens(text))
    found = []
    for index, token in enumerate(listed):
        is_word = token.kind == "word" and (token.key in NEGATIONS or token.key.endswith("n't"))
        if is_word and not any(a <= token.start < b for a, b in spared):
            found.append(Negation(token.start, token.end, *_around(listed, index)))
    place = {token.start: index for index, token in enumerate(listed)}
    for mark in _MARKS.finditer(text):
        if mark.start() in place:
            found.append(Negation(mark.start(), mark.end(), *_around(listed, place[mark.start()])))
    return [negation for negation in found if negation.around]  # alone it is an answer or a symbol


def _around(listed: Sequence[Token], index: int) -> tuple[frozenset[str], frozenset[str]]:
    def content(step: int) -> list[str]:
        words: list[str] = []
        at = index + step
        while 0 <= at < len(listed) and len(words) < _REACH:
            key = listed[at].key
            if key not in FUNCTION_WORDS and key not in NEGATIONS:
                words.append(stem(key))
            at += step
        return words

    return frozenset(content(-1)), frozenset(content(1))


def polarity_faults(output: Reading, sources: Sequence[SourceReading]) -> list[tuple[int, int]]:
    """The places of negations in an output that no source bears out, and of clauses that lost one.

    A negation is borne out by one in a source that has half of the words around it. A clause lost one where a
    source negates those words and no source says them without a negation.
    """
    told = [reading.text for source in sources for reading in (source.asked, source.told)]
    held = [negation for text in told for negation in negations(text)]
    mine = negations(output.text)
    faults = []
    for negation in mine:
        if not any(_fits(negation, other) for other in held):
            faults.append((negation.start, negation.end))
    faults += _lost(output, mine, held, told)
    return faults


def _fits(mine: Negation, other: Negation) -> bool:
    """Whether two negations deny the same: half of the words around agree, and some on each side."""
    common = len(mine.around & other.around)
    if common < _FIT * max(1, min(len(mine.around), len(other.around))):
        return False
    sides = ((mine.before, other.before), (mine.after, other.after))
    return all(a & b or not (a and b) for a, b in sides)


def _lost(
    output: Reading, mine: Sequence[Negation], held: Sequence[Negation], told: Sequence[str]
) -> list[tuple[int, int]]:
    """Clauses that state what a source negates and none states."""
    if not held:
        return []
    stated: list[set[str]] = []
    for text in told:
        reading = read(text)
        negated = [n.start for n in negations(text)]
        for number, (start, end, _) in enumerate(reading.clauses):
            if not any(start <= place < end for place in negated):
                stated.append(_all_words(reading, number))
    lost = []
    for number, (start, end, _) in enumerate(output.clauses):
        words = _all_words(output, number)
        if len(words) < 2 or any(start <= n.start < end for n in mine):
            continue
        for negation in held:
            if len(negation.around) < 3 or not negation.around <= words | _neighbours(output, number):
                continue
            if len(words & negation.around) >= 0.75 * len(words) and not any(
                len(words & other) >= 0.75 * len(words) for other in stated
            ):
                lost.append((start, end))
                break
    return lost


def _neighbours(reading: Reading, clause: int) -> set[str]:
    return {
        key
        for number in (clause - 1, clause + 1)
        if 0 <= number < len(reading.clauses)
        for key in _all_words(reading, number)
    }


def _all_words(reading: Reading, clause: int) -> set[str]:
    return reading.words_of(clause) | {stem(f.key) for f in reading.facts_of(clause) if f.kind == "name"}
