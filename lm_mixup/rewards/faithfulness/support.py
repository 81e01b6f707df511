"""Support and binding: whether the sources hold what an output says, and hold it of the same thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Final

from lm_mixup.core.words import sentences
from lm_mixup.rewards.faithfulness.facts import Fact, Kind, Reading, number_lists
from lm_mixup.rewards.faithfulness.lexicon import FUNCTION_WORDS
from lm_mixup.rewards.faithfulness.sources import (
    SourceReading,
    contexts,
    name_groups,
    placed_of,
    topics_of,
)
from lm_mixup.rewards.faithfulness.subjects import Subjects, misplaced, subjects_of

_CLEAR: Final = 2
_CLOSE: Final = 0.8
_LEAST: Final = 5
_LEAD: Final = 2
_NEAR: Final = 3
_BRIEF: Final = 25
_LIKE: Final = 2
_WEAK: Final = 0.5
_BESIDE: Final = ("before:", "after:")


@dataclass(frozen=True, slots=True)
class Span:
    """A span of the distilled text that the sources do not bear out.

    Attributes:
        start: Where it begins in the text that was measured (`measure` says which).
        end: Where it ends.
        text: The span.
        kind: `number`, `name`, `code`, `unit`, `quoted`, `word`, `statement` (a sentence): not in the
            sources;
            `binding`: there, but of something else; `polarity`: a negation too many or too few; `answer`: the
                wrong letter or verdict;
            `repeated`: said before; `unasked`: not what the prompt asks.
    """

    start: int
    end: int
    text: str
    kind: str


@dataclass(frozen=True)
class Pool:
    """All that the sources hold.

    Attributes:
        facts: Fact keys, by how many sources hold them.
        stems: Content stems, by how many sources hold them.
        keys: The texts as sequences of token keys, for quoted strings.
        units: Units by the numbers that they stand with.
        placed: Facts with their contexts in the sources.
        topics: Names of what the sources are about.
        most: How often each name stands in a sentence of the sources, at most.
        lists: Lists of numbers, by their keys.
        names: Names that short sources give, by the keys of their words.
        subjects: What the sources say things of.
    """

    facts: Counter[str]
    stems: Counter[str]
    keys: str
    units: frozenset[str]
    placed: tuple[tuple[str, Kind, frozenset[str]], ...]
    topics: frozenset[str]
    most: Mapping[str, int]
    lists: tuple[tuple[str, ...], ...]
    names: frozenset[tuple[str, ...]]
    subjects: Subjects


def pool_of(sources: Sequence[SourceReading], output: Sequence[Reading] = ()) -> Pool:
    """All that the sources assert or ask, together; the output helps to tell names from first words."""
    facts: Counter[str] = Counter()
    stems: Counter[str] = Counter()
    keys: list[str] = []
    placed: dict[tuple[str, Kind, frozenset[str]], None] = {}
    topics = _topics(sources, output)
    for source in sources:
        facts.update(source.facts)
        stems.update(source.stems)
        for reading in (source.asked, source.told):
            keys.append(" ".join(reading.keys))
        for item in placed_of(source, topics):
            placed[item.fact.key, item.fact.kind, item.context] = None
    most: dict[str, int] = {}
    for source in sources:
        for reading in (source.asked, source.told):
            counts = Counter((f.key, reading.clauses[f.clause][2]) for f in reading.facts if f.kind == "name")
            for (key, _), count in counts.items():
                most[key] = max(most.get(key, 0), count)
        if (
            source.asked.words
        ):  # an answer may hold the name of what is asked about: `Central African CFA franc`
            for fact in source.told.facts:
                most[fact.key] = max(most.get(fact.key, 0), 2)
    units = {key.split(" ", 1)[1] for key in facts if " " in key and key[0].isdigit()}
    told = [reading for source in sources for reading in (source.asked, source.told)]
    lists = tuple(tuple(f.key for f in listed) for reading in told for listed in number_lists(reading))
    names = frozenset(
        name for source in sources if len(source.told.keys) <= _BRIEF for _, name in name_groups(source.told)
    )
    return Pool(
        facts,
        stems,
        f" {' | '.join(keys)} ",
        frozenset(units),
        tuple(placed),
        topics,
        most,
        lists,
        names,
        subjects_of(sources, topics),
    )


def with_prompts(pool: Pool, sources: Sequence[SourceReading]) -> Pool:
    """The pool that a distilled question is held against: it may list the options that a source lists."""
    facts, stems = Counter(pool.facts), Counter(pool.stems)
    for source in sources:
        facts.update({f.key for f in source.prompt.facts})
        stems.update({w.stem for w in source.prompt.words})
    keys = " | ".join([pool.keys, *(" ".join(source.prompt.keys) for source in sources)])
    return replace(pool, facts=facts, stems=stems, keys=f" {keys} ")


def _topics(sources: Sequence[SourceReading], output: Sequence[Reading]) -> frozenset[str]:
    """The names of what the sources are about.

    A capitalised word that begins a sentence is a name where any text has it as one, or where the output and
    the sources have it and none in small letters. A name asked for beside another one in all its sources,
    where the other is asked for elsewhere too, is part of a label: `English name of Libra`, `capital of
    Libra`.
    """
    texts = [*output, *(reading for source in sources for reading in (source.asked, source.told))]
    names = {f.key for reading in texts for f in reading.facts if f.kind == "name" and f.certain}
    small = {
        word.key for reading in texts for word in reading.words if not reading.text[word.start].isupper()
    }
    names |= {f.key for reading in output for f in reading.facts if f.kind == "name"} - small
    names |= {
        f.key
        for source in sources
        for f in source.asked.facts
        if f.kind == "name" and source.asked.text[f.end : f.end + 1] in (",", ":", "?") and f.key not in small
    }
    asked: dict[str, set[int]] = {}
    for number, source in enumerate(sources):
        for name in topics_of(source, names):
            asked.setdefault(name, set()).add(number)
    found = _widest(asked)
    # names that share the sources out between them are topics beside what all name (`category Geography`)
    parted = {name: mine for name, mine in asked.items() if len(mine) < len(sources)}
    if set().union(*parted.values()) == set(range(len(sources))):
        found |= _widest(parted)
    return frozenset(found | _common_nouns(sources))


def _widest(asked: Mapping[str, set[int]]) -> set[str]:
    """The names whose sources are not all among those of another."""
    return {name for name, mine in asked.items() if not any(mine < other for other in asked.values())}


def _common_nouns(sources: Sequence[SourceReading]) -> set[str]:
    """Stems of the words that tell the sources' subjects apart, behind a word that all share.

    `the element neon` and `the element iron` are about neon and iron.
    """
    after: dict[str, dict[str, set[int]]] = {}
    for number, source in enumerate(sources):
        reading = source.claim if source.is_claim else source.asked
        for first, second in pairwise(reading.words):
            if reading.text[first.end : second.start] == " ":
                after.setdefault(first.stem, {}).setdefault(second.stem, set()).add(number)
    # claims name the kind of thing first and then say something of it; questions ask, and name it last
    listed = list(after.values())
    for heads in listed if all(source.is_claim for source in sources) else reversed(listed):
        held: set[int] = set().union(*heads.values())
        if len(held) == len(sources):
            apart = len(heads) > 1 and sum(map(len, heads.values())) == len(held)
            return set(heads) if apart else set()
    return set()


def is_held(fact: Fact, pool: Pool) -> bool:
    """Whether the sources hold a fact.

    A unit that no source uses is not compared, unless they give the number in another one: they may leave it
    to the question what is counted.
    """
    if fact.kind == "quoted":
        return f" {fact.key} " in pool.keys
    if fact.key in pool.facts:
        return True
    if fact.kind == "unit":
        number, unit = fact.key.split(" ", 1)
        return unit not in pool.units and not any(key.startswith(f"{number} ") for key in pool.facts)
    if fact.kind not in ("name", "code"):
        return False
    return f" {fact.key} " in pool.keys or f" {fact.key}'s " in pool.keys


def unsupported_facts(reading: Reading, pool: Pool) -> list[Fact]:
    """The facts of an output that no source holds; an uncertain name only counts as the word that it is."""
    missing = [fact for fact in reading.facts if fact.certain and not is_held(fact, pool)]
    numbers = {(fact.start, fact.clause) for fact in missing if fact.kind == "number"}
    return [fact for fact in missing if fact.kind != "unit" or (fact.start, fact.clause) not in numbers]


def misbound(
    readings: Sequence[Reading], pool: Pool, question: Collection[str] = (), *, asks: bool = False
) -> list[list[Fact]]:
    """For each text of an output the facts that the sources hold of something else.

    `question` are the words that the last text answers, where it says nothing of its own (an option); `asks`
    is whether the first text says nothing, but asks: then `misplaced` is not for it.

    Topics must agree: a fact that the sources tell of other topics than the output names there is misbound.
    Else each fact f is compared with the facts g of its kind, of the same topic where that is known, by the
    words that stand with one of the two in the sources and not with the other. Where the words around f in
    the output are rather g's, f stands in the wrong place (`period 14` of `group 14` and `period 4`), unless
    g stands with its own words in the output. Words that no source uses say nothing, so other wording costs
    nothing. Topics are part of the context of what is said of them: see `_stands_between`.
    """
    around: dict[str, list[frozenset[str]]] = {}
    kinds: dict[str, bool] = {}
    for key, kind, held in pool.placed:
        around.setdefault(key, []).append(held)
        kinds[key] = kind == "number"
    placed = [
        (number, fact, context | (set(question) - {fact.key} if number == len(readings) - 1 else set()))
        for number, reading in enumerate(readings)
        for fact, context in contexts(reading, pool.topics)
    ]
    here: dict[str, set[str]] = {}
    for _, fact, words in placed:
        here.setdefault(fact.key, set()).update(words)
    times = Counter((number, fact.key) for number, fact, _ in placed)
    wrong: list[list[Fact]] = [[] for _ in readings]
    for number, fact, words in placed:
        if fact.key not in around or not fact.certain:
            continue
        if fact.key in pool.topics:
            if _stands_between(fact.key, words, around) or _is_own_value(fact, readings[number], pool.most):
                wrong[number].append(fact)
            continue
        subject = words & pool.topics
        mine = around[fact.key]
        with_subject = [there for there in mine if there & subject]
        if subject and not with_subject and all(there & pool.topics for there in mine):
            wrong[number].append(fact)
            continue
        own: set[str] = set().union(*(with_subject or mine))
        if fact.kind == "name" and _stands_for_topic(words, set().union(*mine), pool.topics, around):
            wrong[number].append(fact)
            continue
        labels = set(readings[number].labels_of(fact))
        for key, others in around.items():
            if key == fact.key or kinds[key] != (fact.kind == "number") or key in pool.topics:
                continue
            theirs = set().union(*(there for there in others if not with_subject or there & subject))
            if _stands_for(words, own, theirs, here.get(key), labels, again=times[number, fact.key] > 1):
                wrong[number].append(fact)
                break
    for found, reading in zip(wrong, readings, strict=True):
        found += _out_of_order(reading, pool.lists) + _cut_short(reading, pool)
        found += [f for f in _under_anothers_label(reading, around) if f not in found]
        if not (asks and reading is readings[0]):
            found += [f for f in misplaced(reading, pool.subjects) if f not in found]
    return wrong


def _under_anothers_label(reading: Reading, around: Mapping[str, Sequence[frozenset[str]]]) -> list[Fact]:
    """The numbers that a text gives the name of another one, beside that one and in its unit.

    `a boiling point of 545 K, with a boiling point of 1837 K` of what melts at 545 K. Elsewhere other wording
    costs nothing, and what has its own words in the output takes nobody's place; but two amounts of one thing
    are one too many where the sources have its words for one of them alone.
    """
    units = {fact.start: fact.key.split(" ", 1)[1] for fact in reading.facts if fact.kind == "unit"}
    numbers = [f for f in reading.facts if f.kind == "number" and f.start in units and f.key in around]
    said_of = {fact.key: set().union(*around[fact.key]) for fact in numbers}
    beside = {fact.start: _words_beside(reading, fact) for fact in numbers}
    wrong = []
    for fact in numbers:
        for other in numbers:
            if other.key == fact.key or units[other.start] != units[fact.start]:
                continue
            shared = said_of[fact.key] & said_of[other.key]  # of their subject: it tells neither apart
            mine, theirs = ([words - shared for words in beside[f.start]] for f in (fact, other))
            if mine[0] and mine == theirs and mine[0] <= said_of[other.key]:
                wrong.append(fact)
                break
    return wrong


def _words_beside(reading: Reading, fact: Fact) -> tuple[frozenset[str], frozenset[str]]:
    """The stems between a fact and its neighbours in the clause, before it and behind it."""
    words = [word for word in reading.words if word.clause == fact.clause]
    others = [f for f in reading.facts_of(fact.clause) if f.start != fact.start]
    first = max((f.end for f in others if f.end <= fact.start), default=0)
    last = min((f.start for f in others if f.start >= fact.end), default=len(reading.text))
    return (
        frozenset(word.stem for word in words if first <= word.start and word.end <= fact.start),
        frozenset(word.stem for word in words if fact.end <= word.start and word.end <= last),
    )


def _out_of_order(reading: Reading, lists: Sequence[tuple[str, ...]]) -> list[Fact]:
    """The first wrong number of each list that has nearly the numbers of a source and is no part of it."""
    wrong = []
    for listed in number_lists(reading):
        keys = tuple(fact.key for fact in listed)
        if any(keys == other[at : at + len(keys)] for other in lists for at in range(len(other))):
            continue
        near = [other for other in lists if _is_near(keys, other)]
        if near:
            other = max(near, key=lambda other: sum(a == b for a, b in zip(keys, other, strict=False)))
            differ = [fact for fact, key in zip(listed, other, strict=False) if fact.key != key]
            wrong.append((differ or listed)[0])
    return wrong


def _cut_short(reading: Reading, pool: Pool) -> list[Fact]:
    """The first name of each value that stands in a text in part alone: `Swiss` for `Swiss franc`."""
    text = f" {' '.join(reading.keys)} "
    whole = {
        reading.begins[at]
        for name in pool.names
        if len(name) >= _LIKE
        for at in range(len(reading.keys) - len(name) + 1)
        if reading.keys[at : at + len(name)] == name
    }
    wrong = []
    for name in sorted(pool.names):
        if len(name) < _LIKE or f" {' '.join(name)} " in text:
            continue
        if not pool.topics.isdisjoint(name):  # `Vanuatu pays with the Vanuatu` for `Vanuatu vatu`
            cut = [f for f in reading.facts if f.key in name and f.start not in whole]
            wrong += [f for f in cut if _is_own_value(f, reading, {}, cut=True)][:1]
            continue
        others = {key for other in pool.names for key in other if other != name} | pool.topics
        wrong += [f for f in reading.facts if f.kind == "name" and f.key in name and f.key not in others][:1]
    return wrong


def _is_near(keys: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of numbers are one but for an item, or for one or two places."""
    same = sum(a == b for a, b in zip(keys, other, strict=False))
    placed = len(keys) == len(other) and same >= max(_LIKE, len(keys) - 2)
    return placed or len(set(keys) & set(other)) >= max(_NEAR, len(set(other)) - 1)


