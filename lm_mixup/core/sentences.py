"""Splits long texts into passages at sentence borders."""

from __future__ import annotations

import re

_BORDER = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])|(?<=[。！？])|\n\s*\n")
_LETTERS = 8  # of a word, where a script has no spaces


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped. The end of a paragraph is a border too."""
    pieces: list[str] = []
    start = 0
    for border in _BORDER.finditer(text):
        # Closing quotes before the space belong to the sentence that they end.
        pieces.append(text[start : border.end()].strip())
        start = border.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]


def words(text: str) -> int:
    """Number of words, at least one per eight characters, which covers scripts without spaces."""
    return max(len(text.split()), len(text) // _LETTERS)


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
    while words(rest) > most:
        head = " ".join(rest.split(" ", most)[:most])[: most * _LETTERS]
        if rest[len(head)] != " " and " " in head:
            head = head.rsplit(" ", 1)[0]
        rest = rest[len(head) :].strip()
        pieces.append(head)
    return [*pieces, rest] if rest else pieces
