"""Cuts of a pool at a score or at a share."""

from __future__ import annotations

import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lm_mixup.augment.cluster import load_block
from lm_mixup.augment.selection.candidates import candidates
from lm_mixup.augment.selection.score_cut import ScoreCut, find_cut, is_above, row_is_above
from lm_mixup.config import ClusterConfig, SelectConfig
from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.distributed.map_parts import PartResult, receipt_of

Score = tuple[int | None, float | None]


def curated(path: object, scores: list[Score], rows_per_part: int = 3) -> StageDir:
    stage = RunDir(str(path)).stage("curate")
    for part, start in enumerate(range(0, len(scores), rows_per_part)):
        chosen = scores[start : start + rows_per_part]
        rows = pa.table(
            {
                "id": [f"r{start + i}" for i in range(len(chosen))],
                "curated_score": pa.array([score for score, _ in chosen], pa.int8()),
                "expected": pa.array([expected for _, expected in chosen], pa.float32()),
            }
        )
        stage.write_part(part, rows, None, receipt_of(part, PartResult(rows, rows_in=len(chosen))))
    return stage


def above(stage: StageDir, cut: ScoreCut) -> list[str]:
    parts = list(stage.iter_parts())
    return [row_id for part in parts for row_id in part.filter(is_above(part, cut))["id"].to_pylist()]


def test_a_score_is_a_floor(tmp_path):
    stage = curated(tmp_path, [(4, 8.0), (3, 7.0), (None, None), (5, 9.0)])
    cut, high, rated = find_cut(stage, 4)
    assert (above(stage, cut), high, rated) == (["r0", "r3"], 2, 3)


def test_a_share_takes_the_best_by_score_then_by_the_finer_rating(tmp_path):
    stage = curated(tmp_path, [(4, 8.1), (3, 9.9), (None, None), (4, 8.2), (0, 1.0)])
    cut, high, rated = find_cut(stage, "top 50%")
    assert (above(stage, cut), high, rated) == (["r0", "r3"], 2, 4)
    assert above(stage, find_cut(stage, "top 25 %")[0]) == ["r3"]
    assert above(stage, find_cut(stage, "top 0.1%")[0]) == ["r3"]  # at least one
    assert len(above(stage, find_cut(stage, "top 100%")[0])) == 4


def test_a_pool_without_a_rating_has_no_best_rows(tmp_path):
    stage = curated(tmp_path, [(None, None)])
    cut, high, rated = find_cut(stage, "top 10%")
    assert (above(stage, cut), high, rated) == ([], 0, 0)


scores = st.tuples(st.integers(0, 5) | st.none(), st.sampled_from([1.0, 2.5, 7.1]) | st.none())


@given(st.lists(scores, min_size=1, max_size=30), st.integers(1, 100))
def test_a_share_leaves_its_number_of_rows_whatever_the_ties(
    tmp_path_factory, rows: list[Score], percent: int
):
    stage = curated(tmp_path_factory.mktemp("pool"), rows)
    cut, high, rated = find_cut(stage, f"top {percent}%")
    chosen = above(stage, cut)
    assert rated == sum(score is not None for score, _ in rows)
    assert len(chosen) == high == (max(1, round(percent / 100 * rated)) if rated else 0)
    known = {f"r{i}": score for i, (score, _) in enumerate(rows) if score is not None}
    if chosen and len(chosen) < rated:
        assert min(known[i] for i in chosen) >= max(known[i] for i in known.keys() - chosen)
    for i, (score, expected) in enumerate(rows):
        if score is not None:
            assert row_is_above(score, expected, f"r{i}", cut) == (f"r{i}" in chosen)


def test_an_unknown_rating_is_below_a_known_one():
    assert ScoreCut(4, -math.inf) < ScoreCut(4, 0.0)


@pytest.mark.parametrize("cut", [0, 5, "top 10%", "top 0.5 %", "Top 100%"])
def test_cuts_that_are_valid(cut: int | str):
    assert ClusterConfig(low_below=cut).low_below == cut
    assert SelectConfig(min_score=cut).min_score == cut


@pytest.mark.parametrize("cut", [-1, 6, "10%", "top 0%", "top 101%", "bottom 5%", "", None])
def test_cuts_that_are_not(cut: object):
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate({"low_below": cut})


def test_all_rows_but_the_best_share_are_low(tmp_path):
    stage = curated(tmp_path, [(4, 8.1), (3, 9.9), (None, None), (4, 8.2), (0, 1.0)], rows_per_part=2)
    whole = (
        stage.read()
        .append_column("source", pa.array(["a"] * 5))
        .append_column("task_type", pa.array(["qa"] * 5))
    )
    full, embed = (RunDir(str(tmp_path / "more")).stage(name) for name in ("curate", "embed"))
    vectors = pa.array([[1.0, 0.0]] * 5, pa.list_(pa.float16(), 2))
    for stage, rows in ((full, whole), (embed, pa.table({"id": whole["id"], "embedding": vectors}))):
        stage.write_part(0, rows, None, receipt_of(0, PartResult(rows, rows_in=5)))
    for low_below, expected in (
        ("top 50%", ["r1", "r4"]),
        (4, ["r1", "r4"]),
        (3, ["r4"]),
        ("top 25%", ["r0", "r1", "r4"]),
    ):
        config = ClusterConfig(low_below=low_below, min_content_similarity=0)
        cut, _, _ = find_cut(full, low_below)
        rows, (groups, left_out), counts = load_block(full, embed, full.parts(), config, cut)
        assert rows["id"].to_pylist() == expected
        assert groups.total() == len(expected)
        assert counts is None
        assert left_out == {"unrated": 1, "high": 4 - len(expected)}


def test_select_takes_originals_of_the_share_and_distilled_rows_as_good_as_its_last(tmp_path):
    stage = curated(tmp_path, [(4, 8.1), (3, 9.9), (None, None), (4, 8.2), (0, 1.0)], rows_per_part=5)
    texts = pa.array([f"text {i}" for i in range(5)])
    pool = stage.read().append_column("prompt", texts).append_column("completion", texts)
    distilled = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "completion": ["d", "e", "f"],
            "score": pa.array([5, 4, 4], pa.int8()),
            "expected": pa.array([9.0, 8.15, 8.0], pa.float32()),
            "long_tail": pa.array([0.1] * 3, pa.float32()),
        }
    )
    config = SelectConfig(min_score="top 50%")
    cut, _, _ = find_cut(stage, "top 50%")
    for name, origin, rows, kept, refused in (
        ("pool", "original", pool, 2, {"original_below_the_share": 2, "original_unrated": 1}),
        ("distill", "distilled", distilled, 2, {"distilled_below_the_share": 1}),
    ):
        held = RunDir(str(tmp_path / "more")).stage(name)
        held.write_part(0, rows, None, receipt_of(0, PartResult(rows, rows_in=rows.num_rows)))
        left_out: Counter[str] = Counter()
        assert candidates(held, origin, config, left_out, cut=cut).num_rows == kept
        assert +left_out == refused
