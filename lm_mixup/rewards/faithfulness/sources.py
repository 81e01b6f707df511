"""What a source asserts: a pair read by its kind, without the options it rejects or the claim it denies."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

import regex

from lm_mixup.rewards.faithfulness.facts import Fact, Reading, read, stem
from lm_mixup.rewards.faithfulness.lexicon import FUNCTION_WORDS, NEGATIONS

_OPTION: Final = regex.compile(
    r"(?:(?<=\n)|(?<=^)|(?<=\s))\(?(?P<letter>[A-Fa-f])[).:][ \t]+(?P<text>.+?)"
    r"(?=\s*$|\s*\n|[,;]?\s+\(?[B-Fb-f][).:][ \t])"
)
_TRUE_FALSE: Final = regex.compile(
    r"(?i)(?:^|[,.:]?\s*)(?:quiz,\s*)?(?:is (?:this|that|it) )?(?:please )?"
    r"(?:say |tell |state )?(?:whether )?"
    r"(?:(?:this|that|it) is )?\btrue\s*(?:[or]{2,3}|/)\s*false\b[?:.,]?"
)
_VERDICT: Final = regex.compile(
    r"(?i)\b(?P<yes>true|yes|correct|right)\b|\b(?P<no>false|no|incorrect|wrong|untrue)\b"
)
_SAYS_AGAIN: Final = regex.compile(r"(?i)\b(?:(?:so )?the answer is|as said)\b[:,]?")
_LETTER_PICK: Final = regex.compile(r"(?:^|\W)\(?(?P<letter>[A-F])(?:[).:]|\s*$)")
_LIST_CUT: Final = regex.compile(r"\s*(?:[,;]|\band\b|&)\s*(?:and\b\s*)?")
_VERDICT_STEMS: Final = frozenset(
    map(stem, ["true", "false", "correct", "right", "incorrect", "wrong", "untrue"])
)
_SHORT: Final = 3
_CLOSE: Final = 0.79
_LONG_FILLERS: Final = tuple(sorted(word for word in FUNCTION_WORDS if len(word) > _SHORT))
_VERDICTS: Final = ({"yes", "no"}, {"true", "false"})
_BEHIND: Final = frozenset(("as", "and", "with", "while", "i", "lol", "ok"))
_SENTENCE_END: Final = regex.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a pool row, or the pair that an input text stands for; `prompt` may be empty."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A fact with what stands around it.

    Attributes:
        fact: The fact.
        context: Stems and names of its clause, of what the source was asked, and its subject.
    """

    fact: Fact
    context: frozenset[str]


@dataclass(frozen=True)
class SourceReading:
    """What one source asks and asserts.

    Attributes:
        asked: The prompt without its options.
        told: The completion, behind the claim that its verdict affirms or the option that it picks.
        prompt: The whole prompt, its options and claims too.
        claim: The statement that the completion gives a verdict on; empty where it gives none.
        is_claim: Whether the prompt is a statement that the completion gives a verdict on.
        verdict: That verdict; None where there is none.
        picked: The option picked; empty where there are none.
        rejected: The options not picked.
    """

    asked: Reading
    told: Reading
    prompt: Reading
    claim: Reading
    is_claim: bool
    verdict: bool | None
    picked: str
    rejected: tuple[str, ...]

    @property
    def facts(self) -> set[str]:
        """Keys of all facts, asked and told."""
        return {f.key for reading in (self.asked, self.told) for f in reading.facts}

    @property
    def stems(self) -> set[str]:
        """Stems of all content words, asked and told, and of names: `DENSITY` may be a word in capitals."""
        texts = (self.asked, self.told)
        names = {stem(f.key) for reading in texts for f in reading.facts if f.kind == "name"}
        return {w.stem for reading in texts for w in reading.words} | names


