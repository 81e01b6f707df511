"""Subjects: whether a text speaks of what the sources speak of, and keeps their compound names whole.

A value that is a name may take its subject's place (`The state of Salem has …`), and the subject the value's.
The words around them are then rarely those of a source, so that binding alone does not see it. What the
sources do tell is which names they say things of: a name that they only ever give as a value has nothing
said of it, and a subject that they never give as a value is none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from lm_mixup.core.words import sentences
from lm_mixup.rewards.faithfulness.facts import Fact, Reading
from lm_mixup.rewards.faithfulness.lexicon import FUNCTION_WORDS
from lm_mixup.rewards.faithfulness.sources import SourceReading

_PLAIN: Final = frozenset(
    ("a", "an", "the", "this", "that", "both", "all", "as", "for", "and", "but", "while", "so", "also", "if")
)
"""What may stand before a subject, whatever it is: no verb, and no preposition that makes it a value."""
_COMPARES: Final = frozenset(("than", "like", "unlike", "with", "and", "or"))
_IT: Final = frozenset(("it", "its", "he", "his", "she", "her", "they", "their", "this"))


@dataclass(frozen=True)
class Subjects:
    """What the sources say things of.

    Attributes:
        topics: Names of what they are about.
        led: Names that begin a sentence of theirs or that they ask about: things may be said of them.
        values: Names that they give elsewhere.
        kinds: The one or two words that stand before a topic (`constellation`, `state of`).
        leads_to: For each name that they only give, the two words that stand before it (`largest city`).
        behind: For each name the words that stand right before it.
        follows: For the words of compound names that never end one: what may come next.
    """

    topics: frozenset[str]
    led: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    kinds: set[tuple[str, ...]] = field(default_factory=set)
    leads_to: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    behind: dict[str, set[str]] = field(default_factory=dict)
    follows: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """A name in a sentence: its facts, and whether it stands where a subject does."""

    facts: tuple[Fact, ...]
    first: bool
    leads: bool

    @property
    def keys(self) -> set[str]:
        return {fact.key for fact in self.facts}


def subjects_of(sources: Sequence[SourceReading], topics: frozenset[str]) -> Subjects:
    """What the sources say things of, and the names that they only give."""
    found = Subjects(topics)
    inner: set[str] = set()
    ends: set[str] = set()
    for source in sources:
        found.led.update(f.key for f in source.prompt.facts if f.kind == "name")
        for reading in (source.asked, source.told):
            for fact in reading.facts:
                if fact.kind == "name" and fact.key in topics:
                    found.kinds.update(_kinds_before(reading, fact))
        for reading in (source.asked, source.told, source.prompt):
            for fact in reading.facts:
                if fact.kind == "name":
                    found.behind.setdefault(fact.key, set()).add(reading.neighbour(fact, -1))
            for strict in (True, False):
                for group in _groups(reading, strict=strict):
                    for fact, after in pairwise(group):
                        found.follows.setdefault(fact.key, set()).add(after.key)
                        inner |= {fact.key} if strict else set()
                    ends.add(group[-1].key)
    for key in found.follows.keys() - (inner - ends):
        del found.follows[key]
    for source in sources:
        for sentence in _sentences(source.told, found.kinds):
            for place in sentence:
                (found.led if place.leads else found.values).update(place.keys)
                for key in place.keys:
                    found.leads_to.setdefault(key, set()).add(_two_before(source.told, place.facts[0]))
    return found


def misplaced(reading: Reading, subjects: Subjects) -> list[Fact]:
    """The names of a text that stand in another one's place; questions place nothing.

    * A value as the subject: it begins a sentence that names no topic and gives other facts, and the sources
      say nothing of it. `Salem is its capital` says what it is and is no such sentence.
    * A topic as a value: behind the subject that the sentence has, or that its `it` means, where that is
      another topic or such a value, and the sources give that topic nowhere as a value, nor have it behind
      the same word.
    * Both, where a topic stands behind the very words that the sources have before the value that is the
      subject (`Wilmington has the largest city Delaware`).
    * A word of a compound name with the word of another one behind it (`Dominican Suva`).
    """
    wrong = _torn(reading, subjects)
    if not subjects.topics:
        return wrong
    only_given = subjects.values - subjects.led - subjects.topics
    subject: _Place | None = None
    is_value = False  # whether the subject is one that the sources only give
    for sentence in _sentences(reading, subjects.kinds):
        of = reading.clauses[sentence[0].facts[0].clause][2]
        if _asks(reading, of):
            continue
        if not sentence[0].leads and not _begins_with_it(reading, of):
            subject = None
        named = any(place.keys & subjects.topics for place in sentence)
        for place in sentence:
            if place.leads:
                subject = place
                is_value = place.first and place.keys <= only_given
                if is_value and not named and _tells_of(reading, place):
                    wrong.append(place.facts[0])
                continue
            if subject is None or not (topics := place.keys & subjects.topics - subject.keys):
                continue
            if is_value and _two_before(reading, place.facts[0]) in _led_to(subject, subjects):
                wrong += [subject.facts[0], *_of(place, topics)]
            elif (subject.facts[0] in wrong or subject.keys & subjects.topics) and not (
                place.keys & subjects.values
                or (before := reading.neighbour(place.facts[0], -1)) in _COMPARES
                or any(before in subjects.behind.get(key, ()) for key in topics)
            ):
                wrong += _of(place, topics)
    return list(dict.fromkeys(wrong))


def _of(place: _Place, keys: Collection[str]) -> list[Fact]:
    """The first fact of a place with one of the keys."""
    return [fact for fact in place.facts if fact.key in keys][:1]


def _led_to(place: _Place, subjects: Subjects) -> set[tuple[str, ...]]:
    """The pairs of words that stand before a name in the sources, those that say something."""
    pairs = set[tuple[str, ...]]().union(*(subjects.leads_to.get(key, ()) for key in place.keys))
    return {pair for pair in pairs if any(key not in FUNCTION_WORDS for key in pair)}


def _two_before(reading: Reading, fact: Fact) -> tuple[str, ...]:
    at = bisect_left(reading.begins, fact.start)
    return reading.keys[max(0, at - 2) : at]


def _asks(reading: Reading, sentence: int) -> bool:
    """Whether a sentence is a question."""
    end = max(end for _, end, of in reading.clauses if of == sentence)
    return reading.text[end:].lstrip().startswith(("?", "？"))


def _torn(reading: Reading, subjects: Subjects) -> list[Fact]:
    """The words of compound names that have a word behind them which no source has there."""
    return [
        fact
        for group in _groups(reading, strict=True)
        for fact, after in pairwise(group)
        if fact.key in subjects.follows and after.key not in subjects.follows[fact.key]
    ]


def _tells_of(reading: Reading, place: _Place) -> bool:
    """Whether the sentence of a subject gives facts of it, and does not say what it is to something else."""
    last = place.facts[-1]
    if reading.neighbour(last, 1) in ("is", "was", "are", "were"):
        return False
    sentence = reading.clauses[last.clause][2]
    end = max(end for _, end, of in reading.clauses if of == sentence)
    opens = {start for start, _, _ in reading.clauses}
    rest = slice(bisect_left(reading.begins, last.end), bisect_left(reading.begins, end))
    if any(
        key in _IT and begin not in opens
        for key, begin in zip(reading.keys[rest], reading.begins[rest], strict=True)
    ):
        return False
    return any(
        fact.start > last.end and reading.clauses[fact.clause][2] == sentence and fact.kind != "unit"
        for fact in reading.facts
    )


def _begins_with_it(reading: Reading, sentence: int) -> bool:
    """Whether a sentence goes on about the subject of the one before."""
    start = next(start for start, _, of in reading.clauses if of == sentence)
    first = bisect_left(reading.begins, start)
    return any(key in _IT for key in reading.keys[first : first + 3])


def _sentences(reading: Reading, kinds: Collection[tuple[str, ...]]) -> Iterator[list[_Place]]:
    """The names of each sentence that has any, in order."""
    by_sentence: dict[int, list[_Place]] = {}
    for group in _groups(reading, strict=False):
        of = reading.clauses[group[0].clause][2]
        places = by_sentence.setdefault(of, [])
        leads = _leads(reading, group, kinds) and not (
            places and places[-1].facts[0].clause == group[0].clause
        )
        places.append(_Place(tuple(group), leads and not any(place.leads for place in places), leads))
    yield from by_sentence.values()


def _leads(reading: Reading, group: Sequence[Fact], kinds: Collection[tuple[str, ...]]) -> bool:
    """Whether a name begins its clause, but for words that tell no more than what kind of thing it is."""
    first = bisect_left(reading.begins, reading.clauses[group[0].clause][0])
    before = list(reading.keys[first : bisect_left(reading.begins, group[0].start)])
    while before and before[-1] in ("the", "a", "an"):
        before.pop()
    for length in (2, 1):
        if tuple(before[-length:]) in kinds:
            del before[-length:]
            break
    after = bisect_left(reading.begins, group[-1].end)
    goes_on = after < len(reading.keys) and not reading.text[group[-1].end :].lstrip(" ").startswith(
        (".", "\n")
    )
    return goes_on and all(key in _PLAIN for key in before)


def _kinds_before(reading: Reading, fact: Fact) -> Iterator[tuple[str, ...]]:
    """What kind of thing a name is said to be right before it: `(constellation,)`, `(state, of)`."""
    at = bisect_left(reading.begins, fact.start)
    before = [key for key in reading.keys[:at] if key not in ("the", "a", "an")][-2:]
    if before and before[-1] not in FUNCTION_WORDS:
        yield (before[-1],)
    elif len(before) == 2 and before[-1] == "of" and before[0] not in FUNCTION_WORDS:
        yield (before[0], before[1])


def _groups(reading: Reading, *, strict: bool) -> Iterator[list[Fact]]:
    """The names that stand together.

    Args:
        reading: The text.
        strict: Leave out the first word of a sentence that the text has in no other place: it may be
            capitalised for its place alone (`Describe Python`).
    """
    names = [fact for fact in reading.facts if fact.kind == "name"]
    opens = {start for start, _ in sentences(reading.text)}
    inner = {fact.key for fact in names if fact.start not in opens}
    group: list[Fact] = []
    for fact in names:
        if group and reading.text[group[-1].end : fact.start] in (" ", "-"):
            first = group[0]
            loose = strict and len(group) == 1 and first.start in opens and first.key not in inner
            group = [fact] if loose else [*group, fact]
            continue
        if group:
            yield group
        group = [fact]
    if group:
        yield group
