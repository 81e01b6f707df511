"""What each method of the select stage chooses, and how strata share a side out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from small_selection import (
    CURATED,
    DISTILLED,
    adds_up,
    chosen,
    distilled,
    original,
    origins,
    perplexity_of,
    run_select,
    write,
)

from lm_mixup.augment.select import select
from lm_mixup.config import SelectConfig
from lm_mixup.core.run_dir import RunDir


def test_methods_choose_what_they_say(tmp_path):
    ours, theirs = [distilled(i) for i in range(20)], [original(i) for i in range(20)]
    lines, _, _ = run_select(tmp_path / "a", ours, theirs, method="long_tail", original_ratio=0.0, budget=3)
    assert {line["prompt"] for line in lines} == {f"new question {i}?" for i in (17, 18, 19)}
    lines, _, _ = run_select(tmp_path / "b", ours, theirs, method="longest", original_ratio=1.0, budget=3)
    assert {line["id"] for line in lines} == {"o017", "o018", "o019"}
    # The originals' angles grow as i^1.5: the last ones are farthest from their neighbours.
    lines, _, out = run_select(tmp_path / "c", ours, theirs, method="long_tail", original_ratio=1.0, budget=3)
    assert {line["id"] for line in lines} == {"o017", "o018", "o019"}
    assert out.read()["long_tail"].null_count == 0


def test_knn_diversity_has_no_floor(tmp_path):
    theirs = [original(i, score=None if i == 19 else 0) for i in range(20)]
    lines, outcome, out = run_select(
        tmp_path, [], theirs, method="knn_diversity", original_ratio=1.0, budget=3
    )
    assert chosen(lines) == {"17", "18", "19"}  # the angles grow: the last are farthest from their neighbours
    assert outcome.left_out == {"original_over_budget": 17}
    assert adds_up(outcome)
    gaps = np.deg2rad([19**1.5 - 18**1.5, 19**1.5 - 17**1.5])
    by_id = dict(zip(out.read()["id"].to_pylist(), out.read()["long_tail"].to_pylist(), strict=True))
    assert by_id["o019"] == pytest.approx(np.mean(1 - np.cos(gaps)), abs=2e-3)  # of vectors kept as float16


@pytest.mark.parametrize("method", ["random", "longest"])
def test_baselines_draw_from_the_whole_pool(tmp_path, method):
    """Only the last row is above `min_score`, and the poorest of all, without a score, may be drawn too."""
    theirs = [original(i, score=5 if i == 9 else None if i == 0 else 1) for i in range(10)]
    lines, outcome, _ = run_select(tmp_path, [], theirs, method=method, original_ratio=1.0, budget=10)
    assert {line["id"] for line in lines} == {f"o{i:03d}" for i in range(10)}
    assert outcome.left_out == {}
    assert adds_up(outcome)


def test_neighbours_count_in_the_whole_pool_under_knn_diversity_and_among_candidates_under_long_tail(
    tmp_path,
):
    """Row 1 has a poor twin: alone among the good rows, it is no rarity in the pool."""
    angles = {0: 0.0, 1: 100.0, 2: 100.1, 3: 10.0, 4: 22.0}
    theirs = [original(i, score=0 if i == 2 else 5) for i in range(5)]
    settings = {"degrees": angles.get, "original_ratio": 1.0, "budget": 1, "neighbors": 1}
    rare, _, _ = run_select(tmp_path / "a", [], theirs, method="long_tail", **settings)
    assert chosen(rare) == {"1"}
    rare, _, _ = run_select(tmp_path / "b", [], theirs, method="ds2", **settings)
    assert chosen(rare) == {"4"}
    rare, _, _ = run_select(tmp_path / "c", [], theirs, method="knn_diversity", **settings)
    assert chosen(rare) == {"4"}


def test_alpagasus_is_a_threshold_on_the_judges_own_rating_and_then_chance(tmp_path):
    theirs = [original(i, score=0, overall=overall) for i, overall in enumerate([8, 9, 10, 9, 7, None, 1])]
    ours = [distilled(0, overall=8), distilled(1, overall=9)]
    lines, outcome, _ = run_select(tmp_path / "a", ours, theirs, method="alpagasus", budget=100)
    assert (chosen(lines), chosen(lines, "distilled")) == ({"1", "2", "3"}, {"1"})
    assert outcome.left_out == {
        "distilled_rating_below_4.5": 1,
        "original_rating_below_4.5": 3,
        "original_unrated": 1,
    }
    assert adds_up(outcome)
    lower, _, _ = run_select(
        tmp_path / "b", ours, theirs, method="alpagasus", budget=100, score_threshold=3.5
    )
    assert chosen(lower) == {"0", "1", "2", "3", "4"}
    many = [original(i) for i in range(40)]
    few, _, _ = run_select(tmp_path / "c", [], many, method="alpagasus", original_ratio=1.0)
    ranked, _, _ = run_select(tmp_path / "d", [], many, method="random", original_ratio=1.0)
    assert chosen(few) == chosen(ranked)


def test_deita_takes_the_best_that_are_unlike_all_taken(tmp_path):
    """Best first: 0 is taken, 1 is its twin, 2 is unlike both, 3 is the twin of 2, 4 lacks a rating."""
    angles = {0: 0.0, 1: 20.0, 2: 60.0, 3: 85.0, 4: 150.0, 5: 120.0, 6: 180.0}
    ratings = [(10, 10), (10, 9), (9, 9), (8, 8), (9, None), (8, 7), (2, 2)]
    theirs = [original(i, score=0, overall=q, complexity=c) for i, (q, c) in enumerate(ratings)]
    settings = {"degrees": angles.get, "method": "deita", "original_ratio": 1.0, "budget": 3}
    lines, outcome, _ = run_select(tmp_path, [], theirs, **settings)
    assert chosen(lines) == {"0", "2", "5"}
    assert outcome.left_out == {
        "original_unrated": 1,
        "original_too_similar": 2,
        "original_over_budget": 1,
    }
    assert adds_up(outcome)


def test_deita_compares_originals_with_the_distilled_rows_and_states_what_is_lacking(tmp_path):
    ours = [distilled(0), distilled(1)]  # at 200 and 201 degrees
    theirs = [original(0), original(1)]
    angles = {0.0: 0.0, 1.0: 1.0}
    lines, outcome, _ = run_select(tmp_path / "a", ours, theirs, method="deita", budget=4, degrees=angles.get)
    assert origins(lines) == (1, 1)
    assert outcome.left_out == {"distilled_too_similar": 1, "original_too_similar": 1}
    assert outcome.metrics["shortfall/distilled"] == outcome.metrics["shortfall/original"] == 1
    angles = {0.0: 0.0, 1.0: 201.0}
    lines, _, _ = run_select(tmp_path / "b", ours[:1], theirs, method="deita", budget=4, degrees=angles.get)
    assert (chosen(lines, "distilled"), chosen(lines)) == ({"0"}, {"0"})


def test_ds2_takes_the_higher_score_first_and_the_rarer_among_equals(tmp_path):
    theirs = [original(i, score=5 if i in (3, 7) else 4) for i in range(20)]
    theirs += [original(30 + i, score=3) for i in range(5)]
    lines, outcome, _ = run_select(tmp_path, [], theirs, method="ds2", original_ratio=1.0, budget=4)
    assert chosen(lines) >= {"3", "7"}
    assert chosen(lines) - {"3", "7"} == {"18", "19"}
    assert outcome.left_out == {"original_over_budget": 16, "original_score_below_4": 5}


@pytest.mark.parametrize(
    ("take", "expected"), [("low", {"0", "1", "2"}), ("mid", {"3", "4", "5"}), ("high", {"6", "7", "8"})]
)
def test_perplexity_says_which_end_is_taken(tmp_path, take, expected):
    theirs = [original(i, score=None) for i in range(9)] + [original(90), original(91, completion=" ")]
    ours = [distilled(0), distilled(1, completion="long " * 70), distilled(2)]
    settings = {"method": "perplexity", "perplexity": {"take": take}}
    lines, outcome, out = run_select(tmp_path, ours, theirs, budget=6, **settings)
    assert chosen(lines) == expected
    assert chosen(lines, "distilled") == {"0", "2"}
    assert outcome.left_out == {
        "distilled_too_long": 1,
        "original_too_long": 1,
        "original_empty": 1,
        "original_over_budget": 6,
    }
    assert adds_up(outcome)
    for row in out.read().to_pylist():
        assert row["perplexity"] == pytest.approx(perplexity_of(row["prompt"], row["completion"]))


def test_perplexity_without_its_pass_is_refused(tmp_path):
    here = RunDir(tmp_path)
    stage = write(here.stage("curate"), [original(0)], CURATED, 6)
    new = write(here.stage("rate_distilled"), [distilled(0)], DISTILLED, 6)
    with pytest.raises(ValueError, match="perplexity needs what its stage measured"):
        select(new, stage, stage, stage, None, here.stage("select"), SelectConfig(method="perplexity"), 0)


def test_strata_share_each_side_in_proportion_to_their_candidates(tmp_path):
    kinds = ["qa"] * 24 + ["mcq"] * 12 + ["para"] * 4
    theirs = [original(i, task_type=kind) for i, kind in enumerate(kinds)]
    ours = [distilled(i, task_type="tfq" if i < 5 else "qa") for i in range(20)]
    lines, outcome, out = run_select(tmp_path, ours, theirs, budget=20, stratify_by="task_type")
    rows = out.read().to_pylist()
    assert Counter(row["task_type"] for row in rows if row["origin"] == "original") == {
        "qa": 6,
        "mcq": 3,
        "para": 1,
    }
    assert Counter(row["task_type"] for row in rows if row["origin"] == "distilled") == {"qa": 8, "tfq": 2}
    assert outcome.metrics["strata/original"]["mcq"] == {
        "candidates": 12,
        "quota": 3,
        "rows": 3,
        "shortfall": 0,
    }
    assert outcome.metrics["strata/distilled"]["tfq"]["candidates"] == 5
    # Within a stratum, the method decides: the rarest of each.
    assert chosen(lines) >= {"23", "35", "39"}
    assert adds_up(outcome)


def test_a_distilled_row_is_of_its_parents_source(tmp_path):
    theirs = [original(i, score=0, source="web" if i % 4 else "book") for i in range(12)]
    ours = [distilled(i, parent_ids=[f"o{i:03d}", "o000"]) for i in range(8)] + [distilled(9, parent_ids=[])]
    settings = {"stratify_by": "source", "original_ratio": 0.0, "budget": 3}
    _, outcome, _ = run_select(tmp_path, ours, theirs, **settings)
    counts = {name: told["candidates"] for name, told in outcome.metrics["strata/distilled"].items()}
    assert counts == {"web": 6, "book": 2, "unknown": 1}
    assert sum(told["rows"] for told in outcome.metrics["strata/distilled"].values()) == 3


def test_shortfalls_of_strata_are_stated(tmp_path):
    """Twins: a stratum of three has one that deita takes, and the others do not fill its gap."""
    angles = {0: 0.0, 1: 1.0, 2: 2.0, 3: 60.0, 4: 120.0, 5: 180.0}
    theirs = [original(i, source="a" if i < 3 else "b") for i in range(6)]
    settings = {"method": "deita", "original_ratio": 1.0, "budget": 4, "stratify_by": "source"}
    lines, outcome, _ = run_select(tmp_path, [], theirs, degrees=angles.get, **settings)
    assert len(lines) == 3
    told = outcome.metrics["strata/original"]
    assert told["a"] == {"candidates": 3, "quota": 2, "rows": 1, "shortfall": 1}
    assert told["b"] == {"candidates": 3, "quota": 2, "rows": 2, "shortfall": 0}
    assert outcome.metrics["shortfall/original"] == 1
    assert outcome.left_out == {"original_too_similar": 2, "original_over_budget": 1}


def test_distilled_rows_are_weighed_by_their_faithfulness(tmp_path):
    """Long tail grows with the number; the row in the middle is the most faithful."""
    ours = [
        distilled(i) | {"faithfulness": faithfulness, "coverage": coverage}
        for i, (faithfulness, coverage) in enumerate([(0.9, 0.9), (1.0, 1.0), (1.0, 0.6)])
    ]
    for weight, expected in ((0.0, "2"), (0.8, "1"), (1.0, "1")):
        lines, outcome, _ = run_select(
            tmp_path / str(weight), ours, [], original_ratio=0.0, budget=1, faithfulness_weight=weight
        )
        assert chosen(lines, "distilled") == {expected} and adds_up(outcome)


def test_faithfulness_weighs_on_no_original(tmp_path):
    theirs = [original(i) for i in range(6)]
    without, _, _ = run_select(tmp_path / "a", [], theirs, original_ratio=1.0, budget=3)
    weighed, _, _ = run_select(
        tmp_path / "b", [], theirs, original_ratio=1.0, budget=3, faithfulness_weight=1.0
    )
    assert chosen(without) == chosen(weighed)


def test_less_takes_the_rows_of_largest_influence(tmp_path):
    ours = [distilled(n) for n in range(8)]
    theirs = [original(n) for n in range(20)]
    lines, outcome, out = run_select(tmp_path, ours, theirs, method="less", budget=8, original_ratio=0.5)
    assert adds_up(outcome)
    chosen = sorted(line["id"] for line in lines if line["origin"] == "original")
    assert chosen == [f"o{n:03d}" for n in range(16, 20)]  # the longest completions, as the figures have it
    figures = out.read(["influence", "perplexity"]).to_pylist()
    assert all(row["influence"] > 0 and row["perplexity"] is None for row in figures)
