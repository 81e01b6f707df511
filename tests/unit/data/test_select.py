"""The select stage on small stages: methods, quotas, strata, refusals, duplicates, order and JSON lines."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup import records
from lm_mixup.config import SelectConfig, SelectMethod
from lm_mixup.data import perplexity
from lm_mixup.data.embed import embedding_table
from lm_mixup.data.knn import knn, neighbor_table
from lm_mixup.data.rate_distilled import kept_of
from lm_mixup.data.select import select
from lm_mixup.runs import Outcome, Receipt, RunDir, StageDir

METHODS = get_args(SelectMethod)
CURATED = records.extend(records.INSTRUCTION, records.RATING, records.CURATION)
DISTILLED = records.extend(records.DISTILLED, records.RATING, pa.schema([("long_tail", pa.float32())]))


def write(stage: StageDir, rows: list[dict], schema: pa.Schema, rows_per_part: int) -> StageDir:
    for part, start in enumerate(range(0, max(len(rows), 1), rows_per_part)):
        piece = records.table(rows[start : start + rows_per_part], schema)
        stage.write_part(part, piece, None, Receipt(part, piece.num_rows, piece.num_rows, 0))
    return stage


def original(index: int, score: int | None = 5, **changes) -> dict:
    row = {"id": f"o{index:03d}", "source": "s", "task_type": "qa", "curated_score": score, "confidence": 1.0}
    row |= {"overall": None if score is None else score + 4, "complexity": None if score is None else 5}
    return row | {"prompt": f"old question {index}?", "completion": f"old {'word ' * index}answer"} | changes


def distilled(index: int, score: int | None = 4, **changes) -> dict:
    row = {
        "cluster_id": f"c{index}",
        "task_type": "qa",
        "score": score,
        "overall": 9,
        "complexity": 5,
        "parent_ids": [f"p{index}", f"q{index}"],
    }
    texts = {"prompt": f"new question {index}?", "completion": f"new answer {index}"}
    return row | texts | {"long_tail": index / 100} | changes


def circle(degrees) -> np.ndarray:
    angles = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32).reshape(-1, 2)


def perplexity_of(prompt: str, completion: str) -> float:
    """Any figure that a text decides: longer completions surprise more."""
    return 1.0 + len(completion) / 10


def run(folder, ours, theirs, rows_per_part=6, degrees=None, **settings):
    """Selects among rows whose embeddings lie on a circle, at `degrees` of their number."""
    here = RunDir(folder)
    degrees = degrees or (lambda number: number**1.5)
    new = write(here.stage("rate_distilled"), ours, DISTILLED, rows_per_part)
    old = write(here.stage("curate"), theirs, CURATED, rows_per_part)
    vectors = circle([degrees(float(row["id"][1:])) for row in theirs])
    embed, near, kept = here.stage("embed"), here.stage("neighbors"), kept_of(new)
    ids = pa.array([row["id"] for row in theirs], pa.string())
    _put(embed, 0, embedding_table(ids, vectors))
    indices, cosines = knn(vectors, vectors, 4, exclude_self=True)
    for part, start in enumerate(range(0, max(len(theirs), 1), rows_per_part)):
        cut = slice(start, start + rows_per_part)
        _put(near, part, neighbor_table(ids[cut], ids, indices[cut], cosines[cut]))
    own = circle([200 + degrees(100 * row["long_tail"]) for row in ours])
    _put(kept, 0, embedding_table([records.content_id(r["prompt"], r["completion"]) for r in ours], own))
    measured = (
        _measure(here.stage("perplexity"), new, old) if settings.get("method") == "perplexity" else None
    )
    out = here.stage("select")
    config = SelectConfig(**{"budget": 10, "neighbors": 2, **settings})
    outcome = select(new, old, embed, near, out, config, 1, measured)
    lines = here.read_bytes("select/train.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines], outcome, out


def _put(stage: StageDir, part: int, table: pa.Table) -> None:
    stage.write_part(part, table, None, Receipt(part, table.num_rows, table.num_rows, 0))


def _measure(out: StageDir, *stages: StageDir) -> StageDir:
    """What the perplexity pass leaves: no figure for empty rows and for those of more than 300 characters."""
    tables = [table for stage in stages for table in stage.iter_parts(["prompt", "completion"])]
    for part, table in enumerate(tables):
        texts = [(row["prompt"], row["completion"]) for row in table.to_pylist()]
        rows = [
            {"content": records.content_id(*pair), "perplexity": perplexity_of(*pair), "tokens": 1}
            for pair in texts
            if pair[1].strip() and len(pair[1]) <= 300
        ]
        _put(out, part, records.table(rows, perplexity.OUTPUT))
    return out


def adds_up(outcome: Outcome) -> bool:
    return outcome.rows_in == outcome.rows_used + sum(outcome.left_out.values())


def origins(lines) -> tuple[int, int]:
    named = [line["origin"] for line in lines]
    return named.count("distilled"), named.count("original")


@pytest.mark.parametrize(("ratio", "split"), [(0.3, (7, 3)), (0.5, (5, 5)), (0.7, (3, 7))])
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_of_the_ratio_hold(tmp_path, ratio, split, method):
    """The official code's 5:5 takes all the originals."""
    ours, theirs = [distilled(i) for i in range(30)], [original(i) for i in range(40)]
    spread = {"similarity_threshold": 0.999} if method == "deita" else {}
    lines, outcome, out = run(tmp_path, ours, theirs, original_ratio=ratio, method=method, **spread)
    assert origins(lines) == split
    assert outcome.rows_in == 70 == outcome.rows_used + sum(outcome.left_out.values())
    assert outcome.metrics["original_share"] == ratio
    assert out.read()["id"].to_pylist() == [line["id"] for line in lines]


