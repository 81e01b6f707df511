"""Decontamination by embedding over the real Ray: what is refused is refused in every later stage."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from stage_rows import put_part

from lm_mixup.augment.curate import curate
from lm_mixup.augment.embed import embed
from lm_mixup.augment.neighbors import neighbors
from lm_mixup.config import CurateConfig, EmbedDecontaminateConfig, EmbedderConfig, NeighborsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir, StageDir, summarise

QUESTION = "Which planet of the solar system has the greatest number of known moons?"
LEAKED = [
    ("In our solar system, which planet has the most known moons?", "Saturn"),
    ("Which planet of the solar system has the largest number of known moons?", "It is Saturn."),
]
CLEAN = [(f"Write a sentence about a {noun}.", f"The {noun} is old.") for noun in ["house", "tree", "boat"]]
EMBEDDER = EmbedderConfig(num_cpus=0.5)


def write(run: RunDir, parts: list[list[tuple[str, str]]]) -> StageDir:
    """The ingested rows, rated: part by part."""
    stage, number = run.stage("rate"), 0
    for part, pairs in enumerate(parts):
        ids = [f"r{number + place}" for place in range(len(pairs))]
        number += len(pairs)
        columns = {"id": ids, "prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]}
        table = pa.table(columns | {"score": pa.array([3] * len(pairs), pa.int8())})
        put_part(stage, part, table)
    return stage


def finished(out: StageDir, outcome):
    out.finish(summarise(out, "digest", {}, 0.0, outcome))
    return out.manifest()


def config(folder, **more) -> EmbedDecontaminateConfig:
    (folder / "evals.jsonl").write_text(
        "\n".join(json.dumps({"id": name, "question": QUESTION}) for name in ("moons", "again"))
    )
    return EmbedDecontaminateConfig(files=[str(folder / "evals.jsonl")], **more)


@pytest.mark.parametrize("enabled", [True, False])
def test_refused_rows_are_missing_from_every_later_stage_and_said_so(ray_session, tmp_path, enabled):
    run = RunDir(tmp_path / "run")
    rated = write(run, [CLEAN[:2] + LEAKED[:1], LEAKED[1:], CLEAN[2:]])  # nothing stays of the second part
    out = run.stage("embed")
    out.begin("digest")
    manifest = finished(out, embed(rated, out, EMBEDDER, config(tmp_path)))
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_rejected) == (5, 3, 2)
    assert manifest.metrics["eval_items"] == 2 and manifest.metrics["eval_items_distinct"] == 1
    refused = out.read(kind="rejected")
    assert refused["id"].to_pylist() == ["r2", "r3"] and set(refused["match"].to_pylist()) == {"moons"}
    assert pc.min(refused["similarity"]).as_py() >= 0.8

    near = run.stage("neighbors")
    finished(near, neighbors(out, near, NeighborsConfig(k=2), seed=0))
    assert near.read()["id"].to_pylist() == ["r0", "r1", "r4"]
    curated = run.stage("curate")
    settings = CurateConfig(enabled=enabled)
    manifest = finished(curated, curate(rated, out, near, curated, settings))
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_rejected) == (5, 3, 2)
    assert curated.read()["id"].to_pylist() == ["r0", "r1", "r4"]
    rows = curated.read(kind="rejected")
    assert rows["id"].to_pylist() == ["r2", "r3"] and rows["score"].to_pylist() == [3, 3]
    assert set(rows["reason"].to_pylist()) == {"contaminated_embedding"}


def test_a_pool_of_evaluation_items_alone_is_an_error(ray_session, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(InputError, match="every row is close to an evaluation item"):
        embed(write(run, [LEAKED]), run.stage("embed"), EMBEDDER, config(tmp_path))
