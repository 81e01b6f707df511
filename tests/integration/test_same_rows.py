"""From pool to training set, twice: other numbers of workers, other sizes of blocks, the same rows."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from stage_rows import put_part

from lm_mixup.augment.cluster import cluster
from lm_mixup.augment.curate import curate
from lm_mixup.augment.embed import embed
from lm_mixup.augment.ingest import ingest
from lm_mixup.augment.neighbors import neighbors
from lm_mixup.augment.rate import rate
from lm_mixup.augment.select import select
from lm_mixup.config import (
    ClusterConfig,
    CurateConfig,
    DataConfig,
    EmbedderConfig,
    IngestConfig,
    NeighborsConfig,
    RateConfig,
    SelectConfig,
)
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import RunDir
from lm_mixup.demo.pool import demo_pool

ROWS = 160
NOTHING_DISTILLED = schemas.extend(
    schemas.DISTILLED, schemas.RATING, pa.schema([("long_tail", pa.float32())])
).empty_table()
KEYS = {"cluster": "cluster_id"}  # of the others: id


def augment(folder, pool, workers: int, rows_per_part: int, split_mib: float, batch: int) -> RunDir:
    """All stages but those that distil: the training set is of originals."""
    run, data = RunDir(folder), DataConfig(rows_per_part=rows_per_part)
    stage = {name: run.stage(name) for name in (*STAGES, "rate_distilled")}
    put_part(stage["rate_distilled"], 0, NOTHING_DISTILLED)
    ingest(stage["ingest"], str(pool), IngestConfig(num_actors=workers, split_mib=split_mib), data, seed=0)
    rate(stage["ingest"], stage["rate"], RateConfig(num_actors=workers))
    embed(stage["ingest"], stage["embed"], EmbedderConfig(num_actors=workers, batch_size=batch))
    neighbors(stage["embed"], stage["neighbors"], NeighborsConfig(num_actors=workers), seed=0)
    noise = CurateConfig(num_actors=workers, steps=40)
    curate(stage["rate"], stage["embed"], stage["neighbors"], stage["curate"], noise)
    sizes = ClusterConfig(num_tasks=workers, cell_rows=32)
    cluster(stage["curate"], stage["embed"], stage["cluster"], sizes, data, seed=0)
    chosen = SelectConfig(budget=30, original_ratio=1.0, min_score=2, neighbors=5)
    inputs = [stage[name] for name in ("rate_distilled", "curate", "embed", "neighbors")]
    select(*inputs, None, stage["select"], chosen, seed=0)
    return run


STAGES = ("ingest", "rate", "embed", "neighbors", "curate", "cluster", "select")


@pytest.fixture(scope="module")
def runs(ray_session, tmp_path_factory) -> tuple[RunDir, RunDir]:
    folder = tmp_path_factory.mktemp("same")
    pool = folder / "pool.jsonl"
    rows = list(demo_pool(ROWS, 0))
    pool.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, rows[3], {"prompt": "?"}]))
    one = augment(folder / "one", pool, workers=1, rows_per_part=64, split_mib=8.0, batch=64)
    two = augment(folder / "two", pool, workers=2, rows_per_part=23, split_mib=1 / 64, batch=7)
    return one, two


@pytest.mark.parametrize("stage", STAGES)
def test_workers_and_block_sizes_do_not_change_the_rows(runs, stage):
    one, two = (run.stage(stage) for run in runs)
    key = KEYS.get(stage, "id")
    first, second = (opened.read().sort_by(key).combine_chunks() for opened in (one, two))
    assert first.num_rows > 10
    assert first.equals(second)
    if stage != "select":
        assert len(two.parts()) > len(one.parts()) or stage == "cluster"
    refused = [opened.read(kind="rejected") for opened in (one, two)]
    if refused[0].num_rows:
        by = "where" if stage == "ingest" else "id"
        assert refused[0].sort_by(by).combine_chunks().equals(refused[1].sort_by(by).combine_chunks())


def test_the_training_set_is_the_same_to_the_byte(runs):
    one, two = (run.read_bytes("select/train.jsonl") for run in runs)
    assert one == two
    assert one.count(b"\n") == 30
