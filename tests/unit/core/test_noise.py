"""Surface noise."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.core.noise import add_noise

TEXT = "Category: Geography. Bosnia and Herzegovina: capital Sarajevo, area 51,100 km2, and not small."
HELD = ["Bosnia and Herzegovina", "Sarajevo", "51,100 km2", "Geography"]


@given(st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_noise_never_touches_what_is_protected(seed):
    noisy = add_noise(TEXT, HELD, Random(seed), rate=0.9)
    assert all(held in noisy for held in HELD)
    assert " not " in noisy
    assert noisy.startswith("Category:")


@given(st.text(max_size=80), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_noise_keeps_lines_and_digits_of_any_text(text, seed):
    noisy = add_noise(text, [], Random(seed), rate=0.5)
    assert noisy.count("\n") == text.count("\n")
    assert [c for c in noisy if c.isdecimal()] == [c for c in text if c.isdecimal()]


def test_noise_follows_its_rate_and_seed():
    words = " ".join(["winter", "summer", "forest", "river"] * 500)
    assert add_noise(words, [], Random(0), rate=0.0) == words
    assert (
        add_noise(words, [], Random(1)) == add_noise(words, [], Random(1)) != add_noise(words, [], Random(2))
    )
    hit = Counter(add_noise(words, [], Random(3), rate=0.3).split())
    untouched = sum(hit[word] for word in ("winter", "summer", "forest", "river"))
    assert 0.66 < untouched / 2000 < 0.78  # doubled spaces leave the word as it was


def test_option_letters_survive_noise():
    text = "what is it\nA) this\nB) that\nC) both\nD) none"
    for seed in range(30):
        noisy = add_noise(text, [], Random(seed), rate=1.0)
        assert [line[:2] for line in noisy.splitlines()[1:]] == ["A)", "B)", "C)", "D)"]
