"""MIXTURE rows from good rows by rule: poor inputs, the target that they make up, and the reasoning between.

Two kinds. A union: all inputs are poor variants of one row, and the target is that row. A merge: the inputs
are of different rows, and the target asks each row's question once, numbered in the order in which the inputs
bring them, and answers each under its number, in the row's own words. Nothing in a target is made up: every
term of it is looked for in the inputs (`coverage`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

import regex

from lm_mixup.core.noise import add_noise
from lm_mixup.core.task_types import (
    LETTERS,
    Cs,
    FormatError,
    Mcq,
    Para,
    Qa,
    Sample,
    TaskType,
    Tfq,
    parse_answer,
    read_input,
    task_type_of,
    write_answer,
    write_input,
)
from lm_mixup.mixture.degradation.coverage import coverage, terms
from lm_mixup.mixture.degradation.pieces import Piece, join_pieces, split_pieces
from lm_mixup.mixture.degradation.rewording import (
    careless,
    casual_question,
    cut_off,
    paraphrased,
    part_of_question,
    vague_answer,
    without_reason,
)
from lm_mixup.mixture.degradation.variants import deal_pieces

MIN_COVERAGE: Final = 0.98
_NOISE_RATE: Final = 0.08
_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_WORD: Final = regex.compile(r"[^\W\d_]+")
_COUNTS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class GoodRow:
    """A row that a target is made of.

    Attributes:
        id: Of the row.
        entity: What it is about; rows of one entity are in one split, and are not merged with each other.
        task_type: Of a union of its variants.
        prompt: The question.
        completion: The answer.
        answer: The target text of a union, where the task type is not qa.
    """

    id: str
    entity: str
    task_type: TaskType
    prompt: str
    completion: str
    answer: str = ""


@dataclass(frozen=True)
class Composed:
    """A MIXTURE row in the making; `sources` are the ids of the rows that the inputs are variants of."""

    task_type: TaskType
    inputs: list[str]
    cot: str
    output: str
    sources: list[str]
    noisy: bool = False


class Unfit(Exception):
    """Why rows make no MIXTURE row."""


@dataclass(frozen=True)
class _Variant:
    """One poor variant: its text in two halves, and the pieces that it tells."""

    question: str
    answer: str
    kept: frozenset[int]


def union(row: GoodRow, inputs: int, rng: Random) -> Composed:
    """The MIXTURE row of one good row.

    Args:
        row: The good row.
        inputs: Poor variants wanted; fewer are made of a row that has little to share out.
        rng: Makes all choices.

    Raises:
        Unfit: The target cannot be written in its format, or the variants do not hold all its terms.
    """
    match row.task_type:
        case "tfq":
            variants, output = _true_false(row, inputs, rng)
        case "mcq":
            variants, output = _multiple_choice(row, inputs, rng)
        case _:
            pieces = split_pieces(row.completion)
            variants = _variants(row.prompt, pieces, min(inputs, len(pieces) + 2), rng)
            output = _open_target(row, join_pieces(pieces))
    lines = [write_input(variant.question, variant.answer) for variant in variants]
    asked = "The inputs are about the same thing." if row.task_type == "para" else "All inputs ask the same."
    cot = " ".join([asked, *_useless([0] * len(variants), variants)])
    return _checked(Composed(row.task_type, lines, cot, output, [row.id] * len(lines)))


def merge(rows: Sequence[GoodRow], inputs: int, rng: Random) -> Composed:
    """The MIXTURE row of several good rows of different content, as one of type qa.

    Args:
        rows: At least two.
        inputs: Poor variants wanted, at least one of each row.
        rng: Makes all choices.

    Raises:
        Unfit: As `union`.
    """
    owners = list(range(len(rows))) + [rng.randrange(len(rows)) for _ in range(inputs - len(rows))]
    rng.shuffle(owners)
    order = list(dict.fromkeys(owners))
    parts = [rows[owner] for owner in order]
    owners = [order.index(owner) for owner in owners]
    pieces = [split_pieces(part.completion) for part in parts]
    made = [
        iter(_variants(part.prompt, cut, owners.count(number), rng))
        for number, (part, cut) in enumerate(zip(parts, pieces, strict=True))
    ]
    variants = [next(made[owner]) for owner in owners]
    lines = [write_input(variant.question, variant.answer) for variant in variants]
    questions = _numbered([part.prompt for part in parts])
    answers = _numbered([join_pieces(cut, bullets=True) for cut in pieces])
    cot = " ".join([_plan(owners), *_useless(owners, variants)])
    output = _written(Qa(questions, answers))
    return _checked(Composed("qa", lines, cot, output, [parts[owner].id for owner in owners]))


def with_noise(row: Composed, rng: Random) -> Composed:
    """The row with typing errors in its inputs, or as it was where they would cost a term of the target.

    Further lines of a question stay as they are: a text to be corrected, counted or sorted would be another.
    """
    held = [terms(text) for text in row.inputs]
    wanted = terms(row.output)
    noisy: list[str] = []
    for number, text in enumerate(row.inputs):
        elsewhere = frozenset().union(*(other for i, other in enumerate(held) if i != number))
        alone = wanted - elsewhere
        kept = [word for word in _WORD.findall(text) if word.casefold() in alone or word[0].isupper()]
        question, answer = read_input(text)
        first, line_end, rest = question.partition("\n")
        asked = add_noise(first, kept, rng, _NOISE_RATE)
        noisy.append(write_input(f"{asked}{line_end}{rest}", add_noise(answer, kept, rng, _NOISE_RATE)))
    if noisy == row.inputs or _told(row, noisy) < MIN_COVERAGE:
        return row
    return Composed(row.task_type, noisy, row.cot, row.output, row.sources, noisy=True)


_TARGET_MARK: Final = re.compile(r"(?m)^(?:Answer:.*|[QACS]:)")


def _told(row: Composed, inputs: Sequence[str]) -> float:
    """The share of the target's terms that the inputs hold; its marks and verdict are seen to elsewhere."""
    return coverage(_TARGET_MARK.sub("", row.output), inputs)


