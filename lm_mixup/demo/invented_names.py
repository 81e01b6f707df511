"""Replaces names and numbers with invented ones, so that a small model copies instead of memorising.

A model of a few million parameters memorises the facts of a small world and then writes those instead of what
its inputs say. Rows whose names and values occur nowhere else can be answered only by copying.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Final

_LETTERS, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
# What syllables are made of. The clusters are those of many languages: a model that met only `Nifosebi` would
# copy `Wisconsin` wrongly.
_ONSETS: Final = (
    *("", "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "y", "z"),
    *("br", "ch", "cl", "cr", "dr", "fl", "gr", "kh", "kr", "pl", "pr", "sc", "sh", "sk", "sp", "st", "str"),
    *("sw", "th", "tr", "zh"),
)
_NUCLEI: Final = (*"aeiouaeiouy", "ai", "au", "ea", "ei", "ia", "ie", "io", "ou", "ue", "é", "ã")
_CODAS: Final = (
    *("", "", "", "", "", "b", "c", "ck", "d", "g", "k", "l", "ll", "lt", "m", "n", "nd", "ng", "nn", "ns"),
    *("nt", "p", "r", "rd", "rk", "rn", "rs", "s", "sh", "ss", "st", "t", "tch", "th", "x", "z"),
)
_PIECE = re.compile(r"[^\W\d_]+|(?<![^\W\d_])\d+")  # the 2 of km2 is no number
_FEWEST_LETTERS = 3  # shorter words inside a longer term are units and articles: `g/cm3`, `de`
_MARKS: Final = {"A", "B", "C", "D", "Q", "S"}  # of lines and options: the symbol of carbon stays
# Words of values that say how much or which kind, and options that stand for no value.
_KEPT: Final = {
    *("yes", "no", "maybe", "both", "neither", "none", "idea", "this", "that", "all", "true", "false"),
    *("million", "billion", "days", "the", "and", "about"),
}


def invent(terms: Sequence[str], rng: Random) -> dict[str, str]:
    """An invented term for each term: other letters, other digits, the same shape.

    Returns:
        Term → invented term; no two terms have the same, and none is one of the terms. A term that stays as
        it is (`yes`) is absent.
    """
    taken = set(terms)
    invented: dict[str, str] = {}
    for term in sorted(set(terms) - _MARKS):
        for _ in range(8):
            new = _invented(term, rng)
            if new not in taken:
                taken.add(new)
                invented[term] = new
                break
    return invented


def _invented(term: str, rng: Random) -> str:
    parts: list[str] = []
    end = 0
    for found in _PIECE.finditer(term):
        parts += (term[end : found.start()], _other(found.group(), term, rng))
        end = found.end()
    return "".join([*parts, term[end:]])


def replace_terms(text: str, invented: dict[str, str]) -> str:
    """The text with every whole-word occurrence of a term replaced, the longest terms first."""
    if not invented:
        return text
    longest_first = sorted(invented, key=lambda term: (-len(term), term))
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    return re.sub(pattern, lambda found: invented[found.group()], text)


def _other(piece: str, term: str, rng: Random) -> str:
    if piece.isdigit():
        first = rng.choice(_DIGITS[1:]) if piece[0] != "0" else "0"
        return first + "".join(rng.choice(_DIGITS) for _ in piece[1:])
    short = len(piece) < _FEWEST_LETTERS and piece != term.strip(".")
    return piece if short or piece.lower() in _KEPT else _word(piece, rng)


def _word(like: str, rng: Random) -> str:
    """A word about as long as another, with its capitals; short ones, mostly symbols, of any letters."""
    if len(like) <= _FEWEST_LETTERS:
        word = "".join(rng.choice(_LETTERS) for _ in like)
    else:
        word, size = "", len(like) + rng.choice((-1, 0, 0, 1))
        while len(word) < size:
            word += rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)
        word = word[:size]
    return (
        word.upper() if like.isupper() and len(like) > 1 else word.capitalize() if like[0].isupper() else word
    )