def _stands_between(topic: str, context: set[str], around: Mapping[str, Sequence[frozenset[str]]]) -> bool:
    """Whether a topic stands between the very tokens that another name stands between in the sources.

    What is said of a topic is no evidence of its place, as it is said of it in any words; so both neighbours
    have to be the other's, and neither its own.
    """
    beside = {word for word in context if word.startswith(_BESIDE)}
    if "before:" in beside or "after:" in beside:  # at the end of a text there is no neighbour to compare
        return False
    if any(beside & words for words in around[topic]):
        return False
    return any(beside <= words for key, contexts in around.items() if key != topic for words in contexts)


def _stands_for_topic(
    context: set[str], own: set[str], topics: Collection[str], around: Mapping[str, Sequence[frozenset[str]]]
) -> bool:
    """Whether a name stands right behind a word that only stands before topics in the sources."""
    before = {word for word in context - own if word.startswith("before:") and not _is_weak(word)}
    return any(before & words for topic in topics for words in around.get(topic, ()))


def _is_own_value(fact: Fact, reading: Reading, most: Mapping[str, int], *, cut: bool = False) -> bool:
    """Whether a topic is said of itself (`Morocco is part of Morocco`) where no source has it twice.

    At the start of a clause it is the subject again: `Chad has … and Chad lies …`; one that is `cut` short is
    none behind `with`, which gives a value (`… pays with the Vanuatu`).
    """
    sentence = reading.clauses[fact.clause][2]
    before = [
        f
        for f in reading.facts
        if (f.key, f.kind) == (fact.key, "name")
        and f.start < fact.start
        and reading.clauses[f.clause][2] == sentence
    ]
    lead = reading.text[reading.clauses[fact.clause][0] : fact.start].split()
    inside = len(lead) > _LEAD or (cut and "with" in lead)
    return len(before) >= max(1, most.get(fact.key, 1)) and inside


