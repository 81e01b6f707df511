"""The candidates for selection: the conditions of each method, and the values that it ranks by.

Texts are not kept: about 100 bytes per row, and 400 while rows are sorted. Methods with conditions of their
own (`OWN_RULE`) set no minimum for the curated score of originals, as in the papers they come from; every row
of the pool is then a candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.selection.score_cut import ScoreCut, row_is_above
from lm_mixup.augment.vector_search.neighbor_table import listed_distance
from lm_mixup.config import SelectConfig, SelectMethod
from lm_mixup.config.section import share_of
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import StageDir

Origin = Literal["distilled", "original"]
Row = dict[str, Any]
# A figure of every row of part i that lies in another stage; None where it has none.
Measure = Callable[[int, Sequence[Row]], Sequence[float | None]]

# The judge's own ratings that a method reads, in place of a floor under the curated score.
OWN_RULE: dict[SelectMethod, tuple[str, ...]] = {
    "random": (),
    "longest": (),
    "knn_diversity": (),
    "alpagasus": ("overall",),
    "deita": ("overall", "complexity"),
    "perplexity": (),
    "less": (),
}
# The column that a stage of its own measures for a method.
MEASURED_BY: dict[SelectMethod, str] = {"perplexity": "perplexity", "less": "influence"}
UNKNOWN = "unknown"  # the stratum of rows without the value

# 64-bit offsets: the ids of 67 million rows exceed 32-bit ones.
CANDIDATE = pa.schema(
    [
        ("id", pa.large_string()),
        ("content", pa.large_string()),
        ("score", pa.int8()),
        ("expected", pa.float32()),
        ("length", pa.int64()),
        ("long_tail", pa.float32()),
        ("overall", pa.int8()),
        ("complexity", pa.int8()),
        ("perplexity", pa.float64()),
        ("influence", pa.float32()),
        ("faithful", pa.float32()),
        ("stratum", pa.large_string()),
    ]
)


def candidates(
    stage: StageDir,
    origin: Origin,
    config: SelectConfig,
    left_out: Counter[str],
    measure: Measure | None = None,
    parents: StageDir | None = None,
    cut: ScoreCut | None = None,
) -> pa.Table:
    """The rows of one side that may be chosen, `CANDIDATE` sorted by id; the others are counted by reason.

    Args:
        stage: Distilled or curated rows.
        left_out: Where the others are counted, as `<origin>_<reason>`.
        measure: The figure that the method ranks by, where the rows do not have it: long tail, perplexity or
            influence.
        parents: The curated rows, where the source of distilled ones is asked for: it is that of their first
            parent (of all of them, if clusters keep to a source).
        cut: Where the pool's share of good rows ends, if `min_score` is a share.
    """
    sources = _sources_of_parents(stage, parents) if parents is not None else {}
    tables = [CANDIDATE.empty_table()]
    for number, table in enumerate(stage.iter_parts(_columns(origin, config))):
        rows = table.to_pylist()
        kept: list[Row] = []
        for row, figure in zip(rows, measure(number, rows) if measure else [None] * len(rows), strict=True):
            row["score"] = row["score" if origin == "distilled" else "curated_score"]
            if measure is not None:
                row[MEASURED_BY.get(config.method, "long_tail")] = figure
            reason = _refusal(row, config, cut)
            if reason:
                left_out[f"{origin}_{reason}"] += 1
            else:
                kept.append(_candidate(row, config, sources))
        tables.append(schemas.table(kept, CANDIDATE))
    # Sorted by id, so that which of two equal rows stays does not depend on the parts.
    found = pa.concat_tables(tables).sort_by([("id", "ascending"), ("content", "ascending")])
    contents = found["content"].combine_chunks().dictionary_encode().indices
    first = np.unique(contents.to_numpy(), return_index=True)[1]
    left_out[f"{origin}_duplicate"] += found.num_rows - len(first)
    return found.take(pa.array(np.sort(first)))


def _columns(origin: Origin, config: SelectConfig) -> list[str]:
    columns = {"prompt", "completion", *OWN_RULE.get(config.method, ())}
    if config.method == "score" or share_of(config.min_score) is not None:
        columns.add("expected")
    columns |= {"score", "long_tail"} if origin == "distilled" else {"curated_score", "id"}
    if origin == "distilled" and config.faithfulness_weight:
        columns |= {"faithfulness", "coverage"}
    if config.stratify_by == "task_type":
        columns.add("task_type")
    elif config.stratify_by == "source":
        columns.add("parent_ids" if origin == "distilled" else "source")
    return sorted(columns)


def _refusal(row: Row, config: SelectConfig, cut: ScoreCut | None) -> str | None:
    """Why a row may not be chosen."""
    judged = OWN_RULE.get(config.method, ("score",))
    if any(row[name] is None for name in judged):
        return "unrated"
    if config.method not in OWN_RULE:
        if cut is not None:
            # A distilled row has no place among equals of the pool: its text's hash gives it one.
            known = row.get("id") or schemas.content_id(row["prompt"] or "", row["completion"] or "")
            if not row_is_above(row["score"], row["expected"], known, cut):
                return "below_the_share"
        elif row["score"] < int(config.min_score):
            return f"score_below_{config.min_score}"
    if config.method == "alpagasus" and row["overall"] / 2 < config.score_threshold:
        return f"rating_below_{config.score_threshold:g}"
    if not (row["prompt"] or "").strip() or not (row["completion"] or "").strip():
        return "empty"
    if config.method in MEASURED_BY and row[MEASURED_BY[config.method]] is None:
        return "too_long"
    return None


def _candidate(row: Row, config: SelectConfig, sources: dict[str, str]) -> Row:
    content = schemas.content_id(row["prompt"], row["completion"])
    stratum = None
    if config.stratify_by == "source" and "parent_ids" in row:
        stratum = sources.get((row["parent_ids"] or [""])[0])
    elif config.stratify_by != "none":
        stratum = row[config.stratify_by]
    figures = ("score", "expected", "long_tail", "overall", "complexity", "perplexity", "influence")
    measured = "faithfulness" in row  # of distilled rows, where it weighs
    return {name: row.get(name) for name in figures} | {
        "faithful": row["faithfulness"] * row["coverage"] ** 3 if measured else None,
        "id": row.get("id", content),
        "content": content,
        "length": len(row["completion"]),
        "stratum": stratum or ("" if config.stratify_by == "none" else UNKNOWN),
    }


def _sources_of_parents(distilled: StageDir, curated: StageDir) -> dict[str, str]:
    """The sources of the first parents of distilled rows, by the parents' ids."""
    lists = (parents for table in distilled.iter_parts(["parent_ids"]) for parents in table[0].to_pylist())
    wanted = pa.array(sorted({parents[0] for parents in lists if parents}), pa.string())
    found: dict[str, str] = {}
    for table in curated.iter_parts(["id", "source"]):
        near = table.filter(pc.is_in(table["id"], wanted))
        found.update(zip(near["id"].to_pylist(), near["source"].to_pylist(), strict=True))
    return found


def long_tail_in_pool(neighbors: StageDir, k: int) -> Measure:
    """Mean distance to the k nearest rows of the whole pool, from the neighbour table.

    Raises:
        ValueError: The neighbours are not those of the same rows in the same order.
    """
    parts = neighbors.parts()

    def measure(number: int, rows: Sequence[Row]) -> Sequence[float | None]:
        table = neighbors.read_part(parts[number], ["id", "similarities"])
        if table["id"].to_pylist() != [row["id"] for row in rows]:
            raise ValueError("curated rows and neighbours are not the same rows in the same order")
        return listed_distance(table["similarities"].combine_chunks(), k).tolist()

    return measure


def measured_before(measured: StageDir, column: str, first: int) -> Measure:
    """A column of an earlier stage, of the side whose first part is that stage's part `first`."""
    parts = measured.parts()

    def measure(number: int, rows: Sequence[Row]) -> Sequence[float | None]:
        table = measured.read_part(parts[first + number], ["content", column])
        values = dict(zip(table["content"].to_pylist(), table[column].to_pylist(), strict=True))
        contents = (schemas.content_id(row["prompt"] or "", row["completion"] or "") for row in rows)
        return [values.get(content) for content in contents]

    return measure
