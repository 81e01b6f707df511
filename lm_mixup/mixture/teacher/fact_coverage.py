"""Whether a text tells a fact that is given as a sentence: read off its names, numbers and longer words."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from lm_mixup.core.words import Token, comparable, tokens

_STEM = 5  # letters of a word that must agree: `founded`, `founding`
_SHORT = 4  # words of fewer letters say little
_SHARE = 0.5
_NAME = regex.compile(r"(?V1)\b[\p{L}--[a-z]][\w'’-]*")


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
    """Numbers and the stems of longer words; pairs of neighbours, where a script has no spaces."""
    marks: set[str] = set()
    before: Token | None = None
    for token in tokens(comparable(text)):
        if token.kind == "unspaced":
            if before is not None and before.end == token.start:
                marks.add(before.key + token.key)
            before = token
            continue
        before = None
        if token.key[0].isdigit():
            marks.add(token.key)
        elif len(token.key) >= _SHORT:
            marks.add(token.key[:_STEM])
    return marks