def _stands_for(
    context: set[str],
    own: set[str],
    theirs: set[str],
    there: set[str] | None,
    labels: set[str],
    *,
    again: bool,
) -> bool:
    """Whether a fact with the words `own` stands in an output where one with the words `theirs` should.

    Args:
        context: The words around it in the output.
        own: Those around it in the sources.
        theirs: Those around the other in the sources.
        there: Those around the other in the output; None where that is not in it.
        labels: Those nearest to it in the output, which count twice.
        again: Whether the output has the fact in another place too, which may be its own.
    """
    lean = _weight(context & (theirs - own)) - _weight(context & (own - theirs))
    lean += len(labels & (theirs - own)) - len(labels & (own - theirs))
    if lean <= 0:
        return False
    if there is None:
        return lean >= _CLEAR
    if again and lean >= _CLEAR and not labels & own:
        return True
    away = _weight(there & (own - theirs)) - _weight(there & (theirs - own))
    return (away > 0 and lean + away > 1) or (away >= -_WEAK and lean >= _CLEAR)


def _weight(context: Collection[str]) -> float:
    """How much a context says: a neighbour that is a function word half of what a content word does."""
    return sum(_WEAK if word.startswith(_BESIDE) and _is_weak(word) else 1.0 for word in context)


def _is_weak(beside: str) -> bool:
    word = beside.partition(":")[2]
    return not word or word in FUNCTION_WORDS