def _checked(row: Composed) -> Composed:
    if len(set(row.inputs)) < 2:
        raise Unfit("inputs_repeat")
    if _told(row, row.inputs) < MIN_COVERAGE:
        raise Unfit(f"coverage_below_{MIN_COVERAGE}")
    return row


def _written(sample: Sample) -> str:
    """The target's text, which must read as what it is."""
    text = write_answer(sample)
    try:
        parse_answer(task_type_of(sample), text)
    except FormatError as error:
        raise Unfit(str(error)) from None
    return text


def _open_target(row: GoodRow, text: str) -> str:
    match row.task_type:
        case "para":
            return _written(Para(text))
        case "cs":
            sample = parse_answer("cs", row.answer)
            assert isinstance(sample, Cs)  # noqa: S101
            return _written(Cs(sample.category, text))
        case _:
            return _written(Qa(row.prompt, text))


def _numbered(texts: Sequence[str]) -> str:
    """One text a number; blank lines go, so that the numbers alone part them."""
    dense = [_BLANK_LINES.sub("\n", text.strip()) for text in texts]
    return "\n".join(f"{number}. {text}" for number, text in enumerate(dense, start=1))


def _variants(prompt: str, pieces: Sequence[Piece], count: int, rng: Random) -> list[_Variant]:
    """Poor variants of a row. One holds the whole question, and of each piece the first is whole."""
    if count == 1:
        question = casual_question(prompt, rng) if rng.random() < 0.5 else prompt
        text = join_pieces(pieces)
        answer = careless(text, rng) if rng.random() < 0.3 else text
        return [_Variant(question, answer, frozenset(range(len(pieces))))]
    dealt = deal_pieces(len(pieces), count, rng)
    asking = rng.randrange(count)
    told: set[int] = set()
    variants: list[_Variant] = []
    for number, kept in enumerate(dealt):
        way = rng.random()
        if number == asking:
            question = prompt if way < 0.6 else casual_question(prompt, rng)
        elif way < 0.35:
            question = part_of_question(prompt, rng)
        else:  # other words only behind the question in its own: the target takes the first whole one
            question = casual_question(paraphrased(prompt) if number > asking and way < 0.6 else prompt, rng)
        if told.issuperset(kept) and rng.random() < 0.35:
            variants.append(_Variant(question, vague_answer(rng), frozenset()))
            continue
        variants.append(_Variant(question, _answer(kept, told, pieces, rng), frozenset(kept)))
        told.update(kept)
    return variants


