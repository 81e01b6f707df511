"""The approximate neighbour table on a real Ray: recall, and the same rows however the work is spread."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from stage_rows import put_part

from lm_mixup.augment.embed import embedding_table, vectors_of
from lm_mixup.augment.neighbors import neighbors
from lm_mixup.augment.vector_search import ivf, ivf_centroids
from lm_mixup.augment.vector_search.ivf import Sample, gather_bucket, merge_pieces, search_bucket
from lm_mixup.augment.vector_search.ivf_centroids import IvfIndex
from lm_mixup.config import NeighborsConfig
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir

ROWS, WIDTH, K = 3_000, 32, 8


@pytest.fixture(autouse=True)
def several_buckets(monkeypatch):
    monkeypatch.setattr(ivf_centroids, "_BUCKET_ROWS", 500)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> StageDir:
    """Rows about 300 topics, in parts of unlike size, one of them a repeated row."""
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((300, WIDTH))
    vectors = centres[generator.integers(0, 300, ROWS)] + 0.6 * generator.standard_normal((ROWS, WIDTH))
    vectors[17] = vectors[2_900]
    stage = RunDir(tmp_path_factory.mktemp("run")).stage("embed")
    edges = [0, 700, 701, 1_500, 2_400, ROWS]
    for part, (start, stop) in enumerate(itertools.pairwise(edges)):
        table = embedding_table([f"row{i:05d}" for i in range(start, stop)], vectors[start:stop])
        put_part(stage, part, table)
    return stage


def found(embedded: StageDir, name: str, **options) -> tuple[StageDir, Outcome]:
    out = embedded.run.stage(name)
    config = NeighborsConfig(k=K, exact_below=100, cell_rows=100, num_cpus=0.5, **options)
    return out, neighbors(embedded, out, config, seed=0)


def test_nearly_all_of_the_nearest_rows_are_found(embedded, ray_session):
    out, outcome = found(embedded, "some", probes=14)
    rows, vectors = out.read(), vectors_of(embedded.read())
    ids = embedded.read(["id"])["id"].to_pylist()
    assert rows["id"].to_pylist() == ids
    assert out.read_part(out.parts()[1])["id"].to_pylist() == ["row00700"]
    truth, _ = knn(vectors, vectors, K, exclude_self=True)
    pairs = zip(rows["neighbor_ids"].to_pylist(), truth, strict=True)
    hits = [len({int(name[3:]) for name in near} & set(true.tolist())) for near, true in pairs]
    recall = sum(hits) / (K * ROWS)
    assert recall > 0.97
    assert outcome.metrics["recall"] == pytest.approx(recall, abs=0.02)  # of 1,000 rows
    assert not any(own in near for own, near in zip(ids, rows["neighbor_ids"].to_pylist(), strict=True))
    assert rows["neighbor_ids"][17].as_py()[0] == "row02900"
    for at in (0, 17, 700, 2_999):
        near = [int(name[3:]) for name in rows["neighbor_ids"][at].as_py()]
        np.testing.assert_allclose(rows["similarities"][at].as_py(), vectors[near] @ vectors[at], atol=1e-5)


def test_cells_below_coarse_ones_lose_little(embedded, ray_session, monkeypatch):
    """Three thousand rows in some thirty cells below five."""
    monkeypatch.setattr(ivf_centroids, "_FLAT_CELLS", 16)
    monkeypatch.setattr(ivf, "_QUERY_ROWS", 200)
    out, outcome = found(embedded, "two levels", probes=14)
    assert 20 <= outcome.metrics["cells"] <= 40
    assert outcome.metrics["recall"] > 0.97
    flat, _ = found(embedded, "one level", probes=14)
    assert out.read(["id"]) == flat.read(["id"])
    pairs = zip(out.read()["neighbor_ids"].to_pylist(), flat.read()["neighbor_ids"].to_pylist(), strict=True)
    assert sum(len(set(one) & set(other)) for one, other in pairs) > 0.95 * K * ROWS


def test_all_cells_give_the_exact_table(embedded, ray_session):
    out, outcome = found(embedded, "all", probes=1_000)
    assert outcome.metrics["recall"] == 1.0
    vectors = vectors_of(embedded.read())
    truth, _ = knn(vectors, vectors, K, exclude_self=True)
    near = np.array([[int(name[3:]) for name in row] for row in out.read()["neighbor_ids"].to_pylist()])
    assert (near == truth).mean() > 0.999  # rows equally near within rounding may swap


@pytest.mark.parametrize("levels", [1, 2])
def test_rows_do_not_depend_on_the_number_of_tasks(embedded, ray_session, monkeypatch, levels):
    if levels == 2:
        monkeypatch.setattr(ivf_centroids, "_FLAT_CELLS", 16)
    one, _ = found(embedded, "one", probes=4, num_actors=1)
    two, _ = found(embedded, "two", probes=4, num_actors=2)
    assert [one.read_part(part) for part in one.parts()] == [two.read_part(part) for part in two.parts()]


def test_parts_that_lost_all_their_rows_stay_empty(embedded, ray_session):
    """A whole block of them: what rows of a benchmark in files of their own come to."""
    run = RunDir(f"{embedded.run.uri}/gaps")
    rows, stage = embedded.read().slice(0, 1_000), run.stage("embed")
    parts = [rows.slice(0, 500), *[rows.slice(0, 0)] * 17, rows.slice(500)]
    for part, table in enumerate(parts):
        put_part(stage, part, table)
    out, _ = found(stage, "near", probes=14)
    assert [out.read_part(part).num_rows for part in out.parts()] == [500, *[0] * 17, 500]
    assert out.read()["id"].to_pylist() == rows["id"].to_pylist()


def test_a_bucket_without_rows_ends_with_nothing_found(ray_session):
    """Cells that no row is nearest to; a table of lists without a width would kill the process."""
    centres = np.eye(4, dtype=np.float32)[:2]
    tree = IvfIndex(centres[:1], centres, np.array([0, 2]), np.array([0, 1]))
    shared = (tree, Sample(np.zeros(0, np.int64), np.zeros(0, np.float32)), np.array([0, 5, 9]))
    banks = [ray_session.put(gather_bucket())]
    *pieces, hits = search_bucket(shared, banks, 0, NeighborsConfig(k=2))
    assert hits == 0
    assert [piece.num_rows for piece in pieces] == [0, 0]
    assert merge_pieces(pieces[0])[0].shape == (0, 2)


def test_few_probes_find_less_and_say_so(embedded, ray_session, capsys):
    _, outcome = found(embedded, "few", probes=1)
    assert outcome.metrics["recall"] < 0.9
    assert "raise neighbors.probes" in capsys.readouterr().err
