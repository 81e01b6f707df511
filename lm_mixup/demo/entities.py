"""Entities and small helpers that put their facts into words; the words are in `demo.topics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm_mixup.core.claims import Claim
from lm_mixup.demo.topics import TOPICS, Attribute


@dataclass(frozen=True)
class Entity:
    """An entity of the closed world.

    Attributes:
        topic: Key of `TOPICS`.
        name: Its name as it stands in mid-sentence.
        facts: Attribute → value as it is written, with its unit. Unknown facts are absent.
        article: Precedes the name in a sentence, such as `the`; may be empty.
    """

    topic: str
    name: str
    facts: Mapping[str, str]
    article: str = ""

    @property
    def subject(self) -> str:
        """The entity as the subject of a sentence, as it stands in mid-sentence."""
        return f"{self.article} {self.name}".strip()

    def claims(self, attributes: Sequence[str]) -> tuple[Claim, ...]:
        """The true claims about some of its attributes, in order."""
        return tuple(Claim(attribute, self.facts[attribute]) for attribute in attributes)


def attribute_of(entity: Entity, attribute: str) -> Attribute:
    """How an attribute of an entity is worded."""
    return TOPICS[entity.topic].attributes[attribute]


def join_words(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def capitalized(text: str) -> str:
    """With a capital first letter, the rest as it was."""
    return text[:1].upper() + text[1:]
