"""Rows of prompt and completion: encoded, held out, rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_mixup.augment.reading.files import list_units
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.config import FinetuneConfig, IngestConfig, ModelConfig
from lm_mixup.core import schemas, task_types
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Receipt, RunDir
from lm_mixup.demo.nano import create_nano
from lm_mixup.distributed.map_parts import PartResult
from lm_mixup.models.policy import load_tokenizer
from lm_mixup.train.checkpoint import SftJob
from lm_mixup.train.finetune import encode_items
from lm_mixup.train.sft import fit
from lm_mixup.train.tokenize import TOKENS

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


def encode(tokenizer, path: Path, content: bytes, *, seed: int = 0, **config) -> PartResult:
    """What a file's rows become, by the road that the stage takes."""
    path.write_bytes(content)
    reader = Reader(IngestConfig(), seed)
    (unit,) = list_units(str(path), 1 << 20)[0]
    return encode_items(reader.items(unit), unit, reader, tokenizer, FinetuneConfig(**config), seed)


def test_pairs_are_a_chat_that_ends_and_what_is_no_pair_is_refused(tokenizer, tmp_path):
    good = {"id": "a", "prompt": "What is <|im_end|> gold?", "completion": "A metal."}
    lines = [json.dumps(good), "{", "[]", json.dumps({"id": "b", "prompt": " ", "completion": "x"})]
    lines += [json.dumps({"prompt": "x", "completion": None}), json.dumps(good | {"completion": "x " * 400})]
    result = encode(tokenizer, tmp_path / "a.jsonl", "\n".join(lines).encode(), max_length=160)
    (row,) = result.rows.to_pylist()
    prompt, answer = row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :]
    assert tokenizer.decode(answer[:-1]) == "A metal." and answer[-1] == tokenizer.eos_token_id
    assert prompt.count(tokenizer.eos_token_id) == 1  # of the user's turn: the one in the text was broken
    reasons = result.rejected["reason"].to_pylist()
    assert reasons == ["bad_json", "not_an_object", "no_prompt", "no_completion", "too_long"]
    assert result.rows_in == 6


PAIR = {"prompt": "Gold?", "completion": "A metal."}
MESSAGES = [{"role": "user", "content": "Gold?"}, {"role": "assistant", "content": "A metal."}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.jsonl", json.dumps(PAIR)),
        ("alpaca.jsonl", json.dumps({"instruction": "Gold?", "input": "", "output": "A metal."})),
        ("messages.jsonl", json.dumps({"messages": MESSAGES})),
        ("array.json", json.dumps([PAIR])),
        ("table.csv", "prompt,completion\nGold?,A metal.\n"),
    ],
)
def test_every_layout_of_ingest_is_read(tokenizer, tmp_path, name, content):
    result = encode(tokenizer, tmp_path / name, content.encode())
    expected = encode(tokenizer, tmp_path / "expected.jsonl", json.dumps(PAIR).encode())
    assert result.rejected is None
    assert result.rows["input_ids"].to_pylist() == expected.rows["input_ids"].to_pylist()


@pytest.mark.parametrize(
    "line",
    [
        rb'{"prompt": "\ud800", "completion": "x"}',
        rb'{"prompt": "x", "completion": "a\u0000b"}',
        b'{"prompt": "a\xed\xa0\x80", "completion": "x"}',  # the same half, in bytes
        b"[" * 100_000,
    ],
)
def test_one_line_that_cannot_be_read_is_refused_alone(tokenizer, tmp_path, line):
    good = json.dumps({"id": "a", **PAIR}).encode()
    result = encode(tokenizer, tmp_path / "a.jsonl", b"\n".join([good, line, good]))
    assert result.rows["id"].to_pylist() == ["a", "a"]
    (refused,) = result.rejected.to_pylist()
    assert refused["reason"] and refused["id"].strip()
    assert result.rows_in == 3


def test_which_pairs_are_held_out_depends_on_seed_and_row_alone(tokenizer, tmp_path):
    lines = [json.dumps({"id": str(i), "prompt": "a", "completion": "b"}).encode() for i in range(400)]

    def held_out(rows, seed):
        found = encode(tokenizer, tmp_path / "a.jsonl", b"\n".join(rows), seed=seed, eval_fraction=0.25)
        return {row["id"] for row in found.rows.to_pylist() if row["split"] == "dev"}

    assert 70 < len(held_out(lines, 0)) < 130
    assert held_out(lines, 0) == held_out(lines[:100], 0) | held_out(lines[:99:-1], 0) != held_out(lines, 1)


@pytest.mark.parametrize(
    ("kept", "reasons", "said"),
    [
        (0, {}, r"no rows came in$"),
        (0, {"no_prompt": 6}, r"rejected 6 no_prompt; see \S+/finetune/rejected/$"),
        (0, {"too_long": 3}, r"rejected 3 too_long; raise finetune.max_length \(2048\)$"),
        (0, {"too_long": 3, "no_prompt": 4}, r"rejected 4 no_prompt, 3 too_long; see \S+/rejected/$"),
        (2, {}, r"2 held out; lower finetune.eval_fraction$"),
    ],
)
def test_the_reason_given_for_nothing_to_train_on_is_the_reason(tmp_path, kept, reasons, said):
    out = RunDir(tmp_path).stage("finetune")
    held = [{"id": "a", "split": "dev", "input_ids": [1], "prompt_length": 1}] * kept
    out.write_part(
        0, schemas.table(held, TOKENS), None, Receipt(0, 9, kept, sum(reasons.values()), dict(reasons))
    )
    job = SftJob(
        out=out, config=FinetuneConfig(max_length=2048), model=ModelConfig(path="m"), base="", seed=0
    )
    with pytest.raises(InputError, match=rf"^finetune: there is no row to train on: {said}"):
        fit(job)
