"""The offline teacher: writes dense samples of the five task types from the facts of an entity.

An answer states three or four facts. Names and values are copied from the facts without change, so a small
policy can learn to write such answers by copying from its inputs; only the sentences around them vary.

Sentence templates (`sentence_templates`), seen in training / held out for the test split: statements 10 / 3;
qa 7 questions x 10 statements / 3 x 3; mcq 8 stems x 4 questions / 3 x 2; tfq 8 / 3; cs 3 categories x 10
statements / 3 x 3; para 4 prompts x 5 paragraphs / 2 x 3. Each attribute has two predicates. Predicates,
categories and the reasoning before an answer are the same in all splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from lm_mixup.core.claims import Claim
from lm_mixup.core.task_types import (
    LETTERS,
    Cs,
    Mcq,
    Para,
    Qa,
    Sample,
    TaskType,
    Tfq,
    to_pair,
    write_answer,
    write_output,
)
from lm_mixup.demo.entities import Entity, attribute_of, capitalized, join_words
from lm_mixup.demo.sentence_templates import TemplateSet, labels, template_set
from lm_mixup.demo.topics import TOPICS

MAX_OUTPUT_CHARS: Final = 380
MIN_FACTS, MAX_FACTS = 3, 4
_FALSE_RATE = 0.4
_ATTEMPTS = 4  # tried before a fact is dropped to keep an output short


@dataclass(frozen=True)
class Draft:
    """A sample, the reasoning before it and what it claims.

    Attributes:
        sample: The sample.
        cot: One short sentence of reasoning.
        claims: The claims in order; the sample states all of them unless `max_claims` was lower. In a
            multiple-choice question, the claim that is asked for comes first.
        prompt: The prompt that a paragraph answers.
    """

    sample: Sample
    cot: str
    claims: tuple[Claim, ...]
    prompt: str

    @property
    def answer(self) -> str:
        """The text between the answer tags."""
        return write_answer(self.sample)

    @property
    def pair(self) -> tuple[str, str]:
        """The training pair (prompt, completion)."""
        return to_pair(self.sample, self.prompt)


def write_sample(
    entity: Entity,
    task_type: TaskType,
    others: Sequence[Entity],
    rng: Random,
    *,
    held_out: bool = False,
    max_claims: int = MAX_FACTS,
) -> Draft:
    """Writes one sample about an entity.

    Args:
        entity: What the sample is about; at least three of its facts must be known.
        others: Entities whose values serve as wrong options and wrong claims, where of the same topic.
        held_out: Whether to use the templates held out for the test split.
        max_claims: Most claims that the sample states; the draft lists the others as well.

    Returns:
        A draft whose output, reasoning and tags included, is within `MAX_OUTPUT_CHARS`.

    Raises:
        ValueError: The entity has fewer than three facts.
    """
    most = MAX_FACTS if task_type == "para" else rng.choice((MIN_FACTS, MAX_FACTS, MAX_FACTS))
    count = min(most, len(entity.facts))
    if count < MIN_FACTS:
        raise ValueError(f"{entity.name}: fewer than {MIN_FACTS} facts are known")
    claims = entity.claims(rng.sample(sorted(entity.facts), count))
    if task_type == "tfq" and rng.random() < _FALSE_RATE:
        claims = _falsify(entity, claims, others, rng)
    if task_type == "mcq":
        asked = next((claim for claim in claims if attribute_of(entity, claim.attribute).askable), claims[0])
        claims = (asked, *(claim for claim in claims if claim != asked))
    while True:
        for _ in range(_ATTEMPTS):
            draft = _WRITERS[task_type](entity, claims[:max_claims], others, template_set(held_out), rng)
            if len(write_output(draft.cot, draft.answer)) <= MAX_OUTPUT_CHARS:
                return replace(draft, claims=claims)
        claims = claims[:-1]


def merge_samples(
    sample: Sample,
    first: tuple[Entity, Sequence[Claim]],
    second: tuple[Entity, Sequence[Claim]],
    rng: Random,
    *,
    held_out: bool = False,
) -> Draft | None:
    """Merges claims about two entities into one sample.

    Args:
        sample: The sample of the first entity: gives the task type, and the options or the category. A
            multiple-choice question asks for the first claim of the first entity.

    Returns:
        A draft, or None if no wording fits into `MAX_OUTPUT_CHARS`.
    """
    for _ in range(_ATTEMPTS):
        draft = _merge(sample, first, second, template_set(held_out), rng)
        if len(write_output(draft.cot, draft.answer)) <= MAX_OUTPUT_CHARS:
            return draft
    return None


def describe(entity: Entity, claims_a_sentence: int = 3) -> str:
    """All facts of an entity in plain sentences: its passage."""
    claims = entity.claims(tuple(entity.facts))
    groups = [claims[start : start + claims_a_sentence] for start in range(0, len(claims), claims_a_sentence)]
    sentences = [
        f"{join_words([attribute_of(entity, c.attribute).predicates[0].format(v=c.value) for c in group])}."
        for group in groups
    ]
    subjects = [capitalized(entity.subject), *["It"] * (len(sentences) - 1)]
    return " ".join(f"{subject} {sentence}" for subject, sentence in zip(subjects, sentences, strict=True))


def other_values(entity: Entity, attribute: str, others: Sequence[Entity]) -> list[str]:
    """The values that other entities of the topic have for an attribute, without the entity's own."""
    values = {other.facts.get(attribute) for other in others if other.topic == entity.topic}
    return sorted(value for value in values if value and value != entity.facts.get(attribute))


