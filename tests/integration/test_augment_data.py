"""Clustering, neighbours, embedding, the rating of distilled rows and selection on a real Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup import records
from lm_mixup.config import ClusterConfig, DataConfig, NeighborsConfig
from lm_mixup.data.cluster import cluster
from lm_mixup.data.embed import embedding_table, vectors_of
from lm_mixup.data.neighbors import knn, neighbors
from lm_mixup.runs import Outcome, Receipt, RunDir, StageDir, summarise

ROWS, WIDTH = 320, 24
CURATED = records.extend(records.INSTRUCTION, records.RATING, records.CURATION)


def pool() -> tuple[list[dict], np.ndarray]:
    """Rows about 60 topics from two sources and two task types; a fifth is good, some are unrated."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((60, WIDTH))
    topic = generator.integers(0, 60, ROWS)
    vectors = centres[topic] + 0.5 * generator.standard_normal((ROWS, WIDTH))
    rows = []
    for index in range(ROWS):
        score = None if index % 40 == 7 else (5 if index % 5 == 0 else int(index % 3))
        prompt, completion = (
            f"Question {index} on topic {topic[index]}?",
            f"Answer {index}. " + "word " * (index % 9),
        )
        rows.append(
            {
                "id": records.content_id(prompt, completion),
                "source": f"source{topic[index] % 2}",
                "task_type": "qa" if topic[index] % 3 else "para",
                "prompt": prompt,
                "completion": completion,
                "score": score,
                "rater": "test",
                "error": "no answer" if score is None else None,
                "curated_score": score,
                "confidence": 1.0,
            }
        )
    return rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def stage_pair(run: RunDir, rows_per_part: int, order: np.ndarray | None = None) -> tuple[StageDir, StageDir]:
    """The curated rows and their embeddings, in parts."""
    rows, vectors = pool()
    order = np.arange(len(rows)) if order is None else order
    curated, embed = run.stage("curate"), run.stage("embed")
    for part, start in enumerate(range(0, len(rows), rows_per_part)):
        chosen = order[start : start + rows_per_part]
        table = records.table([rows[index] for index in chosen], CURATED)
        receipt = Receipt(part, table.num_rows, table.num_rows, 0)
        curated.write_part(part, table, None, receipt)
        embed.write_part(part, embedding_table(table["id"], vectors[chosen]), None, receipt)
    return curated, embed


def run_cluster(folder, rows_per_part=64, order=None, **settings) -> tuple[StageDir, Outcome]:
    run = RunDir(folder)
    curated, embed = stage_pair(run, rows_per_part, order)
    out = run.stage("cluster")
    config = ClusterConfig(**{"cell_rows": 32, "num_tasks": 2, **settings})
    return out, cluster(curated, embed, out, config, DataConfig(rows_per_part=50), seed=3)


@pytest.fixture(scope="module")
def clustered(ray_session, tmp_path_factory):
    return run_cluster(tmp_path_factory.mktemp("cluster"))


def test_every_row_is_in_one_cluster_or_left_out_for_a_reason(clustered):
    out, outcome = clustered
    rows, _ = pool()
    members = [row for cluster in out.read()["member_ids"].to_pylist() for row in cluster]
    rejected = out.read(kind="rejected")
    low = {row["id"] for row in rows if row["score"] is not None and row["score"] < 4}
    assert len(members) == len(set(members)) == outcome.rows_used
    assert set(members) | set(rejected["id"].to_pylist()) == low
    assert set(members).isdisjoint(rejected["id"].to_pylist())
    assert set(rejected["reason"].to_pylist()) <= {"no_kin", "cluster_too_small"}
    assert outcome.left_out["high"] == sum(row["score"] == 5 for row in rows)
    assert outcome.left_out["unrated"] == sum(row["score"] is None for row in rows)
    assert outcome.rows_in == ROWS == outcome.rows_used + sum(outcome.left_out.values())
    manifest = summarise(out, "digest", {}, 1.0, outcome)
    assert manifest.rows_out == out.read().num_rows
    assert manifest.rows_rejected == rejected.num_rows


