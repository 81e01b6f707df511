"""How much of a target its inputs hold: numbers, names and content words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import regex

# Of scripts written without spaces each character is a word.
_WORD: Final = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    r"|\p{N}+(?:[.,:/]\p{N}+)*"
    r"|[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"
)
_HIDDEN: Final = regex.compile(r"\p{Cf}+")
_LIST_NUMBER: Final = regex.compile(r"(?m)^[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t]+")
_STOPWORDS: Final = frozenset(
    _WORD.findall(
        "a an the of to in on at by for with from and or but is are was were be been it its this that these"
        " those as so if then than also not no do does did can could should would will may might have has had"
        " i me my we our you your he she they them their his her what which who how why when where there here"
    )
)


@lru_cache(maxsize=65_536)
def terms(text: str) -> frozenset[str]:
    """The numbers, names and content words of a text, in lower case: all its words but stop words.

    Numbers that only count the items of a list are none. Format characters and differences of Unicode form
    do not matter.
    """
    plain = _HIDDEN.sub("", unicodedata.normalize("NFKC", _LIST_NUMBER.sub("", text))).casefold()
    return frozenset(_WORD.findall(plain)) - _STOPWORDS


def coverage(target: str, inputs: Iterable[str]) -> float:
    """The share of a target's distinct terms that the inputs hold, 0-1; 1 for a target without any."""
    wanted = terms(target)
    held: set[str] = set()
    for text in inputs:
        held |= terms(text)
    return len(wanted & held) / len(wanted) if wanted else 1.0


def similar(one: str, other: str) -> float:
    """The share of terms that two texts have in common (Jaccard), 0-1."""
    ours, theirs = terms(one), terms(other)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
