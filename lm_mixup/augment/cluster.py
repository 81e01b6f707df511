"""Stage `cluster`: groups low-quality rows into small clusters of similar rows, each distilled into one.

Clusters are formed within a source (if so configured) and always within a task type. The task type selects
the instruction of the policy and the parser of its output, and training inputs have one type only, so a mixed
cluster could be neither requested nor checked.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.clustering.cohesion import Bounds, centre_cosines, clusters_of
from lm_mixup.augment.clustering.content import (
    BUCKETS,
    CONTENT,
    content_of,
    content_similarity,
    document_frequencies,
    word_weights,
)
from lm_mixup.augment.clustering.size_bounded import REASONS, bounded_clusters, residual_reasons
from lm_mixup.augment.embed import vectors_for, vectors_of
from lm_mixup.augment.selection.score_cut import ScoreCut, columns_for, find_cut, is_above
from lm_mixup.augment.vector_search.kmeans import split_cell
from lm_mixup.augment.vector_search.shuffle import cell_count, plan_cells, shuffle
from lm_mixup.config import ClusterConfig, DataConfig
from lm_mixup.core import schemas
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Outcome, Receipt, StageDir
from lm_mixup.distributed.ray_tasks import in_blocks, run_tasks

OUTPUT = schemas.extend(
    schemas.CLUSTER,
    pa.schema([("source", pa.string()), ("task_type", pa.string()), ("central_id", pa.string())]),
)
_CLUSTERED = schemas.extend(OUTPUT, pa.schema([("cosines", pa.list_(pa.float32()))]))
_REJECTED = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("task_type", pa.string()), ("reason", pa.string())]
)
_RESIDUAL = schemas.extend(_REJECTED, pa.schema([("group", pa.string())]))
# The ids of 67 million rows exceed the 32-bit offsets of a string column.
_WIDE = {
    pa.string(): pa.large_string(),
    pa.list_(pa.string()): pa.large_list(pa.large_string()),
}


def cluster(
    curated: StageDir, embed: StageDir, out: StageDir, config: ClusterConfig, data: DataConfig, seed: int
) -> Outcome:
    """Clusters the rows with a curated score below `low_below`, or outside its share of the best.

    Input columns: id, source, task_type, curated_score; and id, embedding. Output columns: schemas.CLUSTER,
    source, task_type, central_id. `member_ids` begin with the row nearest to the centre, which is
    `central_id`; `cohesion` is the mean cosine to the centre; `source` is that of the central row. Rows are
    sorted by cluster_id, the hash of the sorted member ids. Rejected: the residual, with a reason. The result
    depends only on the rows, the seed and the cell size, not on parts or workers.

    Memory: the driver holds the clusters (ids, no vectors); a task holds one block of parts, one bucket of
    the shuffle, or 262,144 sampled vectors. The vectors of poor rows pass through the object store, which
    spills to disk.

    Raises:
        RuntimeError: A poor row has no embedding.
    """
    import ray

    blocks, rows_by_group, left_out, weights = _load(curated, embed, config)
    # The residual twice: references to its rows with vectors, and its rows as a table without them.
    solved, residual, residual_rows = _cluster_all(blocks, rows_by_group, weights, config, seed, "cluster")
    # Cell borders separate similar rows, so the residual of every divided group is clustered once more.
    divided = {group for group, rows in rows_by_group.items() if cell_count(rows, config.cell_rows) > 1}
    again = Counter(group for group in residual_rows["group"].to_pylist() if group in divided)
    if again:
        more, _, still = _cluster_all(residual, again, weights, config, seed, "cluster the rest")
        solved += more
        undivided = pc.invert(pc.is_in(residual_rows["group"], pa.array(sorted(divided))))
        residual_rows = pa.concat_tables([residual_rows.filter(undivided), still])
    clusters = sort_with_wide_offsets(
        pa.concat_tables([_CLUSTERED.empty_table(), *ray.get(solved)]), "cluster_id"
    )
    rejected = sort_with_wide_offsets(residual_rows.select(_REJECTED.names), "id")
    _write(out, clusters, rejected, data.rows_per_part)
    return _outcome(clusters, rejected, left_out)


def _load(
    curated: StageDir, embed: StageDir, config: ClusterConfig
) -> tuple[list[Any], Counter[str], Counter[str], Any]:
    """Blocks of poor rows in the object store, their number by group, those left out by reason, weights.

    The weights of words are a reference to float32 [BUCKETS], or None where content is not compared.
    """
    import ray

    cut, high, rated = find_cut(curated, config.low_below)
    say(f"  cluster: low_below {config.low_below} leaves {rated - high} of {rated} rated rows")
    chunks = in_blocks(curated.parts())
    task = ray.remote(load_block).options(num_returns=3)
    with track("poor rows", total=len(chunks)) as advance:
        loaded = run_tasks(
            [partial(task.remote, curated, embed, chunk, config, cut) for chunk in chunks],
            config.num_tasks,
            advance,
        )
    rows_by_group: Counter[str] = Counter()
    left_out: Counter[str] = Counter(high=0, unrated=0)
    for groups, reasons in ray.get([tally for _, tally, _ in loaded]):
        rows_by_group.update(groups)
        left_out.update(reasons)
    weights = None
    if config.min_content_similarity > 0:
        frequencies = np.zeros(BUCKETS, dtype=np.int64)
        for _, _, counts in loaded:  # one at a time: 1 MB of each block
            frequencies += ray.get(counts)
        weights = ray.put(word_weights(frequencies, rows_by_group.total()))
    return [block for block, _, _ in loaded], rows_by_group, left_out, weights


def load_block(
    curated: StageDir, embed: StageDir, parts: Sequence[str], config: ClusterConfig, cut: ScoreCut
) -> tuple[pa.Table, tuple[Counter[str], Counter[str]], np.ndarray | None]:
    """The poor rows {id, source, task_type, group, reason, embedding} of some parts, and what was counted.

    Where content is compared the rows have it in the column `content`, and their document frequencies are
    returned, int32 [BUCKETS].
    """
    by_content = config.min_content_similarity > 0
    texts = ["prompt", "completion"] if by_content else []
    tables: list[pa.Table] = []
    groups: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for part in parts:
        rows = curated.read_part(part, ["source", "task_type", *texts, *columns_for(config.low_below)])
        score = rows["curated_score"]
        low = pc.and_(pc.is_valid(score), pc.invert(is_above(rows, cut)))
        left_out.update(
            unrated=score.null_count, high=rows.num_rows - score.null_count - (pc.sum(low).as_py() or 0)
        )
        rows = rows.filter(low).select(["id", "source", "task_type", *texts])
        if by_content:
            content = content_of(rows["prompt"].to_pylist(), rows["completion"].to_pylist())
            rows = rows.drop_columns(texts).append_column("content", content)
        keys = ["source", "task_type"] if config.by_source else ["task_type"]
        joined = pc.binary_join_element_wise(*(rows[key] for key in keys), "\t", null_handling="replace")
        rows = rows.append_column("group", joined)
        rows = rows.append_column("reason", pa.nulls(rows.num_rows, pa.string()))
        groups.update(rows["group"].to_pylist())
        if rows.num_rows:
            tables.append(rows.append_column("embedding", vectors_for(rows["id"], embed, part)))
    block = pa.concat_tables(tables) if tables else _empty_block(by_content)
    return block, (groups, left_out), document_frequencies(block["content"]) if by_content else None


def _empty_block(by_content: bool) -> pa.Table:
    names = ["id", "source", "task_type", "group", "reason"]
    columns = [(name, pa.string()) for name in names] + ([("content", CONTENT)] if by_content else [])
    empty = pa.FixedSizeListArray.from_arrays(pa.array([], pa.float16()), 1)
    return pa.schema(columns).empty_table().append_column("embedding", empty)


def _cluster_all(
    blocks: Sequence[Any],
    rows_by_group: Mapping[str, int],
    weights: Any,
    config: ClusterConfig,
    seed: int,
    label: str,
) -> tuple[list[Any], list[Any], pa.Table]:
    """Clusters rows cell by cell: references to clusters and to the residual, and the residual listed."""
    import ray

    if not rows_by_group:
        return [], [], _RESIDUAL.empty_table()
    plan = plan_cells(blocks, rows_by_group, config.cell_rows, config.num_tasks, seed)
    buckets = shuffle(blocks, plan, config.num_tasks)
    task = ray.remote(cluster_bucket).options(num_returns=3)
    with track(label, total=len(buckets)) as advance:
        solved = run_tasks(
            [partial(task.remote, config, seed, weights, *pieces) for pieces in buckets],
            config.num_tasks,
            advance,
        )
    listed = pa.concat_tables([_RESIDUAL.empty_table(), *ray.get([result[2] for result in solved])])
    return [result[0] for result in solved], [result[1] for result in solved], listed


def cluster_bucket(
    config: ClusterConfig, seed: int, weights: np.ndarray | None, *pieces: pa.Table
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Clusters the cells of one bucket: the clusters, the residual with its vectors, and without them.

    Args:
        weights: float32 [BUCKETS], of words; None where content is not compared.
    """
    filled = [piece for piece in pieces if piece.num_rows]
    if not filled:
        return _CLUSTERED.empty_table(), _empty_block(weights is not None), _RESIDUAL.empty_table()
    rows = pa.concat_tables(filled).combine_chunks()
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("cell", "ascending"), ("id", "ascending")]))
    cells = rows["cell"].to_numpy()
    clusters: list[dict[str, Any]] = []
    residual: dict[int, str] = {}
    for start, stop in _runs(cells):
        cell = rows.slice(start, stop - start)
        vectors = vectors_of(cell)
        cell_seed = int(
            schemas.content_id(str(seed), cell["group"][0].as_py(), cell["id"][0].as_py())[:15], 16
        )
        for inner in split_cell(vectors, config.cell_rows, cell_seed):
            found, left = cluster_cell(cell.take(pa.array(inner)), vectors[inner], config, weights)
            clusters += found
            residual |= {start + int(inner[row]): reason for row, reason in left.items()}
    left_rows = rows.take(pa.array(sorted(residual), pa.int64())).drop_columns(["cell", "reason"])
    reasons = pa.array([residual[row] for row in sorted(residual)], pa.string())
    left_rows = left_rows.append_column("reason", reasons)
    return schemas.table(clusters, _CLUSTERED), left_rows, left_rows.select(_RESIDUAL.names)


