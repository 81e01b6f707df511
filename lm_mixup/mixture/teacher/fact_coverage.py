"""Whether a text tells a fact that is given as a sentence: read off its names, numbers and longer words."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_STEM = 5  # letters of a word that must agree: `founded`, `founding`
_SHORT = 4  # words of fewer letters say little
_SHARE = 0.5
_NAME = re.compile(r"\b[^\W\d_a-z][\w'’-]*")


def tells(text: str, fact: str) -> bool:
    """Whether a text tells a fact: all its numbers, and half of its longer words at least, by their stems."""
    wanted, there = _marks(fact), _marks(text)
    numbers = {mark for mark in wanted if mark[0].isdigit()}
    others = wanted - numbers
    return numbers <= there and len(others & there) >= _SHARE * len(others)


def names(facts: Sequence[str]) -> list[str]:
    """Words of facts that begin with a capital: names, and the first words."""
    return sorted({name for fact in facts for name in _NAME.findall(fact)})


def _marks(text: str) -> set[str]:
    words = (word.casefold() for word in _WORD.findall(text))
    return {
        word if word[0].isdigit() else word[:_STEM]
        for word in words
        if len(word) >= _SHORT or word[0].isdigit()
    }
