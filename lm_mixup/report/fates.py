"""What became of every pool row, by source and task type: the numbers behind the flow and the yields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from lm_mixup.core.run_dir import Kind, RunDir
from lm_mixup.report.parts import first_with_parts, read_parts

# Above it ids are not joined: the page would take minutes and gigabytes.
MOST_ROWS: Final = 500_000
MOST_SOURCES: Final = 7
OTHER: Final = "other sources"

POOR, GOOD, UNRATED = "poor", "good", "not rated"
CLUSTERED, NO_KIN = "in clusters", "no kin"
WRITTEN, BROKEN = "distilled", "not in format"
KEPT, REFUSED = "true to inputs, good", "refused"
CHOSEN, LEFT = "training set", "not needed"

# The way of a pool row through the stages. Each fate ends where the row did.
COLUMNS: Final = (
    (GOOD, POOR, UNRATED),
    (CLUSTERED, NO_KIN),
    (WRITTEN, BROKEN),
    (KEPT, REFUSED),
    (CHOSEN, LEFT),
)
Path = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The pool rows of one source or task type.

    `before` and `after` are the mean scores of the rows and of what was distilled from them, refused rows
    among them.
    """

    name: str
    rows: int
    poor: int
    clustered: int
    kept: int
    chosen: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Fates:
    """What became of the pool: pool rows by source and way, and the same by source and by task type."""

    rows: int
    paths: Counter[tuple[str, Path]]
    sources: list[Group]
    task_types: list[Group]


@dataclass
class _Tally:
    rows: int = 0
    paths: Counter[Path] = field(default_factory=Counter)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def read_fates(run: RunDir) -> Fates | None:
    """Joins the stages of `augment` by the ids of rows and clusters.

    Returns:
        None where no row is clustered yet, or the pool has more than `MOST_ROWS` rows.
    """
    cluster = run.stage("cluster").manifest()
    stage = first_with_parts(run, ("curate", "rate", "ingest"))
    if cluster is None or stage is None or cluster.rows_in > MOST_ROWS:
        return None
    ends = _cluster_ends(run)
    member_of = {
        member: row["cluster_id"]
        for row in _rows(run, "cluster", "data", ["cluster_id", "member_ids"])
        for member in row["member_ids"]
    }
    residual = {row["id"] for row in _rows(run, "cluster", "rejected", ["id"])}
    originals = {
        row["id"] for row in _rows(run, "select", "data", ["id", "origin"]) if row["origin"] == "original"
    }
    after = _distilled_scores(run)
    selected = run.stage("select").manifest() is not None
    paths: Counter[tuple[str, Path]] = Counter()
    by_source: dict[str, _Tally] = {}
    by_task: dict[str, _Tally] = {}
    first_seen: set[str] = set()
    for part in read_parts(stage, stage.parts(), ["id", "source", "task_type", "score", "curated_score"]):
        for row in part.to_pylist():
            score = row["score"] if row.get("curated_score") is None else row["curated_score"]
            cluster_id = member_of.get(row["id"])
            path = _path(row["id"], score, cluster_id, residual, originals, ends, selected)
            source = row.get("source") or "unknown"
            paths[source, path] += 1
            counted = cluster_id is not None and cluster_id not in first_seen and cluster_id in after
            if counted and cluster_id is not None:
                first_seen.add(cluster_id)
            for tally in (
                by_source.setdefault(source, _Tally()),
                by_task.setdefault(row["task_type"] or "unknown", _Tally()),
            ):
                tally.rows += 1
                tally.paths[path] += 1
                if score is not None:
                    tally.before.append(score)
                if counted and cluster_id is not None:
                    tally.after.append(after[cluster_id])
    rows = sum(paths.values())
    return Fates(rows, _fold(paths), _groups(by_source), _groups(by_task))


def _path(
    row: str,
    score: int | None,
    cluster: str | None,
    residual: set[str],
    originals: set[str],
    ends: Mapping[str, Path],
    selected: bool,
) -> Path:
    if cluster is not None and row not in originals:
        return (POOR, CLUSTERED, *ends.get(cluster, ()))
    if row in residual and row not in originals:
        return (POOR, NO_KIN)
    if score is None:
        return (UNRATED,)
    if row in originals:
        return (GOOD, CHOSEN)
    return (GOOD, LEFT) if selected else (GOOD,)


def _cluster_ends(run: RunDir) -> dict[str, Path]:
    """How far each cluster's distilled row came, as the rest of its members' way."""
    ends: dict[str, Path] = {}
    chosen = {
        row["id"] for row in _rows(run, "select", "data", ["id", "origin"]) if row["origin"] == "distilled"
    }
    selected = run.stage("select").manifest() is not None
    for row in _rows(run, "distill", "rejected", ["cluster_id"]):
        ends[row["cluster_id"]] = (BROKEN,)
    for row in _rows(run, "distill", "data", ["cluster_id"]):
        ends[row["cluster_id"]] = (WRITTEN,)
    for row in _rows(run, "rate_distilled", "rejected", ["cluster_id"]):
        ends[row["cluster_id"]] = (WRITTEN, REFUSED)
    for row in _rows(run, "rate_distilled", "data", ["cluster_id", "id"]):
        last = ((CHOSEN,) if row.get("id") in chosen else (LEFT,)) if selected else ()
        ends[row["cluster_id"]] = (WRITTEN, KEPT, *last)
    return ends


def _distilled_scores(run: RunDir) -> dict[str, int]:
    """The scores of distilled rows by cluster, refused ones among them where they were rated."""
    kinds: tuple[Kind, ...] = ("data", "rejected")
    return {
        row["cluster_id"]: row["score"]
        for kind in kinds
        for row in _rows(run, "rate_distilled", kind, ["cluster_id", "score"])
        if row.get("score") is not None
    }


def _rows(run: RunDir, stage: str, kind: Kind, columns: list[str]) -> Iterator[dict[str, Any]]:
    opened = run.stage(stage)
    for part in read_parts(opened, opened.parts(kind), columns):
        if isinstance(part, pa.Table) and part.num_columns:
            yield from part.to_pylist()


def _fold(paths: Counter[tuple[str, Path]]) -> Counter[tuple[str, Path]]:
    """The smaller sources as one."""
    totals: Counter[str] = Counter()
    for (source, _), count in paths.items():
        totals[source] += count
    shown = [source for source, _ in totals.most_common(MOST_SOURCES)]
    folded: Counter[tuple[str, Path]] = Counter()
    for (source, path), count in paths.items():
        folded[source if source in shown else OTHER, path] += count
    return folded


def _groups(tallies: Mapping[str, _Tally]) -> list[Group]:
    def has(tally: _Tally, name: str) -> int:
        return sum(count for path, count in tally.paths.items() if name in path)

    return [
        Group(
            name=name,
            rows=tally.rows,
            poor=has(tally, POOR),
            clustered=has(tally, CLUSTERED),
            kept=has(tally, KEPT),
            chosen=has(tally, CHOSEN),
            before=_mean(tally.before),
            after=_mean(tally.after),
        )
        for name, tally in sorted(tallies.items(), key=lambda item: (-item[1].rows, item[0]))
    ]


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None