def test_every_line_is_a_whole_pair_with_its_parents(tmp_path):
    """The official set comes out as empty pairs."""
    ours = [distilled(i) for i in range(9)] + [distilled(90, completion=" "), distilled(91, prompt="")]
    theirs = [original(i) for i in range(9)] + [original(90, completion=""), original(91, prompt="\n")]
    lines, outcome, _ = run(tmp_path, ours, theirs, budget="100%")
    assert {tuple(line) for line in lines} == {("prompt", "completion", "id", "origin", "parent_ids")}
    assert all(line["prompt"].strip() and line["completion"].strip() for line in lines)
    for line in lines:
        number = line["prompt"].split()[-1].rstrip("?")
        assert line["parent_ids"] == ([f"p{number}", f"q{number}"] if line["origin"] == "distilled" else [])
    assert outcome.left_out["distilled_empty"] == outcome.left_out["original_empty"] == 2


def test_a_short_side_gives_what_it_has_and_the_other_does_not_fill_the_gap(tmp_path):
    lines, outcome, _ = run(tmp_path, [distilled(i) for i in range(2)], [original(i) for i in range(40)])
    assert origins(lines) == (2, 5)
    assert outcome.metrics["shortfall/distilled"] == 3
    assert outcome.metrics["shortfall/original"] == 0
    assert outcome.left_out == {"original_over_budget": 35}


def test_poor_and_unrated_rows_are_never_chosen(tmp_path):
    ours = [distilled(0), distilled(1, score=3), distilled(2, score=None)]
    theirs = [original(0), original(1, score=0), original(2, score=None), original(3, score=4)]
    lines, outcome, _ = run(tmp_path, ours, theirs, budget=100)
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
    lines, outcome, _ = run(tmp_path, ours, theirs, budget=100)
    assert len({(line["prompt"], line["completion"]) for line in lines}) == len(lines) == 4
    assert len({line["id"] for line in lines}) == 4
    assert outcome.left_out == {"distilled_duplicate": 1, "original_duplicate": 2}


def test_methods_choose_what_they_say(tmp_path):
    ours, theirs = [distilled(i) for i in range(20)], [original(i) for i in range(20)]
    lines, _, _ = run(tmp_path / "a", ours, theirs, method="long_tail", original_ratio=0.0, budget=3)
    assert {line["prompt"] for line in lines} == {f"new question {i}?" for i in (17, 18, 19)}
    lines, _, _ = run(tmp_path / "b", ours, theirs, method="longest", original_ratio=1.0, budget=3)
    assert {line["id"] for line in lines} == {"o017", "o018", "o019"}
    # The originals' angles grow as i^1.5: the last ones are farthest from their neighbours.
    lines, _, out = run(tmp_path / "c", ours, theirs, method="long_tail", original_ratio=1.0, budget=3)
    assert {line["id"] for line in lines} == {"o017", "o018", "o019"}
    assert out.read()["long_tail"].null_count == 0