def options_of(prompt: str) -> tuple[str, dict[str, str]]:
    """A prompt without its options, and the options by letter; none where fewer than two stand."""
    found = list(_OPTION.finditer(prompt))
    if len(found) < 2:
        return prompt, {}
    options = {m["letter"].upper(): m["text"].strip() for m in found}
    bare = "".join(
        prompt[a:b]
        for a, b in zip(
            [0, *(m.end() for m in found)], [*(m.start() for m in found), len(prompt)], strict=True
        )
    )
    return bare.strip(), options


def picked_letter(completion: str, options: dict[str, str]) -> str | None:
    """The letter of the option that a completion picks, by letter or else by text; None if none."""
    found = _LETTER_PICK.search(completion)
    if found is not None and found["letter"] in options:
        return found["letter"]
    folded = completion.casefold().strip(" .")
    matches = [
        letter
        for letter, text in options.items()
        if text.casefold().strip(" .") and text.casefold() in folded
    ]
    return max(matches, key=lambda letter: len(options[letter])) if matches else None


def verdict_of(text: str) -> bool | None:
    """The first verdict that a text gives; None if it gives none."""
    found = _VERDICT.search(text)
    return None if found is None else found["yes"] is not None


def rest_of_verdict(completion: str) -> str:
    """What a completion adds behind its verdict: of `False. Soup is liquid.` the second sentence."""
    found = _VERDICT.search(completion)
    return completion if found is None else completion[found.end() :].lstrip(" .,:;!\n").strip()


def _with_rest(told: str, completion: str) -> str:
    """What a source holds to be so, and what it adds to its verdict or letter, if it adds anything."""
    known = read(told)
    rest = read(completion)
    stems = {word.stem for word in known.words} | _VERDICT_STEMS | {stem(fact.key) for fact in known.facts}
    new_words = any(word.stem not in stems and not _is_filler(word.key) for word in rest.words)
    new_facts = {f.key for f in rest.facts if f.certain} - {f.key for f in known.facts}
    denies = any(key in NEGATIONS or key.endswith("n't") for key in rest.keys if key != "no")
    return f"{told}\n{completion}" if new_words or new_facts or (denies and rest.words) else told


def _is_vague(completion: str) -> bool:
    """Whether an answer guesses and names nothing, such as "Some country, I guess"."""
    reading = read(completion)
    certain = any(fact.certain for fact in reading.facts)
    return "guess" in reading.keys and not certain and len(reading.words) <= _SHORT


def _is_filler(key: str) -> bool:
    """Whether a word beside a verdict says nothing: it is short, or a function word with a typing error."""
    return key.isascii() and (len(key) <= _SHORT or bool(get_close_matches(key, _LONG_FILLERS, 1, _CLOSE)))


def _is_verdict_alone(completion: str) -> bool:
    """Whether a completion says true, false, yes or no and nothing else but fillers."""
    reading = read(completion)
    rest = [w for w in reading.words if w.stem not in _VERDICT_STEMS and not _is_filler(w.key)]
    return verdict_of(completion) is not None and not rest and not any(f.certain for f in reading.facts)


def statement_of(prompt: str) -> str:
    """The statement of a true-or-false prompt, without the question whether it holds; empty if it is none."""
    if _TRUE_FALSE.search(prompt) is None:
        return ""
    return _TRUE_FALSE.sub(" ", prompt).strip(" :?,\n")


@lru_cache(maxsize=4096)
def read_source(source: Source) -> SourceReading:
    """Reads a source; equal sources are read once."""
    bare, options = options_of(source.prompt)
    completion = "" if _is_vague(source.completion) else _SAYS_AGAIN.sub("", source.completion)
    told, verdict, picked, is_claim = completion, None, "", False
    rejected: tuple[str, ...] = ()
    statement = statement_of(bare)
    if options:
        letter = picked_letter(completion, options)
        picked = options[letter] if letter else ""
        rejected = tuple(text for key, text in options.items() if key != letter)
        offered = {text.casefold().strip(" .") for text in options.values()}
        if picked.casefold() in ("yes", "no", "true", "false") and any(pair <= offered for pair in _VERDICTS):
            verdict, is_claim, rejected = picked.casefold() in ("yes", "true"), True, ()
            told = _with_rest(bare, completion)
        elif picked:
            told = _with_rest(picked, completion)
    elif statement:
        verdict = verdict_of(completion)
        if verdict is not None:
            is_claim, told = True, _with_rest(statement, completion)
    elif _is_verdict_alone(completion):
        verdict, is_claim, told = verdict_of(completion), True, bare
    asked = read("" if is_claim else bare)
    reading = read(told)
    claim = read((statement or bare) if is_claim else "")
    return SourceReading(asked, reading, read(source.prompt), claim, is_claim, verdict, picked, rejected)


