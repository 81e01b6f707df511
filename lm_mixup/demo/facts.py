"""The closed world: real facts about entities of the topics, from the CSV files beside this module.

Their sources are in the NOTICE file. A blank cell is a fact that is unknown, disputed or
contradictory between sources.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

from lm_mixup.demo.entities import Entity
from lm_mixup.demo.topics import TOPICS

Row = Mapping[str, str]
_ARTICLES = {"elements": "the element", "planets": "the planet", "constellations": "the constellation"}


@cache
def load_entities() -> tuple[Entity, ...]:
    """All entities, topic by topic, in the order of the files."""
    return tuple(entity for topic in TOPICS for entity in _load(topic))


@cache
def entities_by_name() -> Mapping[str, Entity]:
    """The entities by name: names are unique over all topics, by their letter case too (mercury, Mercury)."""
    return {entity.name: entity for entity in load_entities()}


def _load(topic: str) -> list[Entity]:
    source = resources.files("lm_mixup.demo").joinpath(f"{topic}.csv")
    with source.open(encoding="utf-8") as file:
        return [_entity(topic, row) for row in csv.DictReader(file)]


def _entity(topic: str, row: Row) -> Entity:
    article = _ARTICLES.get(topic) or row.get("article", "")
    facts = {name: write(row) for name, write in _VALUES[topic].items()}
    return Entity(topic, row["name"], {name: value for name, value in facts.items() if value}, article)


def _value(column: str, unit: str = "") -> Callable[[Row], str]:
    """Writes a cell as it is, with its unit; blank where it is blank."""
    return lambda row: f"{row[column]} {unit}".strip() if row[column] else ""


def _density(row: Row) -> str:
    """Gases in g/L, at 298 K; the rest in g/cm3."""
    text = row["density_g_cm3"]
    if text and row["phase"] == "gas":
        return f"{1000 * float(text):.3g} g/L"
    return f"{text} g/cm3" if text else ""


def _people(row: Row) -> str:
    """Three significant digits: `67 million`, `96,300`."""
    if not row["population"]:
        return ""
    count = float(f"{int(row['population']):.3g}")
    for word, size in (("billion", 1e9), ("million", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"


def _area(row: Row) -> str:
    if not row["area_km2"]:
        return ""
    area = float(f"{float(row['area_km2']):.3g}")
    return f"{area:,.0f} km2" if area >= 100 else f"{area:g} km2"


def _orbital_radius(row: Row) -> str:
    if not row["orbital_radius_km"]:
        return ""
    radius = float(f"{float(row['orbital_radius_km']):.3g}")
    return f"{radius:,.0f} km"


def _square_degrees(row: Row) -> str:
    return f"{float(row['area_sq_deg']):.0f} sq deg"


_VALUES: Mapping[str, Mapping[str, Callable[[Row], str]]] = {
    "elements": {
        "symbol": _value("symbol"),
        "number": _value("number"),
        "mass": _value("mass", "u"),
        "group": _value("group"),
        "period": _value("period"),
        "category": _value("category"),
        "phase": _value("phase"),
        "melting_point": _value("melting_point_k", "K"),
        "boiling_point": _value("boiling_point_k", "K"),
        "density": _density,
        "discovery_year": _value("discovery_year"),
    },
    "countries": {
        "capital": _value("capital"),
        "continent": _value("continent"),
        "population": _people,
        "area": _area,
        "currency": _value("currency"),
        "language": _value("language"),
        "domain": _value("domain"),
        "calling_code": _value("calling_code"),
    },
    "planets": {
        "position": _value("position"),
        "kind": _value("kind"),
        "diameter": _value("diameter_km", "km"),
        "year": _value("year_days", "days"),
        "gravity": _value("gravity_m_s2", "m/s2"),
    },
    "moons": {
        "planet": _value("planet"),
        "designation": _value("designation"),
        "diameter": _value("diameter_km", "km"),
        "period": _value("period_days", "days"),
        "orbital_radius": _orbital_radius,
        "gravity": _value("gravity_m_s2", "m/s2"),
        "discovery_year": _value("discovery_year"),
        "discoverer": _value("discoverer"),
    },
    "constellations": {
        "abbreviation": _value("abbreviation"),
        "genitive": _value("genitive"),
        "english_name": _value("english_name"),
        "quadrant": _value("quadrant"),
        "brightest_star": _value("brightest_star"),
        "area": _square_degrees,
        "size_rank": _value("size_rank"),
    },
    "states": {
        "postal_code": _value("postal_code"),
        "capital": _value("capital"),
        "largest_city": _value("largest_city"),
        "region": _value("region"),
        "statehood_year": _value("statehood_year"),
        "admission": _value("admission"),
        "population": _people,
        "area": _area,
    },
}
