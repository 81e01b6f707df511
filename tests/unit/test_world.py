"""The closed world, the truth check and the demo pool."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

import pytest

from lm_mixup.backends.judge import Rating, make_judge
from lm_mixup.backends.wording import TOPICS, Claim, capitalised
from lm_mixup.config import BuildConfig, RateConfig
from lm_mixup.records import compress_score
from lm_mixup.world.facts import entities_by_name, load_entities, split_of
from lm_mixup.world.pool import world_pool
from lm_mixup.world.truth import named_entities, truth


def entity(name):
    return entities_by_name()[name]


def test_the_world_is_whole():
    assert Counter(e.topic for e in load_entities()) == {"elements": 118, "countries": 195, "planets": 8}
    assert len(entities_by_name()) == len(load_entities())
    for one in load_entities():
        assert len(one.facts) >= 5, one.name
        assert all(value.isascii() and value.strip() == value for value in one.facts.values()), one.name


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


def test_internet_domains_and_capitals_are_one_country_s():
    for attribute in ("domain", "capital"):
        values = [e.facts[attribute] for e in load_entities() if attribute in e.facts]
        assert len(set(values)) == len(values)


def wordings(one, attribute, value):
    how = TOPICS[one.topic].attributes[attribute]
    subject = capitalised(one.subject)
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


def test_truth_of_a_multiple_choice_question_is_its_pick():
    text = "Q: France lies in Europe. What is the capital of France?\nA) Rome\nB) Paris\nC) Bern\nD) Oslo\n"
    right, wrong = (truth(f"{text}Answer: {letter}", entity("France")) for letter in "BA")
    assert dict(right.right) == {"continent": "Europe", "capital": "Paris"}
    assert dict(wrong.wrong) == {"capital": "Rome"}


def test_names_within_names_are_told_apart():
    text = "Guinea-Bissau lies in Africa. Nigeria lies in Africa. The element lead is written Pb."
    assert [e.name for e in named_entities(text)] == ["Guinea-Bissau", "Nigeria", "lead"]
    assert [e.name for e in named_entities("Mercury")] == ["Mercury"]


def test_pool_is_deterministic_and_prefix_stable_in_size():
    first, again, other = (list(world_pool(300, seed)) for seed in (5, 5, 6))
    assert first == again != other
    assert len(first) == 300


def test_pool_is_mostly_poor_with_some_good_and_a_few_broken_rows():
    rows = list(world_pool(2000, 0))
    whole = [row for row in rows if row.get("prompt") and row["completion"]]
    assert 0.005 < 1 - len(whole) / len(rows) < 0.03
    assert any("prompt" not in row for row in rows)
    assert any(row["completion"] == "" for row in rows)
    verdicts = make_judge(RateConfig()).rate([(row["prompt"], row["completion"]) for row in whole])
    scores = [compress_score(v.overall) for v in verdicts if isinstance(v, Rating)]
    assert 0.15 < sum(score >= 4 for score in scores) / len(scores) < 0.35


def test_pool_is_about_held_out_entities_in_clusters():
    rows = list(islice(world_pool(400, 3), 400))
    shares = BuildConfig.model_validate({})
    named = [
        e for row in rows for e in named_entities(row.get("prompt", "") + "\n" + (row["completion"] or ""))
    ]
    splits = Counter(split_of(e.name, 3, shares.grpo_fraction, shares.test_fraction) for e in named[:300])
    assert splits["grpo"] + splits["test"] > 0.97 * splits.total()  # a wrong option may name another country
    assert len({e.name for e in named}) < len(rows) / 2