@pytest.mark.parametrize("stratify_by", ["none", "source", "task_type"])
@pytest.mark.parametrize("method", METHODS)
def test_the_set_does_not_depend_on_parts(tmp_path, method, stratify_by):
    ours = [distilled(i, parent_ids=[f"o{i:03d}"], overall=8 + i % 2) for i in range(20)]
    theirs = [original(i, 4 + i % 2, source=f"s{i % 3}", complexity=1 + i % 5) for i in range(30)]
    settings = {"method": method, "stratify_by": stratify_by}
    first, one, _ = run(tmp_path / "a", ours, theirs, 6, **settings)
    again, two, _ = run(tmp_path / "b", ours[::-1], theirs[::-1], 50, **settings)
    assert len(first) >= 5
    assert first == again
    assert one == two


def test_nothing_to_choose_from_is_an_empty_set(tmp_path):
    lines, outcome, out = run(tmp_path, [], [original(i, score=1) for i in range(5)], budget="3%")
    assert lines == []
    assert out.read().num_rows == 0
    assert outcome.rows_used == 0
    assert outcome.left_out == {"original_score_below_4": 5}


def test_line_separators_in_a_text_do_not_break_a_line(tmp_path):
    odd = "a\u2028b\u0085c\u2029d\ne — ü"
    lines, _, _ = run(tmp_path, [distilled(0, completion=odd)], [original(0)])
    assert odd in {line["completion"] for line in lines}


def test_a_large_pool_of_originals_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_mixup.data.select.MOST_ORIGINALS", 12)
    ours, theirs = [distilled(i) for i in range(20)], [original(i) for i in range(30)]
    lines, outcome, _ = run(tmp_path, ours, theirs)
    assert origins(lines) == (5, 5)
    assert outcome.left_out["original_not_sampled"] == 18
    assert outcome.rows_in == outcome.rows_used + sum(outcome.left_out.values())


def chosen(lines, origin="original") -> set[str]:
    """The numbers of the chosen rows of a side."""
    return {line["prompt"].split()[-1].rstrip("?") for line in lines if line["origin"] == origin}


def test_knn_diversity_has_no_floor(tmp_path):
    theirs = [original(i, score=None if i == 19 else 0) for i in range(20)]
    lines, outcome, out = run(tmp_path, [], theirs, method="knn_diversity", original_ratio=1.0, budget=3)
    assert chosen(lines) == {"17", "18", "19"}  # the angles grow: the last are farthest from their neighbours
    assert outcome.left_out == {"original_over_budget": 17}
    assert adds_up(outcome)
    gaps = np.deg2rad([19**1.5 - 18**1.5, 19**1.5 - 17**1.5])
    by_id = dict(zip(out.read()["id"].to_pylist(), out.read()["long_tail"].to_pylist(), strict=True))
    assert by_id["o019"] == pytest.approx(np.mean(1 - np.cos(gaps)), abs=2e-3)  # of vectors kept as float16


def test_neighbours_count_in_the_whole_pool_under_knn_diversity_and_among_candidates_under_long_tail(
    tmp_path,
):
    """Row 1 has a poor twin: alone among the good rows, it is no rarity in the pool."""
    angles = {0: 0.0, 1: 100.0, 2: 100.1, 3: 10.0, 4: 22.0}
    theirs = [original(i, score=0 if i == 2 else 5) for i in range(5)]
    settings = {"degrees": angles.get, "original_ratio": 1.0, "budget": 1, "neighbors": 1}
    rare, _, _ = run(tmp_path / "a", [], theirs, method="long_tail", **settings)
    assert chosen(rare) == {"1"}
    rare, _, _ = run(tmp_path / "b", [], theirs, method="ds2", **settings)
    assert chosen(rare) == {"4"}
    rare, _, _ = run(tmp_path / "c", [], theirs, method="knn_diversity", **settings)
    assert chosen(rare) == {"4"}


def test_alpagasus_is_a_threshold_on_the_judges_own_rating_and_then_chance(tmp_path):
    theirs = [original(i, score=0, overall=overall) for i, overall in enumerate([8, 9, 10, 9, 7, None, 1])]
    ours = [distilled(0, overall=8), distilled(1, overall=9)]
    lines, outcome, _ = run(tmp_path / "a", ours, theirs, method="alpagasus", budget=100)
    assert (chosen(lines), chosen(lines, "distilled")) == ({"1", "2", "3"}, {"1"})
    assert outcome.left_out == {
        "distilled_rating_below_4.5": 1,
        "original_rating_below_4.5": 3,
        "original_unrated": 1,
    }
    assert adds_up(outcome)
    lower, _, _ = run(tmp_path / "b", ours, theirs, method="alpagasus", budget=100, score_threshold=3.5)
    assert chosen(lower) == {"0", "1", "2", "3", "4"}
    many = [original(i) for i in range(40)]
    few, _, _ = run(tmp_path / "c", [], many, method="alpagasus", original_ratio=1.0)
    ranked, _, _ = run(tmp_path / "d", [], many, method="random", original_ratio=1.0)
    assert chosen(few) == chosen(ranked)


