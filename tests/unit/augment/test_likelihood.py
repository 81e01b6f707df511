"""The gain in log-likelihood without an engine: what is compared with what, what is refused, and the gate."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup.augment.likelihood import measure
from lm_mixup.augment.rate_distilled import keep_faithful, with_gain
from lm_mixup.config import Config, LikelihoodConfig, ModelConfig, RateDistilledConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.task_types import write_input
from lm_mixup.models.policy import load_tokenizer
from lm_mixup.stages import stages_of


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("nano", ModelConfig(path="nano"))


class CopyingEngine:
    """A model that copies: a token that stands before is likely (-1), any other is not (-3)."""

    def score_batch(self, sequences):
        return [
            np.array([-1.0 if token in ids[:at] else -3.0 for at, token in enumerate(ids)][1:], np.float32)
            for ids in sequences
        ]


def row(number: int, text: str, inputs: list[str], task_type: str = "qa") -> dict:
    return {"cluster_id": str(number), "task_type": task_type, "raw": text, "inputs": inputs}


def gains(rows: list[dict], tokenizer) -> dict[str, float]:
    found = measure(rows, tokenizer, CopyingEngine(), 2000).rows
    return dict(zip(found["cluster_id"].to_pylist(), found["likelihood_gain"].to_pylist(), strict=True))


IRON = [write_input("Symbol of iron?", "Fe, and 26 is its number"), write_input("iron", "metal, magnetic")]
PERU = [write_input("Capital of Peru?", "Lima"), write_input("Peru people", "33 million, Quechua")]


def test_a_text_gains_by_its_own_inputs_and_by_no_other(tokenizer):
    own = [row(0, "magnetic metal", IRON), row(1, "Quechua million Lima", PERU)]
    swapped = [row(0, "Quechua million Lima", IRON), row(1, "magnetic metal", PERU)]
    assert all(gain > 0.5 for gain in gains(own, tokenizer).values())
    assert all(gain < -0.5 for gain in gains(swapped, tokenizer).values())
    assert gains(own, tokenizer)["0"] == pytest.approx(-gains(swapped, tokenizer)["1"])


def test_a_constant_text_gains_nothing(tokenizer):
    constant = [row(0, "zzz qqq", IRON), row(1, "zzz qqq", PERU)]
    assert list(gains(constant, tokenizer).values()) == [0.0, 0.0]


def test_the_other_inputs_are_those_of_the_next_row_of_the_task_type(tokenizer):
    rows = [
        row(0, "magnetic metal", IRON),
        row(1, "x", [write_input("iron", "magnetic metal")], "tfq"),
        row(2, "Quechua", PERU),
        row(3, "magnetic metal", IRON),  # the same inputs again: no other ones
    ]
    found = gains(rows, tokenizer)
    assert found["0"] == found["3"] > 0.5  # not against the row between, which holds the words too
    assert (
        measure(rows[:1] + rows[3:], tokenizer, CopyingEngine(), 2000).rejected["reason"].to_pylist()
        == ["no_other_row"] * 2
    )


def test_every_row_is_measured_or_refused(tokenizer):
    rows = [row(0, "magnetic metal", IRON), row(1, "Lima " * 300, PERU), row(2, "Lima", PERU)]
    result = measure(rows, tokenizer, CopyingEngine(), 200)
    assert result.rejected.to_pylist() == [{"cluster_id": "1", "reason": "too_long"}]
    assert result.rows["cluster_id"].to_pylist() == ["0", "2"]
    assert result.rows_in == 3
    alone = measure(rows[:1], tokenizer, CopyingEngine(), 200)
    assert alone.rejected["reason"].to_pylist() == ["no_other_row"]
    assert measure([], tokenizer, CopyingEngine(), 200).rows.num_rows == 0


def distilled(count: int) -> pa.Table:
    made = row(0, "", IRON) | {"prompt": "What is iron?", "completion": "Iron is a magnetic metal, Fe."}
    return schemas.table([made | {"cluster_id": str(number)} for number in range(count)], schemas.DISTILLED)


def test_the_gate_asks_for_the_gain_only_where_it_is_told_to():
    known = pa.table({"cluster_id": ["0", "1"], "likelihood_gain": pa.array([0.5, 0.01], pa.float32())})
    rows = with_gain(distilled(3), known)
    assert rows["likelihood_gain"].to_pylist() == [0.5, pytest.approx(0.01), None]
    lenient = RateDistilledConfig(min_faithfulness=0, min_coverage=0, min_question_words=0)
    assert keep_faithful(rows, lenient)[0].num_rows == 3
    strict = lenient.model_copy(update={"likelihood": LikelihoodConfig(model="nano", min_gain=0.1)})
    kept, refused = keep_faithful(rows, strict)
    assert kept["cluster_id"].to_pylist() == ["0"]
    assert refused["reason"].to_pylist() == ["likelihood_gain_below_0.1", "no_likelihood_gain"]


def test_the_stage_is_there_where_a_model_is_named():
    assert "likelihood" not in stages_of("augment", Config())
    asked = Config.model_validate({"rate_distilled": {"likelihood": {"model": "nano"}}})
    stages = stages_of("augment", asked)
    assert list(stages).index("likelihood") == list(stages).index("distill") + 1
    stages["likelihood"].check(asked)
    nowhere = Config.model_validate({"rate_distilled": {"likelihood": {"model": "/nowhere"}}})
    with pytest.raises(InputError, match=r"^rate_distilled.likelihood.model /nowhere: no such folder"):
        stages["likelihood"].check(nowhere)
    other = Config.model_validate({"rate_distilled": {"likelihood": {"model": "nano", "min_gain": 0.3}}})
    assert stages["likelihood"].settings_identity(asked) == stages["likelihood"].settings_identity(other)
