"""Reads what the report shows from a run directory.

Nothing here reads a whole stage: counts come from at most `MOST_PARTS` parts spread evenly over it, one in
memory at a time, and `Coverage` says how many there were. Stages that did not run are absent, not errors.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lm_mixup.core.run_dir import Kind, Manifest, RunDir, StageDir
from lm_mixup.core.schemas import content_id
from lm_mixup.core.task_types import answer_of, read_input
from lm_mixup.demo import answer_is_true
from lm_mixup.grpo.metrics import alarm_history
from lm_mixup.report.verdict import TruthShare
from lm_mixup.stages import GROUPS

MOST_PARTS = 64
MOST_PARENT_PARTS = 512
REJECTS_PER_REASON = 3

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class StageFacts:
    """One stage that ran: `manifest` is None while it is not finished."""

    name: str
    verb: str
    manifest: Manifest | None


@dataclass(frozen=True)
class Coverage:
    """How many parts of a stage were looked at."""

    read: int
    parts: int


@dataclass(frozen=True)
class Counts:
    """How often each value of a column occurs; None counts the rows without a value."""

    values: Counter[Any]
    coverage: Coverage

    def mean(self) -> float | None:
        """The mean of the numbers, rows without a value left out; None where there is none."""
        known = {value: count for value, count in self.values.items() if value is not None}
        rows = sum(known.values())
        return sum(value * count for value, count in known.items()) / rows if rows else None


@dataclass(frozen=True)
class Reject:
    """One refused row, as a specimen."""

    reason: str
    text: str


@dataclass(frozen=True)
class Parent:
    """A pool row that went into a distilled one."""

    prompt: str
    completion: str
    score: int | None


@dataclass(frozen=True)
class Example:
    """A dense row beside the poor ones it was made of.

    Of a distilled row these are its parents, `missing` of which lay outside the parts that were looked at. Of
    a MIXTURE row they are its inputs, which nobody rated: `rated` is False. `unsupported` are the spans that
    the parents do not bear out, `reason` is why the row was rejected.
    """

    task_type: str
    prompt: str
    completion: str
    cot: str
    score: int | None
    long_tail: float | None
    parents: list[Parent]
    missing: int = 0
    rated: bool = True
    faithfulness: float | None = None
    coverage: float | None = None
    unsupported: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ModelCalls:
    """What a stage asked of a judge or a teacher; `cost` is None where the config has no prices."""

    stage: str
    who: str
    requests: int
    retries: int
    cache_hits: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


@dataclass(frozen=True)
class RunFacts:
    """Everything the page shows."""

    uri: str
    info: dict[str, Any]
    stages: list[StageFacts]
    sft: Metrics = field(default_factory=list)
    grpo: Metrics = field(default_factory=list)
    validation: Metrics = field(default_factory=list)
    scores: dict[str, Counts] = field(default_factory=dict)
    sizes: Counts | None = None
    cohesion: Counts | None = None
    origins: Counts | None = None
    rejects: dict[str, list[Reject]] = field(default_factory=dict)
    mixtures: list[Example] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    alarms: list[tuple[int, str]] = field(default_factory=list)
    calls: list[ModelCalls] = field(default_factory=list)
    rejected_examples: list[Example] = field(default_factory=list)
    rejected_scores: Counts | None = None
    truth: TruthShare | None = None

    @property
    def manifests(self) -> dict[str, Manifest | None]:
        """The manifests by stage."""
        return {facts.name: facts.manifest for facts in self.stages}

    def manifest(self, stage: str) -> Manifest | None:
        """The manifest of a finished stage, or None."""
        return next((facts.manifest for facts in self.stages if facts.name == stage), None)


def gather(run: RunDir, examples: int) -> RunFacts:
    """Reads a run directory.

    Args:
        run: The run, finished or not.
        examples: How many distilled rows to show.
    """
    stages = _stages(run)
    scores = {
        "pool": _counts(run.stage("rate"), "score"),
        "curated": _counts(run.stage("curate"), "curated_score"),
        "distilled": _counts(run.stage("rate_distilled"), "score"),
    }
    info = run.read_json("run.json") or {}
    grpo = _metrics(run, "grpo/metrics.jsonl")
    mode = info.get("config", {}).get("grpo", {}).get("mode")
    return RunFacts(
        uri=run.uri,
        info=info,
        stages=stages,
        sft=_metrics(run, "sft/metrics.jsonl"),
        grpo=grpo,
        validation=_metrics(run, "grpo/validation.jsonl"),
        scores={name: counts for name, counts in scores.items() if counts is not None},
        sizes=_counts(run.stage("cluster"), "size"),
        cohesion=_counts(run.stage("cluster"), "cohesion", digits=3),
        origins=_counts(run.stage("select"), "origin"),
        rejects={facts.name: found for facts in stages if (found := _rejects(run.stage(facts.name)))},
        mixtures=_mixtures(run.stage("mixture"), examples),
        examples=_examples(run, examples),
        rejected_examples=_examples(run, examples, "rejected"),
        rejected_scores=_counts(run.stage("rate_distilled"), "score", kind="rejected"),
        truth=demo_truth(run, info.get("config") or {}),
        alarms=alarm_history(grpo, synchronous=mode != "async"),
        calls=[calls for facts in stages for calls in _calls(facts)],
    )


def _calls(facts: StageFacts) -> Iterator[ModelCalls]:
    """What a stage's manifest says of the models that it asked: the judge's figures, and the teacher's."""
    metrics = facts.manifest.metrics if facts.manifest else {}
    for who, prefix in (("judge", ""), ("teacher", "teacher_")):
        if f"{prefix}prompt_tokens" in metrics:
            names = ("requests", "retries", "cache_hits", "prompt_tokens", "completion_tokens")
            counts = {name: int(metrics[prefix + name]) for name in names}
            yield ModelCalls(stage=facts.name, who=who, cost=metrics.get(f"{prefix}cost"), **counts)


