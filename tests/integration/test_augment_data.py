"""Clustering, neighbours, embedding, the rating of distilled rows and selection on a real Ray."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import ray
from stage_rows import put_part

from lm_mixup.augment.cluster import cluster
from lm_mixup.augment.embed import embed, embedding_table, vectors_of
from lm_mixup.augment.neighbors import neighbors
from lm_mixup.augment.rate_distilled import rate_distilled
from lm_mixup.augment.reading.cluster_members import gather_members
from lm_mixup.augment.select import select
from lm_mixup.augment.vector_search.neighbor_table import long_tail_scores
from lm_mixup.config import (
    ClusterConfig,
    DataConfig,
    EmbedderConfig,
    NeighborsConfig,
    RateConfig,
    RateDistilledConfig,
    SelectConfig,
)
from lm_mixup.core import schemas, task_types
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import Outcome, Receipt, RunDir, StageDir, summarise

ROWS, WIDTH = 320, 24
CURATED = schemas.extend(schemas.INSTRUCTION, schemas.RATING, schemas.CURATION)


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
                "id": schemas.content_id(prompt, completion),
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
    curated, vectors_stage = run.stage("curate"), run.stage("embed")
    for part, start in enumerate(range(0, len(rows), rows_per_part)):
        chosen = order[start : start + rows_per_part]
        table = schemas.table([rows[index] for index in chosen], CURATED)
        put_part(curated, part, table)
        put_part(vectors_stage, part, embedding_table(table["id"], vectors[chosen]))
    return curated, vectors_stage


def run_cluster(folder, rows_per_part=64, order=None, **settings) -> tuple[StageDir, Outcome]:
    run = RunDir(folder)
    curated, embedded = stage_pair(run, rows_per_part, order)
    out = run.stage("cluster")
    config = ClusterConfig(**{"cell_rows": 32, "num_tasks": 2, "min_content_similarity": 0.0, **settings})
    return out, cluster(curated, embedded, out, config, DataConfig(rows_per_part=50), seed=3)


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
        assert one["cluster_id"] == schemas.content_id(*sorted(one["member_ids"]))
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


def test_clusters_with_a_common_subject_do_not_depend_on_workers_parts_or_order(ray_session, tmp_path):
    """The number of the topic is the one word that rows of a topic have in common, and it is rare."""
    settings = {"min_content_similarity": 0.1, "max_size": 2}
    out, outcome = run_cluster(tmp_path / "first", **settings)
    rows = {row["id"]: row for row in pool()[0]}
    numbers = [
        [set(re.findall(r"\d+", rows[key]["prompt"])) for key in cluster]
        for cluster in out.read()["member_ids"].to_pylist()
    ]
    assert len(numbers) > 20
    assert all(first & second for first, second in numbers)
    assert outcome.left_out["kin_in_form_only"] > 0
    again, again_outcome = run_cluster(
        tmp_path / "again",
        rows_per_part=7,
        order=np.random.default_rng(9).permutation(ROWS),
        num_tasks=1,
        **settings,
    )
    assert again.read().equals(out.read())
    assert again.read(kind="rejected").equals(out.read(kind="rejected"))
    assert again_outcome == outcome


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
    curated, embedded = stage_pair(run, 400)
    table = embedded.read().slice(0, ROWS - 10)
    embedded.write_part(0, table, None, Receipt(0, 0, 0, 0))
    with pytest.raises(Exception, match="no embedding of row"):
        cluster(curated, embedded, run.stage("cluster"), ClusterConfig(), DataConfig(), seed=3)


def test_neighbours_of_all_parts_agree_with_one_search(ray_session, tmp_path):
    run = RunDir(tmp_path)
    _, embedded = stage_pair(run, 64)
    out = run.stage("neighbors")
    neighbors(embedded, out, NeighborsConfig(k=6, num_actors=2, num_cpus=0.5), seed=0)
    found = out.read().to_pylist()
    table = embedded.read()
    vectors, ids = vectors_of(table), table["id"].to_pylist()
    indices, similarities = knn(vectors, vectors, 6, exclude_self=True)
    assert [row["id"] for row in found] == ids
    assert [row["neighbor_ids"] for row in found] == [[ids[i] for i in near] for near in indices]
    np.testing.assert_allclose([row["similarities"] for row in found], similarities, atol=1e-6)
    assert out.read().schema.field("similarities").type == pa.list_(pa.float32())


@pytest.mark.parametrize("least_parts", [1, 8])
def test_each_part_of_clusters_gets_its_members_and_no_others(
    ray_session, tmp_path, monkeypatch, least_parts
):
    monkeypatch.setattr("lm_mixup.distributed.ray_tasks._BLOCK_PARTS", least_parts)
    run = RunDir(tmp_path)
    curated, _ = stage_pair(run, rows_per_part=50)
    ids = [row["id"] for row in pool()[0]]
    groups = [ids[start::40] for start in range(35)]  # of rows far apart; five groups stay in no cluster
    clusters = [{"cluster_id": f"{n:03d}", "member_ids": group} for n, group in enumerate(groups)]
    for part, start in enumerate(range(0, len(clusters), 10)):
        put_part(run.stage("cluster"), part, schemas.table(clusters[start : start + 10], schemas.CLUSTER))
    parts = run.stage("cluster").parts()[1:]  # the first is distilled already
    found = gather_members(run.stage("cluster"), curated, parts, num_tasks=2)
    assert list(found) == parts
    for number, part in enumerate(parts, start=1):
        rows = ray.get(found[part]).to_pylist()
        wanted = {key for group in groups[10 * number : 10 * number + 10] for key in group}
        assert len(rows) == len(wanted) and {row["id"] for row in rows} == wanted
        assert all(schemas.content_id(row["prompt"], row["completion"]) == row["id"] for row in rows)


FACTS = [("gold", "Au", 79), ("iron", "Fe", 26), ("tin", "Sn", 50), ("neon", "Ne", 10), ("lead", "Pb", 82)]


def distilled_rows() -> list[dict]:
    """Distilled rows of mixed quality: full answers, and answers that say next to nothing."""
    rows = []
    for name, symbol, number in FACTS:
        full = (
            f"The chemical symbol of {name} is {symbol}, and its atomic number is {number}, because each "
            f"atom of {name} holds {number} protons in its nucleus. In the periodic table the elements are "
            f"ordered by this number, so {name} stands at place {number}; its symbol {symbol} comes from its "
            "older name."
        )
        for completion in (full, "ok", "It is a thing."):
            prompt = f"What are the chemical symbol and the atomic number of {name}, and what do they mean?"
            key = schemas.content_id(prompt, completion)
            texts = {"prompt": prompt, "completion": completion, "cot": "", "raw": completion}
            inputs = [task_types.write_input(prompt, completion), task_types.write_input(f"{name}?", symbol)]
            rows.append(
                {
                    "cluster_id": key,
                    "task_type": "qa",
                    "parent_ids": [f"{name}1", f"{name}2"],
                    "inputs": inputs,
                    **texts,
                }
            )
    return rows


GATE = RateDistilledConfig(min_faithfulness=0.6, min_coverage=0.1)


@pytest.fixture(scope="module")
def rated(ray_session, tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("rated"))
    distill, out = run.stage("distill"), run.stage("rate_distilled")
    rows = distilled_rows()
    for part, start in enumerate(range(0, len(rows), 8)):
        piece = schemas.table(rows[start : start + 8], schemas.DISTILLED)
        put_part(distill, part, piece)
    outcome = rate_distilled(
        distill, None, out, RateConfig(), EmbedderConfig(num_cpus=0.5), 2, min_score=4, gate=GATE
    )
    return run, out, outcome


def test_distilled_rows_are_rated_and_the_poor_ones_refused(rated):
    _, out, outcome = rated
    kept, refused = out.read(), out.read(kind="rejected")
    assert kept.num_rows + refused.num_rows == len(distilled_rows())
    assert kept.num_rows >= 3
    assert min(kept["score"].to_pylist()) >= 4
    reasons = Counter(refused["reason"].to_pylist())
    empty = {"ok", "It is a thing."}  # they say nothing that inputs could bear out, and are not rated
    by_gate = [row for row in refused.to_pylist() if row["reason"] == "faithfulness_below_0.6"]
    assert {row["completion"] for row in by_gate} == empty and {row["score"] for row in by_gate} == {None}
    assert set(reasons) <= {"score_below_4", "faithfulness_below_0.6"}
    manifest = summarise(out, "digest", {}, 1.0, outcome)
    assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected == len(distilled_rows())
    assert manifest.rejected_by_reason == reasons
    yields = {name: manifest.metrics[name] for name in ("distilled", "faithful", "good")}
    faithful = len(distilled_rows()) - len(by_gate)
    assert yields == {"distilled": len(distilled_rows()), "faithful": faithful, "good": kept.num_rows}
    assert min(kept["faithfulness"].to_pylist()) >= 0.6


def test_long_tail_spans_all_parts_of_the_kept_rows(rated):
    run, out, _ = rated
    kept = StageDir(run, "rate_distilled/kept").read()
    expected = long_tail_scores(vectors_of(kept), 2)
    assert out.read()["id"].to_pylist() == kept["id"].to_pylist()
    np.testing.assert_allclose(out.read()["long_tail"].to_numpy(), expected, atol=1e-6)
    assert "embedding" not in out.read().column_names


def test_embedding_keeps_parts_and_is_normalised_and_select_reads_it(rated, tmp_path):
    _, distilled, _ = rated
    run = RunDir(tmp_path)
    rows, _ = pool()
    curated = run.stage("curate")
    for part, start in enumerate(range(0, 60, 40)):
        piece = schemas.table(rows[:60][start : start + 40], CURATED)
        put_part(curated, part, piece)
    embedded = run.stage("embed")
    embed(curated, embedded, EmbedderConfig(num_cpus=0.5))
    assert [t.num_rows for t in embedded.iter_parts()] == [40, 20]
    assert embedded.read()["id"].to_pylist() == curated.read()["id"].to_pylist()
    assert embedded.read().schema.field("embedding").type == pa.list_(pa.float16(), 384)
    raw = np.array(embedded.read()["embedding"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), 1.0, atol=2e-3)
    near = run.stage("neighbors")
    neighbors(embedded, near, NeighborsConfig(k=3, num_cpus=0.5), seed=0)
    for method in ("long_tail", "knn_diversity", "ds2", "deita"):
        config = SelectConfig(method=method, budget=6, neighbors=3, similarity_threshold=0.999)
        outcome = select(distilled, curated, embedded, near, None, run.stage(method), config, seed=0)
        assert outcome.metrics["distilled"] == 3
        assert outcome.metrics["original"] == (0 if method == "deita" else 3)  # these rows lack a complexity
        assert outcome.files[-1] == f"{method}/train.jsonl"
        assert outcome.rows_in == outcome.rows_used + sum(outcome.left_out.values())