def options_for(
    entity: Entity, claim: Claim, others: Sequence[Entity], rng: Random
) -> tuple[str, str, str, str]:
    """Four options in random order, one of them the claimed value.

    Raises:
        ValueError: The other entities have fewer than three other values.
    """
    wrong = other_values(entity, claim.attribute, others)
    if len(wrong) < len(LETTERS) - 1:
        raise ValueError(f"{claim.attribute}: fewer than three wrong options are known")
    a, b, c, d = rng.sample([claim.value, *rng.sample(wrong, 3)], 4)
    return a, b, c, d


def _falsify(
    entity: Entity, claims: tuple[Claim, ...], others: Sequence[Entity], rng: Random
) -> tuple[Claim, ...]:
    """Gives one of the claims the value of another entity."""
    at = rng.randrange(len(claims))
    wrong = other_values(entity, claims[at].attribute, others)
    if not wrong:
        return claims
    return (*claims[:at], Claim(claims[at].attribute, rng.choice(wrong)), *claims[at + 1 :])


def is_true(entity: Entity, claims: Sequence[Claim]) -> bool:
    """Whether all claims are facts of the entity."""
    return all(entity.facts.get(claim.attribute) == claim.value for claim in claims)


def _write_qa(
    entity: Entity, claims: tuple[Claim, ...], others: Sequence[Entity], templates: TemplateSet, rng: Random
) -> Draft:
    question = rng.choice(templates.questions).format(labels=labels(entity, claims), s=entity.subject)
    answer = rng.choice(templates.statements)(entity, claims, rng)
    return Draft(Qa(question, answer), _cot_of_statement(entity, claims, rng), claims, question)


def _write_mcq(
    entity: Entity, claims: tuple[Claim, ...], others: Sequence[Entity], templates: TemplateSet, rng: Random
) -> Draft:
    asked, context = claims[0], claims[1:]
    options = options_for(entity, asked, others, rng)
    stem = f"{rng.choice(templates.one_sentence)(entity, context, rng)} " if context else ""
    sample = Mcq(stem + _ask(entity, asked, templates, rng), options, LETTERS[options.index(asked.value)])
    return Draft(sample, _cot_of_choice(entity, asked, sample, rng), claims, sample.question)


def _ask(entity: Entity, claim: Claim, templates: TemplateSet, rng: Random) -> str:
    """A question for one attribute."""
    label = attribute_of(entity, claim.attribute).label
    return rng.choice(templates.asks).format(label=label, s=entity.subject)


