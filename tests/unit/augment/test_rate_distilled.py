"""The gate of distilled rows: what their inputs do not bear out is refused before it is rated."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lm_mixup.augment.rate_distilled import keep_faithful, keep_rated
from lm_mixup.chat.judge import OfflineJudge
from lm_mixup.config import RateDistilledConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.task_types import write_input

GATE = RateDistilledConfig()
INPUTS = [
    write_input("capital of Uruguay?", "Montevideo"),
    write_input("population of Uruguay", "its 3.4 million lol"),
    write_input("Uruguay: area", "176,000 km2"),
]
QUESTION = "What are the capital, population and area of Uruguay?"
GOOD = "Uruguay has the capital Montevideo, a population of 3.4 million and an area of 176,000 km2."


def rows(*completions: str, inputs: list[str] | None = INPUTS, prompt: str = QUESTION) -> pa.Table:
    made = [
        {
            "cluster_id": str(number),
            "task_type": "qa",
            "prompt": prompt,
            "completion": completion,
            "cot": "",
            "raw": completion,
            "parent_ids": ["a", "b", "c"],
            "inputs": inputs,
        }
        for number, completion in enumerate(completions)
    ]
    return schemas.table(made, schemas.DISTILLED)


def test_rows_are_parted_by_what_their_inputs_bear_out():
    table = rows(
        GOOD,
        GOOD.replace("3.4", "3.5"),
        GOOD.replace("Montevideo", "Lima"),
        "The capital is Montevideo.",
        "Uruguay is governed from Uruguay.",
    )
    kept, refused = keep_faithful(table, GATE)
    assert kept["completion"].to_pylist() == [GOOD]
    assert kept.num_rows + refused.num_rows == table.num_rows
    by_text = {row["completion"]: row for row in refused.to_pylist()}
    digit = by_text[GOOD.replace("3.4", "3.5")]
    assert (digit["reason"], digit["unsupported"], digit["unsupported_kinds"]) == (
        "faithfulness_below_0.6",
        ["3.5 million"],
        ["number"],
    )
    assert "Lima" in by_text[GOOD.replace("Montevideo", "Lima")]["unsupported"]
    assert by_text["The capital is Montevideo."]["reason"].endswith(("below_0.5", "below_0.6"))
    assert kept.schema.names == refused.schema.names[:-1]


def test_coverage_has_a_bound_of_its_own():
    half = rows("The capital of Uruguay is Montevideo.", prompt="What is the capital of Uruguay?")
    kept, refused = keep_faithful(half, RateDistilledConfig(min_faithfulness=0.5, min_coverage=0.5))
    assert kept.num_rows == 0 and refused["reason"].to_pylist() == ["coverage_below_0.5"]
    kept, _ = keep_faithful(half, RateDistilledConfig(min_faithfulness=0.5, min_coverage=0.1))
    assert kept.num_rows == 1 and kept["coverage"][0].as_py() < 0.5


def test_a_gate_of_zero_keeps_all_and_still_measures():
    table = rows(GOOD, "nothing of it")
    kept, refused = keep_faithful(table, RateDistilledConfig(min_faithfulness=0, min_coverage=0))
    assert refused.num_rows == 0 and kept.num_rows == 2
    assert kept["faithfulness"][0].as_py() == 1 > kept["faithfulness"][1].as_py()


def test_rows_without_inputs_are_an_error_and_not_a_default():
    with pytest.raises(InputError, match="has no inputs to be measured against"):
        keep_faithful(rows(GOOD, inputs=None), GATE)


def test_an_empty_part_passes_gate_and_judge():
    kept, refused = keep_faithful(rows(), GATE)
    assert kept.num_rows == refused.num_rows == 0
    assert keep_rated(kept, OfflineJudge(), 4).rows.num_rows == 0
