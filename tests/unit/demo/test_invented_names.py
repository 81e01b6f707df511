"""Invented names and values: shape kept, meaning gone, the same in inputs and target."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.demo.facts import load_entities
from lm_mixup.demo.invented_names import invent, replace_terms

TERMS = sorted({value for e in load_entities()[::7] for value in (e.name, *e.facts.values())})


def test_units_quantities_and_plain_options_stay():
    terms = ["7.87 g/cm3", "378,000 km2", "127 million", "687.0 days", "yes", "both", "no idea"]
    new = invent(terms, Random(1))
    assert new["7.87 g/cm3"].endswith(" g/cm3") and new["378,000 km2"].endswith(" km2")
    assert new["127 million"].endswith(" million") and new["687.0 days"].endswith(" days")
    assert not {"yes", "both", "no idea"} & new.keys()


@pytest.mark.parametrize("term", ["Fe", ".jp", "+81", "iron", "USD", "Republic of the Congo", "1811 K"])
def test_the_shape_stays(term: str):
    new = invent([term], Random(3))[term]
    assert new != term and new.count(" ") == term.count(" ")
    for old, other in zip(term.split(), new.split(), strict=True):
        assert old[0].isupper() == other[0].isupper() and old[0].isdigit() == other[0].isdigit()


@given(st.integers(0, 10**6), st.lists(st.sampled_from(TERMS), min_size=1, max_size=12))
def test_terms_are_told_apart_after_as_before(seed: int, terms: list[str]):
    new = invent(terms, Random(seed))
    assert len(set(new.values())) == len(new) and not set(new.values()) & set(terms)
    assert invent(terms, Random(seed)) == new
    for term, other in new.items():
        assert replace_terms(f"of {term}, it is {term}.", new) == f"of {other}, it is {other}."


def test_longer_terms_go_first_and_parts_of_words_stay():
    new = {"8": "3", "8.5 K": "1.2 K", "iron": "belo"}
    assert replace_terms("iron: 8 and 8.5 K, irony 18", new) == "belo: 3 and 1.2 K, irony 18"
    assert replace_terms("as it was", {}) == "as it was"
