"""Stage `pair_samples`: which samples of a teacher model are merged, found by the nearness of their texts.

Samples are compared within a split and a task type, so a pair never joins what is held apart. Those whose
variants do not tell all their facts are no rows by themselves and are not paired either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.embed import vectors_of
from lm_mixup.config import BuildConfig
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.assemble import bundles_of

Pair = tuple[int, int, float]
_NEIGHBORS: Final = 32
_MOST_NEIGHBORS: Final = 256
_COLUMNS: Final = ["id", "split", "task_type", "passage_id", "attributes", "values"]
_VARIANT_COLUMNS: Final = ["target_id", "split", "task_type", "position", "attributes", "values"]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("partner_id", pa.string()),
        ("similarity", pa.float32()),
        ("split", pa.string()),
        ("task_type", pa.string()),
    ]
)


def pair_samples(
    generate: StageDir, degrade: StageDir, embed: StageDir, out: StageDir, config: BuildConfig
) -> Outcome:
    """Pairs samples of one split and task type that are near, and of different passages.

    An actor holds the embeddings of one split and task type: of 144K samples 30K, at 1024 dimensions 120 MB.

    Args:
        generate: The samples.
        degrade: Their variants, part by part.
        embed: Their embeddings, part by part.
        out: Where the pairs go: `SCHEMA`, each sample in one pair at most.
        config: The share of merged rows, and the least similarity.

    Returns:
        How many samples are in a pair, and why the others are in none: those that `mixture` leaves out too,
        with its reasons, and `not_paired`.
    """
    sizes: Counter[tuple[str, str]] = Counter()
    for part in generate.iter_parts(["split", "task_type"]):
        sizes.update(zip(part["split"].to_pylist(), part["task_type"].to_pylist(), strict=True))
    kwargs = {"generate": generate, "degrade": degrade, "embed": embed, "config": config}
    map_parts(out, sorted(sizes), _make_work, kwargs, num_actors=config.num_actors)
    receipts = out.receipts().values()
    left_out: Counter[str] = Counter()
    for receipt in receipts:
        left_out.update({reason: int(count) for reason, count in receipt.metrics.items()})
    paired = 2 * sum(receipt.rows_out for receipt in receipts)
    left_out["not_paired"] = sizes.total() - paired - left_out.total()
    return Outcome(rows_in=sizes.total(), rows_used=paired, left_out=dict(left_out))


def _make_work(generate: StageDir, degrade: StageDir, embed: StageDir, config: BuildConfig) -> Work:
    import faiss

    faiss.omp_set_num_threads(1)

    def work(group: Sequence[str]) -> PartResult:
        rows: list[pa.Table] = []
        vectors: list[np.ndarray] = []
        left_out: Counter[str] = Counter()
        parts = (
            generate.iter_parts(_COLUMNS),
            degrade.iter_parts(_VARIANT_COLUMNS),
            embed.iter_parts(["embedding"]),
        )
        for samples, variants, embedded in zip(*parts, strict=True):
            here = _of(samples, group)
            mine = samples.filter(here)
            bundles, lost = bundles_of(
                mine.to_pylist(), variants.filter(_of(variants, group)).to_pylist(), config
            )
            left_out.update(lost)
            usable = pa.array([bundle.target["id"] for bundle in bundles], pa.string())
            kept = pc.is_in(mine["id"], value_set=usable)
            rows.append(mine.filter(kept))
            vectors.append(vectors_of(embedded.filter(here).filter(kept)))
        paired = pair_group(pa.concat_tables(rows), np.concatenate(vectors), config)
        return replace(paired, rows_in=paired.rows_in + left_out.total(), metrics=dict(left_out))

    return work


def _of(rows: pa.Table, group: Sequence[str]) -> pa.ChunkedArray:
    """Which rows are of a split and task type."""
    split, task_type = group
    return pc.and_(pc.equal(rows["split"], split), pc.equal(rows["task_type"], task_type))


def pair_group(samples: pa.Table, vectors: np.ndarray, config: BuildConfig) -> PartResult:
    """The pairs of one split and task type.

    Args:
        samples: Columns id, split, task_type, passage_id.
        vectors: float32 [N, d], of length 1, in the order of the samples.
        config: The share of merged rows, and the least similarity.
    """
    # Each merge makes one row of two, so that merges / rows comes to the rate asked for.
    most = round(config.crosstopic_rate * samples.num_rows / (1 + config.crosstopic_rate))
    ids = samples["id"].to_pylist()
    pairs = nearest_pairs(
        vectors, ids, samples["passage_id"].to_pylist(), config.crosstopic_min_similarity, most
    )
    rows = [
        {
            "id": ids[first],
            "partner_id": ids[second],
            "similarity": similarity,
            "split": samples["split"][first].as_py(),
            "task_type": samples["task_type"][first].as_py(),
        }
        for first, second, similarity in pairs
    ]
    return PartResult(pa.Table.from_pylist(rows, SCHEMA), rows_in=samples.num_rows)


def nearest_pairs(
    vectors: np.ndarray, ids: Sequence[str], passages: Sequence[str], floor: float, most: int
) -> list[Pair]:
    """The nearest pairs of different passages, the nearest first, no sample in two.

    Each sample's nearest 32 others are looked at, and as many more as a passage has samples (256 at most).
    Ties go by ids, so the order of the samples does not matter.

    Args:
        vectors: float32 [N, d], of length 1.
        ids: Of the samples.
        passages: The passage of each.
        floor: Least cosine of a pair.
        most: Most pairs.

    Returns:
        (place of the one with the smaller id, place of the other, cosine to four digits).
    """
    if most < 1 or len(ids) < 2:
        return []
    siblings = max(Counter(passages).values()) - 1
    indices, similarities = knn(
        vectors, vectors, min(_MOST_NEIGHBORS, _NEIGHBORS + siblings), exclude_self=True
    )
    near: dict[tuple[int, int], float] = {}
    for one, (others, alike) in enumerate(zip(indices.tolist(), similarities.tolist(), strict=True)):
        for other, similarity in zip(others, alike, strict=True):
            if similarity >= floor and passages[one] != passages[other]:
                first, second = sorted((one, other), key=lambda place: ids[place])
                near[first, second] = round(similarity, 4)
    taken: set[int] = set()
    pairs: list[Pair] = []
    for (first, second), similarity in sorted(
        near.items(), key=lambda item: (-item[1], ids[item[0][0]], ids[item[0][1]])
    ):
        if len(pairs) == most:
            break
        if taken.isdisjoint((first, second)):
            taken |= {first, second}
            pairs.append((first, second, similarity))
    return pairs