def placed_of(source: SourceReading, topics: Collection[str]) -> Iterator[Placed]:
    """The facts of a source, each with its context.

    What a short answer means its question tells: `66 and 26.8 million` to `calling code and population of …`.
    Where both are lists of one length the items are paired, else the whole question is the context.

    Args:
        source: The source.
        topics: Names of what the sources are about.
    """
    asked, told = source.asked, source.told
    question = set() if source.is_claim else _terms(asked)
    paired = {} if source.is_claim else _paired(asked, told)
    for fact, context in contexts(told, topics):
        yield Placed(fact, frozenset((context | paired.get(fact.start, question)) - {fact.key}))
    for fact, context in contexts(asked, topics):
        yield Placed(fact, frozenset(context))


def topics_of(source: SourceReading, names: Collection[str]) -> set[str]:
    """The names of what a source is about: those asked about, or those that a mere text names first.

    Args:
        source: The source.
        names: What is known to be a name from any text, for words that begin a sentence here.
    """
    asked = {f.key for f in source.asked.facts if f.kind == "name" and (f.certain or f.key in names)}
    return asked or ({key for key, _ in _first_names(source.told)} if not source.asked.words else set())


def _first_names(reading: Reading) -> Iterator[tuple[str, int]]:
    """For each sentence the names that stand together at its first name, with the sentence's number."""
    sentence = -1
    end = -1
    for fact in reading.facts:
        of = reading.clauses[fact.clause][2]
        if fact.kind != "name":
            continue
        if of != sentence:
            sentence = of
        elif end < 0 or reading.text[end : fact.start].strip(" -'’"):
            end = -1
            continue
        end = fact.end
        yield fact.key, of


def name_groups(reading: Reading, known: Collection[str] = ()) -> list[tuple[int, tuple[str, ...]]]:
    """The names of a text: where each begins, and the keys of its words, which stand together.

    A word in capitals does not begin a name (`AT Rigel`); an `I` may end one (`Saturn I`).

    Args:
        reading: The text.
        known: Keys of names that may begin a sentence here.
    """
    certain = {f.start for f in reading.facts if f.kind == "name" and (f.certain or f.key in known)}
    groups: list[list[int]] = []
    for at, (key, begin) in enumerate(zip(reading.keys, reading.begins, strict=True)):
        if begin not in certain and not (key == "i" and reading.text[begin] == "I"):
            continue
        if groups and groups[-1][-1] == at - 1 and _joined(reading, at):
            groups[-1].append(at)
        elif begin in certain and (len(key) == 1 or not reading.text[begin : begin + len(key)].isupper()):
            groups.append([at])
    named = (_with_ending(reading, group) for group in groups)
    return [(reading.begins[group[0]], tuple(reading.keys[at] for at in group)) for group in named]


def _with_ending(reading: Reading, group: list[int]) -> list[int]:
    """A name with the small word that ends it: `franc` of `its Swiss franc`, `the Swiss franc as …`.

    It stands alone behind the name, and the name begins the text or has an article.
    """
    first, after = group[0], group[-1] + 1
    begins = all(key in FUNCTION_WORDS for key in reading.keys[:first]) or reading.keys[first - 1] == "the"
    if not begins or after >= len(reading.keys) or not _joined(reading, after):
        return group
    ends = after + 1 >= len(reading.keys) or not _joined(reading, after + 1)
    closes = ends or reading.keys[after + 1] in _BEHIND
    return [*group, after] if closes and reading.keys[after] not in FUNCTION_WORDS else group


