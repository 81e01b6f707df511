"""Cuts long texts into passages between sentences."""

from __future__ import annotations

import re

_BORDER = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])|(?<=[。！？])|\n\s*\n")
_LETTERS = 8  # of a word, where a script has no spaces


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped; a paragraph's end is a border too."""
    pieces: list[str] = []
    start = 0
    for border in _BORDER.finditer(text):
        # Closing quotes before the space belong to the sentence that they end.
        pieces.append(text[start : border.end()].strip())
        start = border.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]


def words(text: str) -> int:
    """Words of a text; eight characters are one at most, so that text without spaces has a length too."""
    return max(len(text.split()), len(text) // _LETTERS)


def segment(text: str, most: int) -> list[str]:
    """Cuts a text into pieces of at most `most` words, between sentences and about equally long.

    A sentence that is longer itself is cut between words, or between letters where it has no spaces.
    """
    if words(text) <= most:
        return [text.strip()] if text.strip() else []
    units = [piece for sentence in sentences(text) for piece in _cut(sentence, most)]
    goal = words(text) / -(-words(text) // most)
    pieces: list[list[str]] = []
    length = 0
    for unit in units:
        size = words(unit)
        # A piece is closed where that is nearer to the goal than going on.
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
