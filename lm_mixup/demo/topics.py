"""The topics of the closed world and the wording of their attributes.

Each topic has one table of attributes, used in both directions: the teacher writes sentences with it, and the
fact check finds claims in any text that uses the same wording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


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

MOONS: Final = Topic(
    kind="moon",
    categories=("Moons", "Natural satellites", "The sky at night"),
    attributes={
        "planet": Attribute(
            "planet", ("orbits {v}", "is held in orbit by {v}"), "an orbit around {v}", _WORDS
        ),
        "designation": Attribute(
            "designation",
            ("has the designation {v}", "is also listed as {v}"),
            "the designation {v}",
            "[A-Z][a-z]+ [IVX]+",
        ),
        "diameter": Attribute(
            "diameter",
            ("has a diameter of {v}", "measures {v} across"),
            "a diameter of {v}",
            f"{_NUMBER} km",
        ),
        "period": Attribute(
            "orbital period",
            ("circles its planet in {v}", "has an orbital period of {v}"),
            "an orbital period of {v}",
            f"{_NUMBER} days",
        ),
        "orbital_radius": Attribute(
            "orbital radius",
            ("has an orbital radius of about {v}", "keeps a distance of about {v} from its planet"),
            "an orbital radius of about {v}",
            f"{_NUMBER} km",
            lead="about ",
        ),
        "gravity": Attribute(
            "surface gravity",
            ("has a surface gravity of {v}", "pulls with a surface gravity of {v}"),
            "a surface gravity of {v}",
            f"{_NUMBER} m/s2",
        ),
        "discovery_year": Attribute(
            "discovery year",
            ("was discovered in {v}", "has been known since {v}"),
            "a discovery in {v}",
            r"\d+",
        ),
        "discoverer": Attribute(
            "discoverer",
            ("was discovered by {v}", "was first seen by {v}"),
            "a discovery by {v}",
            rf"{_WORDS}(?: \d)?",
        ),
    },
)

CONSTELLATIONS: Final = Topic(
    kind="constellation",
    categories=("Constellations", "Star patterns", "The night sky"),
    attributes={
        "abbreviation": Attribute(
            "abbreviation",
            ("has the abbreviation {v}", "is abbreviated {v}"),
            "the abbreviation {v}",
            "[A-Z][A-Za-z]{2}",
        ),
        "genitive": Attribute(
            "genitive", ("has the genitive {v}", "takes the genitive {v}"), "the genitive {v}", _WORDS
        ),
        "english_name": Attribute(
            "English name",
            ("has the English name {v}", "is known in English as {v}"),
            "the English name {v}",
            _WORDS,
        ),
        "quadrant": Attribute(
            "sky quadrant",
            ("lies in sky quadrant {v}", "is found in sky quadrant {v}"),
            "a place in sky quadrant {v}",
            "[NS]Q[1-4]",
        ),
        "brightest_star": Attribute(
            "brightest star",
            ("has the brightest star {v}", "shines brightest at {v}"),
            "the brightest star {v}",
            _WORDS,
        ),
        "area": Attribute(
            "area",
            ("covers {v} of the sky", "has an area of {v}"),
            "an area of {v}",
            f"{_NUMBER} sq deg",
        ),
        "size_rank": Attribute(
            "size rank", ("has the size rank {v}", "holds the size rank {v}"), "the size rank {v}", r"\d+"
        ),
    },
)

STATES: Final = Topic(
    kind="federal state",
    categories=("Federal states", "American geography", "Places in America"),
    attributes={
        "postal_code": Attribute(
            "postal code",
            ("has the postal code {v}", "is written {v} on letters"),
            "the postal code {v}",
            "[A-Z]{2}",
        ),
        "capital": Attribute(
            "capital", ("has the capital {v}", "is governed from {v}"), "the capital {v}", _WORDS
        ),
        "largest_city": Attribute(
            "largest city",
            ("has the largest city {v}", "counts the most people in {v}"),
            "the largest city {v}",
            _WORDS,
        ),
        "region": Attribute(
            "region", ("lies in the {v}", "is part of the {v}"), "a place in the {v}", _WORDS, lead="the "
        ),
        "statehood_year": Attribute(
            "statehood year",
            ("became a state in {v}", "joined the Union in {v}"),
            "statehood since {v}",
            r"\d{4}",
        ),
        "admission": Attribute(
            "admission number",
            ("has the admission number {v}", "entered the Union as number {v}"),
            "the admission number {v}",
            r"\d+",
        ),
        "population": Attribute(
            "population",
            ("has about {v} people", "is home to about {v} people"),
            "a population of about {v}",
            rf"{_NUMBER}(?: million)?",
            lead="about ",
        ),
        "area": Attribute(
            "area",
            ("covers about {v}", "has an area of about {v}"),
            "an area of about {v}",
            f"{_NUMBER} km2",
            lead="about ",
        ),
    },
)

TOPICS: Final[Mapping[str, Topic]] = {
    "elements": ELEMENTS,
    "countries": COUNTRIES,
    "planets": PLANETS,
    "moons": MOONS,
    "constellations": CONSTELLATIONS,
    "states": STATES,
}
