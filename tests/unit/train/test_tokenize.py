"""What SFT trains on: encoded rows, their order, and the checkpoint and log bookkeeping."""

from __future__ import annotations

import json
import resource
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_rows import put_part

from lm_mixup.config import FinetuneConfig, ModelConfig, SftConfig
from lm_mixup.core import schemas, task_types
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import load_tokenizer
from lm_mixup.train.checkpoint import (
    SftJob,
    drop_incomplete,
    drop_oldest,
    last_checkpoint,
    mark_complete,
    ranks_of,
    step_of,
)
from lm_mixup.train.finetune import encode_lines, line_ranges
from lm_mixup.train.sft import fit
from lm_mixup.train.sft_worker import epoch_order
from lm_mixup.train.tokenize import TOKENS, encode_rows
from lm_mixup.train.tracking import read_metrics, trim_metrics

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


def test_rows_are_trained_on_in_the_order_of_their_ids_at_a_few_bytes_a_token():
    from lm_mixup.train.sft_worker import IGNORED, eval_rows, train_rows

    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"{key:04d}",
            "split": "dev" if key % 10 == 0 else "sft",
            "input_ids": rng.integers(0, 9, size=int(rng.integers(1, 400))).tolist(),
            "prompt_length": int(rng.integers(0, 2)),
        }
        for key in rng.permutation(1000)
    ]
    parts = [schemas.table(rows[start : start + 300], TOKENS) for start in (0, 300, 600, 900)]
    table = pa.concat_tables([TOKENS.empty_table(), *parts]).slice(7)
    tracemalloc.start()
    chosen = train_rows(table, SftConfig())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = sum(chosen["length"])
    assert peak < 32 * tokens and chosen.data.nbytes < 10 * tokens
    expected = sorted((row for row in rows[7:] if row["split"] == "sft"), key=lambda row: row["id"])
    assert chosen["input_ids"][:] == [row["input_ids"] for row in expected]
    for labels, row in zip(chosen["labels"], expected, strict=True):
        cut = row["prompt_length"]
        assert labels == [IGNORED] * cut + row["input_ids"][cut:]
    first = sorted((row for row in rows[7:] if row["split"] == "dev"), key=lambda row: row["id"])[:5]
    assert eval_rows(table, 5)["input_ids"][:] == [row["input_ids"] for row in first]
    assert eval_rows(TOKENS.empty_table(), 5) is None


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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 17), st.integers(0, 3))
def test_an_epoch_is_whole_batches_without_repeats(lengths, batch_size, epoch):
    order = epoch_order(np.array(lengths), batch_size, seed=5, epoch=epoch)
    assert len(order) % batch_size == 0
    if len(lengths) >= batch_size:
        assert len(order) == len(lengths) // batch_size * batch_size
        assert len(set(order.tolist())) == len(order)
    else:
        assert set(order.tolist()) == set(range(len(lengths)))
    assert (order == epoch_order(np.array(lengths), batch_size, seed=5, epoch=epoch)).all()


def test_epochs_and_seeds_differ_and_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(10, 500, size=640)
    order = epoch_order(lengths, 16, seed=1, epoch=0)
    assert (order != epoch_order(lengths, 16, seed=1, epoch=1)).any()
    assert (order != epoch_order(lengths, 16, seed=2, epoch=0)).any()
    padded = sum(batch.max() * len(batch) for batch in lengths[order].reshape(-1, 16))
    shuffled = lengths[np.random.default_rng(0).permutation(640)].reshape(-1, 16)
    assert padded / lengths.sum() < 1.15
    assert sum(b.max() * len(b) for b in shuffled) / lengths.sum() > 1.5
    means = lengths[order].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5  # not long batches first


def test_only_whole_checkpoints_count(tmp_path):
    assert last_checkpoint(tmp_path) is None and step_of(None) == 0
    for step in (90, 100, 110):
        (tmp_path / f"checkpoint-{step}").mkdir()
    mark_complete(tmp_path, 90, ranks=1)
    mark_complete(tmp_path, 100, ranks=2)
    last = last_checkpoint(tmp_path)
    assert last is not None and (step_of(last), ranks_of(last)) == (100, 2)
    drop_incomplete(tmp_path, last)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-90"]
    drop_oldest(tmp_path, limit=1)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-100"]


def test_a_mark_that_could_not_be_written_does_not_count(tmp_path):
    """As after a kill between its creation and its first byte: here no file may have one."""
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            mark_complete(tmp_path, 5, ranks=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert last_checkpoint(tmp_path) is None
    mark_complete(tmp_path, 5, ranks=3)
    assert last_checkpoint(tmp_path) == folder and ranks_of(folder) == 3


def test_a_resumed_log_holds_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)] + [{"step": 4, "eval_loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    assert read_metrics(path) == lines
    trim_metrics(path, 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    trim_metrics(tmp_path / "none.jsonl", 0)
    assert read_metrics(tmp_path / "none.jsonl") == []


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


def job_of(tmp_path, config, splits):
    """A job whose stage holds encoded rows of these splits."""
    out = RunDir(tmp_path).stage("finetune")
    rows = [{"id": str(n), "split": s, "input_ids": [1, 2], "prompt_length": 1} for n, s in enumerate(splits)]
    put_part(out, 0, schemas.table(rows, TOKENS))
    return SftJob(out=out, config=config, model=ModelConfig(), base="nano", seed=0)


@pytest.mark.parametrize("settings_", [{"patience": 2}, {"keep_best": True}])
def test_what_goes_by_held_out_rows_is_refused_where_there_is_none(tmp_path, settings_):
    job = job_of(tmp_path, FinetuneConfig(eval_fraction=0.0, **settings_), ["sft"] * 3)
    with pytest.raises(InputError, match=r"no held-out row for finetune\.patience .*raise finetune\.eval_fr"):
        fit(job)


@pytest.mark.parametrize(
    ("settings_", "steps", "eval_loss", "drawn"),
    [({}, 2, 0.7, 8), ({"keep_best": True}, 2, 0.5, 8), ({}, 3, 0.7, 10), ({"packing": True}, 1, 0.7, 10)],
)
def test_the_manifest_speaks_of_the_model_that_was_written(tmp_path, settings_, steps, eval_loss, drawn):
    config = FinetuneConfig(batch_size=4, eval_rows=1, **settings_)
    job = job_of(tmp_path, config, ["sft"] * 10 + ["dev"] * 2)
    losses = [{"step": 1, "eval_loss": 0.5}, {"step": steps, "eval_loss": 0.7}]
    lines = [*losses, {"step": steps, "loss": 1.0, "num_tokens": 9}]
    job.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job.final.mkdir()
    outcome = fit(job)
    assert outcome.metrics["eval_loss"] == eval_loss
    assert outcome.rows_used == drawn + 1
    assert outcome.left_out == {
        "not_drawn": 10 - drawn,
        "dev_rows_not_evaluated": 1,
        "rows_of_other_splits": 0,
    }