def test_deita_takes_the_best_that_are_unlike_all_taken(tmp_path):
    """Best first: 0 is taken, 1 is its twin, 2 is unlike both, 3 is the twin of 2, 4 lacks a rating."""
    angles = {0: 0.0, 1: 20.0, 2: 60.0, 3: 85.0, 4: 150.0, 5: 120.0, 6: 180.0}
    ratings = [(10, 10), (10, 9), (9, 9), (8, 8), (9, None), (8, 7), (2, 2)]
    theirs = [original(i, score=0, overall=q, complexity=c) for i, (q, c) in enumerate(ratings)]
    settings = {"degrees": angles.get, "method": "deita", "original_ratio": 1.0, "budget": 3}
    lines, outcome, _ = run(tmp_path, [], theirs, **settings)
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
    lines, outcome, _ = run(tmp_path / "a", ours, theirs, method="deita", budget=4, degrees=angles.get)
    assert origins(lines) == (1, 1)
    assert outcome.left_out == {"distilled_too_similar": 1, "original_too_similar": 1}
    assert outcome.metrics["shortfall/distilled"] == outcome.metrics["shortfall/original"] == 1
    angles = {0.0: 0.0, 1.0: 201.0}
    lines, _, _ = run(tmp_path / "b", ours[:1], theirs, method="deita", budget=4, degrees=angles.get)
    assert (chosen(lines, "distilled"), chosen(lines)) == ({"0"}, {"0"})


def test_ds2_takes_the_higher_score_first_and_the_rarer_among_equals(tmp_path):
    theirs = [original(i, score=5 if i in (3, 7) else 4) for i in range(20)]
    theirs += [original(30 + i, score=3) for i in range(5)]
    lines, outcome, _ = run(tmp_path, [], theirs, method="ds2", original_ratio=1.0, budget=4)
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
    lines, outcome, out = run(tmp_path, ours, theirs, budget=6, **settings)
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
    with pytest.raises(ValueError, match="needs the perplexities"):
        select(new, stage, stage, stage, here.stage("select"), SelectConfig(method="perplexity"), 0)


def test_strata_share_each_side_in_proportion_to_their_candidates(tmp_path):
    kinds = ["qa"] * 24 + ["mcq"] * 12 + ["para"] * 4
    theirs = [original(i, task_type=kind) for i, kind in enumerate(kinds)]
    ours = [distilled(i, task_type="tfq" if i < 5 else "qa") for i in range(20)]
    lines, outcome, out = run(tmp_path, ours, theirs, budget=20, stratify_by="task_type")
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
    _, outcome, _ = run(tmp_path, ours, theirs, **settings)
    counts = {name: told["candidates"] for name, told in outcome.metrics["strata/distilled"].items()}
    assert counts == {"web": 6, "book": 2, "unknown": 1}
    assert sum(told["rows"] for told in outcome.metrics["strata/distilled"].values()) == 3


def test_shortfalls_of_strata_are_stated(tmp_path):
    """Twins: a stratum of three has one that deita takes, and the others do not fill its gap."""
    angles = {0: 0.0, 1: 1.0, 2: 2.0, 3: 60.0, 4: 120.0, 5: 180.0}
    theirs = [original(i, source="a" if i < 3 else "b") for i in range(6)]
    settings = {"method": "deita", "original_ratio": 1.0, "budget": 4, "stratify_by": "source"}
    lines, outcome, _ = run(tmp_path, [], theirs, degrees=angles.get, **settings)
    assert len(lines) == 3
    told = outcome.metrics["strata/original"]
    assert told["a"] == {"candidates": 3, "quota": 2, "rows": 1, "shortfall": 1}
    assert told["b"] == {"candidates": 3, "quota": 2, "rows": 2, "shortfall": 0}
    assert outcome.metrics["shortfall/original"] == 1
    assert outcome.left_out == {"original_too_similar": 2, "original_over_budget": 1}


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
    lines, outcome, _ = run(tmp_path_factory.mktemp("any"), ours, theirs, 7, **settings)
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
