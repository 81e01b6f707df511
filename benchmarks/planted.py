"""Faults planted in good samples: useless outputs that a reward has to tell from the reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

from lm_mixup.core.task_types import (
    LETTERS,
    Cs,
    Mcq,
    Para,
    Qa,
    Sample,
    Tfq,
    parse_answer,
    read_input,
    task_type_of,
)
from lm_mixup.core.words import sentences

_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t(]*$")
_VERB = re.compile(
    r"\b(is|was|are|were|can|will|should|could|would|has|have|had|holds|lies|covers|stands|uses|speaks|belongs|"
    r"carries)\b(?! not|n't)"
)
_TAKES_NOT = frozenset(
    ("is", "was", "are", "were", "can", "will", "should", "could", "would", "has", "have", "had")
)
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")
_INVENTED = ("Lisbon", "Kenya", "Marlowe", "Andersen", "Toronto", "Hercules", "Quito", "Osaka")
_SEPARATOR = re.compile(r"(, and |, | and |; |(?<=[.?!]) )")
_GARBAGE = ("garbage", "blue", "Horse", "table", "runs", "lamp", "under", "seven", "41", "Zed", "and", "the")

Fault = Callable[[str, Random], str | None]


def body_of(sample: Sample) -> str:
    """The text of a sample that states its facts."""
    match sample:
        case Qa(_, text) | Mcq(text, _, _) | Tfq(text, _) | Cs(_, text) | Para(text):
            return text


def with_body(sample: Sample, text: str) -> Sample:
    """The sample with another text in place of `body_of`."""
    match sample:
        case Qa(question, _):
            return Qa(question, text)
        case Mcq(_, options, answer):
            return Mcq(text, options, answer)
        case Tfq(_, verdict):
            return Tfq(text, verdict)
        case Cs(category, _):
            return Cs(category, text)
        case Para():
            return Para(text)


def numbers(text: str) -> list[re.Match[str]]:
    """The numbers of a text but those of list items."""
    return [
        found
        for found in _NUMBER.finditer(text)
        if not (
            _LIST_NUMBER.search(text[: found.start()])
            and text[found.end() : found.end() + 1] in (".", ")", ":")
        )
    ]


def change_digit(text: str, rng: Random) -> str | None:
    """One number with another digit."""
    found = numbers(text)
    if not found:
        return None
    chosen = rng.choice(found)
    at = rng.choice([at for at in range(chosen.start(), chosen.end()) if text[at].isdigit()])
    digit = rng.choice([d for d in "123456789" if d != text[at]])
    return text[:at] + digit + text[at + 1 :]


def change_all_digits(text: str, rng: Random) -> str | None:
    """Every digit of its numbers another one."""
    digits = {at for found in numbers(text) for at in range(*found.span()) if text[at].isdigit()}
    changed = "".join(
        str((int(char) + rng.randint(1, 8)) % 9 + 1) if at in digits else char for at, char in enumerate(text)
    )
    return changed if changed != text else None


def swap_numbers(text: str, rng: Random) -> str | None:
    """Two different numbers, each in the other's place."""
    return _swap(text, numbers(text), rng)


def swap_names(text: str, rng: Random) -> str | None:
    """Two different names of different sentences, each in the other's place."""
    return _swap(text, list(_NAME.finditer(text)), rng, apart=True)


def _swap(text: str, found: Sequence[re.Match[str]], rng: Random, *, apart: bool = False) -> str | None:
    pairs = [
        (a, b)
        for place, a in enumerate(found)
        for b in found[place + 1 :]
        if a.group() != b.group() and (not apart or ". " in text[a.end() : b.start()])
    ]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    return text[: a.start()] + b.group() + text[a.end() : b.start()] + a.group() + text[b.end() :]


def negate(text: str, rng: Random) -> str | None:
    """One verb negated."""
    found = list(_VERB.finditer(text))
    if not found:
        return None
    verb = rng.choice(found)
    word = verb.group()
    negated = f"{word} not" if word in _TAKES_NOT else f"does not {word.removesuffix('s')}"
    return text[: verb.start()] + negated + text[verb.end() :]


def invent_name(text: str, rng: Random) -> str | None:
    """One name replaced by another that the text does not hold."""
    found = list(_NAME.finditer(text))
    if not found:
        return None
    chosen = rng.choice(found)
    return text[: chosen.start()] + rng.choice([n for n in _INVENTED if n not in text]) + text[chosen.end() :]


