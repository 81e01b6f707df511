"""What a distilled row kept, lost and invented, as marked HTML; every text is escaped.

The marks compare words: they show a reader where to look. The measured figures beside them, faithfulness and
coverage, are those of the stage `rate_distilled`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

from lm_mixup.core.words import tokens, words

_LONGEST_TEXT = 2400
_LONGEST_PARENT = 900
# Shorter words carry the grammar, not the content: they take the mark of their surroundings.
_LEAST_LETTERS = 4


def clip(text: str, most: int = _LONGEST_TEXT) -> str:
    """A text short enough to read on a page."""
    return text if len(text) <= most else text[:most] + " …"


def kept_words(text: str) -> frozenset[str]:
    """The words of a distilled row, by which its parents are marked."""
    return frozenset(words(text))


def mark_parent(text: str, kept: frozenset[str]) -> Markup:
    """A parent's text: runs of words that the distilled row has as `kept`, of those it lacks as `lost`."""
    text = clip(text, _LONGEST_PARENT)
    pieces, place = Markup(""), 0
    for start, end, is_kept in _runs(text, kept):
        name = "kept" if is_kept else "lost"
        pieces += escape(text[place:start]) + Markup('<span class="{}">{}</span>').format(
            name, text[start:end]
        )
        place = end
    return pieces + escape(text[place:])


def _runs(text: str, kept: frozenset[str]) -> Iterator[tuple[int, int, bool]]:
    """The places of runs of content words of one kind: (start, end, whether the distilled row has them)."""
    start = end = -1
    state: bool | None = None
    for token in tokens(text):
        if token.kind == "word" and len(token.key) < _LEAST_LETTERS:
            continue
        is_kept = token.key in kept
        if is_kept != state:
            if state is not None:
                yield start, end, state
            start, state = token.start, is_kept
        end = token.end
    if state is not None:
        yield start, end, state


def mark_invented(text: str, spans: tuple[str, ...]) -> Markup:
    """A distilled text with the spans that its inputs do not bear out marked."""
    text = clip(text)
    found = sorted({span for span in spans if span.strip()}, key=len, reverse=True)
    if not found:
        return escape(text)
    pieces = re.split("(" + "|".join(map(re.escape, found)) + ")", text)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if piece in found else escape(piece) for piece in pieces
    )
