"""How far the judge's ratings agree with other evidence: neighbours' consensus, measured faithfulness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm_mixup.core.run_dir import Kind, RunDir
from lm_mixup.report.parts import MOST_PARTS, read_parts, spread

_SCORES = tuple(str(score) for score in range(6))
_FAITHFUL = ((0.5, "under 0.5"), (0.8, "0.5 to 0.8"), (0.95, "0.8 to 0.95"), (2.0, "0.95 and more"))


@dataclass(frozen=True)
class Crossing:
    """A matrix of two readings of the same rows.

    Attributes:
        title: What it is.
        note: How to read it.
        down: What the lines are, and their labels.
        across: What the columns are, and their labels.
        cells: Counts, or probabilities whose lines add up to 1.
    """

    title: str
    note: str
    down: tuple[str, tuple[str, ...]]
    across: tuple[str, tuple[str, ...]]
    cells: list[list[float]]

    @property
    def shares(self) -> list[list[float]]:
        """Each cell as a share of its line."""
        return [[value / (sum(line) or 1) for value in line] for line in self.cells]

    @property
    def is_counted(self) -> bool:
        """Whether the cells are counts."""
        return all(float(value).is_integer() for line in self.cells for value in line)


def read_crossings(run: RunDir) -> Iterator[Crossing]:
    """The matrices that a run has."""
    curate = run.stage("curate").manifest()
    if curate is not None and curate.metrics.get("transition"):
        pairs = _pairs(run, "curate", ("score", "curated_score"))
        cells = [[float(pairs[down, across]) for across in range(6)] for down in range(6)]
        same = sum(cells[score][score] for score in range(6)) / (sum(map(sum, cells)) or 1)
        note = (
            f"The judge and the corrected score are the same for {same:.0%} of the rows "
            f"(weighted kappa {weighted_kappa(np.array(cells)):.2f})."
        )
        yield Crossing(
            "The judge's score and the corrected one",
            note,
            ("judge", _SCORES),
            ("corrected by neighbours", _SCORES),
            cells,
        )
        yield Crossing(
            "Errors of the judge as DS2 estimates them",
            "Line t, column s: how probable it is that the judge gives s to a row whose true score is t, "
            "from how near rows were rated. A judge without errors has 1 on the diagonal.",
            ("true score", _SCORES),
            ("judge", _SCORES),
            curate.metrics["transition"],
        )
    kinds: tuple[Kind, ...] = ("data", "rejected")
    rated: Counter[tuple[int, float]] = Counter()
    for kind in kinds:
        rated += _pairs(run, "rate_distilled", ("faithfulness_rating", "faithfulness"), kind)
    if rated:
        cells = [[0.0] * len(_FAITHFUL) for _ in range(10)]
        for (rating, measured), count in rated.items():
            place = next(place for place, (below, _) in enumerate(_FAITHFUL) if measured < below)
            cells[rating - 1][place] += count
        yield Crossing(
            "Faithfulness: the judge and the measure",
            "Distilled rows by the judge's rating, 1 to 10, and by the share of their statements that the "
            "measure finds in the inputs.",
            ("judge", tuple(str(rating) for rating in range(1, 11))),
            ("measured", tuple(label for _, label in _FAITHFUL)),
            cells,
        )


def weighted_kappa(cells: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights of a square matrix of counts; 1.0 where nothing can differ."""
    size, total = len(cells), cells.sum()
    if not total:
        return 1.0
    weights = (np.arange(size)[:, None] - np.arange(size)[None, :]) ** 2.0
    expected = np.outer(cells.sum(axis=1), cells.sum(axis=0)) / total
    by_chance = float((weights * expected).sum())
    return 1.0 - float((weights * cells).sum()) / by_chance if by_chance else 1.0


def _pairs(
    run: RunDir, stage: str, columns: tuple[str, str], kind: Kind = "data"
) -> Counter[tuple[int, float]]:
    """How often two columns have which values together; rows that lack one are left out."""
    opened = run.stage(stage)
    chosen, _ = spread(opened, kind, MOST_PARTS)
    found: Counter[tuple[int, float]] = Counter()
    for part in read_parts(opened, chosen, list(columns)):
        if part.num_columns == len(columns):
            values = (part[column].to_pylist() for column in columns)
            found.update(pair for pair in zip(*values, strict=True) if None not in pair)
    return found
