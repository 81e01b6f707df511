r"""Words, sentences and comparison keys of text in any script: the one tokeniser for all text comparison.

Python's `\w` leaves out combining marks and format characters, so a word breaks at a vowel sign (Hindi,
Tamil, vocalised Arabic) or at a soft hyphen. Here a word is a run of letters, marks and digits of any script,
with the invisible characters and the apostrophes inside it. Keys are NFKC, without what no reader sees
(zero-width and format characters, soft hyphens, variation selectors, fillers) and without what a writer may
leave out (Arabic vowel signs and the tatweel, Hebrew points), case folded.

Scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Burmese, …) are not segmented into
words, which needs a dictionary for each: every grapheme is a token of its own. So word counts of such texts
are counts of graphemes, and n-grams of tokens are n-grams of graphemes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import regex

_UNSPACED: Final = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Tai_Viet}"
    r"\p{New_Tai_Lue}\p{Javanese}\p{Balinese}\p{Yi}々〆ー"
)
_UNSEEN: Final = r"\p{Cf}\p{Default_Ignorable_Code_Point}"
_GRAPHEME: Final = rf"[[\p{{L}}\p{{N}}\p{{M}}々〆ー]&&[{_UNSPACED}]]"
_LETTER: Final = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]"
_APOSTROPHE: Final = r"['’ʼ׳״·]"
_NUMBER: Final = r"\p{Nd}++(?:[.,٫٬'’]\p{Nd}++)*+(?![[\p{L}\p{M}\p{No}]--[" + _UNSPACED + r"]])"
_ONE: Final = rf"{_GRAPHEME}[\p{{M}}{_UNSEEN}]*+"
_WORD: Final = rf"{_LETTER}(?:{_LETTER}|[{_UNSEEN}]|{_APOSTROPHE}(?=[{_UNSEEN}]*{_LETTER}))*+"
_TOKEN: Final = regex.compile(rf"(?V1)(?P<number>{_NUMBER})|(?P<unspaced>{_ONE})|(?P<word>{_WORD})")
_TOKEN_ALONE: Final = regex.compile(rf"(?V1){_NUMBER}|{_ONE}|{_WORD}")
_PUNCTUATION: Final = r".,;:!?'\"’“”„‘‚«»‹›()…·、。「」『』《》〈〉【】،؛؟۔।॥።፣፤፥፦፧։՝՞՛׃־״׳៖។៕၊။"
_TOKEN_OR_SYMBOL: Final = regex.compile(
    rf"(?V1){_NUMBER}|{_ONE}|{_WORD}|[[\p{{S}}\p{{P}}]--[{_PUNCTUATION}]]"
)
# The same for ASCII, which most pools are nearly all of, several times as fast.
_ASCII: Final = r"[0-9]++(?:[.,'][0-9]++)*+(?![A-Za-z])|[A-Za-z0-9](?:[A-Za-z0-9]|'(?=[A-Za-z0-9]))*+"
_ASCII_TOKEN: Final = re.compile(_ASCII)
_ASCII_TOKEN_OR_SYMBOL: Final = re.compile(_ASCII + r"|[#$%&*+\-/<=>@\[\\\]^_`{|}~]")
_INVISIBLE: Final = regex.compile(rf"[{_UNSEEN}]+")
# Vowel signs, Koranic marks and the tatweel; all points and accents of Hebrew. A hamza or madda stays.
_OPTIONAL: Final = regex.compile(
    r"[\u0640\u064B-\u0652\u0670\u06D6-\u06DC\u06DF-\u06E4\u06E7\u06E8\u06EA-\u06ED"
    r"\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7]+"
)
# Georgian letters count as small ones in Unicode, and begin sentences all the same.
_SMALL: Final = regex.compile(r"(?V1)[\p{Ps}\p{Pi}\"']*[\p{Ll}--\p{Georgian}]")
STOPS: Final = r".!?…。！？｡؟۔।॥።։။៕។"
STOPS_WITHOUT_SPACE: Final = r"。！？｡।॥။៕។"
_CLOSING: Final = r"""["'”’»)\]」』）]"""
_STOP: Final = (
    rf"(?<=[{STOPS}]{_CLOSING}*)(?P<gap>\s+)|(?<=[{STOPS_WITHOUT_SPACE}]{_CLOSING}*)(?=\S)(?!{_CLOSING})"
)
_BREAK: Final = regex.compile(rf"(?P<newline>\s*\n\s*)|{_STOP}")
_BREAK_IN_WRAPPED: Final = regex.compile(rf"(?P<newline>\s*\n\s*\n\s*)|{_STOP}")
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
    """A text as it is compared: as a reader sees it (`visible`), without optional vowel signs, case folded.

    Case folding can undo the normal form, so it is taken twice.
    """
    if text.isascii():
        return text.lower()
    bare = _OPTIONAL.sub("", visible(text))
    return unicodedata.normalize("NFKC", bare.casefold()).replace("’", "'")


def visible(text: str) -> str:
    """A text as a reader sees it: NFKC, without zero-width, format and other invisible characters."""
    if text.isascii():
        return text
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))


def begins_small(text: str) -> bool:
    """Whether a text's first letter is a small one, in a script that has capitals."""
    return _SMALL.match(text) is not None


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a text, in order, with their places in the text as given."""
    for found in _TOKEN.finditer(text):
        key = comparable(found.group())
        if key:
            yield Token(key, found.start(), found.end(), found.lastgroup or "word")


def words(text: str) -> list[str]:
    """The keys of a text's tokens: equal for texts that differ in case, width or invisible characters."""
    bare = comparable(text)
    return (_ASCII_TOKEN if bare.isascii() else _TOKEN_ALONE).findall(bare)


def words_and_symbols(text: str) -> list[str]:
    """`words`, and between them the symbols that make a difference: `2 + 3` is not `2 - 3`.

    Marks of punctuation are left out, unless the text holds nothing else.
    """
    bare = comparable(text)
    pattern = _ASCII_TOKEN_OR_SYMBOL if bare.isascii() else _TOKEN_OR_SYMBOL
    return pattern.findall(bare) or [character for character in bare if not character.isspace()]


def sentences(text: str, wrapped: bool = False) -> list[tuple[int, int]]:
    """The places (start, end) of a text's sentences, without the space around them.

    A sentence ends at a line's end, at a full stop that space follows (not behind an abbreviation, an
    initial or the number of a list item), or at a stop that needs no space (。 । ။). Thai and Lao have no
    stops: their sentences are lines.

    Args:
        text: Any text.
        wrapped: Its lines may end within sentences: only a blank line ends one, and no sentence begins with
            a small letter.
    """
    places, start = [], 0
    for found in (_BREAK_IN_WRAPPED if wrapped else _BREAK).finditer(text):
        gap = found["gap"]
        if gap is not None and (
            (wrapped and _SMALL.match(text, found.end()))
            or _ABBREVIATION.search(text, max(0, found.start() - 12), found.start())
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
