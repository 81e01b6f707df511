"""What an experiment found: a table of arms (CSV, Markdown) and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lm_mixup.core.run_dir import write_whole
from lm_mixup.experiments.arms import Experiment
from lm_mixup.experiments.statistics import Difference, Estimate, mean_over_seeds, paired_difference

HEADER = (
    "measure", "arm", "rows", "seeds", "mean", "low", "high", "difference", "difference_low",
    "difference_high", "p", "failed",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one arm gave under one seed.

    Attributes:
        arm: Its name.
        seed: Of selection and training.
        rows: Trained on.
        scores: By measure, the value of each question; one value where a measure has no questions.
        failure: Why there is none.
    """

    arm: str
    seed: int
    rows: int = 0
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Line:
    """One arm under one measure."""

    measure: str
    arm: str
    rows: float
    seeds: int
    estimate: Estimate | None
    difference: Difference | None
    failed: str

    def cells(self) -> list[str]:
        """As in `HEADER`; blank where there is no figure."""
        mean, gap = self.estimate, self.difference
        figures = [mean.mean, mean.low, mean.high] if mean else [None] * 3
        figures += [gap.mean, gap.low, gap.high, gap.p] if gap else [None] * 4
        written = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        return [self.measure, self.arm, f"{self.rows:g}", str(self.seeds), *written, self.failed]


def lines_of(experiment: Experiment, results: Sequence[Result]) -> list[Line]:
    """The table: for each measure the arms in order, each against the reference.

    A difference is over the seeds that both have.
    """
    by_arm: dict[str, list[Result]] = {}
    for result in results:
        by_arm.setdefault(result.arm, []).append(result)
    measures = list(dict.fromkeys(name for result in results for name in result.scores))
    return [
        _line(measure, name, mine, by_arm.get(experiment.reference, []), experiment.reference)
        for measure in measures or [""]  # every run failed: the table says so
        for name, mine in by_arm.items()
    ]


def _line(
    measure: str, name: str, mine: Sequence[Result], reference: Sequence[Result], reference_name: str
) -> Line:
    scores, theirs = _by_seed(mine, measure), _by_seed(reference, measure)
    both = sorted(scores.keys() & theirs.keys())
    gap = None
    if both and name != reference_name:
        gap = paired_difference(np.stack([scores[s] for s in both]), np.stack([theirs[s] for s in both]))
    trained = [result.rows for result in mine if not result.failure]
    return Line(
        measure=measure,
        arm=name,
        rows=float(np.mean(trained)) if trained else 0.0,
        seeds=len(scores),
        estimate=mean_over_seeds(np.stack([scores[s] for s in sorted(scores)])) if scores else None,
        difference=gap,
        failed=_failures(mine),
    )


def _failures(results: Sequence[Result]) -> str:
    """Each reason once, with the seeds that failed for it."""
    seeds: dict[str, list[str]] = {}
    for result in results:
        if result.failure:
            seeds.setdefault(result.failure, []).append(str(result.seed))
    return "; ".join(f"seed {', '.join(failed)}: {reason}" for reason, failed in seeds.items())


def _by_seed(results: Sequence[Result], measure: str) -> dict[int, np.ndarray]:
    return {r.seed: np.array(r.scores[measure]) for r in results if measure in r.scores}


def write_table(folder: Path, experiment: Experiment, results: Sequence[Result]) -> None:
    """Writes `table.csv`, `table.md` and `plot.png`."""
    table = lines_of(experiment, results)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *(line.cells() for line in table)])
    write_whole(folder / "table.csv", text.getvalue())
    write_whole(folder / "table.md", markdown(experiment, table))
    plot(folder / "plot.png", experiment, table)


def markdown(experiment: Experiment, table: Sequence[Line]) -> str:
    """A table for each measure."""
    page = [experiment.question, ""]
    for measure in _measures(table):
        page += [
            f"`{measure}`, differences from {experiment.reference}:",
            "",
            "| arm | rows | seeds | mean | 95% | difference | 95% | p |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for line in table:
            if line.measure == measure:
                cells = line.cells()
                figures = [cells[4], _span(cells[5:7]), cells[7], _span(cells[8:10]), cells[10]]
                page.append(f"| {' | '.join([line.arm, cells[2], cells[3], *figures])} |")
        page.append("")
    failures = {line.arm: line.failed for line in table if line.failed}
    page += [f"{arm} failed: {reason}" for arm, reason in failures.items()]
    return "\n".join(page).rstrip() + "\n"


def _measures(table: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.measure for line in table if line.measure))


def _span(ends: Sequence[str]) -> str:
    return f"{ends[0]} … {ends[1]}" if all(ends) else ""


def plot(file: Path, experiment: Experiment, table: Sequence[Line]) -> None:
    """A panel for each measure: the mean of each arm with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measures = _measures(table)
    if not measures:
        return
    arms = list(dict.fromkeys(line.arm for line in table))
    size = (2.5 + 3.5 * len(measures), 1.2 + 0.35 * len(arms))
    figure, panels = pyplot.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for panel, measure in zip(panels[0], measures, strict=True):
        for place, arm in enumerate(arms):
            line = next((line for line in table if line.measure == measure and line.arm == arm), None)
            if line is None or line.estimate is None:
                continue
            at, low, high = line.estimate.mean, line.estimate.low, line.estimate.high
            if low is not None and high is not None:
                panel.hlines(place, low, high, color="tab:blue", linewidth=2)
            panel.plot(at, place, "o", color="tab:orange" if arm == experiment.reference else "tab:blue")
        panel.set_title(measure, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(arms)), arms)
    panels[0][0].invert_yaxis()
    figure.suptitle(experiment.question, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
