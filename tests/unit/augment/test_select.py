"""The select stage under any method: quotas, refusals, duplicates, order and JSON lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_selection import (
    METHODS,
    adds_up,
    distilled,
    original,
    origins,
    run_select,
)


@pytest.mark.parametrize(("ratio", "split"), [(0.3, (7, 3)), (0.5, (5, 5)), (0.7, (3, 7))])
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_of_the_ratio_hold(tmp_path, ratio, split, method):
    """The official code's 5:5 takes all the originals."""
    ours, theirs = [distilled(i) for i in range(30)], [original(i) for i in range(40)]
    spread = {"similarity_threshold": 0.999} if method == "deita" else {}
    lines, outcome, out = run_select(tmp_path, ours, theirs, original_ratio=ratio, method=method, **spread)
    assert origins(lines) == split
    assert outcome.rows_in == 70 == outcome.rows_used + sum(outcome.left_out.values())
    assert outcome.metrics["original_share"] == ratio
    assert out.read()["id"].to_pylist() == [line["id"] for line in lines]


def test_every_line_is_a_whole_pair_with_its_parents(tmp_path):
    """The official set comes out as empty pairs."""
    ours = [distilled(i) for i in range(9)] + [distilled(90, completion=" "), distilled(91, prompt="")]
    theirs = [original(i) for i in range(9)] + [original(90, completion=""), original(91, prompt="\n")]
    lines, outcome, _ = run_select(tmp_path, ours, theirs, budget="100%")
    assert {tuple(line) for line in lines} == {("prompt", "completion", "id", "origin", "parent_ids")}
    assert all(line["prompt"].strip() and line["completion"].strip() for line in lines)
    for line in lines:
        number = line["prompt"].split()[-1].rstrip("?")
        assert line["parent_ids"] == ([f"p{number}", f"q{number}"] if line["origin"] == "distilled" else [])
    assert outcome.left_out["distilled_empty"] == outcome.left_out["original_empty"] == 2


def test_a_short_side_gives_what_it_has_and_the_other_does_not_fill_the_gap(tmp_path):
    lines, outcome, _ = run_select(
        tmp_path, [distilled(i) for i in range(2)], [original(i) for i in range(40)]
    )
    assert origins(lines) == (2, 5)
    assert outcome.metrics["shortfall/distilled"] == 3
    assert outcome.metrics["shortfall/original"] == 0
    assert outcome.left_out == {"original_over_budget": 35}


def test_poor_and_unrated_rows_are_never_chosen(tmp_path):
    ours = [distilled(0), distilled(1, score=3), distilled(2, score=None)]
    theirs = [original(0), original(1, score=0), original(2, score=None), original(3, score=4)]
    lines, outcome, _ = run_select(tmp_path, ours, theirs, budget=100)
    assert {line["id"] for line in lines if line["origin"] == "original"} == {"o000", "o003"}
    assert origins(lines) == (1, 2)
    assert outcome.left_out == {
        "distilled_score_below_4": 1,
        "distilled_unrated": 1,
        "original_score_below_4": 1,
        "original_unrated": 1,
    }


def test_equal_texts_are_chosen_once_and_the_distilled_one_first(tmp_path):
    same = {"prompt": "What is iron?", "completion": "A metal."}
    ours = [distilled(0, **same), distilled(1, **same), distilled(2)]
    theirs = [
        original(0, **same),
        original(1),
        original(2, **{**same, "completion": "Fe"}),
        original(3, prompt="What is iron?", completion="Fe"),
    ]
    lines, outcome, _ = run_select(tmp_path, ours, theirs, budget=100)
    assert len({(line["prompt"], line["completion"]) for line in lines}) == len(lines) == 4
    assert len({line["id"] for line in lines}) == 4
    assert outcome.left_out == {"distilled_duplicate": 1, "original_duplicate": 2}


@pytest.mark.parametrize("stratify_by", ["none", "source", "task_type"])
@pytest.mark.parametrize("method", METHODS)
def test_the_set_does_not_depend_on_parts(tmp_path, method, stratify_by):
    ours = [distilled(i, parent_ids=[f"o{i:03d}"], overall=8 + i % 2) for i in range(20)]
    theirs = [original(i, 4 + i % 2, source=f"s{i % 3}", complexity=1 + i % 5) for i in range(30)]
    settings = {"method": method, "stratify_by": stratify_by}
    first, one, _ = run_select(tmp_path / "a", ours, theirs, 6, **settings)
    again, two, _ = run_select(tmp_path / "b", ours[::-1], theirs[::-1], 50, **settings)
    assert len(first) >= 5
    assert first == again
    assert one == two


def test_nothing_to_choose_from_is_an_empty_set(tmp_path):
    lines, outcome, out = run_select(tmp_path, [], [original(i, score=1) for i in range(5)], budget="3%")
    assert lines == []
    assert out.read().num_rows == 0
    assert outcome.rows_used == 0
    assert outcome.left_out == {"original_score_below_4": 5}


def test_line_separators_in_a_text_do_not_break_a_line(tmp_path):
    odd = "a\u2028b\u0085c\u2029d\ne — ü"
    lines, _, _ = run_select(tmp_path, [distilled(0, completion=odd)], [original(0)])
    assert odd in {line["completion"] for line in lines}


def test_a_large_pool_of_originals_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_mixup.augment.select.MOST_ORIGINALS", 12)
    ours, theirs = [distilled(i) for i in range(20)], [original(i) for i in range(30)]
    lines, outcome, _ = run_select(tmp_path, ours, theirs)
    assert origins(lines) == (5, 5)
    assert outcome.left_out["original_not_sampled"] == 18
    assert outcome.rows_in == outcome.rows_used + sum(outcome.left_out.values())


@given(
    rows=st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.integers(1, 10), st.sampled_from("abc")),
        max_size=25,
    ),
    method=st.sampled_from(METHODS),
    ratio=st.floats(0, 1),
    budget=st.one_of(st.integers(1, 40), st.sampled_from(["3%", "40%", "100%"])),
    stratify_by=st.sampled_from(["none", "source", "task_type"]),
)
def test_nothing_is_lost_whatever_is_asked(tmp_path_factory, rows, method, ratio, budget, stratify_by):
    theirs = [original(i, score, complexity=hard, source=name) for i, (score, hard, name) in enumerate(rows)]
    ours = [distilled(i, parent_ids=[f"o{i:03d}"]) for i in range(len(rows) // 3)]
    settings = {"original_ratio": ratio, "budget": budget, "stratify_by": stratify_by, "method": method}
    lines, outcome, _ = run_select(tmp_path_factory.mktemp("any"), ours, theirs, 7, **settings)
    assert adds_up(outcome)
    assert outcome.rows_in == len(ours) + len(theirs)
    new, old = origins(lines)
    asked = outcome.metrics["budget"]
    assert old + outcome.metrics["shortfall/original"] == math.floor(asked * ratio + 0.5)
    assert new + old + outcome.metrics["shortfall/original"] + outcome.metrics["shortfall/distilled"] == asked
    assert min(outcome.metrics["shortfall/original"], outcome.metrics["shortfall/distilled"]) >= 0
    for origin, rows_of in (("original", old), ("distilled", new)):
        told = outcome.metrics.get(f"strata/{origin}", {}).values()
        assert not told or sum(one["rows"] for one in told) == rows_of