def test_clusters_keep_sizes_source_task_type_and_floor(clustered):
    out, outcome = clustered
    rows, vectors = pool()
    index_of = {row["id"]: index for index, row in enumerate(rows)}
    clusters = out.read().to_pylist()
    assert len(clusters) > 20
    assert [c["cluster_id"] for c in clusters] == sorted(c["cluster_id"] for c in clusters)
    for one in clusters:
        members = [index_of[key] for key in one["member_ids"]]
        assert 2 <= one["size"] == len(members) <= 5
        assert {rows[i]["source"] for i in members} == {one["source"]}
        assert {rows[i]["task_type"] for i in members} == {one["task_type"]}
        assert one["central_id"] == one["member_ids"][0]
        assert one["cluster_id"] == records.content_id(*sorted(one["member_ids"]))
        centre = vectors[members].mean(axis=0)
        cosines = vectors[members] @ centre / np.linalg.norm(centre)
        assert one["cohesion"] == pytest.approx(cosines.mean(), abs=2e-3)
        assert cosines.argmax() == 0 or np.ptp(cosines) < 2e-3
        similar = vectors[members] @ vectors[members].T
        assert ((similar.sum(axis=1) - 1) / (len(members) - 1)).min() >= 0.3 - 2e-3
    assert sum(outcome.metrics["sizes"].values()) == outcome.metrics["clusters"] == len(clusters)
    assert 0.57 < outcome.metrics["cohesion/p1"] < outcome.metrics["cohesion/mean"] < 1


@pytest.mark.parametrize("layout", ["one worker", "other parts", "shuffled rows"])
def test_clusters_do_not_depend_on_workers_parts_or_order(clustered, tmp_path, layout):
    order = np.random.default_rng(9).permutation(ROWS) if layout == "shuffled rows" else None
    out, outcome = run_cluster(
        tmp_path,
        rows_per_part=7 if layout == "other parts" else 64,
        order=order,
        num_tasks=1 if layout == "one worker" else 2,
    )
    first, first_outcome = clustered
    assert out.read().equals(first.read())
    assert out.read(kind="rejected").equals(first.read(kind="rejected"))
    assert outcome == first_outcome


def test_clusters_may_cross_sources_but_never_task_types(ray_session, tmp_path):
    out, _ = run_cluster(tmp_path, by_source=False, min_similarity=-1.0)
    rows = {row["id"]: row for row in pool()[0]}
    members = out.read()["member_ids"].to_pylist()
    assert any(len({rows[key]["source"] for key in cluster}) > 1 for cluster in members)
    assert all(len({rows[key]["task_type"] for key in cluster}) == 1 for cluster in members)


def test_nothing_to_cluster_is_an_empty_stage(ray_session, tmp_path):
    out, outcome = run_cluster(tmp_path, low_below=0)
    assert out.read().num_rows == 0
    assert outcome.rows_used == 0
    assert outcome.rows_in == ROWS == sum(outcome.left_out.values())


def test_a_row_without_an_embedding_stops_the_stage(ray_session, tmp_path):
    run = RunDir(tmp_path)
    curated, embed = stage_pair(run, 400)
    table = embed.read().slice(0, ROWS - 10)
    embed.write_part(0, table, None, Receipt(0, 0, 0, 0))
    with pytest.raises(Exception, match="no embedding of row"):
        cluster(curated, embed, run.stage("cluster"), ClusterConfig(), DataConfig(), seed=3)


def test_neighbours_of_all_parts_agree_with_one_search(ray_session, tmp_path):
    run = RunDir(tmp_path)
    _, embed = stage_pair(run, 64)
    out = run.stage("neighbors")
    neighbors(embed, out, NeighborsConfig(k=6, num_actors=2, num_cpus=0.5))
    found = out.read().to_pylist()
    table = embed.read()
    vectors, ids = vectors_of(table), table["id"].to_pylist()
    indices, similarities = knn(vectors, vectors, 6, exclude_self=True)
    assert [row["id"] for row in found] == ids
    assert [row["neighbor_ids"] for row in found] == [[ids[i] for i in near] for near in indices]
    np.testing.assert_allclose([row["similarities"] for row in found], similarities, atol=1e-6)
    assert out.read().schema.field("similarities").type == pa.list_(pa.float32())
