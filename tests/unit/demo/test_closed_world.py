"""The closed world, the truth check and the demo pool."""

from __future__ import annotations

import csv
import re
from collections import Counter
from importlib import resources
from itertools import islice
from random import Random

import pytest

from lm_mixup.chat.judge import Rating, make_judge
from lm_mixup.config import BuildConfig, RateConfig
from lm_mixup.core.claims import Claim
from lm_mixup.core.draws import split_of
from lm_mixup.core.schemas import compress_score
from lm_mixup.demo.entities import capitalized
from lm_mixup.demo.fact_check import answer_is_true, named_entities, truth
from lm_mixup.demo.facts import entities_by_name, load_entities
from lm_mixup.demo.pool import demo_pool
from lm_mixup.demo.sentence_templates import HELD_OUT, SEEN
from lm_mixup.demo.topics import TOPICS


def entity(name):
    return entities_by_name()[name]


def test_the_world_is_whole():
    assert Counter(e.topic for e in load_entities()) == {
        "elements": 118,
        "countries": 195,
        "planets": 8,
        "moons": 30,
        "constellations": 88,
        "states": 50,
    }
    assert len(entities_by_name()) == len(load_entities())
    for one in load_entities():
        assert len(one.facts) >= 5, one.name
        assert all(value.isascii() and value.strip() == value for value in one.facts.values()), one.name
        assert set(one.facts) <= set(TOPICS[one.topic].attributes)
        for attribute, value in one.facts.items():
            pattern = TOPICS[one.topic].attributes[attribute].pattern
            assert re.fullmatch(pattern, value), (one.name, attribute, value)


def test_topics_are_worded_in_more_than_one_way_and_name_no_entity():
    for topic in TOPICS.values():
        for attribute in topic.attributes.values():
            assert len(set(attribute.predicates)) >= 2
            assert all("{v}" in frame for frame in (*attribute.predicates, attribute.noun))
        for text in (topic.kind, *topic.categories, *(a.label for a in topic.attributes.values())):
            assert not named_entities(text), text


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "iron",
            {"symbol": "Fe", "number": "26", "mass": "55.845 u", "group": "8", "period": "4"}
            | {
                "category": "transition metals",
                "phase": "solid",
                "melting_point": "1811 K",
                "density": "7.87 g/cm3",
            },
        ),
        ("neon", {"symbol": "Ne", "boiling_point": "27.1 K", "phase": "gas", "density": "0.825 g/L"}),
        ("helium", {"discovery_year": "1868", "category": "noble gases"}),
        (
            "Japan",
            {"capital": "Tokyo", "continent": "Asia", "currency": "Japanese yen", "language": "Japanese"}
            | {"domain": ".jp", "calling_code": "+81", "area": "378,000 km2", "population": "127 million"},
        ),
        ("United Kingdom", {"capital": "London", "domain": ".uk", "currency": "pound sterling"}),
        ("Kazakhstan", {"capital": "Astana", "language": "Kazakh"}),
        ("Moon", {"planet": "Earth", "diameter": "3475 km", "orbital_radius": "384,000 km"}),
        (
            "Titan",
            {"planet": "Saturn", "designation": "Saturn VI", "discoverer": "Christiaan Huygens"}
            | {"discovery_year": "1655", "period": "15.95 days", "orbital_radius": "1,220,000 km"},
        ),
        (
            "Orion",
            {"abbreviation": "Ori", "genitive": "Orionis", "brightest_star": "Rigel", "area": "594 sq deg"}
            | {"size_rank": "26", "quadrant": "NQ1"},
        ),
        (
            "California",
            {"postal_code": "CA", "capital": "Sacramento", "largest_city": "Los Angeles", "region": "West"}
            | {"statehood_year": "1850", "admission": "31", "population": "39.5 million"}
            | {"area": "424,000 km2"},
        ),
        ("state of Georgia", {"capital": "Atlanta", "postal_code": "GA", "admission": "4"}),
        ("Georgia", {"capital": "Tbilisi"}),
        ("Mars", {"position": "4", "kind": "terrestrial planets", "year": "687.0 days"}),
    ],
)
def test_known_facts(name, facts):
    assert facts.items() <= entity(name).facts.items()


def test_disputed_facts_are_blank():
    assert "capital" not in entity("Israel").facts
    assert "capital" not in entity("Palestine").facts
    assert "group" not in entity("lanthanum").facts
    assert "melting_point" not in entity("helium").facts


def test_elements_agree_with_themselves():
    elements = [e for e in load_entities() if e.topic == "elements"]
    assert [e.facts["number"] for e in elements] == [str(number) for number in range(1, 119)]
    assert len({e.facts["symbol"] for e in elements}) == 118
    assert {e.name for e in elements if e.facts.get("phase") == "liquid"} == {"bromine", "mercury"}
    for e in elements:
        melts, boils = (float(e.facts.get(k, "nan K").split()[0]) for k in ("melting_point", "boiling_point"))
        assert not melts > boils, e.name
        if e.facts.get("phase") == "gas":
            assert boils < 298
        if e.facts.get("phase") == "solid":
            assert not melts < 298


