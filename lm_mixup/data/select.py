"""The final training set: the best distilled rows and the best of the originals, in a fixed proportion.

Each side has a quota, budget × its share. A side with too few rows gives what it has and the other does not
fill the gap: filling would turn a "5:5" into a set of originals, and shrinking the other side would throw
away rows that were asked for. The shortfall stands in the metrics beside the share that came out.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup import records
from lm_mixup.config import SelectConfig
from lm_mixup.data.embed import vectors_for, vectors_of
from lm_mixup.data.longtail import long_tail_scores
from lm_mixup.data.rankings import budget_rows, hash_of, quotas, rank
from lm_mixup.progress import say
from lm_mixup.runs import Outcome, Receipt, StageDir

# Long tail among originals is an exact search on the driver: 100,000 rows of 1024-d are 0.4 GB and minutes.
MOST_ORIGINALS = 100_000
_ROWS_PER_PART = 8_192
# Characters that JSON leaves alone and many readers take for the end of a line.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}

_CANDIDATE = pa.schema(
    [
        ("id", pa.string()),
        ("content", pa.string()),
        ("score", pa.int8()),
        ("expected", pa.float32()),
        ("length", pa.int64()),
        ("long_tail", pa.float32()),
    ]
)
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
    ]
)


def select(
    distilled: StageDir,
    curated: StageDir,
    embed: StageDir,
    out: StageDir,
    config: SelectConfig,
    seed: int,
) -> Outcome:
    """Chooses the training set and writes it as parts and as `train.jsonl`.

    Input columns: of the distilled rows prompt, completion, parent_ids, task_type, score, long_tail; of the
    curated ones id, prompt, completion, task_type, curated_score; of both, if there, expected; and the
    embeddings, for long tail. Output:
    `OUTPUT`, in an order that the seed shuffles. `train.jsonl` has prompt, completion, id, origin and
    parent_ids. A percentage budget is of the rows of `curated`.

    Never chosen: a score below `min_score`, a missing one, an empty prompt or completion, and the second of
    two rows with the same text (a distilled row goes before an original). Under `long_tail`, originals are
    ranked among a seeded sample of at most 100,000 candidates, or of the quota if that is more.

    Memory of the driver: about 100 bytes a candidate, the sample's vectors, and the chosen rows.
    """
    left_out: Counter[str] = Counter()
    ours = _candidates(distilled, "distilled", config.min_score, left_out)
    pool_rows, theirs = _rows_of(curated), _candidates(curated, "original", config.min_score, left_out)
    budget = budget_rows(config.budget, pool_rows)
    quota = quotas(budget, config.original_ratio)

    ours = _best(ours, quota.distilled, config, seed, "distilled", left_out)
    fresh = pc.invert(pc.is_in(theirs["content"], ours["content"].combine_chunks()))
    left_out["original_duplicate"] += theirs.num_rows - (pc.sum(fresh).as_py() or 0)
    theirs = theirs.filter(fresh)
    if config.method == "long_tail" and quota.original:
        theirs = _sampled(theirs, max(MOST_ORIGINALS, quota.original), seed, left_out)
        theirs = _with_long_tail(theirs, embed, config.neighbors)
    theirs = _best(theirs, quota.original, config, seed, "original", left_out)

    rows = _fetch(distilled, ours, "distilled") + _fetch(curated, theirs, "original")
    rows.sort(key=lambda row: (hash_of(seed, row["id"]), row["id"]))
    _write(out, rows)
    short = {"distilled": quota.distilled - ours.num_rows, "original": quota.original - theirs.num_rows}
    for origin, missing in short.items():
        if missing:
            say(f"  select: {missing} {origin} rows fewer than their share of the budget of {budget}")
    rows_in = _rows_of(distilled) + pool_rows
    metrics = {
        "budget": budget,
        "distilled": ours.num_rows,
        "original": theirs.num_rows,
        "shortfall/distilled": short["distilled"],
        "shortfall/original": short["original"],
        "original_share": round(theirs.num_rows / len(rows), 4) if rows else None,
    }
    files = [*out.parts(), f"{out.name}/train.jsonl"]
    left = {reason: count for reason, count in sorted(left_out.items()) if count}
    return Outcome(metrics, rows_used=len(rows), left_out=left, rows_in=rows_in, files=files)


def _rows_of(stage: StageDir) -> int:
    return sum(table.num_rows for table in stage.iter_parts(["prompt"]))


def _candidates(stage: StageDir, origin: str, min_score: int, left_out: Counter[str]) -> pa.Table:
    """The rows of a stage that may be chosen, without their text, sorted by id; the others are counted."""
    score_column = "score" if origin == "distilled" else "curated_score"
    wanted = ["prompt", "completion", score_column, "expected"]
    wanted.append("long_tail" if origin == "distilled" else "id")
    listed: list[dict[str, Any]] = []
    for table in stage.iter_parts(wanted):
        for row in table.to_pylist():
            reason = _refusal(row, score_column, min_score)
            if reason:
                left_out[f"{origin}_{reason}"] += 1
                continue
            content = records.content_id(row["prompt"], row["completion"])
            listed.append(
                {
                    "id": row.get("id", content),
                    "content": content,
                    "score": row[score_column],
                    "expected": row.get("expected"),
                    "length": len(row["completion"]),
                    "long_tail": row.get("long_tail"),
                }
            )
    # Sorted by id, so that which of two equal rows stays does not depend on the parts.
    candidates = records.table(listed, _CANDIDATE).sort_by([("id", "ascending"), ("content", "ascending")])
    first = np.unique(np.array(candidates["content"].to_pylist(), dtype=str), return_index=True)[1]
    left_out[f"{origin}_duplicate"] += candidates.num_rows - len(first)
    return candidates.take(pa.array(np.sort(first)))


def _refusal(row: dict[str, Any], score_column: str, min_score: int) -> str | None:
    """Why a row may not be chosen."""
    if row[score_column] is None:
        return "unrated"
    if row[score_column] < min_score:
        return f"score_below_{min_score}"
    if not (row["prompt"] or "").strip() or not (row["completion"] or "").strip():
        return "empty"
    return None


def _sampled(candidates: pa.Table, most: int, seed: int, left_out: Counter[str]) -> pa.Table:
    """At most so many candidates: those with the least hash of (seed, id)."""
    if candidates.num_rows <= most:
        return candidates
    left_out["original_not_sampled"] += candidates.num_rows - most
    return candidates.take(pa.array(np.sort(rank(candidates, "random", seed)[:most])))


def _with_long_tail(candidates: pa.Table, embed: StageDir, k: int) -> pa.Table:
    """The candidates with their long-tail score among each other."""
    if not candidates.num_rows:
        return candidates
    vectors = vectors_of(pa.table({"embedding": vectors_for(candidates["id"], embed)}))
    scores = long_tail_scores(vectors, k)
    place = candidates.schema.get_field_index("long_tail")
    return candidates.set_column(place, "long_tail", pa.array(scores, pa.float32()))


def _best(
    candidates: pa.Table, quota: int, config: SelectConfig, seed: int, origin: str, left_out: Counter[str]
) -> pa.Table:
    """The first `quota` of the ranking."""
    if candidates.num_rows <= quota:
        return candidates
    left_out[f"{origin}_over_budget"] += candidates.num_rows - quota
    order = rank(candidates, config.method, seed) if quota else np.zeros(0, np.int64)
    return candidates.take(pa.array(order[:quota]))


def _fetch(stage: StageDir, chosen: pa.Table, origin: str) -> list[dict[str, Any]]:
    """The chosen rows of one side, each once, with their text."""
    waiting = {row["content"]: row for row in chosen.to_pylist()}
    columns = ["prompt", "completion", "task_type"] + (["parent_ids"] if origin == "distilled" else ["id"])
    rows: list[dict[str, Any]] = []
    for table in stage.iter_parts(columns) if waiting else ():
        for row in table.to_pylist():
            picked = waiting.get(records.content_id(row["prompt"] or "", row["completion"] or ""))
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
                }
            )
    return rows


def _write(out: StageDir, rows: list[dict[str, Any]]) -> None:
    """Parts (at least one), then the training set as JSON lines."""
    table = records.table(rows, OUTPUT)
    for part, start in enumerate(range(0, max(1, table.num_rows), _ROWS_PER_PART)):
        piece = table.slice(start, _ROWS_PER_PART)
        out.write_part(part, piece, None, Receipt(part, 0, piece.num_rows, 0))
    fields = ("prompt", "completion", "id", "origin", "parent_ids")
    lines = (json.dumps({name: row[name] for name in fields}, ensure_ascii=False) for row in rows)
    text = "".join(f"{line.translate(_LINE_ENDS)}\n" for line in lines)
    out.run.write_bytes(f"{out.name}/train.jsonl", text.encode("utf-8"))
