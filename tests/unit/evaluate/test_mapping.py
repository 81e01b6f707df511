"""What the stage `mapping` makes of an output: measured, compared, and never better for being nothing."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lm_mixup.chat.judge import SharedJudge
from lm_mixup.config import RateConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Receipt, RunDir
from lm_mixup.evaluate.mapping import (
    DRAWN,
    held_out_rows,
    make_rating,
    markdown,
    measured,
    rouge_l,
    summarise_by_model,
)

ROW = {
    "id": "a",
    "task_type": "qa",
    "inputs": ["Q: capital of Mali?\nA: Bamako.", "Q: Mali, currency\nA: CFA franc lol"],
    "output": "Q: What are the capital and currency of Mali?\n"
    "A: Mali has the capital Bamako and pays with the CFA franc.",
    "entity": "Mali",
}


def written(answer: str) -> str:
    return f"<think>Both are about Mali.</think>\n<answer>{answer}</answer>"


def test_the_reference_is_perfect():
    found = measured("m", ROW, written(ROW["output"]), finished=True)
    assert (found["faithfulness"], found["coverage"], found["rouge_l"]) == (1, 1, 1)
    assert found["prompt"] == "What are the capital and currency of Mali?"
    assert found.get("reason") is None
    assert found["facts_wanted"] == found["facts_found"] > 0


@pytest.mark.parametrize(
    ("raw", "finished", "reason"),
    [
        (written(ROW["output"]), False, "cut_at_max_completion_length"),
        ("Mali has the capital Bamako.", True, ""),
        ("", True, ""),
    ],
)
def test_what_is_not_in_format_earns_nothing(raw: str, finished: bool, reason: str):
    found = measured("m", ROW, raw, finished=finished)
    assert (found["faithfulness"], found["coverage"], found["rouge_l"]) == (0, 0, 0)
    assert found["reason"]
    assert found["reason"] == (reason or found["reason"])
    assert "prompt" not in found


def test_an_invented_fact_costs_and_a_short_answer_covers_less():
    wrong = measured("m", ROW, written(ROW["output"].replace("Bamako", "Segou")), finished=True)
    assert wrong["faithfulness"] <= 0.5
    assert wrong["facts_found"] < wrong["facts_wanted"]
    short = measured(
        "m", ROW, written("Q: What is the capital of Mali?\nA: Mali has the capital Bamako."), finished=True
    )
    assert short["coverage"] < 0.8 and short["faithfulness"] == 1


def test_rouge_l_by_hand_and_in_another_script():
    """Of 4 and 5 words the longest common subsequence has 3: recall 3/5, precision 3/4, F1 2/3."""
    assert rouge_l("gold is a metal", "gold is a heavy element") == pytest.approx(2 / 3)
    assert rouge_l("金は金属", "金は金属") == 1
    assert rouge_l("हिन्दी भाषा", "हिन्दी") == pytest.approx(2 / 3)
    assert rouge_l("", "gold") == 0


def mixture_of(tmp_path, splits: list[str]) -> RunDir:
    run = RunDir(tmp_path)
    rows = [{**ROW, "id": f"r{n:03d}", "instruction": "Merge.", "split": s} for n, s in enumerate(splits)]
    for part, start in enumerate(range(0, len(rows), 7)):
        table = pa.Table.from_pylist(rows[start : start + 7])
        run.stage("mixture").write_part(part, table, None, Receipt(part, 0, table.num_rows, 0))
    return run


def test_test_rows_are_a_seeded_sample_whatever_the_parts(tmp_path):
    mixture = mixture_of(tmp_path, ["test", "sft"] * 20).stage("mixture")
    rows = held_out_rows(mixture, 8, seed=1)
    ids = [row["id"] for row in rows]
    assert ids == sorted(ids) and len(set(ids)) == 8
    assert all(row["split"] == "test" for row in rows)
    assert [row["id"] for row in held_out_rows(mixture, 8, seed=2)] != ids
    assert len(held_out_rows(mixture, 99, seed=1)) == 20


def test_no_test_row_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no row of the test split; raise build.test_fraction"):
        held_out_rows(mixture_of(tmp_path, ["sft"]).stage("mixture"), 8, seed=1)


def test_what_is_not_in_format_is_not_rated_and_counts_as_nothing(tmp_path):
    outputs = [written(ROW["output"]), "no tags", written(ROW["output"])]
    rows = [measured("m", {**ROW, "id": f"r{n}"}, raw, finished=True) for n, raw in enumerate(outputs)]
    drawn = RunDir(tmp_path).stage("drawn")
    drawn.write_part(0, schemas.table(rows, DRAWN), None, Receipt(0, 3, 3, 0))
    result = make_rating(drawn, SharedJudge(RateConfig(relevance=False)))(drawn.parts()[0])
    rated = result.rows.to_pylist()
    assert [row["id"] for row in rated] == ["r0", "r1", "r2"]
    assert [row["score"] is None for row in rated] == [False, True, False]
    overall, qa = summarise_by_model(rated)
    assert overall["count"] == qa["count"] == 3
    assert overall["in_format"] == overall["faithfulness"] == overall["rouge_l"] == pytest.approx(2 / 3)
    assert overall["facts_recall"] == pytest.approx(2 / 3)
    assert "| m | all | 3 | 0.667 |" in markdown([overall])
