"""Surface noise: what hasty typing does to a text, leaving protected words whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

WORD_RATE: Final = 0.15
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_DROPPABLE = frozenset(
    ("a", "an", "the", "of", "is", "it", "on", "to", "in", "about", "as", "so", "and", "its", "at", "has", "me")
)
_KEPT = frozenset(("true", "false", "yes", "no", "not", "none", "neither"))
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def add_noise(text: str, protected: Sequence[str], rng: Random, rate: float = WORD_RATE) -> str:
    """Makes typing errors in some words: wrong, swapped, missing and doubled letters, letter case, spaces, lost words.

    Args:
        text: The text.
        protected: Texts such as names and values that stay as they are wherever they stand as whole words. So do
            numbers, option letters, tags of a line such as `Q:`, and words that turn a meaning round.
        rng: Makes all choices.
        rate: Share of the other words that are hit.
    """
    held = [found.span() for found in _protect(protected).finditer(text)]
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


def _protect(protected: Sequence[str]) -> re.Pattern[str]:
    words = [re.escape(text) for text in sorted(set(protected), key=len, reverse=True) if text]
    marks = [r"^[A-Z][a-z]*:", r"\b[A-D]\)"]
    return re.compile("|".join([*(rf"(?<!\w){word}(?!\w)" for word in words), *marks]), re.MULTILINE)


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
