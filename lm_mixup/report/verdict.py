"""What a run comes to, in plain words: how many rows came out, whether they can be trusted, what to do next.

The same lines stand at the top of the page and at the end of a command. Every share counts the rows that were
rejected on the way: a mean over survivors of a threshold says nothing about the distiller.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lm_mixup.core.run_dir import Manifest

Level = Literal["good", "warning", "bad"]

# Below this share of clusters that end as good rows, the distiller is the weak part, not the pool.
_POOR_YIELD = 0.1
_HEADLINES: dict[Level, str] = {
    "good": "Ready to train on",
    "warning": "Read the examples before you train on it",
    "bad": "Do not train on this",
}
# From this share of true rows on, the closed world's training set is called true.
_TRUE_ENOUGH = 0.95


@dataclass(frozen=True)
class Step:
    """One step of the yield: how many rows reached it."""

    name: str
    rows: int


@dataclass(frozen=True)
class TruthShare:
    """Distilled rows of the closed world checked against its facts: true ones and all."""

    chosen_true: int
    chosen: int
    kept_true: int
    kept: int
    rejected_true: int
    rejected: int


@dataclass(frozen=True)
class Verdict:
    """What the run comes to.

    Attributes:
        level: `bad` where what came out is not to be trained on.
        summary: One sentence.
        warnings: One sentence each, the worst first.
        advice: What to do next.
        yields: From clusters to chosen rows.
    """

    level: Level
    summary: str
    warnings: tuple[str, ...] = ()
    advice: str = ""
    yields: tuple[Step, ...] = ()

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        return _HEADLINES[self.level]


def yield_of(manifests: Mapping[str, Manifest | None]) -> tuple[Step, ...]:
    """Clusters, and how many of them reached each step; steps whose stage is not done are absent."""
    steps = []
    cluster, distill = manifests.get("cluster"), manifests.get("distill")
    rated, select = manifests.get("rate_distilled"), manifests.get("select")
    if cluster is not None:
        steps.append(Step("clusters", cluster.rows_out))
    if distill is not None:
        steps.append(Step("in format", distill.rows_out))
    if rated is not None:
        faithful = rated.metrics.get("faithful")
        if faithful is not None:
            steps.append(Step("faithful", int(faithful)))
        steps.append(Step("good", rated.rows_out))
    if select is not None:
        steps.append(Step("chosen", int(select.metrics.get("distilled", 0))))
    return tuple(steps)


def judge_run(
    manifests: Mapping[str, Manifest | None], config: Mapping[str, Any], truth: TruthShare | None = None
) -> Verdict | None:
    """The verdict on a run that has distilled something; None on others.

    Args:
        manifests: Of the stages that are done.
        config: The resolved config, as run.json has it.
        truth: Where the pool is the closed world's.
    """
    distill, select = manifests.get("distill"), manifests.get("select")
    if distill is None:
        return None
    steps = yield_of(manifests)
    warnings: list[str] = []
    level: Level = "good"
    if notice := distill.metrics.get("notice"):
        pool = config.get("augment", {}).get("pool")
        if pool != "world":
            level = "bad"
            warnings.append(f"Do not train on this: {notice}.")
    good = next((step.rows for step in steps if step.name == "good"), None)
    if good == 0:
        level = "bad"
        warnings.append(f"Not one of {distill.rows_in:,} clusters became a row that is kept.")
    elif good is not None and distill.rows_in and good / distill.rows_in < _POOR_YIELD:
        level = "warning" if level == "good" else level
        warnings.append(
            f"Only {good:,} of {distill.rows_in:,} clusters became rows that are kept: the distiller is weak "
            "for this pool."
        )
    if truth is not None and truth.chosen and truth.chosen_true < _TRUE_ENOUGH * truth.chosen:
        level = "bad"
        wrong = truth.chosen - truth.chosen_true
        warnings.insert(0, f"{wrong} of {truth.chosen} distilled rows in the training set are not true.")
    if (
        config.get("rate", {}).get("backend") == "offline"
        and config.get("augment", {}).get("pool") != "world"
    ):
        level = "warning" if level == "good" else level
        warnings.append("The judge was the offline rater, which reads the surface of a row, not its meaning.")
    for name in ("rate", "rate_distilled"):
        manifest = manifests.get(name)
        unrated = int(manifest.metrics.get("unrated", 0)) if manifest is not None else 0
        if unrated and manifest is not None:
            level = "warning" if level == "good" else level
            warnings.append(f"{name}: {unrated:,} of {manifest.rows_in:,} rows could not be rated.")
    return Verdict(level, _summary(manifests, steps, truth), tuple(warnings), _advice(level, select), steps)


def _summary(
    manifests: Mapping[str, Manifest | None], steps: tuple[Step, ...], truth: TruthShare | None
) -> str:
    flow = " → ".join(f"{step.rows:,} {step.name}" for step in steps)
    ingest, select = manifests.get("ingest"), manifests.get("select")
    parts = []
    if ingest is not None and select is not None:
        parts.append(f"{ingest.rows_in:,} rows came in, {select.rows_out:,} are in the training set.")
    parts.append(f"Distilled: {flow}.")
    if truth is not None and truth.chosen:
        parts.append(
            f"Checked against the facts, {truth.chosen_true} of {truth.chosen} distilled rows in it are true."
        )
    return " ".join(parts)


def _advice(level: Level, select: Manifest | None) -> str:
    if level == "bad":
        return "Name a better distiller (augment.policy), or train one on MIXTURE of your own domain."
    if select is None:
        return "Run the rest of `lm-mixup augment` to choose the training set."
    return "Read the examples, then train on it."


def training_command(run: str) -> str:
    """What trains a model on a run's training set with TRL; MODEL is for the reader to name."""
    where, data = shlex.quote(run), shlex.quote(f"{run.rstrip('/')}-data")
    return (
        f"lm-mixup export {where} --to {data} --format messages && "
        f"trl sft --model_name_or_path MODEL --dataset_name {data} --output_dir {shlex.quote(run + '-model')}"
    )
