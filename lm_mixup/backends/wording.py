"""How facts are put into words.

One table of attributes a topic, used in both directions: the teacher writes sentences with it, and the truth
check finds the facts again in any text that follows these wordings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple


class Claim(NamedTuple):
    """A value given to an attribute; whether it is right is another matter."""

    attribute: str
    value: str


@dataclass(frozen=True)
class Entity:
    """A thing of the closed world.

    Attributes:
        topic: Key of `TOPICS`.
        name: Its name as it stands in mid-sentence.
        facts: Attribute → value as it is written, with its unit. Unknown facts are absent.
        article: What goes before the name in a sentence, such as `the`, if anything.
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


@dataclass(frozen=True)
class Attribute:
    """An attribute in words.

    Attributes:
        label: Its name: `What is the LABEL of …?`, `its LABEL is …`.
        predicates: What a subject does or is; `{v}` stands for the value.
        noun: The fact as a noun phrase: `with NOUN`.
        pattern: Regular expression of its values, well-formed or not so right.
        lead: What goes before the value after `is`.
        askable: Whether it has enough values for four options.
    """

    label: str
    predicates: tuple[str, ...]
    noun: str
    pattern: str
    lead: str = ""
    askable: bool = True


@dataclass(frozen=True)
class Topic:
    """A topic: what its entities are called, the categories they fall under and their attributes."""

    kind: str
    categories: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


_NUMBER = r"\d+(?:[.,]\d+)*"
_WORDS = r"[A-Za-z][A-Za-z'’.-]*(?: [A-Za-z][A-Za-z'’.-]*)*?"

ELEMENTS: Final = Topic(
    kind="chemical element",
    categories=("Chemical elements", "Chemistry", "The periodic table"),
    attributes={
        "symbol": Attribute(
            "symbol", ("has the symbol {v}", "is written {v}"), "the symbol {v}", "[A-Z][a-z]?"
        ),
        "number": Attribute(
            "atomic number",
            ("has the atomic number {v}", "carries {v} protons"),
            "the atomic number {v}",
            r"\d+",
        ),
        "mass": Attribute(
            "atomic mass",
            ("has an atomic mass of {v}", "weighs {v} per atom"),
            "an atomic mass of {v}",
            f"{_NUMBER} u",
        ),
        "group": Attribute(
            "group", ("belongs to group {v}", "stands in group {v}"), "a place in group {v}", r"\d+"
        ),
        "period": Attribute(
            "period", ("belongs to period {v}", "stands in period {v}"), "a place in period {v}", r"\d+"
        ),
        "category": Attribute(
            "family",
            ("is one of the {v}", "counts among the {v}"),
            "a place among the {v}",
            _WORDS,
            lead="the ",
        ),
        "phase": Attribute(
            "phase",
            ("is a {v} at room temperature", "occurs as a {v} at room temperature"),
            "the {v} phase at room temperature",
            r"\w+",
            askable=False,
        ),
        "melting_point": Attribute(
            "melting point",
            ("melts at {v}", "has a melting point of {v}"),
            "a melting point of {v}",
            f"{_NUMBER} K",
        ),
        "boiling_point": Attribute(
            "boiling point",
            ("boils at {v}", "has a boiling point of {v}"),
            "a boiling point of {v}",
            f"{_NUMBER} K",
        ),
        "density": Attribute(
            "density",
            ("has a density of {v}", "reaches a density of {v}"),
            "a density of {v}",
            rf"{_NUMBER} g/(?:cm3|L)",
        ),
        "discovery_year": Attribute(
            "discovery year",
            ("was discovered in {v}", "was first identified in {v}"),
            "a discovery in {v}",
            r"\d+",
        ),
    },
)

COUNTRIES: Final = Topic(
    kind="country",
    categories=("Countries", "Geography", "Nations of the world"),
    attributes={
        "capital": Attribute(
            "capital",
            ("has the capital {v}", "is governed from {v}"),
            "the capital {v}",
            _WORDS,
        ),
        "continent": Attribute("continent", ("lies in {v}", "is part of {v}"), "a place in {v}", _WORDS),
        "population": Attribute(
            "population",
            ("has about {v} people", "is home to about {v} people"),
            "a population of about {v}",
            rf"{_NUMBER}(?: (?:million|billion))?",
            lead="about ",
        ),
        "area": Attribute(
            "area",
            ("covers about {v}", "has an area of about {v}"),
            "an area of about {v}",
            f"{_NUMBER} km2",
            lead="about ",
        ),
        "currency": Attribute(
            "currency",
            ("pays with the {v}", "uses the {v} as its currency"),
            "the currency {v}",
            _WORDS,
            lead="the ",
        ),
        "language": Attribute(
            "official language",
            ("has the official language {v}", "speaks {v} as an official language"),
            "the official language {v}",
            _WORDS,
        ),
        "domain": Attribute(
            "internet domain",
            ("has the internet domain {v}", "ends its web addresses in {v}"),
            "the internet domain {v}",
            r"\.[a-z]{2,3}",
        ),
        "calling_code": Attribute(
            "calling code",
            ("has the calling code {v}", "is called by phone with {v}"),
            "the calling code {v}",
            r"\+\d[\d-]*",
        ),
    },
)

PLANETS: Final = Topic(
    kind="planet",
    categories=("Planets", "Astronomy", "The solar system"),
    attributes={
        "position": Attribute(
            "position",
            ("is number {v} from the Sun", "circles the Sun on orbit number {v}"),
            "position {v} from the Sun",
            r"\d+",
        ),
        "kind": Attribute(
            "class",
            ("is one of the {v}", "counts among the {v}"),
            "a place among the {v}",
            _WORDS,
            lead="the ",
            askable=False,
        ),
        "diameter": Attribute(
            "diameter",
            ("has a diameter of {v}", "measures {v} across"),
            "a diameter of {v}",
            f"{_NUMBER} km",
        ),
        "year": Attribute(
            "orbital period",
            ("orbits the Sun in {v}", "has an orbital period of {v}"),
            "an orbital period of {v}",
            f"{_NUMBER} days",
        ),
        "gravity": Attribute(
            "surface gravity",
            ("has a surface gravity of {v}", "pulls with a surface gravity of {v}"),
            "a surface gravity of {v}",
            rf"{_NUMBER} m/s2",
        ),
    },
)

TOPICS: Final[Mapping[str, Topic]] = {"elements": ELEMENTS, "countries": COUNTRIES, "planets": PLANETS}


def attribute_of(entity: Entity, attribute: str) -> Attribute:
    """How an attribute of an entity is worded."""
    return TOPICS[entity.topic].attributes[attribute]


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def capitalised(text: str) -> str:
    """With a capital first letter, the rest as it was."""
    return text[:1].upper() + text[1:]
