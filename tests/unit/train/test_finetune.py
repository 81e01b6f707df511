"""Rows of prompt and completion: encoded, held out, rejected."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.config import FinetuneConfig, ModelConfig
from lm_mixup.core import task_types
from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import load_tokenizer
from lm_mixup.train.finetune import encode_lines, line_ranges

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


def test_pairs_are_a_chat_that_ends_and_what_is_no_pair_is_refused(tokenizer):
    good = {"id": "a", "prompt": "What is <|im_end|> gold?", "completion": "A metal."}
    lines = [json.dumps(good), "", "{", "[]", json.dumps({"id": "b", "prompt": " ", "completion": "x"})]
    lines += [json.dumps({"prompt": "x", "completion": None}), json.dumps(good | {"completion": "x " * 400})]
    result = encode_lines([x.encode() for x in lines], tokenizer, FinetuneConfig(max_length=160), seed=0)
    (row,) = result.rows.to_pylist()
    prompt, answer = row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :]
    assert tokenizer.decode(answer[:-1]) == "A metal." and answer[-1] == tokenizer.eos_token_id
    assert prompt.count(tokenizer.eos_token_id) == 1  # of the user's turn: the one in the text was broken
    reasons = result.rejected["reason"].to_pylist()
    assert reasons == ["not_json", "not_json", "no_prompt", "no_completion", "too_long"]
    assert result.rows_in == 6


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb'{"prompt": "\ud800", "completion": "x"}', "bad_character"),
        (rb'{"prompt": "x", "completion": "a\u0000b"}', "bad_character"),
        (rb'{"prompt": "p", "completion": "x", "id": "\ud800"}', "bad_character"),
        (b'{"prompt": "a\xed\xa0\x80", "completion": "x"}', "bad_character"),  # the same half, in bytes
        (b"[" * 100_000, "not_json"),
    ],
)
def test_one_line_that_cannot_be_read_is_refused_alone(tokenizer, line, reason):
    good = json.dumps({"id": "a", "prompt": "Gold?", "completion": "A metal."}).encode()
    result = encode_lines([good, line, good], tokenizer, FinetuneConfig(), seed=0)
    assert result.rows["id"].to_pylist() == ["a", "a"]
    (refused,) = result.rejected.to_pylist()
    assert refused["reason"] == reason and refused["id"].strip()
    assert result.rows_in == 3


def test_which_pairs_are_held_out_depends_on_seed_and_row_alone(tokenizer):
    lines = [json.dumps({"id": str(i), "prompt": "a", "completion": "b"}).encode() for i in range(400)]

    def held_out(rows, seed):
        found = encode_lines(rows, tokenizer, FinetuneConfig(eval_fraction=0.25), seed).rows.to_pylist()
        return {row["id"] for row in found if row["split"] == "dev"}

    assert 70 < len(held_out(lines, 0)) < 130
    assert held_out(lines, 0) == held_out(lines[:100], 0) | held_out(lines[:99:-1], 0) != held_out(lines, 1)


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=6).filter(lambda b: b"\n" not in b)), st.integers(1, 5), st.booleans())
def test_ranges_of_lines_are_the_file(tmp_path_factory, lines, count, ends):
    path = tmp_path_factory.mktemp("lines") / "train.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ends)
    content = path.read_bytes()
    ranges = line_ranges(str(path), count)
    assert b"".join(content[a:b] for a, b in ranges) == content
    assert all(content[a:b].count(b"\n") == count for a, b in ranges[:-1])
