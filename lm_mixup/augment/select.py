"""Stage `select`: the training set, the best distilled rows and the best originals in a fixed proportion.

Each side has a quota, budget × its share. A side with too few rows leaves its quota unfilled: filling it from
the other side would turn "5:5" into a set of originals, and shrinking the other side would discard requested
rows. The quotas of strata follow the same rule. The metrics report the shortfalls and the resulting share.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.embed import vectors_for, vectors_of
from lm_mixup.augment.rate_distilled import kept_of
from lm_mixup.augment.selection.candidates import (
    MEASURED_BY,
    Measure,
    Origin,
    candidates,
    long_tail_in_pool,
    measured_before,
)
from lm_mixup.augment.selection.deita import take_diverse
from lm_mixup.augment.selection.rank import budget_rows, fill, quotas, rank, strata_quotas
from lm_mixup.augment.selection.score_cut import ScoreCut, find_cut
from lm_mixup.augment.vector_search.neighbor_table import long_tail_scores
from lm_mixup.config import SelectConfig
from lm_mixup.config.section import share_of
from lm_mixup.core import schemas
from lm_mixup.core.draws import hash_of
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, Receipt, StageDir

# Long tail among originals is an exact search on the driver: 100,000 rows of 1024-d are 0.4 GB and minutes.
MOST_ORIGINALS = 100_000
_ROWS_PER_PART = 8_192
# Characters that JSON does not escape and that many readers treat as the end of a line.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}

OUTPUT = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("origin", pa.string()),
        ("parent_ids", pa.list_(pa.string())),
        ("task_type", pa.string()),
        ("score", pa.int8()),
        ("long_tail", pa.float32()),
        ("perplexity", pa.float64()),
        ("influence", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Side:
    """What one side gives.

    Attributes:
        rows: The chosen candidates.
        quota: Rows it was asked for.
        strata: {candidates, quota, rows, shortfall} of each stratum.
        vectors: Under `deita`, those of all rows chosen so far, float32 [T, d].
    """

    rows: pa.Table
    quota: int
    strata: dict[str, dict[str, int]] = field(default_factory=dict)
    vectors: np.ndarray | None = None

    @property
    def shortfall(self) -> int:
        """Rows it lacks."""
        return self.quota - self.rows.num_rows


def select(
    distilled: StageDir,
    curated: StageDir,
    embed: StageDir,
    neighbors: StageDir,
    measured: StageDir | None,
    out: StageDir,
    config: SelectConfig,
    seed: int,
) -> Outcome:
    """Chooses the training set and writes it as parts and as `train.jsonl`.

    Input columns: of the distilled rows prompt, completion, parent_ids, task_type, score, long_tail, and
    with `faithfulness_weight` faithfulness and coverage; of the curated ones id, prompt, completion,
    task_type, curated_score; of both what the method reads (`expected`, `overall`, `complexity`). Output:
    `OUTPUT`, in an order that the seed shuffles. `train.jsonl` has prompt, completion, id, origin and
    parent_ids. A percentage budget is of the rows of `curated`.

    Never chosen: an empty prompt or completion, the second of two rows with the same text (a distilled row
    goes before an original), and what the method refuses (`candidates`): a missing score or one below
    `min_score`, or the method's own threshold. Under `long_tail`, originals are ranked among a seeded sample
    of at most 100,000 candidates, or of the quota if that is more; `knn_diversity` and `ds2` read their
    neighbours in the whole pool; under `deita`, originals are compared with the distilled rows too.

    Memory of the driver: about 400 bytes a candidate, the vectors that the method compares, and the chosen
    rows.

    Args:
        embed: Their embeddings, for `long_tail` and `deita`.
        neighbors: Their nearest neighbours, part for part the same rows, for `knn_diversity` and `ds2`.
        seed: Of ties, samples and the final order.
        measured: What the stage `perplexity` or `influence` wrote about the two, for that method.
    """
    left_out: Counter[str] = Counter()
    distilled_rows, originals = _both_sides(distilled, curated, neighbors, measured, config, left_out)
    pool_rows = _rows_of(curated)
    budget = budget_rows(config.budget, pool_rows)
    quota = quotas(budget, config.original_ratio)

    from_distilled = _choose(
        distilled_rows, quota.distilled, config, seed, "distilled", left_out, kept_of(distilled), None
    )
    originals = _without_duplicates(from_distilled.rows, originals, left_out)
    if config.method == "long_tail" and quota.original:
        originals = _sampled(originals, max(MOST_ORIGINALS, quota.original), seed, left_out)
        originals = _with_long_tail(originals, embed, config.neighbors)
    from_originals = _choose(
        originals, quota.original, config, seed, "original", left_out, embed, from_distilled.vectors
    )

    rows = _fetch(distilled, from_distilled.rows, "distilled")
    rows += _fetch(curated, from_originals.rows, "original")
    rows.sort(key=lambda row: (hash_of(seed, row["id"]), row["id"]))
    _write(out, rows)
    return Outcome(
        _metrics(budget, from_distilled, from_originals),
        rows_used=len(rows),
        left_out={reason: count for reason, count in sorted(left_out.items()) if count},
        rows_in=_rows_of(distilled) + pool_rows,
        files=[*out.parts(), f"{out.name}/train.jsonl"],
    )


def _metrics(budget: int, from_distilled: Side, from_originals: Side) -> dict[str, Any]:
    sides = {"distilled": from_distilled, "original": from_originals}
    for origin, side in sides.items():
        if side.shortfall:
            say(f"  select: {side.shortfall} {origin} rows fewer than their share of the budget of {budget}")
    total = from_distilled.rows.num_rows + from_originals.rows.num_rows
    return {
        "budget": budget,
        "distilled": from_distilled.rows.num_rows,
        "original": from_originals.rows.num_rows,
        "shortfall/distilled": from_distilled.shortfall,
        "shortfall/original": from_originals.shortfall,
        "original_share": round(from_originals.rows.num_rows / total, 4) if total else None,
        **{f"strata/{origin}": side.strata for origin, side in sides.items() if side.strata},
    }


def _rows_of(stage: StageDir) -> int:
    return sum(receipt.rows_out for receipt in stage.receipts().values())


def _both_sides(
    distilled: StageDir,
    curated: StageDir,
    neighbors: StageDir,
    measured: StageDir | None,
    config: SelectConfig,
    left_out: Counter[str],
) -> tuple[pa.Table, pa.Table]:
    """The candidates of both sides, with the figures that the method ranks by."""
    of_distilled: Measure | None = None
    of_originals: Measure | None = None
    if config.method in ("knn_diversity", "ds2"):
        of_originals = long_tail_in_pool(neighbors, config.neighbors)
    elif config.method in MEASURED_BY:
        if measured is None:
            raise ValueError(f"select.method {config.method} needs what its stage measured")
        column = MEASURED_BY[config.method]
        of_distilled = measured_before(measured, column, 0)
        of_originals = measured_before(measured, column, len(distilled.parts()))
    parents = curated if config.stratify_by == "source" else None
    cut: ScoreCut | None = None
    if share_of(config.min_score) is not None:
        cut, high, rated = find_cut(curated, config.min_score)
        say(f"  select: min_score {config.min_score} leaves {high} of {rated} rated rows of the pool")
    return (
        candidates(distilled, "distilled", config, left_out, of_distilled, parents, cut),
        candidates(curated, "original", config, left_out, of_originals, cut=cut),
    )


def _without_duplicates(chosen: pa.Table, found: pa.Table, left_out: Counter[str]) -> pa.Table:
    """The originals whose text no chosen distilled row has."""
    fresh = found.filter(pc.invert(pc.is_in(found["content"], chosen["content"].combine_chunks())))
    left_out["original_duplicate"] += found.num_rows - fresh.num_rows
    return fresh


def _sampled(found: pa.Table, most: int, seed: int, left_out: Counter[str]) -> pa.Table:
    """At most so many candidates: those with the least hash of (seed, id)."""
    if found.num_rows <= most:
        return found
    left_out["original_not_sampled"] += found.num_rows - most
    return found.take(pa.array(np.sort(rank(found, "random", seed)[:most])))


def _with_long_tail(found: pa.Table, embed: StageDir, k: int) -> pa.Table:
    """The candidates with their long-tail score among each other."""
    if not found.num_rows:
        return found
    scores = long_tail_scores(_vectors(found, np.arange(found.num_rows), embed), k)
    place = found.schema.get_field_index("long_tail")
    return found.set_column(place, "long_tail", pa.array(scores, pa.float32()))


def _vectors(found: pa.Table, rows: np.ndarray, embed: StageDir) -> np.ndarray:
    """Embeddings of some candidates, float32 [M, d]."""
    return vectors_of(pa.table({"embedding": vectors_for(found["id"].take(pa.array(rows)), embed)}))


def _choose(
    found: pa.Table,
    quota: int,
    config: SelectConfig,
    seed: int,
    origin: Origin,
    left_out: Counter[str],
    embed: StageDir,
    before: np.ndarray | None,
) -> Side:
    """The best of one side's candidates, up to the quota and that of each stratum."""
    names, strata = np.unique(np.array(found["stratum"].to_pylist(), dtype=str), return_inverse=True)
    counts = np.bincount(strata, minlength=len(names))
    room = strata_quotas(counts, quota)
    vectors, too_similar = before, 0
    weight = config.faithfulness_weight if origin == "distilled" else 0.0
    if config.method == "deita":
        order = rank(found, "deita", seed, faithfulness_weight=weight)
        threshold = config.similarity_threshold
        taken = take_diverse(
            order, strata, room, lambda rows: _vectors(found, rows, embed), threshold, before
        )
        chosen, too_similar, vectors = taken.rows, taken.too_similar, taken.vectors
    elif found.num_rows <= quota:
        chosen = np.arange(found.num_rows)
    else:
        order = np.arange(0)
        if quota:
            order = rank(found, config.method, seed, config.perplexity.take, weight)
        chosen = fill(order, strata, room)
    left_out[f"{origin}_too_similar"] += too_similar
    left_out[f"{origin}_over_budget"] += found.num_rows - len(chosen) - too_similar
    given = np.bincount(strata[chosen], minlength=len(names))
    figures = zip(names.tolist(), counts.tolist(), room.tolist(), given.tolist(), strict=True)
    by_stratum = {
        name: {"candidates": count, "quota": share, "rows": rows, "shortfall": share - rows}
        for name, count, share, rows in figures
        if config.stratify_by != "none"
    }
    return Side(found.take(pa.array(chosen, pa.int64())), quota, by_stratum, vectors)


