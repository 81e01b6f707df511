"""Splits long texts into passages at sentence borders."""

from __future__ import annotations

from bisect import bisect_left
from math import ceil

import regex

from lm_mixup.core.words import comparable, tokens
from lm_mixup.core.words import sentences as places_of

_LETTERS = 8  # of a word at most: what holds longer runs counts as several
_HANGING = regex.compile(r"[\p{M}\p{Cf}\p{Default_Ignorable_Code_Point}]")


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped. A paragraph's end is a border too, a line's end is none."""
    return [text[start:end] for start, end in places_of(text, wrapped=True)]


def words(text: str) -> int:
    """Number of words: two characters make one in scripts without spaces; at least one per eight letters."""
    bare = comparable(text)
    kinds = [token.kind for token in tokens(bare)]
    single = kinds.count("unspaced")
    return max(len(kinds) - single + ceil(single / 2), len(bare) // _LETTERS)


def segment(text: str, most: int) -> list[str]:
    """Splits a text at sentence borders into pieces of similar length and at most `most` words.

    A longer sentence is split between words, or between letters where it has no spaces.
    """
    if words(text) <= most:
        return [text.strip()] if text.strip() else []
    units = [piece for sentence in sentences(text) for piece in _cut(sentence, most)]
    goal = words(text) / -(-words(text) // most)
    pieces: list[list[str]] = []
    length = 0
    for unit in units:
        size = words(unit)
        # Close the piece where that is nearer to the target length than adding the unit.
        if not pieces or words(" ".join([*pieces[-1], unit])) > most or length + size / 2 > goal:
            pieces.append([])
            length = 0
        pieces[-1].append(unit)
        length += size
    return [" ".join(piece) for piece in pieces]


def _cut(sentence: str, most: int) -> list[str]:
    """A sentence in pieces of at most `most` words."""
    pieces: list[str] = []
    rest = " ".join(sentence.split())
    start = 0
    while start < len(rest):
        end = _reach(rest, start, most)
        if end < len(rest):
            space = rest.rfind(" ", start + 1, end + 1)
            if space > 0:
                end = space
            else:
                whole = end
                while whole > start and _HANGING.match(rest[whole]):
                    whole -= 1
                end = whole if whole > start else end
        pieces.append(rest[start:end].strip())
        start = end
    return [piece for piece in pieces if piece]


def _reach(text: str, start: int, most: int) -> int:
    """How far from `start` a text has `most` words, and one character at least."""
    size = most * _LETTERS
    while start + size < len(text) and words(text[start : start + size]) <= most:
        size *= 2
    lengths = range(1, min(size, len(text) - start) + 1)
    return start + max(1, bisect_left(lengths, most + 1, key=lambda n: words(text[start : start + n])))
