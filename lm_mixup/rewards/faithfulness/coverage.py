"""Coverage and repetition: how much of the sources an output carries, and whether it says things twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final

import regex

from lm_mixup.core.words import sentences
from lm_mixup.rewards.faithfulness.facts import Fact, Reading, read, stem
from lm_mixup.rewards.faithfulness.sources import SourceReading, _first_names, _items, name_groups, placed_of
from lm_mixup.rewards.faithfulness.support import is_close

_ENOUGH: Final = 0.6
_CHANCE: Final = 0.25
_FEW_WORDS: Final = 4
_WORD_WEIGHT: Final = 0.25
_LONGEST_RUN: Final = 5
_SHORT: Final = 25
_BARE: Final = 5
_SAME_WORDS: Final = 3
_LINE: Final = 5
_SUBJECT: Final = 6
# Eight letters or more of one to six that come four times in a row or more; a mark five times with spaces.
_STUTTER: Final = regex.compile(r"(?=[^\W\d_]{8})([^\W\d_]{1,6}?)\1{3,}|([^\w\s])(?:\s+\2){4,}")
_BETWEEN: Final = regex.compile(r"(?:[,;]\s+|\s)(?:and|with|while)\s|[,;]\s")


def coverage(output: Sequence[Reading], sources: Sequence[SourceReading], *, asked: bool = False) -> float:
    """The share of what the sources tell that an output carries, each thing once, in [0, 1].

    What a source tells is its answers, picked options and affirmed claims, clause by clause. A clause counts
    by its numbers, names and codes; in one with few other words those are its wording, which may change. Else
    it counts by its words too: all if a sentence of the output has `_ENOUGH` of them, nothing if none has
    more than `_CHANCE`. Sentences that share the words between them do not say what the clause says.

    Args:
        output: Prompt and completion.
        sources: The sources.
        asked: Whether the sources' questions are information too: those of multiple choice give the case that
            the options are about.
    """
    facts = {fact.key for reading in output for fact in reading.facts}
    keys = {key for reading in output for key in reading.keys}
    said = [stems for reading in output for stems in _stems_by_sentence(reading)]
    seen: set[str] = set()
    total = covered = 0.0
    for told in (text for s in sources for text in ((s.told, s.asked) if asked else (s.told,))):
        for clause in range(len(told.clauses)):
            mine = {
                f.key: f
                for f in told.facts_of(clause)
                if f.kind in ("number", "name", "code") and f.certain and f.key not in seen
            }
            words = told.words_of(clause)
            has_facts = any(f.kind in ("number", "name", "code") and f.certain for f in told.facts_of(clause))
            seen |= mine.keys()
            total += len(mine)
            covered += sum(key in facts or key in keys for key in mine)
            signature = "w " + " ".join(sorted(words))
            if signature in seen or not words or (has_facts and len(words) <= _FEW_WORDS):
                continue
            seen.add(signature)
            weight = _WORD_WEIGHT * len(words) if has_facts else max(1.0, _WORD_WEIGHT * len(words))
            # a single word is an answer, beside others it is not
            alone = len(words) == 1 and len(told.words) > 1
            weight *= 0.5 if alone and not has_facts else 1.0
            total += weight
            best = max(said, key=lambda stems: len(words & stems), default=set())
            share = sum(is_close(word, best) for word in words) / len(words)  # but for typing errors
            covered += weight * min(1.0, max(0.0, (share - _CHANCE) / (_ENOUGH - _CHANCE)))
    return covered / total if total else 1.0


def _stems_by_sentence(reading: Reading) -> list[set[str]]:
    """The stems of each sentence's words and names."""
    found: dict[int, set[str]] = {}
    for word in reading.words:
        found.setdefault(reading.clauses[word.clause][2], set()).add(word.stem)
    for fact in reading.facts:
        if fact.kind == "name":
            found.setdefault(reading.clauses[fact.clause][2], set()).add(stem(fact.key))
    return list(found.values())