def number(entity, attribute):
    return float(entity.facts[attribute].split()[0].replace(",", ""))


def of_topic(topic):
    return [e for e in load_entities() if e.topic == topic]


def test_the_states_agree_with_themselves_and_with_the_census():
    states = sorted(of_topic("states"), key=lambda e: number(e, "admission"))
    assert [e.facts["admission"] for e in states] == [str(n) for n in range(1, 51)]
    years = [number(e, "statehood_year") for e in states]
    assert years == sorted(years) and (years[0], years[-1]) == (1787, 1959)
    assert len({e.facts["postal_code"] for e in states}) == 50
    assert Counter(e.facts["region"] for e in states) == {
        "South": 16,
        "West": 13,
        "Midwest": 12,
        "Northeast": 9,
    }
    source = resources.files("lm_mixup.demo").joinpath("states.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(source.splitlines()))
    assert (
        sum(int(row["population"]) for row in rows) == 331_449_281 - 689_545
    )  # all but the capital district
    assert abs(sum(int(row["area_km2"]) for row in rows) - 9_833_340) < 20


def test_the_moons_obey_kepler():
    planets = {e.name for e in of_topic("planets")}
    constants = {}
    for moon in of_topic("moons"):
        assert moon.facts["planet"] in planets
        assert moon.facts["designation"].startswith(f"{moon.facts['planet']} ")
        assert 1610 <= int(moon.facts.get("discovery_year", 1610)) <= 1989
        if "orbital_radius" in moon.facts:
            constant = number(moon, "orbital_radius") ** 3 / number(moon, "period") ** 2
            constants.setdefault(moon.facts["planet"], []).append(constant)
    assert len({m.facts["designation"] for m in of_topic("moons")}) == 30
    assert all(max(found) / min(found) < 1.05 for found in constants.values()), constants


def test_the_constellations_cover_the_sky():
    ranked = sorted(of_topic("constellations"), key=lambda e: number(e, "size_rank"))
    assert [e.facts["size_rank"] for e in ranked] == [str(n) for n in range(1, 89)]
    areas = [number(e, "area") for e in ranked]
    assert areas == sorted(areas, reverse=True)
    assert abs(sum(areas) - 41_253) < 10
    for attribute in ("abbreviation", "genitive"):
        assert len({e.facts[attribute] for e in ranked}) == 88


def test_planets_and_countries_are_in_range():
    planets = of_topic("planets")
    assert [e.facts["position"] for e in planets] == [str(n) for n in range(1, 9)]
    years = [number(e, "year") for e in planets]
    assert years == sorted(years)
    for country in of_topic("countries"):
        assert all(number(country, a) > 0 for a in ("population", "area") if a in country.facts)


def test_internet_domains_and_capitals_are_one_country_s():
    for attribute in ("domain", "capital"):
        values = [e.facts[attribute] for e in load_entities() if attribute in e.facts]
        assert len(set(values)) == len(values)


def wordings(one, attribute, value):
    how = TOPICS[one.topic].attributes[attribute]
    subject = capitalized(one.subject)
    yield from (f"{subject} {predicate.format(v=value)}." for predicate in how.predicates)
    yield f"{subject}, with {how.noun.format(v=value)}, is well known."
    yield f"The {how.label} of {one.subject} is {how.lead}{value}."


def test_every_wording_is_found_and_nothing_else_is():
    rng = Random(0)
    for one in load_entities():
        for attribute, value in one.facts.items():
            text = rng.choice(list(wordings(one, attribute, value)))
            found = truth(text, one)
            assert found.claimed == found.right == (Claim(attribute, value),), text
            assert found.holds
            assert set(found.missing) == set(one.facts) - {attribute}


@pytest.mark.parametrize("templates", [SEEN, HELD_OUT])
def test_every_statement_of_every_entity_is_understood(templates):
    rng = Random(3)
    for one in load_entities():
        for statement in templates.statements:
            claims = one.claims(rng.sample(sorted(one.facts), 4 if len(one.facts) > 3 else 3))
            text = statement(one, claims, rng)
            found = truth(text, one)
            assert set(found.right) == set(found.claimed) == set(claims), text
            assert named_entities(text) == (one,), text


def test_every_wording_tells_a_wrong_value():
    rng = Random(1)
    for one in load_entities()[::3]:
        for attribute, value in one.facts.items():
            others = [
                e.facts[attribute] for e in load_entities() if attribute in e.facts and e.topic == one.topic
            ]
            wrong = rng.choice([other for other in others if other != value])
            text = rng.choice(list(wordings(one, attribute, wrong)))
            found = truth(text, one)
            assert found.claimed == found.wrong == (Claim(attribute, wrong),), text
            assert not found.holds


@pytest.mark.parametrize(
    ("text", "claimed"),
    [
        ("France has the capital Parris and pays with the euro.", {"capital": "Parris", "currency": "euro"}),
        (
            "The capital of France is Paris, its calling code is +34.",
            {"capital": "Paris", "calling_code": "+34"},
        ),
        (
            "France has about 67 million people. It lies in Asia.",
            {"population": "67 million", "continent": "Asia"},
        ),
        ("What is the capital of France? France is a fine place.", {}),
        ("Q: Is the capital of France Rome?\nA: The capital of France is Paris.", {"capital": "Paris"}),
        ("France has the capital Paris. Spain pays with the euro.", {"capital": "Paris"}),
        ("Spain has the capital Madrid.", {}),
        (
            "France has the capital Washington. It lies in Asia.",
            {"capital": "Washington", "continent": "Asia"},
        ),
        ("", {}),
    ],
)
def test_truth_known_answers(text, claimed):
    assert dict(truth(text, entity("France")).claimed) == claimed


def test_truth_of_a_denied_statement():
    false = "France has the capital Rome.\nAnswer: False"
    assert truth(false, entity("France")).holds
    assert not truth(false.replace("False", "True"), entity("France")).holds
    assert not truth("France has the capital Paris.\nAnswer: False", entity("France")).holds


@pytest.mark.parametrize(
    ("statement", "verdict", "is_true"),
    [
        ("As for Mozambique, it has the capital Ankara. As for Mongolia, it lies in Asia.", "False", True),
        ("As for Mozambique, it has the capital Ankara. As for Mongolia, it lies in Asia.", "True", False),
        ("As for Mozambique, it has the capital Maputo. As for Mongolia, it lies in Asia.", "False", False),
        ("As for Mozambique, it has the capital Maputo. As for Mongolia, it lies in Asia.", "True", True),
    ],
)
def test_one_wrong_claim_makes_a_statement_on_two_entities_false(statement, verdict, is_true):
    assert answer_is_true(f"{statement}\nAnswer: {verdict}") is is_true


def test_truth_of_a_multiple_choice_question_is_its_pick():
    text = "Q: France lies in Europe. What is the capital of France?\nA) Rome\nB) Paris\nC) Bern\nD) Oslo\n"
    right, wrong = (truth(f"{text}Answer: {letter}", entity("France")) for letter in "BA")
    assert dict(right.right) == {"continent": "Europe", "capital": "Paris"}
    assert dict(wrong.wrong) == {"capital": "Rome"}


def test_names_within_names_are_told_apart():
    text = "Guinea-Bissau lies in Africa. Nigeria lies in Africa. The element lead is written Pb."
    assert [e.name for e in named_entities(text)] == ["Guinea-Bissau", "Nigeria", "lead"]
    assert [e.name for e in named_entities("Mercury")] == ["Mercury"]
    text = "The state of Georgia has the capital Atlanta. Georgia lies in Asia. Io is far. It orbits Jupiter."
    assert [e.name for e in named_entities(text)] == ["state of Georgia", "Georgia", "Io"]


def test_pool_is_deterministic_and_prefix_stable_in_size():
    first, again, other = (list(demo_pool(300, seed)) for seed in (5, 5, 6))
    assert first == again != other
    assert len(first) == 300


def test_pool_is_mostly_poor_with_some_good_and_a_few_broken_rows():
    rows = list(demo_pool(2000, 0))
    whole = [row for row in rows if row.get("prompt") and row["completion"]]
    assert 0.005 < 1 - len(whole) / len(rows) < 0.03
    assert any("prompt" not in row for row in rows)
    assert any(row["completion"] == "" for row in rows)
    verdicts = make_judge(RateConfig()).rate([(row["prompt"], row["completion"]) for row in whole[:400]])
    scores = [compress_score(v.overall) for v in verdicts if isinstance(v, Rating)]
    assert 0.15 < sum(score >= 4 for score in scores) / len(scores) < 0.35


def test_pool_is_about_held_out_entities_in_clusters():
    rows = list(islice(demo_pool(400, 3), 400))
    shares = BuildConfig.model_validate({})
    named = [
        e for row in rows for e in named_entities(row.get("prompt", "") + "\n" + (row["completion"] or ""))
    ]
    splits = Counter(split_of(e.name, 0, shares.grpo_fraction, shares.test_fraction) for e in named[:300])
    assert splits["test"] > 0.97 * splits.total()  # a wrong option may name another country
    assert len({e.name for e in named}) < len(rows) / 2
