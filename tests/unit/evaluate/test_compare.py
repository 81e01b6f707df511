"""Win rates and rates at equal length of made-up preferences; which prompts are asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lm_mixup.config import CompareConfig, Config
from lm_mixup.core.errors import InputError
from lm_mixup.evaluate.compare import length_controlled, markdown, read_prompts, summarise
from lm_mixup.stages.evaluate import STAGES

(CHECK,) = [stage.check for stage in STAGES if stage.name == "compare" and "finetune" not in stage.inputs]


def row(preference: float | None, words_a: int = 5, words_b: int = 5, consistent: bool = True) -> dict:
    return {
        "answer_a": "word " * words_a,
        "answer_b": "word " * words_b,
        "preference": preference,
        "consistent": consistent,
        "error": None if preference is not None else "timeout",
    }


def test_rates_by_hand():
    found = summarise([row(1.0), row(1.0, 9, 1), row(0.5, consistent=False), row(0.0), row(None)], seed=0)
    assert (found["prompts"], found["judged"]) == (5, 4)
    assert found["win_rate"] == 0.625 and found["consistent"] == 0.75
    assert (found["words_a"], found["words_b"]) == (6.0, 4.0)
    assert 0.0 <= found["low"] < 0.625 < found["high"] <= 1.0


def test_nothing_judged_is_no_rate():
    found = summarise([row(None)], seed=0)
    assert found["judged"] == 0 and found["win_rate"] is None


def test_a_judge_that_counts_words_alone_finds_no_winner_at_equal_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 100, size=(400, 2)).astype(float)
    lengths[:, 0] += 40  # A is longer as a rule
    preferences = (lengths[:, 0] > lengths[:, 1]).astype(float)
    assert preferences.mean() > 0.75
    assert length_controlled(preferences, lengths) == pytest.approx(0.5, abs=0.1)


def test_a_judge_that_does_not_count_words_says_the_same_at_equal_length():
    rng = np.random.default_rng(1)
    lengths = rng.integers(10, 100, size=(400, 2)).astype(float)
    preferences = (rng.random(400) < 0.7).astype(float)
    assert length_controlled(preferences, lengths) == pytest.approx(preferences.mean(), abs=0.03)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(1, 50), st.integers(1, 50)),
        min_size=1,
        max_size=30,
    )
)
def test_turning_the_models_round_turns_the_rates_round(rows):
    preferences = np.array([p for p, _, _ in rows])
    lengths = np.array([[a, b] for _, a, b in rows], dtype=float)
    rate = length_controlled(preferences, lengths)
    assert 0.0 <= rate <= 1.0
    assert length_controlled(1 - preferences, lengths[:, ::-1]) == pytest.approx(1 - rate, abs=1e-3)


def test_the_table_has_a_line_for_the_pair():
    lines = markdown({"a": "tuned", "b": "base"} | summarise([row(1.0), row(0.0)], 0)).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| tuned | base | 2 | 2 | 0.500 [")


def test_the_sample_of_prompts_is_the_seeds_and_every_row_is_accounted_for(tmp_path: Path):
    lines = [json.dumps({"prompt": f"Question {i}?", "completion": "yes"}) for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{broken", lines[0]]) + "\n")
    config = CompareConfig(prompts=str(tmp_path / "rows.jsonl"), rows=10)
    kept, refused = read_prompts(config, seed=3)
    assert len(kept) == 10 == len({row["id"] for row in kept}) and sum(refused.values()) == 1
    (tmp_path / "rows.jsonl").write_text("\n".join([*reversed(lines)]) + "\n")
    assert read_prompts(config, seed=3)[0] == kept
    assert read_prompts(config, seed=4)[0] != kept


@pytest.mark.parametrize("models", [["nano"], ["nano", "nano"], ["a", "b", "c"]])
def test_two_models_are_compared(models):
    with pytest.raises(ValidationError, match="two different models"):
        CompareConfig(models=models)


def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n')
    section = {"prompts": str(tmp_path / "p.jsonl"), "models": ["nano", str(tmp_path / "no")]}
    with pytest.raises(InputError, match=r"rate.backend is offline"):
        CHECK(Config.model_validate({"compare": section}))
    judge = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9"}
    with pytest.raises(InputError, match=r"compare.models .*no such folder"):
        CHECK(Config.model_validate({"compare": section, "rate": judge}))
    absent = section | {"models": ["nano", "smollm2"], "prompts": str(tmp_path / "absent.jsonl")}
    with pytest.raises(InputError, match=r"compare.prompts: there is no file"):
        CHECK(Config.model_validate({"compare": absent, "rate": judge}))
