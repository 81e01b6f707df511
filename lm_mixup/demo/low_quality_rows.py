"""Low-quality instruction rows about known facts, like those that pools are full of.

A row states some claims about an entity, or none. It is short, vague, in the wrong register or repeats
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from lm_mixup.core.claims import Claim
from lm_mixup.core.task_types import LETTERS, Cs, Fault, Mcq, Para, Qa, Sample, TaskType, Tfq, without_options
from lm_mixup.demo.entities import Entity, capitalized, join_words
from lm_mixup.demo.offline_teacher import is_true
from lm_mixup.demo.sentence_templates import labels, predicate
from lm_mixup.demo.topics import TOPICS

FAULTS: Final[tuple[Fault, ...]] = ("incomplete", "vague", "register", "redundant")
Options = tuple[str, str, str, str]


@dataclass(frozen=True)
class Prompts:
    """How a poor prompt asks: for facts, for nothing certain, for a paragraph, in a category, for truth."""

    ask: tuple[str, ...]
    ask_nothing: tuple[str, ...]
    paragraph: tuple[str, ...]
    category: tuple[str, ...]
    true_false: tuple[str, ...]


SEEN: Final = Prompts(
    ask=(
        "{labels} of {s}",
        "what is the {labels} of {s}",
        "{s} {labels}?",
        "tell me the {labels} of {s}",
        "{labels} of {s}?",
        "{s}: {labels}",
        "whats the {labels} for {s}",
        "give {labels} of {s} please",
        "do you know the {labels} of {s}?",
        "about {s}, tell the {labels}",
        "for {s} which {labels}",
        "quiz, {labels} of {s}",
    ),
    ask_nothing=(
        "what about {s}",
        "{s}?",
        "tell me something on {s}",
        "what do you know on {s}",
        "{s} please",
        "so, {s}?",
    ),
    paragraph=(
        "Write a paragraph about {s}.",
        "describe {s}",
        "short essay on {s}",
        "Write a paragraph on {s}",
        "an article about {s} please",
        "describe {s} in a few sentences",
        "story of {s}",
        "for school, summarise {s}",
    ),
    category=(
        "Category: {c}. Say something on {s}.",
        "Write on {s} in the category {c}",
        "category {c}, a statement on {s}",
        "{c} is the category, tell of {s}",
        "say something of {s} for the category {c}",
        "{s}, in the category {c}",
    ),
    true_false=(
        "True or false? {statement}",
        "{statement} True or false?",
        "true/false: {statement}",
        "{statement} Say whether that is true or false.",
        "quiz, true or false, {statement}",
    ),
)
HELD_OUT: Final = Prompts(  # used in test rows only
    ask=("i need the {labels} of {s}", "on {s}, the {labels} pls"),
    ask_nothing=("any idea about {s}", "i need something on {s}"),
    paragraph=("a paragraph with {s} in it", "i need a short story on {s}"),
    category=("{s} as an example of the category {c}", "i need a line on {s}, category {c}"),
    true_false=("Is this true or false: {statement}", "{statement} Please say true or false."),
)

_VAGUE = (
    "Not sure.",
    "It depends.",
    "There is a lot to say on it.",
    "It is a {kind}.",
    "Some {kind}, I guess.",
    "Good question.",
)
_VERDICTS: Mapping[Fault, tuple[str, ...]] = {
    "incomplete": ("{v}", "{v}."),
    "vague": ("{v}", "{v}, kind of"),
    "register": ("{v} i think", "{v} lol", "umm {v}"),
    "redundant": ("{v}. {v}.", "{v}, so {v}."),
    "reasoning": ("So {v}.", "{v}, because."),
}
_YES_NO: Final[tuple[Options, ...]] = (
    ("yes", "no", "maybe", "both"),
    ("yes", "no", "both", "neither"),
    ("yes", "no", "no idea", "none"),
)
_NO_OPTIONS: Final[Options] = ("this", "that", "both", "none")
_COMPLETIONS: Mapping[Fault, tuple[str, ...]] = {
    "incomplete": ("{t}", "{t}.", "It is {t}."),
    "vague": ("{t}",),
    "register": ("its {t} lol", "umm {t} i think", "{t} ok", "hey so {t}"),
    "redundant": ("{t}. {t}.", "{t}. The answer is {t}.", "{t}, so {t}."),
    "reasoning": ("So {t}.", "Hence {t}.", "{t}, because.", "It follows: {t}."),
    "options": ("{t}", "{t}."),
}
_STATEMENTS: Mapping[Fault, tuple[str, ...]] = {
    "incomplete": ("It {t}.", "It {t}", "{t}"),
    "register": ("so yeah it {t}", "it {t} lol", "well it {t} i think"),
    "redundant": ("It {t}. As said, it {again}.", "It {t}. It {again}."),
    "reasoning": ("So it {t}.", "Hence it {t}.", "It {t}, because."),
}


@dataclass(frozen=True)
class LowQualityRow:
    """A poor row: the pair as it stands in a pool, and the sample that it is a poor attempt at."""

    prompt: str
    completion: str
    sample: Sample


def low_quality_row(
    entity: Entity,
    task_type: TaskType,
    claims: Sequence[Claim],
    fault: Fault,
    rng: Random,
    *,
    category: str = "",
    options: Options | None = None,
    shown: Sequence[str] = (),
    held_out: bool = False,
) -> LowQualityRow:
    """Writes a poor row.

    Args:
        claims: What the row tells, right or wrong; all of it stands in the prompt or the completion, word for
            word. A vague row tells nothing and is given none.
        category: The category of a category-statement row; default: the first of the topic.
        options: The options of a multiple-choice row, which asks for its first claim; else it asks whether
            its claims hold.
        shown: Those of the options that the row shows; default: all.
        held_out: Whether to prompt in the words held out for the test split. Short tellings are worded alike
            in all splits.

    Raises:
        ValueError: A vague row was given claims, or another none.
    """
    if (fault == "vague") == bool(claims):
        raise ValueError("a vague row has no claims, any other has some")
    templates = HELD_OUT if held_out else SEEN
    match task_type:
        case "qa":
            return _qa(entity, claims, fault, templates, rng)
        case "mcq":
            poor = _mcq(entity, claims, fault, templates, rng, options)
            return replace(poor, prompt=without_options(poor.prompt, shown)) if shown else poor
        case "tfq":
            return _tfq(entity, claims, fault, templates, rng)
        case "cs":
            category = category or TOPICS[entity.topic].categories[0]
            prompt = rng.choice(templates.category).format(c=category, s=entity.subject)
            completion = _statement_with_fault(entity, claims, fault, rng)
            return LowQualityRow(prompt, completion, Cs(category, completion))
        case "para":
            prompt, completion = (
                rng.choice(templates.paragraph).format(s=entity.subject),
                _statement_with_fault(entity, claims, fault, rng),
            )
            return LowQualityRow(prompt, completion, Para(completion))


def _qa(
    entity: Entity, claims: Sequence[Claim], fault: Fault, templates: Prompts, rng: Random
) -> LowQualityRow:
    if claims:
        prompt = rng.choice(templates.ask).format(labels=labels(entity, claims), s=entity.subject)
        completion = _with_fault(join_words([claim.value for claim in claims]), fault, rng)
    else:
        prompt = rng.choice(templates.ask_nothing).format(s=entity.subject)
        completion = _vague(entity, rng)
    return LowQualityRow(prompt, completion, Qa(prompt, completion))


def _mcq(
    entity: Entity,
    claims: Sequence[Claim],
    fault: Fault,
    templates: Prompts,
    rng: Random,
    options: Options | None,
) -> LowQualityRow:
    if not claims:
        question, options, answer = f"{entity.subject}?", _NO_OPTIONS, rng.choice(_NO_OPTIONS)
    elif options is None:
        question, options, answer = f"{_bare(entity, claims, rng)[:-1]}?", rng.choice(_YES_NO), "yes"
    else:
        stem = f"{_bare(entity, claims[1:], rng)} " if claims[1:] else ""
        question = stem + rng.choice(templates.ask).format(
            labels=labels(entity, claims[:1]), s=entity.subject
        )
        answer = claims[0].value
    sample = Mcq(question, options, LETTERS[options.index(answer)])
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return LowQualityRow(
        "\n".join([question, *lines]), _with_fault(f"{sample.answer}) {answer}", fault, rng), sample
    )


def _tfq(
    entity: Entity, claims: Sequence[Claim], fault: Fault, templates: Prompts, rng: Random
) -> LowQualityRow:
    nothing = f"{capitalized(entity.subject)} is a {TOPICS[entity.topic].kind} of some sort."
    statement = _bare(entity, claims, rng) if claims else nothing
    sample = Tfq(statement, is_true(entity, claims))
    prompt = rng.choice(templates.true_false).format(statement=statement)
    return LowQualityRow(prompt, rng.choice(_VERDICTS[fault]).format(v=sample.answer), sample)


def _bare(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    return f"{capitalized(entity.subject)} {join_words([predicate(entity, claim, rng) for claim in claims])}."


def _vague(entity: Entity, rng: Random) -> str:
    return rng.choice(_VAGUE).format(kind=TOPICS[entity.topic].kind)


def _with_fault(text: str, fault: Fault, rng: Random) -> str:
    """A short completion with one fault."""
    return rng.choice(_COMPLETIONS[fault]).format(t=text)


def _statement_with_fault(entity: Entity, claims: Sequence[Claim], fault: Fault, rng: Random) -> str:
    """A short statement with one fault, for categories and paragraphs."""
    if not claims:
        return _vague(entity, rng)
    once, again = (join_words([predicate(entity, claim, rng) for claim in claims]) for _ in range(2))
    return rng.choice(_STATEMENTS[fault]).format(t=once, again=again)
