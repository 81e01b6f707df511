"""Passages of the closed world and of the user's own."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from small_build import build

from lm_mixup.config import DataConfig, RateConfig, TeacherConfig
from lm_mixup.errors import InputError
from lm_mixup.mixture.generate import generate
from lm_mixup.mixture.passages import passages
from lm_mixup.runs import RunDir
from lm_mixup.world.facts import load_entities, split_of


def test_a_passage_an_entity_with_its_split(listed):
    assert [row["entity"] for row in listed] == [entity.name for entity in load_entities()]
    assert {row["split"] for row in listed} == {"sft", "grpo", "test"}
    assert len({row["id"] for row in listed}) == len(listed)
    config = build()
    for row in listed:
        assert row["split"] == split_of(row["entity"], 0, config.grpo_fraction, config.test_fraction)


def test_splits_follow_the_fractions_and_the_seed():
    names = [f"entity {number}" for number in range(4000)]
    shares = Counter(split_of(name, 1, 0.2, 0.1) for name in names)
    assert abs(shares["test"] / 4000 - 0.1) < 0.02
    assert abs(shares["grpo"] / 4000 - 0.2) < 0.03
    assert [split_of(name, 1, 0.2, 0.1) for name in names] != [split_of(name, 2, 0.2, 0.1) for name in names]
    assert {split_of(name, 1, 0.0, 0.0) for name in names} == {"sft"}


def test_user_passages_are_read_and_the_broken_ones_rejected(tmp_path):
    lines = [
        json.dumps({"id": "1", "title": "Tea", "text": " Tea is a drink. "}),
        "{broken",
        json.dumps({"id": "2", "title": "Tea", "text": ""}),
        json.dumps({"id": "3", "title": "  ", "text": "No title."}),
        json.dumps({"id": "1", "title": "Tea", "text": "Again."}),
        "[1, 2]",
        json.dumps({"title": "Coffee", "text": "Coffee is a drink."}),
    ]
    source = tmp_path / "passages.jsonl"
    source.write_text("\n".join(lines) + "\n\n")
    out = RunDir(tmp_path / "run").stage("passages")
    config = build(passages=str(source), passage_min_words=1)
    passages(out, config, DataConfig(rows_per_part=3), seed=0)
    kept, rejected = out.read().to_pylist(), out.read(kind="rejected").to_pylist()
    assert [(row["title"], row["text"]) for row in kept] == [
        ("Tea", "Tea is a drink."),
        ("Coffee", "Coffee is a drink."),
    ]
    reasons = [row["reason"] for row in rejected]
    assert reasons == ["not_json", "no_text", "no_title", "duplicate_id", "not_json"]
    assert rejected[0]["text"] == "{broken"
    receipts = out.receipts().values()
    assert sum(r.rows_in for r in receipts) == 7 == len(kept) + len(rejected)
    with pytest.raises(InputError, match="offline teacher"):
        generate(
            out,
            RunDir(tmp_path / "run").stage("generate"),
            config,
            RateConfig(),
            TeacherConfig(),
            DataConfig(),
            seed=0,
        )


def test_parquet_passages(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [7], "title": ["Tea"], "text": ["A drink."]}), tmp_path / "p.parquet")
    out = RunDir(tmp_path / "run").stage("passages")
    passages(out, build(passages=str(tmp_path / "p.parquet"), passage_min_words=1), DataConfig(), seed=0)
    assert out.read(["id", "title", "topic"]).to_pylist() == [{"id": "7", "title": "Tea", "topic": None}]


@pytest.mark.parametrize("content", [None, ""])
def test_missing_or_empty_passages_are_the_user_s_error(tmp_path, content):
    source = tmp_path / "none.jsonl"
    if content is not None:
        source.write_text(content)
    with pytest.raises(InputError, match=r"none\.jsonl"):
        passages(
            RunDir(tmp_path / "run").stage("passages"), build(passages=str(source)), DataConfig(), seed=0
        )


def test_damaged_parquet_is_the_user_s_error(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    out = RunDir(tmp_path / "run").stage("passages")
    with pytest.raises(InputError, match="cannot be read"):
        passages(out, build(passages=str(tmp_path / "bad.parquet")), DataConfig(), seed=0)