def unsupported_words(reading: Reading, pool: Pool) -> tuple[int, list[tuple[int, int]]]:
    """How many content words an output has, and where those stand that no source holds."""
    names = {fact.start for fact in reading.facts if fact.kind in ("name", "code") and is_held(fact, pool)}
    missing = [
        (word.start, word.end)
        for word in reading.words
        if word.stem not in pool.stems and word.start not in names and not is_close(word.stem, pool.stems)
    ]
    return len(reading.words), missing


def unsupported_sentences(
    reading: Reading, missing: Sequence[tuple[int, int]], facts: Sequence[Fact], topics: Collection[str]
) -> list[tuple[int, int]]:
    """The sentences of an output that are invented: `_LEAST` items or more, fewer than half of them held.

    A fact that the sources hold counts twice: other wording around it is no invention. What all is about
    counts once.

    Args:
        reading: The output.
        missing: Places of its words that no source holds.
        facts: Its facts that no source holds.
        topics: Names of what the sources are about.
    """
    gone = [start for start, _ in missing] + [fact.start for fact in facts]
    invented = []
    for start, end in sentences(reading.text):
        words = sum(start <= word.start < end for word in reading.words)
        stated = [f for f in reading.facts if start <= f.start < end and f.certain]
        told = sum(
            f.key not in topics and f not in facts for f in stated if f.kind in ("number", "name", "code")
        )
        items = words + len(stated)
        if items >= _LEAST and sum(start <= place < end for place in gone) > (items + told) / 2:
            invented.append((start, end))
    return invented


def is_close(word: str, others: Collection[str]) -> bool:
    """Whether one of the words is the same but for a typing error; short words have to be equal."""
    return word in others or (len(word) > 4 and bool(get_close_matches(word, others, 1, _CLOSE)))


def spans(text: str, facts: Iterable[Fact], kind: str | None = None) -> list[Span]:
    """The spans of facts."""
    return [Span(f.start, f.end, text[f.start : f.end], kind or f.kind) for f in facts]