def _joined(reading: Reading, index: int) -> bool:
    """Whether nothing but a space or a hyphen stands before a token."""
    before = reading.begins[index - 1] + len(reading.keys[index - 1])
    return reading.text[before : reading.begins[index]] in (" ", "-")


def _terms(reading: Reading) -> set[str]:
    return {w.stem for w in reading.words} | {f.key for f in reading.facts if f.kind == "name"}


def contexts(reading: Reading, topics: Collection[str]) -> Iterator[tuple[Fact, set[str]]]:
    """Each fact with the stems and names of its clause, and its subject.

    A clause without words of its own is an item of a list and takes the words of the clause before it. The
    subject is what the clause names of the topics, else the topic that the sentence names last before, else
    first, else that of the sentence before on its line. The unit of a number, or that it has none, the tokens
    right before and after a fact, and the fact that the sentence gives before it count as words.
    """
    by_sentence: dict[int, list[tuple[int, str]]] = {}
    spoken = [(f.start, f.clause, f.key) for f in reading.facts if f.kind == "name" and f.key in topics]
    spoken += [(w.start, w.clause, w.stem) for w in reading.words if w.stem in topics]
    for _, clause, key in sorted(spoken):
        by_sentence.setdefault(reading.clauses[clause][2], []).append((clause, key))
    subject: set[str] = set()
    sentence = -1
    carried: set[str] = set()
    last = ""
    for number, (start, _, of) in enumerate(reading.clauses):
        if of != sentence:
            sentence, carried, last = of, set(), ""
            if number and "\n" in reading.text[reading.clauses[number - 1][1] : start]:
                subject = set()  # a new line may be about something else
            named = by_sentence.get(of)
            if named:
                subject = {key for clause, key in named if clause == named[0][0]}
        mine = reading.facts_of(number)
        here = {key for clause, key in by_sentence.get(of, []) if clause == number}
        subject = here or subject
        words = reading.words_of(number) or carried
        carried = words
        about = {f.key for f in mine if f.kind == "name"} | subject
        units = {f.start: f.key.partition(" ")[2] for f in mine if f.kind == "unit"}
        for fact in mine:
            if fact.kind not in ("quoted", "unit"):
                beside = {f"before:{reading.neighbour(fact, -1)}", f"after:{reading.neighbour(fact, 1)}"}
                if fact.kind == "number":
                    sign = "+" if reading.text[: fact.start].endswith("+") else ""
                    beside.add(f"unit:{units.get(fact.start, sign)}")
                if last:
                    beside.add(f"behind:{last}")
                last = fact.key
                yield fact, (words | about | beside) - {fact.key}


def _paired(asked: Reading, told: Reading) -> dict[int, set[str]]:
    """For the facts of a list of answers, by place: the words of the item asked for, where both lists match.

    A list that is told again (`364 u and 991, so 364 u and 991`) is paired round by round.
    """
    answers = _items(_SENTENCE_END.split(told.text)[0])
    labels = [place for place in _items(asked.text) if read(asked.text[slice(*place)]).words]
    if len(labels) == len(answers) + 1:  # `on Chad, the capital and area`: the first item names the subject
        labels = labels[1:]
    if len(labels) < 2 or len(answers) % len(labels):
        return {}
    shared = {f.key for f in asked.facts if f.kind == "name"}
    found = {}
    for number, (start, end) in enumerate(answers):
        a, b = labels[number % len(labels)]
        words = _terms(read(asked.text[a:b])) | shared
        found.update({fact.start: words for fact in told.facts if start <= fact.start < end})
    return found


def _items(text: str) -> list[tuple[int, int]]:
    """The places of a list's items: what stands between commas and `and`."""
    places, start = [], 0
    for cut in _LIST_CUT.finditer(text):
        places.append((start, cut.start()))
        start = cut.end()
    places.append((start, len(text)))
    return [(a, b) for a, b in places if text[a:b].strip()]
