"""Rows shown on the page beside what they were made of: distilled rows, rejected ones, rows of MIXTURE."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.core.run_dir import Kind, RunDir, StageDir
from lm_mixup.core.schemas import content_id
from lm_mixup.core.task_types import read_input
from lm_mixup.report.parts import MOST_PARTS, first_with_parts, read_parts, spread

MOST_PARENT_PARTS = 512
# Characters of all examples together: the page stays one that opens at once.
MOST_CHARACTERS = 160_000

State = Literal["chosen", "kept", "rejected", "mixture"]

_COLUMNS = [
    *("id", "cluster_id", "task_type", "prompt", "completion", "cot", "parent_ids", "score", "long_tail"),
    *("faithfulness", "coverage", "unsupported", "reason", "member_ids", "raw"),
]


@dataclass(frozen=True)
class Parent:
    """A pool row that went into a distilled one."""

    prompt: str
    completion: str
    score: int | None
    source: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.prompt}\n{self.completion}"


@dataclass(frozen=True)
class Example:
    """A dense row beside the poor ones it was made of.

    Of a distilled row these are its parents, `missing` of which lay outside the parts that were looked at. Of
    a MIXTURE row they are its inputs, which nobody rated.

    Attributes:
        state: In the training set, kept but not chosen, rejected, or a row of MIXTURE.
        cluster: The cluster's id; empty for a row of MIXTURE.
        source: Where most of the parents come from.
        unsupported: The spans that the parents do not bear out.
        reason: Why the row was rejected.
    """

    state: State
    task_type: str
    prompt: str
    completion: str
    cot: str
    score: int | None
    long_tail: float | None
    parents: list[Parent]
    cluster: str = ""
    source: str = ""
    missing: int = 0
    faithfulness: float | None = None
    coverage: float | None = None
    unsupported: tuple[str, ...] = ()
    reason: str = ""

    @property
    def characters(self) -> int:
        """How long all its texts are."""
        own = len(self.prompt) + len(self.completion) + len(self.cot)
        return own + sum(len(parent.text) for parent in self.parents)


def distilled_examples(run: RunDir, limit: int) -> list[Example]:
    """Distilled rows beside their parents: up to `limit` that were kept and as many that were rejected.

    Kept rows come from the last stage that has any; rejected ones from both `rate_distilled` and `distill`.
    """
    select = run.stage("select")
    listed = select.read(["id", "origin"]).to_pylist() if select.parts() else []
    taken = {row["id"] for row in listed if row["origin"] == "distilled"}
    kept = first_with_parts(run, ("rate_distilled", "distill"))
    turns = _sample(kept, _COLUMNS, "cluster_id", limit) if kept is not None else []
    for row in turns:
        row["state"] = "chosen" if row.get("id") in taken else "kept"
    refused = [
        row | {"state": "rejected"}
        for stage in map(run.stage, ("rate_distilled", "distill"))
        for row in _sample(stage, _COLUMNS, "cluster_id", -(-limit // 2), "rejected")
    ]
    for row in refused:  # what `distill` rejected was never a pair
        row["parent_ids"] = row.get("parent_ids") or row.get("member_ids") or []
        row["completion"] = row.get("completion") or (row.get("raw") if row.get("prompt") is None else "")
    rows = [*turns, *refused[:limit]]
    parents = find_parents(run, {parent for row in rows for parent in row["parent_ids"]})
    return list(_within(MOST_CHARACTERS, [_example(row, parents) for row in rows]))


def mixture_examples(stage: StageDir, limit: int) -> list[Example]:
    """MIXTURE rows, their inputs beside the target."""
    rows = _sample(stage, ["id", "task_type", "inputs", "instruction", "output", "cot", "score"], "id", limit)
    return [
        Example(
            state="mixture",
            task_type=row["task_type"],
            prompt=row["instruction"] or "",
            completion=row["output"] or "",
            cot=row["cot"] or "",
            score=row["score"],
            long_tail=None,
            parents=[Parent(*read_input(text), score=None) for text in row["inputs"]],
        )
        for row in rows
    ]


def find_parents(run: RunDir, wanted: Collection[str]) -> dict[str, Parent]:
    """The pool rows with these ids, searched part by part until all are found or the bound is reached."""
    found: dict[str, Parent] = {}
    stage = first_with_parts(run, ("curate", "rate", "ingest"))
    if stage is None:
        return found
    chosen, _ = spread(stage, "data", MOST_PARENT_PARTS)
    values = pa.array(sorted(wanted), pa.string())
    columns = ["id", "source", "prompt", "completion", "score", "curated_score"]
    for part in read_parts(stage, chosen, columns):
        for row in part.filter(pc.is_in(part["id"], value_set=values)).to_pylist():
            score = row.get("curated_score")
            found[row["id"]] = Parent(
                prompt=row["prompt"] or "",
                completion=row["completion"] or "",
                score=row.get("score") if score is None else score,
                source=row.get("source") or "",
            )
        if len(found) == len(wanted):
            break
    return found


def _sample(
    stage: StageDir, columns: list[str], key: str, limit: int, kind: Kind = "data"
) -> list[dict[str, Any]]:
    """At most `limit` rows of a stage: an arbitrary sample, the task types in turn, not the best ones."""
    chosen, _ = spread(stage, kind, MOST_PARTS)
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in read_parts(stage, chosen, columns) if limit else ():
        for row in part.to_pylist():
            by_type[row["task_type"]].append(row)
        for rows in by_type.values():  # order by a hash: a sample that favours no part and no score
            rows.sort(key=lambda row: content_id(row[key]))
            del rows[limit:]
    return [rows[turn] for turn in range(limit) for rows in by_type.values() if turn < len(rows)][:limit]


def _example(row: Mapping[str, Any], parents: Mapping[str, Parent]) -> Example:
    known = [parents[parent] for parent in row["parent_ids"] if parent in parents]
    sources = Counter(parent.source for parent in known)
    return Example(
        state=row["state"],
        cluster=row["cluster_id"],
        source=sources.most_common(1)[0][0] if sources else "",
        task_type=row["task_type"],
        prompt=row.get("prompt") or "",
        completion=row["completion"] or "",
        cot=row.get("cot") or "",
        score=row.get("score"),
        long_tail=row.get("long_tail"),
        parents=known,
        missing=len(row["parent_ids"]) - len(known),
        faithfulness=row.get("faithfulness"),
        coverage=row.get("coverage"),
        unsupported=tuple(row.get("unsupported") or ()),
        reason=row.get("reason") or "",
    )


def _within(most: int, examples: list[Example]) -> Iterator[Example]:
    """As many examples as fit into so many characters, kept and rejected ones in turn."""
    kept = [example for example in examples if example.state != "rejected"]
    rejected = [example for example in examples if example.state == "rejected"]
    turns = [rows[turn] for turn in range(len(examples)) for rows in (kept, rejected) if turn < len(rows)]
    spent = 0
    for example in turns:
        spent += min(example.characters, 20_000)
        if spent > most:
            return
        yield example
