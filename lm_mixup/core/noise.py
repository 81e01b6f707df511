"""Surface noise: typing errors, outside protected words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import regex

WORD_RATE: Final = 0.15
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_DROPPABLE = frozenset(
    ("a", "an", "the", "of", "is", "it", "on", "to", "in", "about", "as", "so", "and", "its", "at", "has")
)  # fmt: skip
_KEPT = frozenset(("true", "false", "yes", "no", "not", "none", "neither"))
_MARKS = re.compile(r"^[A-Z][a-z]*:|\b[A-D]\)", re.MULTILINE)
_WORD = regex.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def add_noise(text: str, protected: Sequence[str], rng: Random, rate: float = WORD_RATE) -> str:
    """Makes typing errors: wrong, swapped, missing and doubled letters, letter case, spaces, lost words.

    Args:
        protected: Texts such as names and values that stay as they are wherever they stand as whole words. So
            do numbers, option letters, tags of a line such as `Q:`, and words that turn a meaning round.
        rate: Share of the other words that are hit.
    """
    held = _held_spans(text, protected)
    pieces: list[str] = []
    end = 0
    for found in _WORD.finditer(text):
        pieces.append(text[end : found.start()])
        word, end = found.group(), found.end()
        free = not any(start < found.end() and found.start() < stop for start, stop in held)
        if free and word.lower() not in _KEPT and rng.random() < rate:
            word = rng.choice(_ERRORS)(word, rng)
        pieces.append(word)
    return "".join([*pieces, text[end:]])


def _held_spans(text: str, protected: Sequence[str]) -> list[tuple[int, int]]:
    """Where protected texts stand as whole words, and the marks of options and lines."""
    spans = [found.span() for found in _MARKS.finditer(text)]
    for held in set(protected) - {""}:
        start = text.find(held)
        while start >= 0:
            stop = start + len(held)
            if not text[max(0, start - 1) : start].isalnum() and not text[stop : stop + 1].isalnum():
                spans.append((start, stop))
            start = text.find(held, start + 1)
    return spans


def _wrong_letter(word: str, rng: Random) -> str:
    at = rng.randrange(len(word))
    return word[:at] + _neighbour(word[at], rng) + word[at + 1 :]


def _neighbour(letter: str, rng: Random) -> str:
    """A key beside the letter's on a QWERTY keyboard; other letters stay."""
    for row in _ROWS:
        if (at := row.find(letter.lower())) >= 0:
            near = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
            chosen = rng.choice(near)
            return chosen.upper() if letter.isupper() else chosen
    return letter


def _swapped(word: str, rng: Random) -> str:
    if len(word) < 2:
        return word
    at = rng.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _missing(word: str, rng: Random) -> str:
    at = rng.randrange(len(word))
    return word[:at] + word[at + 1 :] if len(word) > 2 else word


def _doubled(word: str, rng: Random) -> str:
    at = rng.randrange(len(word))
    return word[: at + 1] + word[at:]


def _case(word: str, rng: Random) -> str:
    return rng.choice((word.lower(), word.upper(), word.swapcase()))


def _spaced(word: str, rng: Random) -> str:
    return rng.choice((f"{word} ", f" {word}"))


def _lost(word: str, rng: Random) -> str:
    """Loses a word that a reader can do without; another word loses a letter."""
    return "" if word.lower() in _DROPPABLE else _missing(word, rng)


_ERRORS: tuple[Callable[[str, Random], str], ...] = (
    _wrong_letter,
    _swapped,
    _missing,
    _doubled,
    _case,
    _spaced,
    _lost,
)
