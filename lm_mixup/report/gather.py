"""Reads what the report shows from a run directory.

Nothing here reads a whole stage: counts come from at most `MOST_PARTS` parts spread evenly over it, one in
memory at a time, and `Coverage` says how many there were. Stages that did not run are absent, not errors.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from lm_mixup.core.run_dir import Kind, Manifest, RunDir, StageDir
from lm_mixup.core.task_types import answer_of
from lm_mixup.demo import answer_is_true
from lm_mixup.grpo.metrics import alarm_history
from lm_mixup.report.agreement import Crossing, read_crossings
from lm_mixup.report.examples import Example, distilled_examples, mixture_examples
from lm_mixup.report.fates import Fates, read_fates
from lm_mixup.report.parts import MOST_PARTS, Coverage, read_parts, spread
from lm_mixup.report.pool_map import Point, map_pool
from lm_mixup.report.results import ResultTable, csv_table, rows_table
from lm_mixup.report.verdict import TruthShare
from lm_mixup.stages import GROUPS

REJECTS_PER_REASON = 3
_MOST_MIXTURES = 6
_BENCHMARK, _MAPPING, _COMPARE = "benchmark/table.csv", "mapping/results.json", "compare/results.json"
_KINDS: tuple[Kind, ...] = ("data", "rejected")

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class StageFacts:
    """One stage that ran: `manifest` is None while it is not finished."""

    name: str
    verb: str
    manifest: Manifest | None


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
class Completions:
    """What the policy wrote for one held-out prompt at two steps of GRPO, the first and the last."""

    task_type: str
    inputs: list[str]
    reference: str
    steps: list[tuple[int, str, float]]


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
    truth: TruthShare | None = None
    fates: Fates | None = None
    points: list[Point] = field(default_factory=list)
    crossings: list[Crossing] = field(default_factory=list)
    completions: list[Completions] = field(default_factory=list)
    results: list[ResultTable] = field(default_factory=list)

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
    info = run.read_json("run.json") or {}
    config = info.get("config") or {}
    scores = {"pool": _counts(run.stage("rate"), "score")}
    if config.get("curate", {}).get("enabled", True):
        scores["curated"] = _counts(run.stage("curate"), "curated_score")
    # Kept and refused rows: of survivors alone all would be good.
    scores["distilled"] = _added(*(_counts(run.stage("rate_distilled"), "score", kind=k) for k in _KINDS))
    grpo = _metrics(run, "grpo/metrics.jsonl")
    mode = config.get("grpo", {}).get("mode")
    shown = distilled_examples(run, examples)
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
        mixtures=mixture_examples(run.stage("mixture"), min(examples, _MOST_MIXTURES)),
        examples=shown,
        truth=demo_truth(run, config),
        fates=read_fates(run),
        points=map_pool(run, {example.cluster for example in shown}),
        crossings=list(read_crossings(run)),
        completions=_completions(run),
        results=_results(run),
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


def _counts(stage: StageDir, column: str, digits: int | None = None, kind: Kind = "data") -> Counts | None:
    """Counts a column's values (rounded to `digits`); None where the stage or the column is absent."""
    chosen, coverage = spread(stage, kind, MOST_PARTS)
    total: Counter[Any] = Counter()
    for part in read_parts(stage, chosen, [column]):
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


def _added(*counts: Counts | None) -> Counts | None:
    """Several counts as one; None where there are none."""
    known = [one for one in counts if one is not None]
    if not known:
        return None
    read, parts = (sum(getattr(one.coverage, name) for one in known) for name in ("read", "parts"))
    return Counts(sum((one.values for one in known), Counter()), Coverage(read, parts))


def _completions(run: RunDir) -> list[Completions]:
    """Held-out prompts with their first and last completion; none where they were read only once."""
    lines = _metrics(run, "grpo/completions.jsonl")
    if len(lines) < 2:
        return []
    first, last = lines[0], lines[-1]
    before = {sample["id"]: sample for sample in first["samples"]}
    return [
        Completions(
            task_type=sample["task_type"],
            inputs=sample["inputs"],
            reference=sample["reference"],
            steps=[
                (line["step"], one["completion"], one["reward"])
                for line, one in ((first, before[sample["id"]]), (last, sample))
            ],
        )
        for sample in last["samples"]
        if sample["id"] in before
    ]


def _results(run: RunDir) -> list[ResultTable]:
    """What the stages of `evaluate` found, where the run has any."""
    tables = []
    if run.exists(_BENCHMARK):
        text = run.read_bytes(_BENCHMARK).decode("utf-8")
        tables.append(csv_table("Benchmarks: value ± standard error of each model", text))
    if run.exists(_MAPPING):
        title = "Distillers on held-out rows of MIXTURE: what is not in format counts as 0"
        tables.append(rows_table(title, run.read_json(_MAPPING)))
    if run.exists(_COMPARE):
        found = run.read_json(_COMPARE)
        shown = {name: value for name, value in found.items() if name != "models"}
        tables.append(rows_table("Two models side by side: how often A is preferred to B", [shown]))
    return tables


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rejects(stage: StageDir) -> list[Reject]:
    """A few refused rows of each reason, with the text that was refused."""
    chosen, _ = spread(stage, "rejected", 8)
    found: dict[str, list[Reject]] = defaultdict(list)
    for part in read_parts(stage, chosen, ["reason", "raw", "prompt", "completion", "text"]):
        for row in part.to_pylist():
            if len(found[row["reason"]]) < REJECTS_PER_REASON:
                found[row["reason"]].append(Reject(row["reason"], _text_of(row)))
    return [reject for reason in sorted(found) for reject in found[reason]]


def _text_of(row: Mapping[str, Any]) -> str:
    names = ("raw",) if row.get("raw") else ("prompt", "completion", "text")
    texts = [row.get(name) for name in names]
    return "\n".join(str(text) for text in texts if text)


def demo_truth(run: RunDir, config: Mapping[str, Any]) -> TruthShare | None:
    """How many distilled rows of the demo pool are true: chosen, kept, rejected; None for other pools."""
    stage, select = run.stage("rate_distilled"), run.stage("select")
    if config.get("augment", {}).get("pool") != "world" or not stage.parts():
        return None
    columns = ["id", "task_type", "raw"]
    found: dict[str, list[tuple[str | None, bool]]] = {}
    for kind in ("data", "rejected"):
        chosen, _ = spread(stage, kind, MOST_PARTS)
        rows = [row for part in read_parts(stage, chosen, columns) for row in part.to_pylist()]
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