def repetition(
    prompt: Reading,
    completion: Reading,
    sources: Sequence[SourceReading],
    topics: Collection[str] = frozenset(),
) -> tuple[float, list[tuple[int, int]]]:
    """The share of an output that repeats itself, in [0, 1], and where in the completion.

    Counted are the runs of a few tokens that stand in the completion before, said of the same subject, and,
    as whole facts, numbers that it gives more often than the sources have things to give them of. A question
    that lists one thing twice counts as well.

    Args:
        prompt: The question; empty where it may say things again.
        completion: What tells.
        sources: The sources.
        topics: Names of what the sources are about.
    """
    size = min(_LONGEST_RUN, max(1, len(completion.keys) // 3))  # what is told three times repeats a run
    runs = _runs_by_subject(completion, size, topics)
    allowed = Counter[tuple[str, ...]]()
    for source in sources:
        for run, count in _distinct_runs(source.told, size).items():
            allowed[run] = max(allowed[run], count)
    counts = Counter(runs)
    excess = sum(max(0, count - max(1, allowed[run])) for (run, _), count in counts.items())
    share = excess / len(runs) if runs else 0.0
    again = _told_again(completion, sources, topics)
    facts = sum(f.kind in ("number", "name", "code") and f.certain for f in completion.facts)
    if facts:
        share = max(share, len(again) / facts)
    share = max(share, _clauses_again(completion, sources, topics))
    share = max(share, _listed_twice(prompt, topics, sources), _phrases_twice(completion.text, sources))
    return min(1.0, share), [(f.start, f.end) for f in again]


def _runs(keys: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(keys[i : i + size]) for i in range(len(keys) - size + 1)]


def _runs_by_subject(
    reading: Reading, size: int, topics: Collection[str]
) -> list[tuple[tuple[str, ...], frozenset[str]]]:
    """The runs of tokens of a text, each with the topics named last before its end.

    A subject may be named again: runs of full length that hold the name of a topic are left out.
    """
    named = [key if key in topics or stem(key) in topics else "" for key in reading.keys]
    found = []
    subject: frozenset[str] = frozenset()
    for at, run in enumerate(_runs(reading.keys, size)):
        here = frozenset(filter(None, named[at : at + size]))
        subject = here or subject
        if not here or size < _LONGEST_RUN:
            found.append((run, subject))
    return found


def _distinct_runs(told: Reading, size: int) -> Counter[tuple[str, ...]]:
    """Runs of tokens of a source, without those of sentences that it tells again.

    A short source has one thing to say, though it says it in two wordings: there the sentences count apart.
    """
    told_once = {read(told.text[start:end]).keys for start, end in sentences(told.text)}
    counts = [Counter(_runs(keys, size)) for keys in sorted(told_once)]
    if len(told.keys) > _SHORT:
        return sum(counts, Counter())
    return Counter(
        {run: max(mine[run] for mine in counts) for run in {run for mine in counts for run in mine}}
    )


def _told_again(completion: Reading, sources: Sequence[SourceReading], about: Collection[str]) -> list[Fact]:
    """Facts that a completion gives more often than the sources have things to give them of.

    A short source has one thing for a fact, though it says it twice; a long one as many as it has contexts.
    Names and small whole numbers recur by nature (`1 cup`, steps of a list): they are told again only where
    most words beside them are too, and names of what the sources ask about never are.

    Args:
        completion: What tells.
        sources: The sources.
        about: Names of what the sources are about: of another one the same fact is another thing.
    """
    allowed: Counter[str] = Counter()
    subjects: dict[str, set[frozenset[str]]] = {}
    topics: set[str] = set()
    for source in sources:
        topics |= {f.key for f in source.asked.facts if f.kind == "name"}
        topics |= _subject(source.claim)
        topics |= {key for key, sentence in _first_names(source.claim) if sentence == 0}
        long = len(source.told.keys) > _SHORT
        around: dict[str, set[frozenset[str]]] = {}
        for item in placed_of(source, ()):
            around.setdefault(item.fact.key, set()).add(item.context)
        for key, found in around.items():
            subjects.setdefault(key, set()).add(_subjects(source, about))
            allowed[key] = max(allowed[key], len(found) if long else 1)
    told: Counter[str] = Counter()
    beside: dict[str, list[set[str]]] = {}
    again = []
    short = all(len(source.told.keys) <= _SHORT for source in sources)
    for fact in completion.facts:
        if fact.kind not in ("number", "name", "code") or fact.key in topics or not fact.certain:
            continue
        words = completion.words_of(fact.clause) - topics
        # In long texts a name, or a unit such as `1 cup`, stands beside one word time and again.
        label = completion.labels_of(fact)[:1] if fact.kind == "number" and short else ()
        told[fact.key] += 1
        recurs = fact.kind == "name" or (fact.kind == "number" and fact.key.isdigit() and len(fact.key) <= 2)
        before = beside.setdefault(fact.key, [])
        same = any(len(words & other) > len(words) / 2 or set(label) & other for other in before)
        before.append(words | set(label))
        if told[fact.key] > max(1, allowed[fact.key], len(subjects.get(fact.key, ()))) and (
            same or not recurs
        ):
            again.append(fact)
    return again + _values_again(completion, sources, about, topics)


def _clauses_again(completion: Reading, sources: Sequence[SourceReading], topics: Collection[str]) -> float:
    """The share of a completion's clauses that give a value in small letters again, such as `the nonmetals`.

    Such a value is a word of a clause without facts, of one short source alone, that the source does not
    repeat; or, of the same subject, most of the words of such a clause (`a solid at room temperature`). Long
    sources use a word for many reasons.
    """
    if any(len(source.told.keys) > _SHORT for source in sources):
        return 0.0
    spread = Counter(stem for source in sources for stem in source.stems)
    given: set[str] = set()
    for source in sources:
        for number in range(len(source.told.clauses)):
            if not any(f.certain for f in source.told.facts_of(number)):
                given |= source.told.words_of(number)
    values = {word for word in given if spread[word] == 1}
    plain = [n for n in range(len(completion.clauses)) if not any(f.certain for f in completion.facts_of(n))]
    told = Counter(word for number in plain for word in completion.words_of(number) & values)
    again = sum(count - 1 for count in told.values())
    again = max(again, _wordings_again(completion, given, topics))
    return min(1.0, again / len(completion.clauses)) if completion.clauses else 0.0


def _wordings_again(completion: Reading, given: Collection[str], topics: Collection[str]) -> int:
    """How many clauses tell of the same subject most of what a clause before tells, three words or more.

    Args:
        completion: What tells.
        given: The words of which clauses without facts are compared.
        topics: Names of what the sources are about.
    """
    again = 0
    before: list[tuple[set[str], set[str]]] = []
    subject: set[str] = set()
    # `the element` of `the element neon` names the subject
    kinds = {first.stem for first, second in pairwise(completion.words) if second.stem in topics}
    for number in range(len(completion.clauses)):
        facts = completion.facts_of(number)
        names = {f.key for f in facts if f.kind == "name"} | completion.words_of(number)
        subject = names & set(topics) or subject
        words = completion.words_of(number) & set(given) - set(topics) - kinds
        if len(words) < _SAME_WORDS or any(f.certain and f.key not in topics for f in facts):
            continue
        again += any(
            subject == of and len(words & other) >= max(_SAME_WORDS, _ENOUGH * max(len(words), len(other)))
            for of, other in before
        )
        before.append((subject, words))
    return again


def _subjects(source: SourceReading, about: Collection[str]) -> frozenset[str]:
    """What of the topics a source names."""
    keys = (*source.asked.keys, *source.told.keys)
    return frozenset(key for key in keys if key in about or stem(key) in about)


def _values_again(
    completion: Reading, sources: Sequence[SourceReading], about: Collection[str], topics: Collection[str]
) -> list[Fact]:
    """Names that a completion gives again as a value: `has the capital Dover and is governed from Dover`.

    Looked for only where all sources are short: long ones name the same thing for many reasons. A name may be
    given as often as a sentence of a source has it, for each subject, and for each bare answer's question.
    """
    if any(len(source.told.keys) > _SHORT for source in sources):
        return []
    allowed: Counter[tuple[str, ...]] = Counter()
    asked: dict[tuple[str, ...], set[tuple[frozenset[str], frozenset[str]]]] = {}
    known = {fact.key for fact in completion.facts if fact.kind == "name" and fact.certain}
    for source in sources:
        question = (
            frozenset(w.stem for w in source.asked.words) if len(source.told.keys) <= _BARE else frozenset()
        )
        for start, end in sentences(source.told.text):
            counts = Counter(name for _, name in name_groups(read(source.told.text[start:end]), known))
            for name, count in counts.items():
                allowed[name] = max(allowed[name], count)
                asked.setdefault(name, set()).add((_subjects(source, about), question))
    told: Counter[tuple[str, ...]] = Counter()
    facts = {fact.start: fact for fact in completion.facts if fact.kind == "name"}
    again = []
    for start, name in name_groups(completion):
        told[name] += 1
        if told[name] > max(allowed[name], len(asked.get(name, ()))) > 0 and not set(topics) & set(name):
            again.append(facts[start])
    return again


def _subject(claim: Reading) -> set[str]:
    """What a claim is about: its first words up to its first name or number; what follows it tells."""
    opening = set(claim.keys[:_SUBJECT])
    facts = [fact for fact in claim.facts if fact.kind in ("number", "name", "code") and fact.key in opening]
    values = {fact.key for fact in facts if fact.kind != "name"}
    return opening - {fact.key for fact in facts[1:]} - values


def stutters(text: str, told: Sequence[str]) -> bool:
    """Whether a word repeats some letters over and over (`Lithuanianianianian`), or a mark (`. . . . .`)."""
    # What a source has is quoted.
    found = (match.group() for match in _STUTTER.finditer(text))
    return any(not any(run in part for part in told) for run in found)


def lines_again(text: str, told: Sequence[str]) -> list[tuple[int, int]]:
    """The lines of `_LINE` tokens or more that a text has more often than its sources, list marks aside.

    Args:
        text: A completion.
        told: What the sources tell.
    """
    allowed = Counter(key for part in told for key, _, _ in _lines(part))
    seen: Counter[tuple[str, ...]] = Counter()
    again = []
    for keys, start, end in _lines(text):
        seen[keys] += 1
        if seen[keys] > max(1, allowed[keys]):
            again.append((start, end))
    return again


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], int, int]]:
    start = 0
    for line in text.split("\n"):
        keys = read(line).keys
        if len(keys) >= _LINE:
            yield keys, start, start + len(line)
        start += len(line) + 1


