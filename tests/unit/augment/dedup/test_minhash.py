"""Near-duplicates without Ray: what is folded, into what, and that the cutting of the pool plays no part."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.dedup.exact import decode_places
from lm_mixup.augment.dedup.minhash import (
    bands_of,
    candidates,
    resolve_duplicates,
    shingles,
    sketch,
    unique_pairs,
    verify,
)
from lm_mixup.augment.dedup.ngrams import ngram_hashes
from lm_mixup.augment.reading.files import list_units
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.augment.reading.rows import PoolRow
from lm_mixup.config import IngestConfig, NearDuplicatesConfig
from lm_mixup.core.words import words, words_and_symbols

DEFAULT = NearDuplicatesConfig()
VOCABULARY = [f"w{number}" for number in range(5000)]


def row(prompt, completion, name="x"):
    return PoolRow(name, name, True, "pool", "qa", prompt, completion)


def fold(rows, config=DEFAULT, unit_rows=10**9, buckets=1):
    """Refused row → kept row, by number in the pool, of a pool cut into units and keys dealt into buckets."""
    units = [list(enumerate(rows[at : at + unit_rows])) for at in range(0, len(rows), unit_rows)]
    sketches, tables = (
        zip(*(sketch(n, unit, config) for n, unit in enumerate(units)), strict=True) if units else ([], [])
    )
    pairs = unique_pairs(
        [candidates([t[t[:, 0] % np.uint64(buckets) == b] for t in tables]) for b in range(buckets)]
    )
    of_unit = decode_places(pairs[:, 1])[0]
    similar = unique_pairs(
        [verify(pairs[of_unit == u], held, sketches.__getitem__, config) for u, held in enumerate(sketches)]
    )
    refused, kept = (places_to_numbers(places, unit_rows) for places in resolve_duplicates(similar))
    return dict(zip(refused, kept, strict=True))


def places_to_numbers(places, unit_rows):
    units, rows = decode_places(places)
    return (units * unit_rows + rows).tolist()


def jaccard(one, other):
    a, b = (set(shingles(r, DEFAULT.ngram).tolist()) for r in (one, other))
    return len(a & b) / len(a | b)


def planted(rng, size=120, edits=0.05):
    """A row of `size` words, and a copy with a share of its words replaced, dropped or doubled."""
    text = rng.choices(VOCABULARY, k=size)
    copy = [[word] for word in text]
    for at in rng.sample(range(size), int(edits * size)):
        copy[at] = rng.choice([[rng.choice(VOCABULARY)], [], copy[at] * 2])
    edited = [word for words_ in copy for word in words_]
    return tuple(row(" ".join(t[: size // 3]), " ".join(t[size // 3 :])) for t in (text, edited))


def test_planted_copies_are_found_and_unrelated_rows_are_not_folded():
    rng = random.Random(0)
    pairs = [planted(rng) for _ in range(600)]
    rows = [one for one, _ in pairs] + [other for _, other in pairs]
    found = fold(rows)
    assert all(kept == refused - 600 for refused, kept in found.items())  # its own original, nothing else
    assert len(found) >= 0.95 * 600


def test_no_row_below_the_threshold_is_folded_and_every_one_far_above_is():
    rng = random.Random(1)
    pairs = [planted(rng, edits=rng.uniform(0, 0.2)) for _ in range(400)]
    found = fold([one for one, _ in pairs] + [other for _, other in pairs])
    for number, (one, other) in enumerate(pairs):
        similarity = jaccard(one, other)
        if similarity < 0.8:
            assert number + 400 not in found
        if similarity >= 0.9:
            assert found[number + 400] == number


texts = st.lists(st.sampled_from([*"abcdef12+é東.!"]), min_size=1, max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(texts, texts), max_size=30), st.integers(1, 31), st.integers(1, 5), st.floats(0.3, 1)
)
def test_units_and_buckets_change_nothing_and_the_kept_row_is_kept_and_similar(
    pairs, size, buckets, threshold
):
    config = NearDuplicatesConfig(threshold=threshold)
    rows = [row(*pair) for pair in pairs]
    found = fold(rows, config)
    assert found == fold(rows, config, size, buckets)
    for refused, kept in found.items():
        assert kept < refused and kept not in found
        assert jaccard(rows[kept], rows[refused]) >= threshold - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=12), st.text(min_size=1), st.text(min_size=1))
def test_exact_copies_are_near_duplicates(pairs, prompt, completion):
    rows = [row(*pair) for pair in pairs]
    if prompt.strip() and completion.strip():
        rows.append(row(prompt, completion))
    found = fold(rows + rows)
    assert set(range(len(rows), 2 * len(rows))) <= set(found)


def test_case_punctuation_and_width_do_not_matter_but_operators_and_words_do():
    first = row("What is two plus two, please?", "It is 4.")
    assert fold([first, row("WHAT is  two plus two please", "it is 4!")]) == {1: 0}
    assert fold([row("2 + 3", "5"), row("2 - 3", "5")]) == {}
    assert fold([row("?!", "..."), row("!?", ";")]) == {}
    assert words_and_symbols("...") == [".", ".", "."]
    assert words("Ｆｕｌｌ_width 東京, it's") == ["full", "width", "東", "京", "it's"]


def test_another_answer_to_a_long_prompt_is_another_row():
    prompt = " ".join(VOCABULARY[:200])
    rows = [row(prompt, "True"), row(prompt, "False"), row(prompt, "true.")]
    assert fold(rows) == {2: 0}
    assert fold(rows, NearDuplicatesConfig(completion_threshold=0)) == {1: 0, 2: 0}


def test_there_are_no_chains():
    texts_ = [" ".join(f"{'x' if i < n else 'w'}{i}" for i in range(60)) for n in (0, 5, 10)]
    rows = [row("p", text) for text in texts_]
    assert jaccard(rows[0], rows[1]) >= 0.8 <= jaccard(rows[1], rows[2]) and jaccard(rows[0], rows[2]) < 0.8
    assert fold(rows) == {1: 0}


def test_a_key_shared_by_very_many_rows_stays_cheap():
    many = [np.array([[7, place] for place in range(start, start + 500)], np.uint64) for start in (0, 500)]
    pairs = candidates(many)
    assert len(pairs) < 33 * 1000
    assert {later for _, later in pairs.tolist()} == set(range(1, 1000))


def test_bands_keep_the_recall_they_promise():
    for threshold in (0.5, 0.7, 0.8, 0.95, 1.0):
        bands, width = bands_of(NearDuplicatesConfig(threshold=threshold))
        assert bands * width <= 128
        assert 1 - (1 - threshold**width) ** bands >= 0.98
    assert bands_of(DEFAULT) == (18, 7)


def test_ngrams_are_those_of_the_words_in_order():
    a, b = ngram_hashes(["a", "b", "c", "d"], 2), ngram_hashes(["x", "b", "c", "a", "b"], 2)
    assert set(a.tolist()) & set(b.tolist()) == {int(a[0]), int(a[1])} == {int(b[3]), int(b[1])}
    assert (
        len(ngram_hashes(["a"], 2)) == 0 and ngram_hashes(["a", "b"], 2)[0] != ngram_hashes(["b", "a"], 2)[0]
    )


@pytest.mark.parametrize("unit_rows", [10**9, 617])
def test_real_pool(shared_data, unit_rows):
    (unit,), _ = list_units(str(shared_data / "pool_5k.jsonl"), 1 << 30)
    reader = Reader(IngestConfig(), 0)
    read = (reader.row(raw, unit) for raw in reader.items(unit))
    rows = [one for one in read if isinstance(one, PoolRow)]
    found = fold(rows, unit_rows=unit_rows, buckets=3)
    pairs = {(rows[kept].id, rows[refused].id) for refused, kept in found.items()}
    assert ("pool-02090", "pool-04617") in pairs  # "… Output the explanation." and the same with "noinput"
    assert ("pool-01967", "pool-02303") not in pairs  # a long prompt, two answers
    assert 5 <= len(found) <= 30
