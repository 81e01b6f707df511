"""Ingest and rate over the real Ray: any number of actors, any split, the same rows."""

import json
import random
import shutil

import pyarrow.parquet as pq
import pytest

from lm_mixup.augment.ingest import ingest
from lm_mixup.augment.rate import rate
from lm_mixup.chat.judge import make_judge
from lm_mixup.config import DataConfig, IngestConfig, RateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir, summarise


def run_ingest(root, pool, rows_per_part=2048, **config):
    stage = RunDir(root).stage("ingest")
    stage.begin("digest")
    outcome = ingest(stage, str(pool), IngestConfig(**config), DataConfig(rows_per_part=rows_per_part), 0)
    stage.finish(summarise(stage, "digest", {}, 0.0, outcome))
    return stage


def accounted(stage):
    manifest = stage.manifest()
    assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected
    return manifest


def write_pool(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def messy_pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy") / "pool"
    folder.mkdir()
    one = [{"id": i, "prompt": f"What is {i}?", "completion": f"It is {i}, a number."} for i in range(300)]
    one[10] = "{broken\n"
    one[20] = {"id": 20, "prompt": "What is 3?", "completion": "It is 3, a number."}  # repeats item 3
    one[30] = {"id": 5, "prompt": "Another id?", "completion": "Taken by item 5."}
    one[40] = {"id": 40, "prompt": "No answer?", "completion": ""}
    two = [{"prompt": f"What is {i}?", "completion": f"It is {i}, a number."} for i in range(250, 350)]
    two.append({"prompt": "Another id?", "completion": "Taken by item 5."})  # its content was refused so far
    write_pool(folder / "a.jsonl", one)
    write_pool(folder / "b.jsonl", two)
    return folder


@pytest.fixture(scope="module")
def plain(ray_session, messy_pool):
    """The messy pool, ingested by one actor."""
    return run_ingest(messy_pool.parent / "plain", messy_pool, rows_per_part=100)


def test_every_item_is_accounted_for_and_the_first_of_equals_stays(plain):
    manifest = accounted(plain)
    assert manifest.rows_in == 401 and manifest.metrics["files"] == 2
    reasons = {"bad_json": 1, "duplicate": 51, "duplicate_id": 1, "no_completion": 1}
    assert manifest.rejected_by_reason == reasons
    rejected = {row["where"].rsplit("/")[-1]: row for row in plain.read(kind="rejected").to_pylist()}
    assert rejected["a.jsonl:11"]["reason"] == "bad_json" and rejected["a.jsonl:11"]["raw"] == "{broken\n"
    assert rejected["a.jsonl:21"]["reason"] == rejected["b.jsonl:50"]["reason"] == "duplicate"
    assert rejected["a.jsonl:31"]["reason"] == "duplicate_id"
    rows = plain.read().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == 347
    assert {row["source"] for row in rows} == {"a", "b"}
    assert [row["source"] for row in rows if row["prompt"] == "Another id?"] == ["b"]


def files_of(stage):
    return [path.read_bytes() for path in sorted((stage.local / "data").iterdir())]


def test_actors_and_byte_ranges_do_not_change_the_rows(plain, messy_pool, tmp_path):
    two = run_ingest(tmp_path / "two", messy_pool, rows_per_part=100, num_actors=2)
    split = run_ingest(tmp_path / "split", messy_pool, rows_per_part=100, num_actors=2, split_mib=0.006)
    assert len(split.parts()) > len(plain.parts())
    assert files_of(plain) == files_of(two)
    for kind in ["data", "rejected"]:
        assert plain.read(kind=kind) == two.read(kind=kind) == split.read(kind=kind)


def test_a_half_done_run_ends_as_a_whole_one(plain, messy_pool, tmp_path):
    shutil.copytree(plain.local, tmp_path / "run/ingest")
    for part in ["part-000001", "part-000003"]:
        (tmp_path / f"run/ingest/receipts/{part}.json").unlink()
        (tmp_path / f"run/ingest/data/{part}.parquet").unlink()
    again = run_ingest(tmp_path / "run", messy_pool, rows_per_part=100)
    assert files_of(again) == files_of(plain)


def test_damaged_lines_come_out_as_they_are_or_are_refused(ray_session, tmp_path, import_benchmark):
    """The kinds of `benchmarks/fuzz.py`, two of the lines with a field of 5 MB, in pieces of 64 KiB."""
    fuzz = import_benchmark("fuzz")
    lines = list(fuzz.fuzzed(500, seed=1))
    fuzz.write_pool(tmp_path / "pool", [line for _, line in lines])
    config = IngestConfig(num_actors=2, split_mib=1 / 16)
    stage, _ = fuzz.run_ingest(tmp_path / "run", tmp_path / "pool", config)
    found = fuzz.account(stage, lines)
    assert all(found[kind].total() for kind in fuzz.KINDS)
    assert found["clean"] == {"kept": found["clean"].total()}
    assert found["5 MB field"] == {"too_long": 2}


def test_parquet_gives_the_rows_of_jsonl(plain, tmp_path):
    pq.write_table(plain.read(), tmp_path / "pool.parquet", row_group_size=200)
    again = run_ingest(tmp_path / "again", tmp_path / "pool.parquet", rows_per_part=100)
    assert again.read() == plain.read()


def test_the_demo_pool_is_a_pool_like_any_other(ray_session, tmp_path):
    manifest = accounted(run_ingest(tmp_path / "run", "world", world_rows=200))
    assert manifest.rows_in == 200 and manifest.rows_out > 150


def test_a_pool_of_one_row_works_and_a_pool_of_none_is_an_error(ray_session, tmp_path):
    one = write_pool(tmp_path / "one.jsonl", [{"prompt": "p", "completion": "c"}])
    assert run_ingest(tmp_path / "run", one).read().num_rows == 1
    for name, rows, says in [
        ("empty", [], "is empty"),
        ("bad", [{"prompt": "p"}, "{"], "no usable row .*1 bad_json"),
        ("cut", [], "no such file"),
    ]:
        pool = tmp_path / f"{name}.jsonl"
        if name != "cut":
            write_pool(pool, rows)
        with pytest.raises(InputError, match=says):
            run_ingest(tmp_path / name, pool)
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08not gzip")
    with pytest.raises(InputError, match=r"cut.jsonl.gz: damaged"):
        run_ingest(tmp_path / "gz", tmp_path / "cut.jsonl.gz")


def test_a_real_pool_is_read_whole_and_its_first_thousand_rows_are_rated(ray_session, shared_data, tmp_path):
    stage = run_ingest(tmp_path / "run", shared_data / "pool_5k.jsonl", rows_per_part=1024, num_actors=2)
    manifest = accounted(stage)
    assert manifest.rows_in == 5000
    assert manifest.rejected_by_reason["no_completion"] == 4

    head = (shared_data / "pool_5k.jsonl").read_bytes().splitlines(keepends=True)[:1000]
    (tmp_path / "head.jsonl").write_bytes(b"".join(head))
    stage = run_ingest(tmp_path / "head", tmp_path / "head.jsonl", rows_per_part=256)
    manifest = accounted(stage)
    rated = RunDir(tmp_path / "head").stage("rate")
    rated.begin("digest")
    config = RateConfig(num_actors=2)
    outcome = rate(stage, rated, config)
    rated.finish(summarise(rated, "digest", {}, 0.0, outcome))
    metrics = accounted(rated).metrics
    assert metrics["rated"] == manifest.rows_out and metrics["unrated"] == 0
    assert metrics["rater"] == make_judge(config).name
    assert sum(metrics[f"score_{score}"] for score in range(6)) == manifest.rows_out
    assert all(metrics[f"score_{score}"] > 0 for score in range(6))
    assert rated.read(["id"]) == stage.read(["id"])


def test_near_duplicates_and_evaluation_rows_are_refused_across_the_whole_pool(ray_session, tmp_path):
    rng = random.Random(0)
    texts = [[f"w{rng.randrange(2000)}" for _ in range(60)] for _ in range(200)]
    rows = [
        {"id": f"r{n}", "prompt": " ".join(text[:20]), "completion": " ".join(text[20:])}
        for n, text in enumerate(texts)
    ]
    copies = [row | {"id": f"copy of {row['id']}", "prompt": f"Please, {row['prompt']}"} for row in rows[::4]]
    held = {"id": "held", "prompt": "Well: " + " ".join(texts[7][:18]), "completion": "other words"}
    again = [rows[3] | {"id": "again"}, copies[2] | {"id": "r3", "prompt": texts[8][0]}]
    folder = tmp_path / "pool"
    folder.mkdir()
    write_pool(folder / "a.jsonl", [*rows, "{broken\n"])
    write_pool(folder / "b.jsonl", [*again, held, *copies])
    write_pool(tmp_path / "evals.jsonl", [{"id": "q7", "question": " ".join(texts[7][:20])}])
    switches = {"near_duplicates": {}, "decontaminate": {"files": [str(tmp_path / "evals.jsonl")]}}
    stage = run_ingest(tmp_path / "run", folder, 100, split_mib=0.02, num_actors=2, **switches)
    manifest = accounted(stage)
    reasons = {"bad_json": 1, "contaminated": 2, "duplicate": 1, "duplicate_id": 1, "near_duplicate": 50}
    assert manifest.rejected_by_reason == reasons
    assert manifest.metrics["eval_items"] == 1 and manifest.metrics["near_duplicate_candidates"] >= 50
    assert stage.read(["id"])["id"].to_pylist() == [row["id"] for row in rows if row["id"] != "r7"]
    for reject in stage.read(kind="rejected").to_pylist():
        if reject["reason"] == "near_duplicate":
            assert reject["id"] == f"copy of {reject['match']}"
        else:
            assert reject["match"] == ("q7" if reject["reason"] == "contaminated" else None)
