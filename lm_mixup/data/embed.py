"""Embeds instruction rows: one fp16 unit vector a row, kept for every later search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup import tasks
from lm_mixup.backends.embedder import Embedder, resolve_path
from lm_mixup.config import EmbedderConfig
from lm_mixup.parts import PartResult, map_parts
from lm_mixup.runs import Outcome, StageDir


def embed(source: StageDir, out: StageDir, config: EmbedderConfig, *, id_column: str = "id") -> Outcome:
    """Embeds `tasks.write_input(prompt, completion)` of every row: the text the policy would be given.

    Input columns: `id_column`, prompt, completion. Output columns: id, embedding (fixed-size list of float16,
    of length 1). Part i of the output holds the rows of part i of the source, in order.

    Args:
        source: The rows.
        out: Where the parts are written.
        config: The embedder.
        id_column: The column that becomes `id`.

    Raises:
        InputError: The embedder's path does not exist.
    """
    resolve_path(config.path)  # fails here and at once, not inside an actor
    map_parts(
        out,
        source.parts(),
        make_work,
        {"source": source, "config": config, "id_column": id_column},
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    return Outcome(metrics={"embedder": config.path})


def make_work(source: StageDir, config: EmbedderConfig, id_column: str) -> Callable[[str], PartResult]:
    """Loads the embedder; the function embeds one part."""
    embedder = Embedder(config)

    def work(part: str) -> PartResult:
        rows = source.read_part(part, [id_column, "prompt", "completion"])
        pairs = zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)
        vectors = embedder.embed([tasks.write_input(prompt, completion) for prompt, completion in pairs])
        return PartResult(embedding_table(rows[id_column], vectors), rows_in=rows.num_rows)

    return work


def embedding_table(ids: pa.ChunkedArray | pa.Array, vectors: np.ndarray) -> pa.Table:
    """The EMBED rows {id, embedding} from ids and float vectors [N, d]."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"id": ids, "embedding": column})


def vectors_of(table: pa.Table) -> np.ndarray:
    """The embeddings of a table as float32 [N, d], brought back to length 1 after their rounding to fp16."""
    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)


def vectors_for(ids: pa.ChunkedArray | pa.Array, embed: StageDir, part: str = "") -> pa.FixedSizeListArray:
    """The embeddings of some rows, in the order of their ids.

    Args:
        ids: The rows' ids.
        embed: The embeddings.
        part: The part file the rows come from, if they come from one. The embeddings' part of that name is
            read first, and the others only for rows it lacks: stages that map rows to rows keep them in their
            part.

    Raises:
        RuntimeError: A row has no embedding.
    """
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    name = part.rsplit("/", 1)[-1]
    missing = np.arange(len(ids))
    found: list[pa.Array] = []
    places: list[np.ndarray] = []
    for candidate in sorted(embed.parts(), key=lambda path: not path.endswith(name)):
        table = embed.read_part(candidate, ["id", "embedding"])
        where = pc.index_in(ids.take(pa.array(missing)), table["id"].combine_chunks())
        hit = where.is_valid().to_numpy(zero_copy_only=False)
        found.append(table["embedding"].combine_chunks().take(where.drop_null()))
        places.append(missing[hit])
        missing = missing[~hit]
        if not len(missing):
            order = np.argsort(np.concatenate(places))
            return pa.concat_arrays(found).take(pa.array(order))
    raise RuntimeError(f"{embed.name} has no embedding of row {ids[int(missing[0])].as_py()} {part}".rstrip())
