"""MIXTURE rows as token ids."""

from __future__ import annotations

import pytest

from lm_mixup.config import ModelConfig, SftConfig
from lm_mixup.core import schemas, task_types
from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import load_tokenizer
from lm_mixup.train.tokenize import encode_rows

ROW = {
    "id": "a",
    "task_type": "qa",
    "instruction": task_types.INSTRUCTIONS["qa"],
    "inputs": ["What is gold?\nA metal.", "Gold's number?\n79"],
    "cot": "Both are about gold.",
    "output": "Q: What is gold?\nA: A metal, number 79.",
    "score": 5,
    "method": "degrade",
    "noisy": False,
    "source_ids": ["x", "y"],
    "split": "sft",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "nano"
    return load_tokenizer(create_nano(folder, [ROW["output"]] * 8, 0, vocab_size=300), ModelConfig())


def encode(rows, tokenizer, max_length=512):
    return encode_rows(schemas.table(rows, schemas.MIXTURE), tokenizer, max_length)


def test_the_prompt_carries_no_loss_and_the_target_ends_with_eos(tokenizer):
    from lm_mixup.train.sft_worker import IGNORED, train_rows

    rows = encode([ROW], tokenizer).rows
    (row,) = rows.to_pylist()
    (labels,) = train_rows(rows, SftConfig())["labels"]
    assert len(labels) == len(row["input_ids"])
    trained = [token for token in labels if token != IGNORED]
    assert labels[: row["prompt_length"]] == [IGNORED] * row["prompt_length"]
    assert tokenizer.decode(trained[:-1]) == task_types.write_output(ROW["cot"], ROW["output"])
    assert trained[-1] == tokenizer.eos_token_id
    prompt = tokenizer.decode(row["input_ids"][: row["prompt_length"]])
    assert task_types.write_prompt(ROW["instruction"], ROW["inputs"]) in prompt


def test_long_rows_are_refused_with_their_length_and_none_is_cut(tokenizer):
    exact = len(encode([ROW], tokenizer).rows["input_ids"][0])
    rows = [ROW, {**ROW, "id": "b", "cot": ROW["cot"] + " x"}, {**ROW, "id": "c", "split": "grpo"}]
    result = encode(rows, tokenizer, max_length=exact)
    assert result.rows["id"].to_pylist() == ["a"]
    (refused,) = result.rejected.to_pylist()
    assert (refused["id"], refused["reason"]) == ("b", "too_long")
    assert refused["tokens"] > exact
    assert result.rows_in == 2 and result.metrics["rows_of_other_splits"] == 1


def test_a_row_without_reasoning_still_has_both_tags(tokenizer):
    (row,) = encode([{**ROW, "cot": None}], tokenizer).rows.to_pylist()
    target = tokenizer.decode(row["input_ids"][row["prompt_length"] : -1])
    assert task_types.parse_output(target).cot == ""
