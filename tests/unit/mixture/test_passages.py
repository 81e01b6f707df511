"""Passages of the closed world and of the user's own."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from small_build import build

from lm_mixup.config import DataConfig, RateConfig, TeacherConfig
from lm_mixup.core.draws import split_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.demo.facts import load_entities
from lm_mixup.mixture.generate import generate
from lm_mixup.mixture.passages import passages


def test_a_passage_an_entity_with_its_split(listed):
    assert [row["entity"] for row in listed] == [entity.name for entity in load_entities()]
    assert {row["split"] for row in listed} == {"sft", "grpo", "dev", "test"}
    assert len({row["id"] for row in listed}) == len(listed)
    config = build()
    for row in listed:
        shares = config.grpo_fraction, config.test_fraction, config.dev_fraction
        assert row["split"] == split_of(row["entity"], 0, *shares)


def test_splits_follow_the_fractions_and_the_seed():
    names = [f"entity {number}" for number in range(4000)]
    shares = Counter(split_of(name, 1, 0.2, 0.1) for name in names)
    assert abs(shares["test"] / 4000 - 0.1) < 0.02
    assert abs(shares["grpo"] / 4000 - 0.2) < 0.03
    assert [split_of(name, 1, 0.2, 0.1) for name in names] != [split_of(name, 2, 0.2, 0.1) for name in names]
    assert {split_of(name, 1, 0.0, 0.0) for name in names} == {"sft"}
    held = [{n for n in names if split_of(n, 1, grpo, 0.1, 0.05) == "dev"} for grpo in (0.0, 0.5)]
    assert held[0] == held[1] and abs(len(held[0]) / 4000 - 0.05) < 0.02


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


def write_jsonl(path, first, count):
    rows = [{"id": n, "title": f"T {n}", "text": f"Text {n}."} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def listed_from(source, folder, **settings):
    out = RunDir(folder).stage("passages")
    passages(out, build(passages=str(source), passage_min_words=1, **settings), DataConfig(), seed=0)
    return out.read().to_pylist()


def test_a_folder_of_files_is_read_and_each_row_tells_its_file(tmp_path):
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "wiki-00.jsonl", 0, 3)
    write_jsonl(tmp_path / "in" / "news.jsonl", 3, 2)
    (tmp_path / "in" / "notes.txt").write_text("not data")
    rows = listed_from(tmp_path / "in", tmp_path / "run")
    assert [(row["id"], row["source"]) for row in rows] == [
        ("3", "news"), ("4", "news"), ("0", "wiki"), ("1", "wiki"), ("2", "wiki"),
    ]  # fmt: skip


def test_a_data_set_of_the_hub_is_read_by_its_name(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lm_mixup.augment.reading import hf_datasets

    listed = hf_datasets.data_files
    articles = {name: [f"{name} {n}" for n in range(4)] for name in ("id", "url", "title", "text")}
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table(articles), tmp_path / "hub" / "train-00000-of-00001.parquet")
    asked = []

    def at_the_hub(name, config, split, where):
        asked.append((name, config, split, where))
        return listed(str(tmp_path / "hub"), None, split, where)

    monkeypatch.setattr(hf_datasets, "data_files", at_the_hub)
    name = "hf:wikimedia/wikipedia:20231101.simple"
    rows = listed_from(name, tmp_path / "run")
    assert [(row["id"], row["title"], row["text"]) for row in rows] == [
        (f"id {n}", f"title {n}", f"text {n}") for n in range(4)
    ]
    assert {row["source"] for row in rows} == {"wikipedia"}
    assert asked == [("wikimedia/wikipedia", "20231101.simple", None, f"build.passages {name}")]


def test_a_draw_of_the_documents_comes_from_all_over_the_files(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(9):
        write_jsonl(tmp_path / "in" / f"f{number}.jsonl", 10 * number, 5)
    (one, two, all_) = (
        [row["id"] for row in listed_from(tmp_path / "in", tmp_path / name, max_documents=most)]
        for name, most in (("one", 12), ("two", 12), ("all", None))
    )
    assert one == two and len(one) == 12 and len(all_) == 45
    assert one != all_[:12] and len({int(name) // 10 for name in one}) == 3


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
    with pytest.raises(InputError, match=r"bad\.parquet: not readable"):
        passages(out, build(passages=str(tmp_path / "bad.parquet")), DataConfig(), seed=0)
