"""A text in pieces that can be kept or dropped: sentences, list items, entries of an enumeration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import regex

_ITEM: Final = re.compile(r"^[ \t]*(?:(?P<bullet>[-*•–])|(?P<number>\d{1,2})[.)])[ \t]+(?P<rest>\S.*)")
_FENCE: Final = "```"
# Of scripts whose sentences end without a space behind: syntok splits at spaces only.
_CLOSED: Final = regex.compile(r"(?<=[。！？।॥።])(?=\S)|(?<=[。！？।॥።])\s+")
_VERB: Final = re.compile(r"\b(?:is|are|was|were|has|have|had|can|will|whereas|while)\b", re.IGNORECASE)
_FEWEST_ENTRIES: Final = 4
_MOST_ENTRY_WORDS: Final = 6


@dataclass(frozen=True)
class Piece:
    """One piece of a text.

    Attributes:
        text: Its words, without the mark of a list item.
        gap: What stands before it where another piece precedes it: a space, a comma or line ends.
        mark: `-` of a bulleted item, `1.` of a numbered one, whatever the number; else empty.
        head: A line such as "Here are three tips:" that leads to the piece and goes where it goes.
    """

    text: str
    gap: str
    mark: str = ""
    head: str = ""


def sentences(text: str) -> list[str]:
    """The sentences of one paragraph, stripped (syntok; scripts without spaces by their full stops)."""
    from syntok import segmenter

    found: list[str] = []
    for paragraph in segmenter.analyze(text):
        for tokens in paragraph:
            whole = text[tokens[0].offset : tokens[-1].offset + len(tokens[-1].value)]
            found += [piece.strip() for piece in _CLOSED.split(whole) if piece and piece.strip()]
    return found


@lru_cache(maxsize=8192)
def split_pieces(text: str) -> tuple[Piece, ...]:
    """The pieces of a text, in order: `join_pieces` puts them together, white space and marks evened out.

    A line that is a list item is one piece, other lines are cut into sentences. A text of one line that
    enumerates at least four short things is cut at its commas. Fenced code is one piece.
    """
    text = text.strip()
    if _FENCE in text:
        return (Piece(text, ""),)
    if entries := _entries(text):
        return tuple(Piece(entry, ", ") for entry in entries)
    pieces: list[Piece] = []
    head, head_gap = "", ""
    lines = _lines(text)
    items = [_ITEM.match(line) for _, line in lines]
    if sum(item is not None for item in items) < 2 or not _counts([m["number"] for m in items if m]):
        items = [None] * len(lines)  # one alone is an answer like "- 5", other numbers tell something
    for (gap, line), item in zip(lines, items, strict=True):
        if item:
            mark = "1." if item["number"] else "-"
            found = [Piece(" ".join(item["rest"].split()), gap, mark)]
        elif _ITEM.match(line):
            found = [Piece(line, gap)]
        else:
            found = [Piece(s, gap if i == 0 else " ") for i, s in enumerate(sentences(line))]
        if not found:
            continue
        if head:
            found[0] = replace(found[0], head=head, gap=head_gap)
            head = ""
        if found[-1].text.endswith(":") and not found[-1].mark and not found[-1].head:
            last = found.pop()
            head, head_gap = last.text, last.gap
        pieces += found
    if head:
        pieces.append(Piece(head, head_gap))
    return (replace(pieces[0], gap=""), *pieces[1:]) if pieces else ()


def join_pieces(pieces: Sequence[Piece], *, bullets: bool = False) -> str:
    """The text of some pieces; numbered items are counted anew from 1, or with `bullets` written as `-`."""
    written = ""
    number = 0
    for piece in pieces:
        mark = piece.mark
        number = number + 1 if mark == "1." and not piece.head else 1 if mark == "1." else 0
        if mark == "1.":
            mark = "-" if bullets else f"{number}."
        text = f"{mark} {piece.text}" if mark else piece.text
        if piece.head:
            text = f"{piece.head}\n{text}"
        gap = piece.gap if written else ""
        if written and piece.mark and "\n" not in gap:
            gap = "\n"
        if written and not gap:
            gap = " "
        written += gap + text
    return written


def _counts(numbers: Sequence[str | None]) -> bool:
    """Whether the numbers of list items only count: 1, 2, 3, …, and perhaps from 1 again."""
    last = 0
    for number in filter(None, numbers):
        if int(number) not in (1, last + 1):
            return False
        last = int(number)
    return True


def _lines(text: str) -> list[tuple[str, str]]:
    """The lines that hold something, each with the line ends before it: one, or two for a paragraph's end."""
    found: list[tuple[str, str]] = []
    blank = False
    for line in text.split("\n"):
        if line.strip():
            found.append(("\n\n" if blank else "\n", line.strip()))
            blank = False
        else:
            blank = True
    return found


def _entries(text: str) -> list[str]:
    """The things that a text of one line enumerates; none where it says more than their names."""
    line = text.rstrip(".").strip()
    if "\n" in line or ": " in line or re.search(r"[.!?;]\s", line):
        return []
    entries = [re.sub(r"^(?:and|or)\s+", "", entry.strip()) for entry in line.split(",")]
    if len(entries) == _FEWEST_ENTRIES - 1 and re.search(r"\s(?:and|or)\s", entries[-1]):
        entries[-1:] = re.split(r"\s(?:and|or)\s", entries[-1], maxsplit=1)
    fits = all(0 < len(entry.split()) <= _MOST_ENTRY_WORDS and not _VERB.search(entry) for entry in entries)
    return entries if len(entries) >= _FEWEST_ENTRIES and fits and len(set(entries)) == len(entries) else []
