"""Gathers the member rows of each part of clusters.

Clusters are sorted by hash, so the members of one part are spread over the whole pool. A shuffle in two steps
gathers them while reading the pool once: every block of curated parts is split by bucket of cluster parts,
then each bucket is split by part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.core.run_dir import StageDir
from lm_mixup.distributed.ray_tasks import as_refs, in_blocks, remote_with_returns, run_tasks

_COLUMNS = ["id", "prompt", "completion"]
_ID = pa.large_string()  # all ids of 67 million rows are more than a `string` array holds


def gather_members(
    cluster: StageDir, curated: StageDir, parts: Sequence[str], num_tasks: int
) -> dict[str, Any]:
    """Brings the members of each part of clusters together in the object store.

    Memory: the driver, and each task, hold the ids of all members, about 40 bytes each; a task holds a block
    of curated parts or a bucket of members besides. The texts of the members pass through the object store,
    which spills to disk.

    Returns:
        For each part a reference to a table {id, prompt, completion, part}.
    """
    import ray

    owners = ray.put(owners_of(cluster, parts))
    buckets = in_blocks(range(len(parts)))
    edges = [bucket[0] for bucket in buckets] + [len(parts)]
    task = remote_with_returns(len(buckets), divide_block)
    divided = run_tasks(
        [partial(task.remote, curated, block, owners, edges) for block in in_blocks(curated.parts())],
        num_tasks,
    )
    gathered = run_tasks(
        [
            partial(
                remote_with_returns(len(bucket), divide_bucket).remote,
                [*bucket, bucket[-1] + 1],
                *(as_refs(pieces)[number] for pieces in divided),
            )
            for number, bucket in enumerate(buckets)
        ],
        num_tasks,
    )
    return dict(zip(parts, itertools.chain.from_iterable(map(as_refs, gathered)), strict=True))


def owners_of(cluster: StageDir, parts: Sequence[str]) -> pa.Table:
    """{id, part}: every member, and the number of the part whose cluster it is in."""
    tables = []
    for number, relative in enumerate(parts):
        ids = cluster.read_part(relative, ["member_ids"])["member_ids"].combine_chunks().flatten()
        tables.append(pa.table({"id": ids.cast(_ID), "part": np.full(len(ids), number, np.int32)}))
    return pa.concat_tables(tables).combine_chunks()


def divide_block(
    curated: StageDir, block: Sequence[str], owners: pa.Table, edges: Sequence[int]
) -> list[pa.Table]:
    """The members {id, prompt, completion, part} among the rows of some curated parts, by bucket of parts."""
    rows = pa.concat_tables([curated.read_part(part, _COLUMNS) for part in block])
    place = pc.index_in(rows["id"].cast(_ID), value_set=owners["id"].combine_chunks())
    member = pc.is_valid(place)
    rows = rows.filter(member)
    return _divided(rows.append_column("part", owners["part"].take(place.filter(member))), edges)


def divide_bucket(edges: Sequence[int], *pieces: pa.Table) -> list[pa.Table]:
    """The members of each part of a bucket."""
    return _divided(pa.concat_tables(pieces), edges)


def _divided(rows: pa.Table, edges: Sequence[int]) -> list[pa.Table]:
    """The rows whose `part` is from one edge to the next."""
    rows = rows.sort_by("part")
    cuts = np.searchsorted(rows["part"].to_numpy(), edges).tolist()
    return [rows.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
