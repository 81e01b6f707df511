"""The select stage on small stages: quotas, refusals, duplicates, order and the JSON lines."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup import records
from lm_mixup.config import SelectConfig
from lm_mixup.data.embed import embedding_table
from lm_mixup.data.select import select
from lm_mixup.runs import Receipt, RunDir, StageDir

CURATED = records.extend(records.INSTRUCTION, records.RATING, records.CURATION)
DISTILLED = records.extend(records.DISTILLED, records.RATING, pa.schema([("long_tail", pa.float32())]))


def write(stage: StageDir, rows: list[dict], schema: pa.Schema, rows_per_part: int) -> StageDir:
    for part, start in enumerate(range(0, max(len(rows), 1), rows_per_part)):
        piece = records.table(rows[start : start + rows_per_part], schema)
        stage.write_part(part, piece, None, Receipt(part, piece.num_rows, piece.num_rows, 0))
    return stage


def original(index: int, score: int | None = 5, **changes) -> dict:
    row = {"id": f"o{index:03d}", "source": "s", "task_type": "qa", "curated_score": score, "confidence": 1.0}
    return row | {"prompt": f"old question {index}?", "completion": f"old {'word ' * index}answer"} | changes


def distilled(index: int, score: int | None = 4, **changes) -> dict:
    row = {
        "cluster_id": f"c{index}",
        "task_type": "qa",
        "score": score,
        "parent_ids": [f"p{index}", f"q{index}"],
    }
    texts = {"prompt": f"new question {index}?", "completion": f"new answer {index}"}
    return row | texts | {"long_tail": index / 100} | changes


def run(folder, ours, theirs, rows_per_part=6, **settings):
    here = RunDir(folder)
    new = write(here.stage("rate_distilled"), ours, DISTILLED, rows_per_part)
    old = write(here.stage("curate"), theirs, CURATED, rows_per_part)
    angles = np.deg2rad(np.array([float(row["id"][1:]) for row in theirs]) ** 1.5)
    table = embedding_table([row["id"] for row in theirs], np.stack([np.cos(angles), np.sin(angles)], axis=1))
    embed = here.stage("embed")
    embed.write_part(0, table, None, Receipt(0, len(theirs), len(theirs), 0))
    out = here.stage("select")
    outcome = select(new, old, embed, out, SelectConfig(**{"budget": 10, "neighbors": 2, **settings}), seed=1)
    lines = here.read_bytes("select/train.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines], outcome, out


def origins(lines) -> tuple[int, int]:
    named = [line["origin"] for line in lines]
    return named.count("distilled"), named.count("original")


@pytest.mark.parametrize(("ratio", "split"), [(0.3, (7, 3)), (0.5, (5, 5)), (0.7, (3, 7))])
@pytest.mark.parametrize("method", ["long_tail", "score", "random", "longest"])
def test_both_sides_of_the_ratio_hold(tmp_path, ratio, split, method):
    """The official code's 5:5 takes all the originals."""
    ours, theirs = [distilled(i) for i in range(30)], [original(i) for i in range(40)]
    lines, outcome, out = run(tmp_path, ours, theirs, original_ratio=ratio, method=method)
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


@pytest.mark.parametrize("method", ["long_tail", "random"])
def test_the_set_does_not_depend_on_parts(tmp_path, method):
    ours, theirs = [distilled(i) for i in range(20)], [original(i) for i in range(30)]
    first, one, _ = run(tmp_path / "a", ours, theirs, 6, method=method)
    again, two, _ = run(tmp_path / "b", ours, theirs[::-1], 50, method=method)
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
