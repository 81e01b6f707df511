"""Stage `embed`: one fp16 unit vector per row, used by every later search.

Where the config asks for it, rows that are close to an evaluation item are rejected in this stage, so that no
row is embedded twice and no process holds the vectors of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.dedup.decontaminate_embeddings import EvalVectors, read_distinct_items, reject_similar
from lm_mixup.config import EmbedDecontaminateConfig, EmbedderConfig
from lm_mixup.core import task_types
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.models.embedder import Embedder
from lm_mixup.models.resolve import embedder_folder

_ITEMS_PER_PART = 2048

Items = Sequence[tuple[str, str]]


def embed(
    source: StageDir,
    out: StageDir,
    config: EmbedderConfig,
    decontaminate: EmbedDecontaminateConfig | None = None,
    *,
    id_column: str = "id",
) -> Outcome:
    """Embeds `task_types.write_input(prompt, completion)` of every row: the text the policy would be given.

    Input columns: `id_column`, prompt, completion. Output columns: id, embedding (fixed-size list of float16,
    of length 1). Part i of the output holds the rows of part i of the source, in order. Rejected, as
    `contaminated_embedding`: id, prompt, completion, match (the id of the evaluation item), similarity. The
    items' vectors lie in the stage's folder `evals`.

    Raises:
        InputError: The embedder's path does not exist; an evaluation set is missing, damaged or too large, or
            every row is close to one.
    """
    embedder_folder(config.path)  # fails here and at once, not inside an actor
    metrics: dict[str, Any] = {"embedder": config.path}
    shared, least = None, 1.0
    if decontaminate:
        import ray

        items, count = read_distinct_items(decontaminate)
        metrics |= {"eval_items": count, "eval_items_distinct": len(items)}
        shared, least = ray.put(_embed_items(out, items, config)), decontaminate.min_similarity
    _map(
        out,
        source.parts(),
        make_work,
        {"source": source, "config": config, "id_column": id_column, "evals": [shared], "least": least},
        config,
    )
    if decontaminate and not any(receipt.rows_out for receipt in out.receipts().values()):
        raise InputError("every row is close to an evaluation item; raise embed.decontaminate.min_similarity")
    return Outcome(metrics=metrics)


def _map(
    out: StageDir,
    items: Sequence[Any],
    work: Callable[..., Any],
    kwargs: dict[str, Any],
    config: EmbedderConfig,
    label: str | None = None,
) -> None:
    """`map_parts` with the resources of an embedder."""
    map_parts(
        out,
        items,
        work,
        kwargs,
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        label=label,
    )


def make_work(
    source: StageDir,
    config: EmbedderConfig,
    id_column: str,
    evals: Sequence[Any] = (None,),
    least: float = 1.0,
) -> Callable[[str], PartResult]:
    """Loads the embedder; the function embeds one part.

    Args:
        evals: One reference to the `EvalVectors` that rows are compared with, or None.
        least: Cosine from which a row is rejected.
    """
    import ray

    embedder = Embedder(config)
    known: EvalVectors | None = ray.get(evals[0]) if evals[0] is not None else None

    def work(part: str) -> PartResult:
        rows = source.read_part(part, [id_column, "prompt", "completion"])
        pairs = zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)
        vectors = embedder.embed([task_types.write_input(prompt, completion) for prompt, completion in pairs])
        if known is None:
            return PartResult(embedding_table(rows[id_column], vectors), rows_in=rows.num_rows)
        return reject_contaminated(rows.rename_columns({id_column: "id"}), vectors, known, least)

    return work


def reject_contaminated(rows: pa.Table, vectors: np.ndarray, evals: EvalVectors, least: float) -> PartResult:
    """The rows of the rows {id, prompt, completion} that are not close to an evaluation item."""
    keep, rejected, reached = reject_similar(rows, vectors, evals, least)
    kept = embedding_table(rows["id"].filter(pa.array(keep)), vectors[keep])
    return PartResult(kept, rejected, rows.num_rows, reached)


def _embed_items(out: StageDir, items: Items, config: EmbedderConfig) -> EvalVectors:
    """The evaluation items' vectors: embedded in actors as rows are, and kept, should the run be resumed."""
    folder = StageDir(out.run, f"{out.name}/evals")
    parts = [items[start : start + _ITEMS_PER_PART] for start in range(0, len(items), _ITEMS_PER_PART)]
    _map(folder, parts, make_items_work, {"config": config}, config, label="embed: evaluation sets")
    tables = list(folder.iter_parts())
    ids = [name for table in tables for name in table["id"].to_pylist()]
    return EvalVectors(ids, np.concatenate([vectors_of(table) for table in tables]))


def make_items_work(config: EmbedderConfig) -> Callable[[Items], PartResult]:
    """Loads the embedder; the function embeds some evaluation items."""
    embedder = Embedder(config)

    def work(items: Items) -> PartResult:
        # In the form of a row: without its marks an item is further from the rows that say the same.
        vectors = embedder.embed([task_types.write_input(text, "") for _, text in items])
        ids = pa.array([name for name, _ in items], pa.string())
        return PartResult(embedding_table(ids, vectors), rows_in=len(items))

    return work


def embedding_table(ids: pa.ChunkedArray | pa.Array, vectors: np.ndarray) -> pa.Table:
    """The rows {id, embedding} from ids and float vectors [N, d]."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"id": ids, "embedding": column})


def vectors_of(table: pa.Table) -> np.ndarray:
    """The embeddings of a table as float32 [N, d], normalised again after their rounding to fp16."""
    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)


def _parts_from(embed: StageDir, name: str) -> Iterator[str]:
    """The part of that name, if there is one, and then the others; their folder is listed only if need be."""
    own = f"{embed.name}/data/{name}"
    if name and embed.run.exists(own):
        yield own
    yield from (path for path in embed.parts() if path != own)


def vectors_for(ids: pa.ChunkedArray | pa.Array, embed: StageDir, part: str = "") -> pa.FixedSizeListArray:
    """The embeddings of some rows, in the order of their ids.

    Args:
        ids: The rows' ids, as `string` or `large_string`.
        part: The part file the rows come from, if they come from one. The embeddings' part of that name is
            read first, and the others are listed and read only for rows it lacks: stages that map rows to
            rows keep them in their part.

    Raises:
        RuntimeError: A row has no embedding.
    """
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    name = part.rsplit("/", 1)[-1]
    missing = np.arange(len(ids))
    found: list[pa.Array] = []
    places: list[np.ndarray] = []
    for candidate in _parts_from(embed, name):
        table = embed.read_part(candidate, ["id", "embedding"])
        where = pc.index_in(ids.take(pa.array(missing)), table["id"].combine_chunks().cast(ids.type))
        hit = where.is_valid().to_numpy(zero_copy_only=False)
        found.append(table["embedding"].combine_chunks().take(where.drop_null()))
        places.append(missing[hit])
        missing = missing[~hit]
        if not len(missing):
            order = np.argsort(np.concatenate(places))
            return pa.concat_arrays(found).take(pa.array(order))
    raise RuntimeError(f"{embed.name} has no embedding of row {ids[int(missing[0])].as_py()} {part}".rstrip())