def _fetch(stage: StageDir, chosen: pa.Table, origin: str) -> list[dict[str, Any]]:
    """The chosen rows of one side, each once, with their text."""
    waiting = {row["content"]: row for row in chosen.to_pylist()}
    columns = ["prompt", "completion", "task_type"] + (["parent_ids"] if origin == "distilled" else ["id"])
    rows: list[dict[str, Any]] = []
    for table in stage.iter_parts(columns) if waiting else ():
        for row in table.to_pylist():
            picked = waiting.get(schemas.content_id(row["prompt"] or "", row["completion"] or ""))
            if picked is None or row.get("id", picked["id"]) != picked["id"]:
                continue
            del waiting[picked["content"]]
            rows.append(
                {
                    "id": picked["id"],
                    "prompt": row["prompt"],
                    "completion": row["completion"],
                    "origin": origin,
                    "parent_ids": row.get("parent_ids") or [],
                    "task_type": row["task_type"],
                    "score": picked["score"],
                    "long_tail": picked["long_tail"],
                    "perplexity": picked["perplexity"],
                    "influence": picked["influence"],
                }
            )
    return rows


def _write(out: StageDir, rows: list[dict[str, Any]]) -> None:
    """Parts (at least one), then the training set as JSON lines."""
    table = schemas.table(rows, OUTPUT)
    for part, start in enumerate(range(0, max(1, table.num_rows), _ROWS_PER_PART)):
        piece = table.slice(start, _ROWS_PER_PART)
        out.write_part(part, piece, None, Receipt(part, 0, piece.num_rows, 0))
    fields = ("prompt", "completion", "id", "origin", "parent_ids")
    lines = (json.dumps({name: row[name] for name in fields}, ensure_ascii=False) for row in rows)
    text = "".join(f"{line.translate(_LINE_ENDS)}\n" for line in lines)
    out.run.write_bytes(f"{out.name}/train.jsonl", text.encode("utf-8"))
