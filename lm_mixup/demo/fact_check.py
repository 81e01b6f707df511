"""Checks a text against the closed world: which facts it claims, and which of them are right.

A claim is found by the wording of `demo.topics`, with a right or wrong value; text in other words claims
nothing. A sentence speaks of the entity that it names first, or else of the one before; an entity named as a
value (`orbits Jupiter`) does not count. A question claims nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from lm_mixup.core.claims import Claim
from lm_mixup.core.task_types import LETTERS, TaskType, answer_of
from lm_mixup.demo.entities import Entity
from lm_mixup.demo.facts import entities_by_name, load_entities
from lm_mixup.demo.topics import TOPICS, Attribute


@dataclass(frozen=True)
class Truth:
    """What a text says of an entity.

    Attributes:
        claimed: Every claim found, in order, each once.
        right: Those that are facts of the entity.
        missing: The entity's attributes that the text does not speak of.
        denied: Whether the text itself calls what it states false (`Answer: False`).
    """

    claimed: tuple[Claim, ...]
    right: tuple[Claim, ...]
    missing: tuple[str, ...]
    denied: bool = False

    @property
    def wrong(self) -> tuple[Claim, ...]:
        """The claims that are not facts of the entity."""
        return tuple(claim for claim in self.claimed if claim not in self.right)

    @property
    def holds(self) -> bool:
        """Whether the text claims something and is right: all are facts, or one is not and it says so."""
        return bool(self.claimed) and self.denied == bool(self.wrong)


def truth(text: str, entity: Entity) -> Truth:
    """Checks what a text claims about an entity.

    Args:
        text: A pair's or an answer's text: prose, or any of the five task formats. Options of a
            multiple-choice question count as claims only where the answer picks them.
    """
    stated = [claim for named, claim in _claims(text) if named in (None, entity)]
    claimed = tuple(
        dict.fromkeys(claim for claim in stated if claim.attribute in TOPICS[entity.topic].attributes)
    )
    spoken_of = {claim.attribute for claim in claimed}
    return Truth(
        claimed=claimed,
        right=tuple(claim for claim in claimed if entity.facts.get(claim.attribute) == claim.value),
        missing=tuple(attribute for attribute in entity.facts if attribute not in spoken_of),
        denied=_DENIED.search(text) is not None,
    )


def answer_is_true(answer: str) -> bool:
    """Whether an answer states facts of the closed world, all of them true and none of them twice.

    What is marked as false is one statement, of however many entities: one wrong claim makes it false.

    Args:
        answer: The text between the `<answer>` tags, of any task type.
    """
    entities = named_entities(answer)
    checked = [found for entity in entities if (found := truth(answer, entity)).claimed]
    stated = [(entity.name if entity else "", claim) for entity, claim in _claims(answer)]
    return (
        bool(checked)
        and any(found.denied for found in checked) == any(found.wrong for found in checked)
        and len(stated) == len(set(stated))
    )


def named_entities(text: str) -> tuple[Entity, ...]:
    """The entities that a text is about: those that its sentences name first, in order, each once."""
    prose = _OPTION.sub("", text)
    first = (_first_named(sentence) for sentence in _sentences(prose))
    return tuple({entity.name: entity for entity in first if entity is not None}.values())


_OPTION = re.compile(r"^[A-D]\)[^\n]*$", re.MULTILINE)
_DENIED = re.compile(r"^(?:Answer:[ \t]*)?False\b", re.MULTILINE)
_MARKS = re.compile(r"^(?:Q|A|C|S|Answer):[ \t]*", re.MULTILINE)
_AFTER = "and|with|while|as|at|from|per|has|of|on"  # what may follow a value in the wordings
_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n+")


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE.split(_MARKS.sub("", text)):
        if sentence.strip():
            yield sentence.strip()


def _claims(text: str) -> Iterator[tuple[Entity | None, Claim]]:
    """The claims of a text, each with the entity that it is about, if any is named."""
    about: Entity | None = next(iter(named_entities(text)), None)
    for sentence in _sentences(_OPTION.sub("", text)):
        about = _first_named(sentence) or about
        if sentence.endswith("?"):
            continue
        for topic in (about.topic,) if about else TOPICS:
            for name, pattern in _patterns(topic).items():
                for found in pattern.finditer(sentence):
                    yield about, Claim(name, next(value for value in found.groups() if value is not None))
    yield from _picked(text, about)


def _picked(text: str, about: Entity | None) -> Iterator[tuple[Entity | None, Claim]]:
    """The option that the answer of a multiple-choice question picks."""
    options = {line[0]: line[2:].strip() for line in _OPTION.findall(text)}
    answers = [
        line.removeprefix("Answer:").strip() for line in text.splitlines() if line.startswith("Answer:")
    ]
    if about is None or len(options) < len(LETTERS) or not answers:
        return
    question = text[: _OPTION.search(text).start()]  # type: ignore[union-attr]
    asked = _asked(question, about)
    if asked and answers[-1][:1] in options:
        yield about, Claim(asked, options[answers[-1][:1]])


def _asked(question: str, about: Entity) -> str | None:
    """The attribute that the last sentence of a question asks for: the one with the longest label in it."""
    last = list(_sentences(question))[-1]
    labels = [(a.label, name) for name, a in TOPICS[about.topic].attributes.items() if a.label in last]
    return max(labels, key=lambda pair: len(pair[0]))[1] if labels else None


def _first_named(sentence: str) -> Entity | None:
    """The entity that a sentence names first other than as a value: `It orbits Jupiter` names none."""
    values = [found.span(1) for found in _named_values().finditer(sentence)]
    for found in _names().finditer(sentence):
        if not any(start <= found.start() < stop for start, stop in values):
            return entities_by_name()[found.group()]
    return None


@cache
def _named_values() -> re.Pattern[str]:
    """Finds the values with a name in them, after the words that the wordings put before such a value."""
    leads: set[str] = set()
    values: set[str] = set()
    for entity in load_entities():
        for name, value in entity.facts.items():
            if _names().search(value):
                how = TOPICS[entity.topic].attributes[name]
                frames = (*how.predicates, how.noun, f"{how.label} is {how.lead}{{v}}")
                leads |= {frame.partition("{v}")[0] for frame in frames}
                values.add(value)
    lead, value = (
        "|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text))))
        for texts in (leads, values)
    )
    return re.compile(rf"\b(?:{lead})({value})(?![\w-])")


@cache
def _names() -> re.Pattern[str]:
    """Any entity's name, the longest first: `Guinea-Bissau` is not `Guinea`."""
    names = sorted(entities_by_name(), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])")