def drop_facts(text: str, rng: Random) -> str | None:
    """Without a third of its sentences; of one or two sentences without one part that has a fact.

    The question at the end of a text is kept: without its subject it is another question.
    """
    places = sentences(text)
    if len(places) > 1 and text.endswith("?"):
        at = places[-1][0]
        kept = drop_facts(text[:at].rstrip(), rng)
        return f"{kept} {text[at:]}" if kept else None
    if len(places) > 2:
        gone = set(rng.sample(range(len(places)), len(places) // 3))
        return " ".join(text[a:b] for number, (a, b) in enumerate(places) if number not in gone)
    parts = _SEPARATOR.split(text)
    facts = [
        at for at in range(2, len(parts), 2) if re.search(r"\d|[A-Z]", parts[at]) and parts[at][-1:] != "?"
    ]
    if not facts:
        return None
    at = rng.choice(facts)
    return "".join(parts[: at - 1] + parts[at + 1 :])


def repeat(text: str, rng: Random) -> str:
    """The text three times."""
    return " ".join([text] * 3)


def garbage_tail(text: str, rng: Random) -> str:
    """600 words of garbage behind the text."""
    return f"{text} {' '.join(rng.choice(_GARBAGE) for _ in range(600))}"


BODY_FAULTS: dict[str, Fault] = {
    "one digit changed": change_digit,
    "all digits changed": change_all_digits,
    "two numbers swapped": swap_numbers,
    "two names swapped": swap_names,
    "negation inserted": negate,
    "name invented": invent_name,
    "facts dropped": drop_facts,
    "repeated 3 times": repeat,
    "600 words of garbage": garbage_tail,
}
"""Faults of the text that states the facts; None where a text offers no place for one."""


def plant(sample: Sample, inputs: Sequence[str], other: Sample, rng: Random) -> dict[str, Sample]:
    """All faults that can be planted in a sample.

    Args:
        sample: The reference.
        inputs: Its input texts.
        other: The reference of another prompt, of the same task type.
        rng: Makes all choices.
    """
    body = body_of(sample)
    planted: dict[str, Sample] = {}
    for name, fault in BODY_FAULTS.items():
        if isinstance(sample, Mcq) and name == "repeated 3 times":
            continue  # its question asked three times is no use to anybody, but each is answered
        text = fault(body, rng)
        if text is not None and text != body:
            planted[name] = with_body(sample, text)
    planted["another prompt's reference"] = other
    match sample, other:
        case Mcq(question, options, answer), Mcq():
            planted["wrong letter"] = Mcq(question, options, rng.choice([x for x in LETTERS if x != answer]))
        case Tfq(statement, verdict), _:
            planted["verdict flipped"] = Tfq(statement, not verdict)
        case Qa(question, _), Qa(_, answer):
            planted["another prompt's answer"] = Qa(question, answer)
    echoed = "\n".join(f"[{number}] {text}" for number, text in enumerate(inputs, start=1))
    if not isinstance(sample, Mcq | Tfq):
        planted["inputs echoed"] = with_body(sample, re.sub(r"(?m)^(?=\w+:)", "> ", echoed))
    parents = [read_input(text) for text in inputs]
    if len(set(parents)) > 1 and isinstance(sample, Qa | Cs | Para):
        prompt, told = min(parents, key=lambda pair: len(pair[1]))
        planted["one parent copied"] = Qa(prompt, told) if isinstance(sample, Qa) else with_body(sample, told)
    return planted


def constant(sample: Sample) -> Sample:
    """One answer for every prompt of a task type, that fits its format and says nothing."""
    match task_type_of(sample):
        case "qa":
            return Qa(
                "What is important here?", "It is an important topic with many aspects that is worth knowing."
            )
        case "mcq":
            return Mcq("Which of these is right?", ("the first", "the second", "the third", "none"), "A")
        case "tfq":
            return Tfq("This is an important topic with many aspects.", True)
        case "cs":
            return Cs("Knowledge", "It is an important topic with many aspects that is worth knowing.")
        case "para":
            return Para("It is an important topic with many aspects that is worth knowing about.")


def sample_of(row: dict[str, str]) -> Sample:
    """The reference of a MIXTURE row."""
    return parse_answer(row["task_type"], row["output"])  # type: ignore[arg-type]
