"""A map of the pool in two dimensions: a sample of its embeddings, laid out by t-SNE."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.schemas import content_id
from lm_mixup.report.examples import find_parents
from lm_mixup.report.parts import read_parts, spread

MOST_POINTS: Final = 500
LEAST_POINTS: Final = 12
_MOST_PARTS: Final = 8


@dataclass(frozen=True)
class Point:
    """One pool row on the map; `cluster` is empty where it is in none."""

    x: float
    y: float
    text: str
    source: str
    score: int | None
    cluster: str


def map_pool(run: RunDir, shown: Collection[str]) -> list[Point]:
    """Lays out a sample of the pool.

    Args:
        run: The run; without embeddings there is no map.
        shown: Clusters whose members are drawn into the sample first: those of the page's examples.
    """
    stage = run.stage("embed")
    cluster_of: dict[str, str] = {}
    clusters = run.stage("cluster")
    chosen, _ = spread(clusters, "data", _MOST_PARTS)
    for part in read_parts(clusters, chosen, ["cluster_id", "member_ids"]):
        for row in part.to_pylist():
            cluster_of |= dict.fromkeys(row["member_ids"], row["cluster_id"])
    ids, vectors = _sample(run, {row for row, cluster in cluster_of.items() if cluster in shown})
    if len(ids) < LEAST_POINTS or not stage.parts():
        return []
    places = _lay_out(vectors)
    rows = find_parents(run, ids)
    return [
        Point(
            x=round(float(x), 3),
            y=round(float(y), 3),
            text=rows[id_].text if id_ in rows else "",
            source=rows[id_].source if id_ in rows else "",
            score=rows[id_].score if id_ in rows else None,
            cluster=cluster_of.get(id_, ""),
        )
        for id_, (x, y) in zip(ids, places, strict=True)
    ]


def _sample(run: RunDir, first: set[str]) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of at most `MOST_POINTS` rows: some first, then by the hash of their id."""
    stage = run.stage("embed")
    chosen, _ = spread(stage, "data", _MOST_PARTS)
    tables = [part.select(["id", "embedding"]) for part in read_parts(stage, chosen, ["id", "embedding"])]
    if not tables:
        return [], np.empty((0, 0))
    rows = pa.concat_tables(tables)
    ids = rows["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda place: (ids[place] not in first, content_id(ids[place])))
    taken = rows.take(pa.array(sorted(order[:MOST_POINTS])))
    vectors = pc.list_flatten(taken["embedding"]).to_numpy().reshape(taken.num_rows, -1)
    return taken["id"].to_pylist(), vectors.astype(np.float32)


def _lay_out(vectors: np.ndarray) -> np.ndarray:
    """Places of vectors [N, d] on a plane, float32 [N, 2]."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    neighbours = min(30.0, (len(vectors) - 1) / 3)
    with threadpool_limits(1):  # beside other work, threads that wait for each other take minutes
        reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
        layout = TSNE(2, perplexity=neighbours, init="pca", max_iter=500, random_state=0)
        places: np.ndarray = layout.fit_transform(reduced)
    return places