@cache
def _patterns(topic: str) -> Mapping[str, re.Pattern[str]]:
    """For each attribute, what finds its claims in a sentence."""
    return {name: _pattern(topic, name, attribute) for name, attribute in TOPICS[topic].attributes.items()}


def _pattern(topic: str, name: str, attribute: Attribute) -> re.Pattern[str]:
    known = {
        entity.facts[name] for entity in load_entities() if entity.topic == topic and name in entity.facts
    }
    values = [re.escape(value) for value in sorted(known, key=lambda value: (-len(value), value))]
    other = rf"{attribute.pattern}(?=$|[,;.?!](?:\s|$)|\s(?:{_AFTER})\b)"
    value = rf"((?:{'|'.join(values)})(?=$|[\s,;.?!])|{other})"
    frames = [*attribute.predicates, attribute.noun]
    forms = [re.escape(frame).replace(re.escape("{v}"), value) for frame in frames]
    forms.append(
        rf"(?:The|its) {re.escape(attribute.label)} (?:of .+? )?is {re.escape(attribute.lead)}{value}"
    )
    return re.compile("|".join(forms))


@dataclass(frozen=True)
class Recall:
    """Facts of one answer against its reference.

    Attributes:
        parsed: Whether the completion follows the output format and its task's answer format.
        wanted: Claims of the reference.
        found: Those of them that the answer makes.
        other: Claims of the answer that the reference does not make: invented, or of the wrong entity.
    """

    parsed: bool
    wanted: int
    found: int
    other: int


def recall(task_type: TaskType, completion: str, reference: str, entities: Sequence[str]) -> Recall:
    """Compares the claims of a completion with those of its reference.

    Args:
        completion: The policy's raw text, tags included. One that does not parse claims nothing.
    """
    answer = answer_of(task_type, completion)
    wanted = _claims_about(reference, entities)
    made = _claims_about(answer, entities) if answer is not None else set()
    return Recall(answer is not None, len(wanted), len(wanted & made), len(made - wanted))


def _claims_about(text: str, entities: Sequence[str]) -> set[tuple[str, Claim]]:
    by_name = entities_by_name()
    return {(name, claim) for name in entities for claim in truth(text, by_name[name]).claimed}