def _cot_of_choice(entity: Entity, asked: Claim, sample: Mcq, rng: Random) -> str:
    label = attribute_of(entity, asked.attribute).label
    return rng.choice(
        (
            f"The {label} of {entity.subject} is asked, so the answer is {sample.answer}.",
            f"The inputs ask for the {label}, and {asked.value} is {sample.answer}.",
            f"The right option is {sample.answer}, {asked.value}.",
        )
    )


def _write_tfq(
    entity: Entity, claims: tuple[Claim, ...], others: Sequence[Entity], templates: TemplateSet, rng: Random
) -> Draft:
    statement = rng.choice(templates.one_sentence)(entity, claims, rng)
    return Draft(
        Tfq(statement, is_true(entity, claims)), _cot_of_verdict(entity, claims, rng), claims, statement
    )


def _cot_of_verdict(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    wrong = [claim for claim in claims if not is_true(entity, [claim])]
    if wrong:
        return rng.choice(
            (
                f"The {labels(entity, wrong)} is false, so the whole is false.",
                f"One of the inputs is false: the {labels(entity, wrong)}.",
                f"The inputs agree except on the {labels(entity, wrong)}, which is false.",
            )
        )
    return rng.choice(
        (
            f"All inputs on {entity.subject} are true.",
            f"The {labels(entity, claims)} are all true.",
            "Nothing in the inputs is false, so the whole is true.",
        )
    )


def _write_cs(
    entity: Entity, claims: tuple[Claim, ...], others: Sequence[Entity], templates: TemplateSet, rng: Random
) -> Draft:
    category = rng.choice(TOPICS[entity.topic].categories)
    sample = Cs(category, rng.choice(templates.statements)(entity, claims, rng))
    return Draft(
        sample, _cot_of_statement(entity, claims, rng), claims, f"Write a statement about {category}."
    )


def _write_para(
    entity: Entity, claims: tuple[Claim, ...], others: Sequence[Entity], templates: TemplateSet, rng: Random
) -> Draft:
    writer = rng.choice(templates.paragraphs)
    prompt = rng.choice(templates.prompts).format(s=entity.subject)
    return Draft(Para(writer(entity, claims, rng)), _cot_of_statement(entity, claims, rng), claims, prompt)


def _cot_of_statement(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    """The reasoning before a sample that states what the inputs give."""
    return rng.choice(
        (
            f"The inputs give the {labels(entity, claims)} of {entity.subject}.",
            f"All inputs are about {entity.subject}: {labels(entity, claims)}.",
            f"Together the inputs tell the {labels(entity, claims)}.",
        )
    )


_Writer = Callable[[Entity, tuple[Claim, ...], Sequence[Entity], TemplateSet, Random], Draft]
_WRITERS: dict[TaskType, _Writer] = {
    "qa": _write_qa,
    "mcq": _write_mcq,
    "tfq": _write_tfq,
    "cs": _write_cs,
    "para": _write_para,
}


def _merge(
    sample: Sample,
    first: tuple[Entity, Sequence[Claim]],
    second: tuple[Entity, Sequence[Claim]],
    templates: TemplateSet,
    rng: Random,
) -> Draft:
    """One sample with these claims of both entities; each has a sentence of its own."""
    (entity, ours), (other, theirs) = first, second
    pair = join_words([entity.subject, other.subject])
    one, two = templates.joined(entity, ours, rng), templates.joined(other, theirs, rng)
    merged: Sample
    match sample:
        case Qa():
            asked = {"labels": labels(entity, ours), "others": labels(other, theirs)}
            question = templates.merged_question.format(s=entity.subject, other=other.subject, **asked)
            merged = Qa(question, f"{one} {two}")
        case Mcq(_, options, answer):
            stem = [templates.joined(entity, ours[1:], rng)] if ours[1:] else []
            merged = Mcq(" ".join([*stem, two, _ask(entity, ours[0], templates, rng)]), options, answer)
        case Tfq():
            merged = Tfq(f"{one} {two}", is_true(entity, ours) and is_true(other, theirs))
        case Cs(category):
            merged = Cs(category, f"{one} {two}")
        case Para():
            merged = Para(f"{one} {two}")
    claims = (*ours, *theirs)
    return Draft(merged, f"The inputs are about {pair}.", claims, templates.prompts[0].format(s=pair))
