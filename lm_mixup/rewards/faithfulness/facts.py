"""What a text states, as comparable items: numbers, names, codes, units, quoted strings and content words.

All keys are exact after normalisation: `1,200`, `1200`, `１２００` and `twelve hundred` are one number, `2nd`
is `second`, `2020-03-05` is 5 March 2020. Content words are compared by a light stem.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final, Literal

import regex

from lm_mixup.core.words import Token, sentences, tokens
from lm_mixup.rewards.faithfulness.lexicon import (
    CLAUSE_WORDS,
    FUNCTION_WORDS,
    MONTHS,
    NUMBER_WORDS,
    ORDINALS,
    SCALES,
    SOFT_NAMES,
    SOFT_NUMBERS,
    TENS,
    UNITS,
)

Kind = Literal["number", "name", "code", "unit", "quoted", "word"]
_STEM: Final = 8
_CODE: Final = 2
_ENDING: Final = regex.compile(
    r"(?<=\p{L}{4})(?:ations?|ating|ated|ates?|ions?|ing|ed|ers?|ly|ie|y|e)$|(?<=\p{L}{3})e$"
)
_POSSESSIVE: Final = regex.compile(r"'s?$")
_PLURAL: Final = regex.compile(r"(?<=\p{L}{3})(?<![su])s$")
_LIST_MARKER: Final = regex.compile(r"(?m)^[ \t]*(?:\(?(?:\d{1,2}|[a-zA-Z])[.)]|[-*•–])[ \t]+")
_ISO_DATE: Final = regex.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)")
_DOMAIN: Final = regex.compile(r"(?<![\w.])\.[a-z]{2,6}\b")
_QUOTED: Final = regex.compile(r"[\"“«「『](?P<text>[^\"“”«»「」『』\n]{3,120})[\"”»」』]")
_CLAUSE_MARK: Final = regex.compile(r"[,;:()\[\]—–。，；：、،؛]|\.(?=\s|$)|\n")
_OPENS: Final = regex.compile(r"[\"“«'‘(\[:>*_#|]\s*$|^\s*$|\n\s*$")
_UNIT_AFTER: Final = regex.compile(
    r"[ \u00a0-]?(?P<unit>%|(?:sq|square)\.?[ \u00a0]\p{L}+|°\s?[CFK]?|€|£|\$"
    r"|[\p{L}µ]+(?:/[\p{L}]+[23²³]?|[23²³])?)(?![\p{L}\p{N}])"
)
_BETWEEN_ITEMS: Final = regex.compile(
    r"[ \t]?\p{L}?[ \t]?(?:[-+*/=^×÷(){}\[\],;|][ \t]?){1,4}(?:and |or |[-+$(\[]|\p{L}\^)?"
)
_LIST: Final = 3
_CURRENCY_BEFORE: Final = regex.compile(r"(?:US|A|C)?[$€£¥]\s?$")
_LETTERS: Final = frozenset("abcdef")
_AFTER_LETTER: Final = (")", ".", ":", "")
_ORDINAL: Final = regex.compile(r"(\d+)(?:st|nd|rd|th)")
_MINUS: Final = regex.compile(r"(?<![\p{L}\p{N}.,)])[-−]$")
_THOUSANDS: Final = regex.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Fact:
    """An item that must be exact: a number, name, code, or a unit with its number.

    Attributes:
        key: What it is compared by.
        kind: What it is.
        start: Where it begins in the text.
        end: Where it ends.
        clause: Number of its clause.
        certain: False for a capitalised word that begins a sentence: a name or not, the sources decide.
    """

    key: str
    kind: Kind
    start: int
    end: int
    clause: int
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Word:
    """A content word by its key and stem, or two neighbouring graphemes of a script without spaces."""

    key: str
    stem: str
    start: int
    end: int
    clause: int


@dataclass(frozen=True)
class Reading:
    """What a text states.

    Attributes:
        text: As given.
        facts: In order; a number with a unit gives the number and, as `unit`, both.
        words: Content words in order, without function words.
        clauses: (start, end, sentence) of each clause.
        keys: All token keys in order, of which sequences can be looked up.
        begins: Where each token begins.
    """

    text: str
    facts: tuple[Fact, ...]
    words: tuple[Word, ...]
    clauses: tuple[tuple[int, int, int], ...]
    keys: tuple[str, ...]
    begins: tuple[int, ...]

    def neighbour(self, fact: Fact, step: int) -> str:
        """The token right before (−1) or after (1) a fact, `#` for one with a digit; empty at an end."""
        at = bisect_left(self.begins, fact.start) - 1 if step < 0 else bisect_left(self.begins, fact.end)
        if not 0 <= at < len(self.keys):
            return ""
        key = self.keys[at]
        return "#" if any(c.isdigit() for c in key) else key

    def words_of(self, clause: int) -> set[str]:
        """Stems of a clause's content words."""
        return {word.stem for word in self.words if word.clause == clause}

    def labels_of(self, fact: Fact) -> list[str]:
        """The content words nearest to a fact in its clause, before it first and then after it."""
        words = [word for word in self.words if word.clause == fact.clause]
        before = [word.stem for word in words if word.end <= fact.start]
        after = [word.stem for word in words if word.start >= fact.end]
        return [*before[-1:], *after[:1]]

    def facts_of(self, clause: int) -> list[Fact]:
        """Facts of a clause."""
        return [fact for fact in self.facts if fact.clause == clause]