def _phrases_twice(text: str, sources: Sequence[SourceReading]) -> float:
    """The share of the phrases between commas and conjunctions that stand in their sentence before.

    Phrases of a single word count for nothing, nor do those that a source has twice in a sentence as well.
    """
    allowed = {phrase for source in sources for phrase in _phrases(source.told.text)[1]}
    phrases, again = _phrases(text)
    return sum(phrase not in allowed for phrase in again) / len(phrases) if phrases else 0.0


def _phrases(text: str) -> tuple[list[str], list[str]]:
    """The phrases of two words or more, and those of them that stand in their sentence before."""
    phrases: list[str] = []
    again: list[str] = []
    for start, end in sentences(text):
        parts = (" ".join(read(part).keys) for part in _BETWEEN.split(text[start:end]))
        mine = [part for part in parts if " " in part]
        again += [part for number, part in enumerate(mine) if part in mine[:number]]
        phrases += mine
    return phrases, again


def _listed_twice(prompt: Reading, topics: Collection[str], sources: Sequence[SourceReading]) -> float:
    """The share of a question's list items that stand in the list before, of the same subject."""
    seen: set[frozenset[str]] = set()
    items = again = 0
    # `the element` of `the element neon` is what is asked about, not what is asked
    common = frozenset.intersection(*(frozenset(w.stem for w in s.asked.words) for s in sources))
    kinds = {first.stem for first, second in pairwise(prompt.words) if second.stem in topics}
    for start, end in _items(prompt.text):
        item = read(prompt.text[start:end])
        words = frozenset(w.stem for w in item.words)
        asked = words - set(topics) - kinds
        if asked:
            items += 1
            # the last item of a list names what all are asked of: `… and area of the element neon`
            again += asked in seen or any(other < asked and asked - other <= common for other in seen)
            seen.add(asked)
        if words & set(topics) or any(f.kind == "name" for f in item.facts):
            seen.clear()
    return again / items if items > 1 else 0.0