def _answer(kept: Sequence[int], told: set[int], pieces: Sequence[Piece], rng: Random) -> str:
    """Some pieces of an answer as a poor row gives them; those told before may be cut."""
    chosen: list[Piece] = []
    for index in kept:
        piece = pieces[index]
        shorter = without_reason(piece) if index in told and rng.random() < 0.5 else None
        chosen.append(shorter or piece)
    if rng.random() < 0.06:
        again = rng.choice(chosen)
        chosen.append(replace(again, gap=again.gap or " "))
    elif kept[-1] in told and rng.random() < 0.25:
        chosen[-1] = replace(chosen[-1], text=cut_off(chosen[-1].text, rng))
    text = join_pieces(chosen)
    return careless(text, rng) if rng.random() < 0.35 else text


def _true_false(row: GoodRow, inputs: int, rng: Random) -> tuple[list[_Variant], str]:
    """Variants that state the claim and give the verdict, its explanation, both, or neither."""
    sample = parse_answer("tfq", row.answer)
    assert isinstance(sample, Tfq)  # noqa: S101
    verdict = str(sample.answer)
    explanation = row.completion.removeprefix(f"{verdict}.").strip()
    answers = [f"{verdict}. {explanation}".strip(" ."), verdict, explanation or verdict, vague_answer(rng)]
    kept: tuple[set[int], ...] = ({0, 1} if explanation else {0}, {0}, {1} if explanation else {0}, set())
    variants: list[_Variant] = []
    for number in range(min(inputs, len(kept))):
        way = rng.random()
        question = f"True or false? {sample.statement}" if way < 0.5 else f"Is it true? {sample.statement}"
        asked = casual_question(question, rng) if number else question
        variants.append(_Variant(asked, answers[number], frozenset(kept[number])))
    rng.shuffle(variants)
    return variants, row.answer


def _multiple_choice(row: GoodRow, inputs: int, rng: Random) -> tuple[list[_Variant], str]:
    """Variants that show some of the options each, together all of them; one at least names the answer."""
    sample = parse_answer("mcq", row.answer)
    assert isinstance(sample, Mcq)  # noqa: S101
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, sample.options, strict=True)]
    right = LETTERS.index(sample.answer)
    shown = deal_pieces(len(lines), min(inputs, len(lines)), rng)
    named = {number for number, kept in enumerate(shown) if right in kept}
    telling = rng.choice(sorted(named))
    variants: list[_Variant] = []
    for number, kept in enumerate(shown):
        question = sample.question if rng.random() < 0.5 else casual_question(sample.question, rng)
        text = "\n".join([question, *(lines[index] for index in kept)])
        knows = number == telling or (number in named and rng.random() < 0.5)
        told = rng.choice((lines[right], sample.options[right], sample.answer))
        answer = told if knows else vague_answer(rng)
        variants.append(_Variant(text, answer, frozenset([*kept, len(lines)] if knows else kept)))
    return variants, row.answer


def _plan(owners: Sequence[int]) -> str:
    """Which inputs ask which question: "Two questions: [1] and [3] ask the first, [2] the second."."""
    count = max(owners) + 1
    number = _COUNTS[count] if count < len(_COUNTS) else str(count)
    if count == len(owners):
        return f"Each input asks a different question: {number} questions."
    asked = [_listed([i for i, owner in enumerate(owners) if owner == part]) for part in range(count)]
    told = ", ".join(f"question {place} is in {where}" for place, where in enumerate(asked, start=1))
    return f"{number.capitalize()} questions: {told}."


def _useless(owners: Sequence[int], variants: Sequence[_Variant]) -> list[str]:
    """Which inputs tell nothing that one of the same question before them does not tell."""
    told: dict[int, set[int]] = {}
    nothing: list[int] = []
    for number, (owner, variant) in enumerate(zip(owners, variants, strict=True)):
        known = told.setdefault(owner, set())
        if known.issuperset(variant.kept):
            nothing.append(number)
        known |= variant.kept
    if not nothing:
        return []
    return [f"{_listed(nothing)} add{'s' if len(nothing) == 1 else ''} nothing new."]


def _listed(numbers: Sequence[int]) -> str:
    """Inputs by their numbers: "[1]", "[1] and [3]", "[1], [2] and [3]"."""
    names = [f"[{number + 1}]" for number in numbers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