@lru_cache(maxsize=1 << 16)
def stem(key: str) -> str:
    """A light stem of a word: a plural's `s` and one ending off, then the first eight letters."""
    bare = _ENDING.sub("", _PLURAL.sub("", _POSSESSIVE.sub("", key)))
    return bare[:_STEM]


def number_key(text: str) -> str | None:
    """Digits with separators as one plain number: `1,200.50` → `1200.5`, `١٬٢٠٠` → `1200`; None if none."""
    digits = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    digits = digits.replace("٬", ",").replace("٫", ".").replace("'", ",").replace("’", ",")
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    elif digits.count(",") == 1 and "." not in digits:
        digits = digits.replace(",", ".")  # a decimal comma
    return _plain(digits)


def _plain(digits: str) -> str | None:
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return None
    text = format(value.normalize(), "f")
    return text if len(text) <= 60 else None


@lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """Reads a text; equal texts are read once."""
    listed = [token for token in tokens(text) if not _is_marker(token, text)]
    clauses, place = _clauses(text, listed)
    facts: list[Fact] = []
    words: list[Word] = []
    taken: set[int] = set()
    _dates(text, listed, place, facts, taken)
    _domains(text, listed, place, facts, taken)
    _numbers(text, listed, place, facts, taken)
    starts = {start for start, _ in sentences(text)} | {m.end() for m in _LIST_MARKER.finditer(text)}
    named = _names(text, listed, taken, starts, place, facts)
    previous: Token | None = None
    for index, token in enumerate(listed):
        if index in taken:
            previous = None
            continue
        clause = place[index]
        if token.kind == "unspaced":
            joined = previous is not None and previous.kind == "unspaced" and previous.end == token.start
            following = listed[index + 1] if index + 1 < len(listed) else None
            alone = not joined and not (
                following and following.kind == "unspaced" and following.start == token.end
            )
            if joined and previous is not None:
                pair = previous.key + token.key
                words.append(Word(pair, pair, previous.start, token.end, clause))
            elif alone:
                words.append(Word(token.key, token.key, token.start, token.end, clause))
        elif index not in named and _is_content(token.key):
            words.append(Word(token.key, stem(token.key), token.start, token.end, clause))
        previous = token
    facts += _quoted(text, listed, place)
    facts.sort(key=lambda fact: (fact.start, fact.end))
    return Reading(
        text,
        tuple(facts),
        tuple(words),
        tuple(clauses),
        tuple(t.key for t in listed),
        tuple(t.start for t in listed),
    )


def number_lists(reading: Reading) -> list[list[Fact]]:
    """The lists and formulas of three numbers or more, such as `8, 4, 2, 1` and `5 + 4 = 9`."""
    lists: list[list[Fact]] = []
    end = -1
    for fact in reading.facts:
        if fact.kind not in ("number", "code"):
            continue
        if end < 0 or not _BETWEEN_ITEMS.fullmatch(reading.text, end, fact.start):
            lists.append([])
        lists[-1].append(fact)
        end = fact.end
    return [listed for listed in lists if len(listed) >= _LIST]


def _is_marker(token: Token, text: str) -> bool:
    """Whether a token is the number or letter of a list item."""
    if token.end - token.start > 2:
        return False
    line = text.rfind("\n", 0, token.start) + 1
    found = _LIST_MARKER.match(text, line)
    return found is not None and found.start() <= token.start < found.end()


def _is_content(key: str) -> bool:
    if _POSSESSIVE.sub("", key) in FUNCTION_WORDS:
        return False
    return len(key) >= 3 or not key.isascii() or any(c.isdigit() for c in key)


