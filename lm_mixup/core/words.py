r"""Words, sentences and comparison keys of text in any script: the one tokeniser for all text comparison.

Python's `\w` leaves out combining marks and format characters, so a word breaks at a vowel sign (Hindi,
Tamil, vocalised Arabic) or at a soft hyphen. Here a word is a run of letters, marks and digits of any script,
with the format characters and the apostrophes inside it. Keys are NFKC, without format characters, case
folded.

Scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Burmese, …) are not segmented into
words, which needs a dictionary for each: every grapheme is a token of its own. So word counts of such texts
are counts of graphemes, and n-grams of tokens are n-grams of graphemes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import regex

_UNSPACED: Final = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Tai_Viet}"
    r"\p{New_Tai_Lue}\p{Javanese}\p{Balinese}\p{Yi}々〆ー"
)
_GRAPHEME: Final = rf"[[\p{{L}}\p{{N}}\p{{M}}々〆ー]&&[{_UNSPACED}]]"
_LETTER: Final = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]"
_APOSTROPHE: Final = r"['’ʼ׳״·]"
_TOKEN: Final = regex.compile(
    r"(?V1)"
    r"(?P<number>\p{Nd}++(?:[.,٫٬'’]\p{Nd}++)*+(?![[\p{L}\p{M}\p{No}]--[" + _UNSPACED + r"]]))"
    rf"|(?P<unspaced>{_GRAPHEME}[\p{{M}}\p{{Cf}}]*+)"
    rf"|(?P<word>{_LETTER}(?:{_LETTER}|\p{{Cf}}|{_APOSTROPHE}(?={_LETTER}))*+)"
)
_FORMAT: Final = regex.compile(r"\p{Cf}+")
_STOPS: Final = r".!?…。！？｡؟۔।॥።։။៕។"
_NO_SPACE_NEEDED: Final = r"。！？｡।॥။៕។"
_CLOSING: Final = r"""["'”’»)\]」』）]"""
_BREAK: Final = regex.compile(
    rf"(?P<newline>\s*\n\s*)|(?<=[{_STOPS}]{_CLOSING}*)(?P<gap>\s+)|(?<=[{_NO_SPACE_NEEDED}]{_CLOSING}*)(?=\S)"
)
_LIST_MARKER: Final = regex.compile(r"(?:^|\n)[ \t]*\(?(?:\p{Nd}{1,3}|\p{L})\.$")
_ABBREVIATION: Final = regex.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr|vs|e\.g|i\.e|cf|approx|ca|Fig|Vol|Inc|Ltd|Co|U\.S|a\.m|p\.m)"
    r"|(?<![\p{L}\p{M}]|\d\s)\p{Lu})\.$"  # "J. K. Rowling", but not "161 K. It"
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text.

    Attributes:
        key: What it is compared by: NFKC, without format characters, case folded.
        start: Where it begins in the text as given.
        end: Where it ends.
        kind: `word`, `number` (digits of any script with their separators), or `unspaced` (one grapheme of a
            script without spaces).
    """

    key: str
    start: int
    end: int
    kind: str


def comparable(text: str) -> str:
    """A text as it is compared: NFKC, without format characters (zero-width, soft hyphen), case folded.

    Case folding can undo the normal form, so it is taken twice.
    """
    if text.isascii():
        return text.lower()
    bare = _FORMAT.sub("", unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFKC", bare.casefold()).replace("’", "'")


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a text, in order, with their places in the text as given."""
    for found in _TOKEN.finditer(text):
        key = comparable(found.group())
        if key:
            yield Token(key, found.start(), found.end(), found.lastgroup or "word")


def words(text: str) -> list[str]:
    """The keys of a text's tokens: equal for texts that differ in case, width or invisible characters."""
    return [token.key for token in tokens(text)]


def sentences(text: str) -> list[tuple[int, int]]:
    """The places (start, end) of a text's sentences, without the space around them.

    A sentence ends at a line's end, at a full stop that space follows (not behind an abbreviation, an
    initial or the number of a list item), or at a stop that needs no space (。 । ။). Thai and Lao have no
    stops: their sentences are lines.
    """
    places, start = [], 0
    for found in _BREAK.finditer(text):
        gap = found["gap"]
        if gap is not None and (
            _ABBREVIATION.search(text, max(0, found.start() - 12), found.start())
            or _LIST_MARKER.search(text, max(0, found.start() - 12), found.start())
        ):
            continue
        places.append((start, found.start()))
        start = found.end()
    places.append((start, len(text)))
    stripped = []
    for begin, end in places:
        piece = text[begin:end]
        if piece.strip():
            lead = len(piece) - len(piece.lstrip())
            stripped.append((begin + lead, begin + len(piece.rstrip())))
    return stripped
