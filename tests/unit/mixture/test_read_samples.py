"""Good rows out of files, the closed world and a rated pool: each is a sample, rejected or left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lm_mixup.config import BuildConfig, Config, DataConfig, IngestConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir
from lm_mixup.distributed.map_parts import PartResult, receipt_of
from lm_mixup.mixture.read_samples import check_samples, read_samples
from lm_mixup.stages import required_inputs, stages_of

ROWS = [
    {"id": 1, "prompt": "What is iron?", "completion": "A metal.", "source": "a"},
    {"id": 2, "prompt": "What is neon?", "completion": "A gas.", "source": "b", "score": 3},
    {"id": 3, "prompt": "What is gold?", "completion": "A metal.", "source": "b", "score": 4},
    {"id": 4, "prompt": "What is gold?", "completion": "A metal.", "source": "a"},
    {"id": 1, "prompt": "What is zinc?", "completion": "A metal.", "source": "a"},
    {"id": 5, "prompt": "What is tin?", "source": "a"},
    {
        "id": 6,
        "title": "Argon",
        "text": "Argon is a gas. It was found in 1894. It is inert.",
        "source": "wiki",
    },
]


def read(tmp_path: Path, samples_from: Any, curated: StageDir | None = None) -> tuple[StageDir, Outcome]:
    out = RunDir(str(tmp_path / "run")).stage("generate")
    config = BuildConfig.model_validate({"samples_from": samples_from})
    outcome = read_samples(out, config, IngestConfig(), DataConfig(rows_per_part=3), 0, curated)
    return out, outcome


def write(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_row_is_a_sample_rejected_or_left_out(tmp_path):
    out, outcome = read(tmp_path, write(tmp_path, ROWS))
    kept, rejected = out.read().to_pylist(), out.read(kind="rejected").to_pylist()
    assert {row["id"] for row in kept} >= {"samples/1", "samples/3", "samples/6/para", "samples/6/ask"}
    reasons = Counter(row["reason"] for row in rejected)
    assert reasons == {"score_below_4": 1, "duplicate": 1, "duplicate_id": 1, "no_completion": 1}
    assert outcome.rows_in == len(kept) + len(rejected) and outcome.rows_used == len(kept)
    assert {row["split"] for row in kept if row["entity"] == "Argon"} == {kept[-1]["split"]}
    scores = {row["id"]: (row["score"], row["error"]) for row in kept}
    assert scores["samples/3"] == (4, None)
    assert scores["samples/1"][0] is None and "not rated" in scores["samples/1"][1]


def test_sources_and_a_number_of_rows_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": f"What is {i}?", "completion": "A number.", "source": "ab"[i % 2]} for i in range(10)]
    path = write(tmp_path, rows)
    out, outcome = read(tmp_path, {"mine": {"path": path, "sources": ["a*"], "max_rows": 3}})
    assert out.read().num_rows == 3
    assert outcome.left_out == {"other_source": 5, "over_max_rows": 2}
    assert outcome.rows_in == 10
    again, _ = read(tmp_path / "again", {"mine": {"path": path, "sources": ["a*"], "max_rows": 3}})
    assert again.read().equals(out.read())


def test_a_share_of_a_file_is_taken_by_its_scores(tmp_path):
    rows = [{"prompt": f"What is {i}?", "completion": "A number.", "score": i / 2} for i in range(8)]
    path = write(tmp_path, [*rows, {"prompt": "What is it?", "completion": "No number."}])
    out, outcome = read(tmp_path, {"mine": {"path": path, "min_score": "top 25%"}})
    assert sorted(out.read()["prompt"].to_pylist()) == ["What is 6?", "What is 7?"]
    assert outcome.left_out == {"below_min_score": 6}
    assert out.read(kind="rejected")["reason"].to_pylist() == ["unrated"]


def test_the_best_rows_of_the_pool(tmp_path):
    curated = RunDir(str(tmp_path / "pool")).stage("curate")
    rows = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "source": ["pool"] * 4,
            "task_type": ["qa"] * 4,
            "prompt": [f"What is {name}?" for name in ("iron", "neon", "gold", "lead")],
            "completion": ["A metal.", "A gas.", "A noble metal.", "A heavy metal."],
            "curated_score": pa.array([5, 3, 4, None], pa.int8()),
            "expected": pa.array([9.0, 7.5, 8.0, None], pa.float32()),
        }
    )
    curated.write_part(0, rows, None, receipt_of(0, PartResult(rows, rows_in=4)))
    for cut, expected in (
        (4, ["pool/a", "pool/c"]),
        ("top 30%", ["pool/a"]),
        (3, ["pool/a", "pool/b", "pool/c"]),
    ):
        where = tmp_path / str(cut)
        out, outcome = read(where, {"pool": {"path": "pool", "min_score": cut}}, curated)
        assert out.read()["id"].to_pylist() == expected
        assert outcome.left_out == {"below_min_score": 4 - len(expected)}
        assert out.read()["score"].to_pylist()[0] == 5


def test_the_closed_world_gives_every_task_type(tmp_path):
    out, _ = read(tmp_path, {"world": {"path": "world", "max_rows": 60}})
    rows = out.read().to_pylist()
    assert len(rows) == 60
    assert {row["task_type"] for row in rows} == {"qa", "mcq", "tfq", "cs", "para"}


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"build\.samples_from\.samples\.path .*no such file"):
        check_samples(BuildConfig(samples_from=str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match="no row can be used"):
        read(tmp_path, write(tmp_path, [{"prompt": "a"}]))
    with pytest.raises(ValueError, match="two ways"):
        BuildConfig(samples_from="a.jsonl", mixture="b")


def test_a_build_from_the_pool_begins_with_rating_it():
    rated = ["ingest", "rate", "embed", "neighbors", "curate"]
    made = ["generate", "embed_samples", "mixture", "rate_mixture"]
    pool = Config.model_validate({"build": {"samples_from": "pool"}})
    assert list(stages_of("build", pool)) == [*rated, *made]
    assert required_inputs(stages_of("build", pool)["generate"], pool) == ("curate",)
    run = list(stages_of("run", pool))
    assert run[:9] == [*rated, *made] and len(run) == len(set(run)) and "cluster" in run
    file = Config.model_validate({"build": {"samples_from": "good.jsonl"}})
    assert list(stages_of("build", file)) == made
    assert list(stages_of("augment", pool))[:5] == rated