def _clauses(text: str, listed: list[Token]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The clauses of a text, and the clause of each token."""
    ends = [(start, end) for start, end in sentences(text)]
    cuts = {m.start() for m in _CLAUSE_MARK.finditer(text)}
    inside = {c for t in listed for c in cuts if t.start <= c < t.end} if cuts else set()
    cuts -= inside
    clauses: list[tuple[int, int, int]] = []
    place: list[int] = []
    current: list[Token] = []
    sentence = 0
    ordered = sorted(cuts)
    at = 0

    def close() -> None:
        if current:
            clauses.append((current[0].start, current[-1].end, sentence))
            current.clear()

    for token in listed:
        broke = False
        while at < len(ordered) and ordered[at] < token.start:
            at += 1
            broke = True
        while sentence + 1 < len(ends) and token.start >= ends[sentence + 1][0]:
            close()
            sentence += 1
        if broke or token.key in CLAUSE_WORDS:
            close()
        current.append(token)
        place.append(len(clauses))
    close()
    return clauses, place


def _dates(text: str, listed: list[Token], place: list[int], facts: list[Fact], taken: set[int]) -> None:
    for found in _ISO_DATE.finditer(text):
        inside = [i for i, t in enumerate(listed) if found.start() <= t.start < found.end()]
        year, month, day = (int(part) for part in found.groups())
        if len(inside) == 3 and 1 <= month <= 12 and 1 <= day <= 31:
            taken.update(inside)
            clause = place[inside[0]]
            for key in (str(year), f"month{month}", str(day)):
                facts.append(Fact(key, "number", found.start(), found.end(), clause))


def _domains(text: str, listed: list[Token], place: list[int], facts: list[Fact], taken: set[int]) -> None:
    at = {token.start: index for index, token in enumerate(listed)}
    for found in _DOMAIN.finditer(text):
        index = at.get(found.start() + 1)
        if index is not None and listed[index].end == found.end():
            taken.add(index)
            facts.append(Fact(found.group(), "code", found.start(), found.end(), place[index]))


def _numbers(text: str, listed: list[Token], place: list[int], facts: list[Fact], taken: set[int]) -> None:
    """Numbers in digits and words, with `million` and the like, ordinals, months, and codes such as `H2O`."""
    index = 0
    while index < len(listed):
        token = listed[index]
        begin = index
        value: Decimal | None = None
        certain = True
        if index in taken:
            index += 1
            continue
        if token.kind == "number":
            key = number_key(text[token.start : token.end])
            value = Decimal(key) if key is not None else None
        elif (found := _ORDINAL.fullmatch(token.key)) is not None:
            value = Decimal(found[1])
        elif token.key in MONTHS and _is_month(token, text, listed, index):
            taken.add(index)
            facts.append(Fact(f"month{MONTHS[token.key]}", "number", token.start, token.end, place[index]))
        elif token.key in NUMBER_WORDS or token.key in ORDINALS:
            spelled, index = _spelled(listed, index, text)
            value = Decimal(spelled)
            certain = index > begin or token.key not in SOFT_NUMBERS
        elif token.kind == "word" and any(c.isdigit() for c in token.key):
            taken.add(index)
            facts.append(Fact(token.key, "code", token.start, token.end, place[index]))
        if value is not None:
            after = index + 1
            if (
                after < len(listed)
                and listed[after].key in SCALES
                and _touch(listed[index], listed[after], text)
            ):
                value *= SCALES[listed[after].key]
                index = after
            start, end = token.start, listed[index].end
            if _MINUS.search(text, max(0, start - 2), start):
                value, start = -value, start - 1
            plain = _plain(str(value))
            taken.update(range(begin, index + 1))
            if plain is not None:
                facts.append(Fact(plain, "number", start, end, place[begin], certain))
                unit = _unit(text, start, end)
                if unit:
                    facts.append(Fact(f"{plain} {unit[0]}", "unit", start, unit[1], place[begin]))
                    taken.update(
                        i for i in (index + 1, index + 2) if i < len(listed) and listed[i].end <= unit[1]
                    )
        index += 1


def _is_month(token: Token, text: str, listed: list[Token], index: int) -> bool:
    """`may` and `march` are months where they are capitalised and stand beside a number."""
    if not text[token.start].isupper():
        return False
    beside = [listed[i] for i in (index - 1, index + 1) if 0 <= i < len(listed)]
    by_number = any(t.kind == "number" or _ORDINAL.fullmatch(t.key) for t in beside)
    return token.key not in ("may", "march") or by_number


def _spelled(listed: list[Token], index: int, text: str) -> tuple[int, int]:
    """A number in words that begins at a token (`twenty-one`), and the index of its last token."""
    key = listed[index].key
    total = NUMBER_WORDS.get(key, ORDINALS.get(key, 0))
    while index + 1 < len(listed) and _touch(listed[index], listed[index + 1], text):
        following = listed[index + 1].key
        more = NUMBER_WORDS.get(following, ORDINALS.get(following))
        if following == "hundred" and total:
            total *= 100
        elif (listed[index].key in TENS and more is not None and 0 < more < 10) or (
            listed[index].key == "hundred" and more is not None and more < 100
        ):
            total += more
        else:
            break
        index += 1
    return total, index


def _touch(left: Token, right: Token, text: str) -> bool:
    """Whether nothing but a space or a hyphen stands between two tokens."""
    return text[left.end : right.start] in (" ", "-", "‑", "\u00a0")


def _unit(text: str, start: int, end: int) -> tuple[str, int] | None:
    """The unit of a number and where the pair ends: `281 u`, `5 %`, `$5`; None without one."""
    found = _UNIT_AFTER.match(text, end)
    if found is not None:
        spelling = found["unit"].replace("²", "2").replace("³", "3").replace(" ", "\u00a0")
        unit = UNITS.get(spelling)
        if unit is None and len(spelling) > 2:
            unit = UNITS.get(spelling.lower())
        if unit is not None:
            return unit, found.end()
    before = _CURRENCY_BEFORE.search(text, max(0, start - 3), start)
    return (UNITS[before.group().strip()[-1]], end) if before else None


def _names(
    text: str, listed: list[Token], taken: set[int], starts: set[int], place: list[int], facts: list[Fact]
) -> set[int]:
    """Adds capitalised words as names; returns which tokens are certainly names.

    A capitalised word at a sentence's start is a name for certain where a capitalised word follows it at
    once, where it is an acronym or a symbol that stands alone (`Mt.`, but not the `Iy` of `Iy is 9`), or
    where it is capitalised elsewhere in the text too. Function words of two letters are codes where they are
    capitalised behind a word in small letters (`written OR`, `the symbol No`).
    """
    capital = [
        index not in taken
        and token.kind == "word"
        and text[token.start].isupper()
        and token.key not in ("i", "i'm", "i'll", "i've", "i'd")
        for index, token in enumerate(listed)
    ]
    opens = [
        t.start in starts or _OPENS.search(text, max(0, t.start - 3), t.start) is not None for t in listed
    ]
    coded = {
        i
        for i, t in enumerate(listed)
        if capital[i] and not opens[i] and t.end - t.start == _CODE and not capital[i - 1] and t.key != "ok"
    }
    inner = {
        _name_key(t.key) for i, t in enumerate(listed) if capital[i] and not opens[i] and _is_name_word(t.key)
    }
    certain: set[int] = set()
    for index, token in enumerate(listed):
        is_name = index in coded or _is_name_word(token.key)
        if not capital[index] or not is_name or _is_letter(token, text):
            continue
        key = _name_key(token.key)
        surface = text[token.start : token.end]
        following = text[token.end : token.end + 2]
        symbol = len(surface) <= 2 and not (following[:1] == " " and following[1:].islower())
        sure = not opens[index] or key in inner or symbol or (len(surface) > 1 and surface.isupper())
        if not sure and index + 1 < len(listed) and capital[index + 1] and not opens[index + 1]:
            sure = _touch(token, listed[index + 1], text)
        sure = sure and key not in SOFT_NAMES
        if sure:
            certain.add(index)
        facts.append(Fact(key, "name", token.start, token.end, place[index], certain=sure))
    return certain


def _is_name_word(key: str) -> bool:
    return _POSSESSIVE.sub("", key) not in FUNCTION_WORDS


def _is_letter(token: Token, text: str) -> bool:
    """Whether a token is the letter of an option: `B)`, `(B`, `B.`, or `A` by itself."""
    return token.key in _LETTERS and (text[token.end : token.end + 1] in _AFTER_LETTER or token.key == "a")


def _name_key(key: str) -> str:
    return _POSSESSIVE.sub("", key)


def _quoted(text: str, listed: list[Token], place: list[int]) -> list[Fact]:
    """Quoted strings of two words or more, by the sequence of their keys."""
    found_facts = []
    for found in _QUOTED.finditer(text):
        start, end = found.span("text")
        inside = [i for i, t in enumerate(listed) if start <= t.start and t.end <= end]
        if len(inside) >= 2:
            key = " ".join(listed[i].key for i in inside)
            found_facts.append(Fact(key, "quoted", start, end, place[inside[0]]))
    return found_facts