def _stages(run: RunDir) -> list[StageFacts]:
    """The stages that began, in pipeline order; folders of stages unknown here come last."""
    order = {stage: (verb, place) for verb, stages in GROUPS.items() for place, stage in enumerate(stages)}
    names = [*order, *(name for name in run.listing("") if name not in order and name != "report")]
    facts = []
    for name in names:
        manifest = run.stage(name).manifest()
        if manifest is not None or run.exists(f"{name}/started.json"):
            facts.append(StageFacts(name, order[name][0] if name in order else "other", manifest))
    return facts


def _spread(stage: StageDir, kind: Kind, most: int) -> tuple[list[str], Coverage]:
    """At most `most` parts of a stage, evenly spread, always the same ones."""
    parts = stage.parts(kind)
    chosen = [parts[i * len(parts) // most] for i in range(most)] if len(parts) > most else parts
    return chosen, Coverage(read=len(chosen), parts=len(parts))


def _iter(stage: StageDir, chosen: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
    """The chosen parts with those of the columns that they have."""
    for relative in chosen:  # opened, not read whole: an object store sends only these columns
        with stage.run.fs.open(f"{stage.run.path}/{relative}", "rb") as file:
            yield pq.ParquetFile(file).read(columns)


def _counts(stage: StageDir, column: str, digits: int | None = None, kind: Kind = "data") -> Counts | None:
    """Counts a column's values (rounded to `digits`); None where the stage or the column is absent."""
    chosen, coverage = _spread(stage, kind, MOST_PARTS)
    total: Counter[Any] = Counter()
    for part in _iter(stage, chosen, [column]):
        if part.num_columns:
            values = part[column] if digits is None else pc.round(part[column], digits)
            total.update({entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()})
    return Counts(total, coverage) if total else None


def _metrics(run: RunDir, relative: str) -> Metrics:
    """The lines of a metrics file, the last line of a step winning; a torn last line is left out."""
    if not run.exists(relative):
        return []
    lines = run.read_bytes(relative).decode("utf-8").splitlines()
    merged: dict[int, dict[str, Any]] = defaultdict(dict)
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):  # the writer was killed within it
                break
            raise
        merged[int(values["step"])] |= {key: _finite(value) for key, value in values.items()}
    return [merged[step] for step in sorted(merged)]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rejects(stage: StageDir) -> list[Reject]:
    """A few refused rows of each reason, with the text that was refused."""
    chosen, _ = _spread(stage, "rejected", 8)
    found: dict[str, list[Reject]] = defaultdict(list)
    for part in _iter(stage, chosen, ["reason", "raw", "prompt", "completion", "text"]):
        for row in part.to_pylist():
            if len(found[row["reason"]]) < REJECTS_PER_REASON:
                found[row["reason"]].append(Reject(row["reason"], _text_of(row)))
    return [reject for reason in sorted(found) for reject in found[reason]]


def _text_of(row: Mapping[str, Any]) -> str:
    names = ("raw",) if row.get("raw") else ("prompt", "completion", "text")
    texts = [row.get(name) for name in names]
    return "\n".join(str(text) for text in texts if text)


def _mixtures(stage: StageDir, limit: int) -> list[Example]:
    """MIXTURE rows, their inputs beside the target."""
    rows = _sample(stage, ["id", "task_type", "inputs", "instruction", "output", "cot", "score"], "id", limit)
    return [
        Example(
            task_type=row["task_type"],
            prompt=row["instruction"] or "",
            completion=row["output"] or "",
            cot=row["cot"] or "",
            score=row["score"],
            long_tail=None,
            parents=[Parent(*read_input(text), score=None) for text in row["inputs"]],
            rated=False,
        )
        for row in rows
    ]


def _examples(run: RunDir, limit: int, kind: Kind = "data") -> list[Example]:
    """Distilled rows beside their parents: those that were kept, or those that were rejected."""
    stage = next((s for s in map(run.stage, ("rate_distilled", "distill")) if s.parts(kind)), None)
    if stage is None:
        return []
    columns = ["cluster_id", "task_type", "prompt", "completion", "cot", "parent_ids", "score", "long_tail"]
    columns += ["faithfulness", "coverage", "unsupported", "reason", "member_ids", "raw"]
    turns = _sample(stage, columns, "cluster_id", limit, kind)
    for row in turns:  # what `distill` rejected was never a pair
        row["parent_ids"] = row.get("parent_ids") or row.get("member_ids") or []
        row["completion"] = row.get("completion") or (row.get("raw") if row.get("prompt") is None else "")
    parents = _parents(run, {parent for row in turns for parent in row["parent_ids"]})
    return [_example(row, parents) for row in turns]


def _sample(
    stage: StageDir, columns: list[str], key: str, limit: int, kind: Kind = "data"
) -> list[dict[str, Any]]:
    """At most `limit` rows of a stage: an arbitrary sample, the task types in turn, not the best ones."""
    chosen, _ = _spread(stage, kind, MOST_PARTS)
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in _iter(stage, chosen, columns) if limit else ():
        for row in part.to_pylist():
            by_type[row["task_type"]].append(row)
        for rows in by_type.values():  # order by a hash: a sample that favours no part and no score
            rows.sort(key=lambda row: content_id(row[key]))
            del rows[limit:]
    return [rows[turn] for turn in range(limit) for rows in by_type.values() if turn < len(rows)][:limit]


def _example(row: Mapping[str, Any], parents: Mapping[str, Parent]) -> Example:
    known = [parents[parent] for parent in row["parent_ids"] if parent in parents]
    return Example(
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


def demo_truth(run: RunDir, config: Mapping[str, Any]) -> TruthShare | None:
    """How many distilled rows of the demo pool are true: chosen, kept, rejected; None for other pools."""
    stage, select = run.stage("rate_distilled"), run.stage("select")
    if config.get("augment", {}).get("pool") != "world" or not stage.parts():
        return None
    columns = ["id", "task_type", "raw"]
    found: dict[str, list[tuple[str | None, bool]]] = {}
    for kind in ("data", "rejected"):
        chosen, _ = _spread(stage, kind, MOST_PARTS)
        rows = [row for part in _iter(stage, chosen, columns) for row in part.to_pylist()]
        rows = [row for row in rows if row.get("raw")]  # what was never written cannot be checked
        answers = [answer_of(row["task_type"], row["raw"]) for row in rows]
        found[kind] = [
            (row.get("id"), answer is not None and answer_is_true(answer))
            for row, answer in zip(rows, answers, strict=True)
        ]
    listed = select.read(["id", "origin"]).to_pylist() if select.parts() else []
    taken = {row["id"] for row in listed if row["origin"] == "distilled"}
    chosen_rows = [true for id_, true in found["data"] if id_ in taken]
    kept, rejected = ([true for _, true in found[kind]] for kind in ("data", "rejected"))
    return TruthShare(sum(chosen_rows), len(chosen_rows), sum(kept), len(kept), sum(rejected), len(rejected))


def _parents(run: RunDir, wanted: set[str]) -> dict[str, Parent]:
    """The pool rows with these ids, searched part by part until all are found or the bound is reached."""
    found: dict[str, Parent] = {}
    stage = next((s for s in map(run.stage, ("curate", "rate", "ingest")) if s.parts()), None)
    if stage is None:
        return found
    chosen, _ = _spread(stage, "data", MOST_PARENT_PARTS)
    values = pa.array(sorted(wanted), pa.string())
    for part in _iter(stage, chosen, ["id", "prompt", "completion", "score", "curated_score"]):
        for row in part.filter(pc.is_in(part["id"], value_set=values)).to_pylist():
            score = row.get("curated_score")
            found[row["id"]] = Parent(
                prompt=row["prompt"] or "",
                completion=row["completion"] or "",
                score=row.get("score") if score is None else score,
            )
        if len(found) == len(wanted):
            break
    return found
