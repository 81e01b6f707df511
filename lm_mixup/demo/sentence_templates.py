"""The sentences that the offline teacher writes around facts: statements, questions and prompts.

There are two disjoint sets. `SEEN` is for training rows, `HELD_OUT` for rows of the test split only, so that
a test measures a model on wording that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from lm_mixup.core.claims import Claim
from lm_mixup.demo.entities import Entity, attribute_of, capitalized, join_words
from lm_mixup.demo.topics import TOPICS

Statement = Callable[[Entity, Sequence[Claim], Random], str]


@dataclass(frozen=True)
class TemplateSet:
    """A set of sentence templates: `{s}` is the subject, `{label}` and `{labels}` are what is asked.

    Attributes:
        one_sentence: Statements in one sentence, for questions that need a context and for true/false.
        statements: What answers with and category statements are written with.
        paragraphs: What paragraphs are written with.
        joined: The statement about each entity of a merged sample.
        questions: Ask for several attributes.
        asks: Ask for one attribute of which there are options.
        merged_question: Asks for attributes of two entities, `{labels}` of `{s}` and `{others}` of `{other}`.
        prompts: Ask for a paragraph.
    """

    one_sentence: tuple[Statement, ...]
    statements: tuple[Statement, ...]
    paragraphs: tuple[Statement, ...]
    joined: Statement
    questions: tuple[str, ...]
    asks: tuple[str, ...]
    merged_question: str
    prompts: tuple[str, ...]


def labels(entity: Entity, claims: Sequence[Claim]) -> str:
    """The names of the claimed attributes: `capital, area and currency`."""
    return join_words([attribute_of(entity, claim.attribute).label for claim in claims])


def predicate(entity: Entity, claim: Claim, rng: Random) -> str:
    """A claim as what its subject does or is."""
    return rng.choice(attribute_of(entity, claim.attribute).predicates).format(v=claim.value)


# Statements: each names the entity before any other but those that are values.


def _noun(entity: Entity, claim: Claim) -> str:
    return attribute_of(entity, claim.attribute).noun.format(v=claim.value)


def _is(entity: Entity, claim: Claim, owner: str) -> str:
    attribute = attribute_of(entity, claim.attribute)
    label = f"The {attribute.label} of {owner}" if owner else f"its {attribute.label}"
    return f"{label} is {attribute.lead}{claim.value}"


def _joined(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    predicates = join_words([predicate(entity, claim, rng) for claim in claims])
    return f"{capitalized(entity.subject)} {predicates}."


def _two_sentences(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    half = (len(claims) + 1) // 2
    first = _joined(entity, claims[:half], rng)
    if half == len(claims):
        return first
    lead = rng.choice(("It", "It also", "In addition, it"))
    return f"{first} {lead} {join_words([predicate(entity, claim, rng) for claim in claims[half:]])}."


def _labelled(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    rest = [_is(entity, claim, "") for claim in claims[1:]]
    return f"{join_words([_is(entity, claims[0], entity.subject), *rest])}."


def _with_aside(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    *aside, last = claims
    if not aside:
        return _joined(entity, claims, rng)
    nouns = join_words([_noun(entity, claim) for claim in aside])
    return f"{capitalized(entity.subject)}, with {nouns}, {predicate(entity, last, rng)}."


def _with_tail(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    first, *tail = claims
    if not tail:
        return _joined(entity, claims, rng)
    nouns = join_words([_noun(entity, claim) for claim in tail])
    return f"{capitalized(entity.subject)} {predicate(entity, first, rng)}, with {nouns}."


def _as_kind(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    *head, last = claims
    if not head:
        return _joined(entity, claims, rng)
    kind = TOPICS[entity.topic].kind
    article = "a" if kind[0] not in "aeiou" else "an"
    nouns = join_words([_noun(entity, claim) for claim in head])
    return (
        f"{capitalized(entity.subject)} is {article} {kind} with {nouns}; it {predicate(entity, last, rng)}."
    )


def _which(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    *aside, last = [predicate(entity, claim, rng) for claim in claims]
    if not aside:
        return _joined(entity, claims, rng)
    return f"{capitalized(entity.subject)}, which {join_words(aside)}, {last}."


def _while(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    *head, last = claims
    if not head:
        return _joined(entity, claims, rng)
    return f"{_joined(entity, head, rng)[:-1]}, while {_is(entity, last, '')}."


def _with_first(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    *aside, last = claims
    if not aside:
        return _joined(entity, claims, rng)
    nouns = join_words([_noun(entity, claim) for claim in aside])
    return f"With {nouns}, {entity.subject} {predicate(entity, last, rng)}."


def _in_turn(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    first, *rest = [predicate(entity, claim, rng) for claim in claims]
    return f"{'; '.join([f'{capitalized(entity.subject)} {first}', *(f'it {other}' for other in rest)])}."


# Held-out statements.


def _as_for(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    return f"As for {entity.subject}, it {join_words([predicate(entity, claim, rng) for claim in claims])}."


def _is_known(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    return f"Of {entity.subject} it is known that {join_words([_is(entity, claim, '') for claim in claims])}."


def _kind_that(entity: Entity, claims: Sequence[Claim], rng: Random) -> str:
    kind = TOPICS[entity.topic].kind
    predicates = join_words([predicate(entity, claim, rng) for claim in claims])
    return f"{capitalized(entity.subject)} is the {kind} that {predicates}."


_ONE_SENTENCE: Final = (
    _joined,
    _labelled,
    _with_aside,
    _with_tail,
    _which,
    _while,
    _with_first,
    _in_turn,
)
_HELD_OUT: Final = (_as_for, _is_known, _kind_that)

SEEN: Final = TemplateSet(
    one_sentence=_ONE_SENTENCE,
    statements=(*_ONE_SENTENCE, _two_sentences, _as_kind),
    paragraphs=(_with_aside, _which, _while, _as_kind, _with_first),
    joined=_joined,
    questions=(
        "What are the {labels} of {s}?",
        "What is known about the {labels} of {s}?",
        "Which {labels} does {s} have?",
        "Could you state the {labels} of {s}?",
        "For {s}, what are the {labels}?",
        "Which values do the {labels} of {s} have?",
        "What do the inputs say on the {labels} of {s}?",
    ),
    asks=(
        "What is the {label} of {s}?",
        "Which of these is the {label} of {s}?",
        "Which {label} does {s} have?",
        "For {s}, which {label} is right?",
    ),
    merged_question="What are the {labels} of {s}, and the {others} of {other}?",
    prompts=(
        "Write a paragraph about {s}.",
        "Describe {s} in a short paragraph.",
        "Write a short article about {s}.",
        "Summarise what is known about {s}.",
    ),
)
HELD_OUT: Final = TemplateSet(
    one_sentence=_HELD_OUT,
    statements=_HELD_OUT,
    paragraphs=_HELD_OUT,
    joined=_as_for,
    questions=(
        "Do you know the {labels} of {s}?",
        "How would you give the {labels} of {s}?",
        "Please tell me, what {labels} does {s} have?",
    ),
    asks=("Please pick the {label} of {s}: which is it?", "How would you give the {label} of {s}?"),
    merged_question="Do you know the {labels} of {s}, and also the {others} of {other}?",
    prompts=("Compose a brief passage on {s}.", "Tell the story of {s} in a paragraph."),
)


def template_set(held_out: bool) -> TemplateSet:
    """The templates of the test split, or those of all other rows."""
    return HELD_OUT if held_out else SEEN