def _runs(cells: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of equal numbers."""
    return list(itertools.pairwise([0, *(np.flatnonzero(np.diff(cells)) + 1).tolist(), len(cells)]))


def cluster_cell(
    rows: pa.Table, vectors: np.ndarray, config: ClusterConfig, weights: np.ndarray | None = None
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Clusters one cell.

    Args:
        rows: {id, source, task_type, reason, …}, sorted by id; `reason` is why an earlier cell left the row.
        vectors: float32 [n, d] of these rows.
        weights: float32 [BUCKETS], of the words in the column `content`; None: content is not compared.

    Returns:
        The clusters as rows, and the reason of each row of the residual.
    """
    bounds = Bounds(config.min_size, config.max_size, config.min_similarity)
    mergeable = None
    if weights is not None:
        mergeable = content_similarity(rows["content"], weights) >= config.min_content_similarity
    labels = bounded_clusters(vectors, bounds, mergeable)
    cosines = centre_cosines(vectors, labels)
    ids, earlier = rows["id"].to_pylist(), rows["reason"].to_pylist()
    sources, task_types = rows["source"].to_pylist(), rows["task_type"].to_pylist()
    clusters = []
    for members in clusters_of(labels):
        order = members[np.lexsort((members, -cosines[members]))]
        central = int(order[0])
        clusters.append(
            {
                "cluster_id": schemas.content_id(*(ids[row] for row in members)),
                "member_ids": [ids[row] for row in order],
                "size": len(members),
                "cohesion": float(cosines[members].mean()),
                "source": sources[central],
                "task_type": task_types[central],
                "central_id": ids[central],
                "cosines": cosines[order].tolist(),
            }
        )
    # A row keeps the reason of its first cell if that is the stronger: its kin may be in no residual.
    reasons = residual_reasons(vectors, labels, bounds, mergeable)
    return clusters, {
        row: max(reason, earlier[row] or reason, key=REASONS.index) for row, reason in reasons.items()
    }


def sort_with_wide_offsets(table: pa.Table, key: str) -> pa.Table:
    """Rows in the order of a column, with 64-bit offsets: sorting joins the chunks of each column."""
    wide = [field.with_type(_WIDE.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(wide)).sort_by(key)


def with_narrow_offsets(table: pa.Table, start: int, count: int, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` of up to `count` rows, with its types.

    The rows are copied first: a cast of 64-bit offsets to 32-bit ones looks at where a slice ends in the
    whole column, and is refused beyond 2 GiB however short the slice.
    """
    rows = table.select(schema.names).slice(start, count)
    return rows.take(pa.array(np.arange(rows.num_rows))).cast(schema)


def _write(out: StageDir, clusters: pa.Table, rejected: pa.Table, rows_per_part: int) -> None:
    """Writes clusters and residual in parts; at least one, so that the stage's folder is there."""
    count = max(1, *(-(-table.num_rows // rows_per_part) for table in (clusters, rejected)))
    for part in range(count):
        rows = with_narrow_offsets(clusters, part * rows_per_part, rows_per_part, OUTPUT)
        residual = with_narrow_offsets(rejected, part * rows_per_part, rows_per_part, _REJECTED)
        reasons = Counter(residual["reason"].to_pylist())
        receipt = Receipt(part, 0, rows.num_rows, residual.num_rows, dict(sorted(reasons.items())))
        out.write_part(part, rows, residual, receipt)


def _outcome(clusters: pa.Table, rejected: pa.Table, left_out: Counter[str]) -> Outcome:
    """What the manifest says: every curated row is used or left out for a reason."""
    sizes = Counter(clusters["size"].to_pylist())
    cosines = clusters["cosines"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    left = Counter(left_out)
    left.update(rejected["reason"].to_pylist())
    used = sum(size * count for size, count in sizes.items())
    metrics: dict[str, Any] = {
        "clusters": clusters.num_rows,
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "residual": rejected.num_rows,
    }
    if used:
        metrics["cohesion/mean"] = round(float(cosines.mean()), 4)
        metrics["cohesion/p1"] = round(float(np.percentile(cosines, 1)), 4)
    return Outcome(
        metrics=metrics, rows_in=used + left.total(), rows_used=used, left_out=dict(sorted(left.items()))
    )
