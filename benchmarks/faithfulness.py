"""Whether faithfulness tells planted faults from references, in the closed world and on real text.

    python benchmarks/faithfulness.py [--quick] [--run RUN_DIR] [--data DIR] [--json OUT]

For each fault the area under the ROC curve of the score, and the share that is flagged at the score that 5%
of the references lie below (10% on real text), and by the default gate of `rate_distilled` (fidelity and
coverage). Closed-world rows come from the stage `mixture` of a run, real text from the files of --data.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import harness
import numpy as np
from planted import constant, plant, sample_of
from real_rows import real_rows

from lm_mixup.config import RateDistilledConfig
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import (
    FormatError,
    Sample,
    parse_answer,
    read_input,
    task_type_of,
    to_pair,
    write_answer,
)
from lm_mixup.rewards.faithfulness import Faithfulness, Source, measure

Row = dict[str, Any]
_GATE = RateDistilledConfig()


def measured(sample: Sample, row: Row) -> Faithfulness:
    """A sample against the inputs of a row."""
    prompt, completion = to_pair(sample, "")
    sources = [Source(*read_input(text)) for text in row["inputs"]]
    return measure(prompt, completion, sources, task_type_of(sample))


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that a reference scores above a fault, ties counted half."""
    above = (bad[None] < good[:, None]).mean()
    return float(above + 0.5 * (bad[None] == good[:, None]).mean())


def is_gated(found: Faithfulness) -> bool:
    """Whether the default gate of `rate_distilled` rejects it."""
    return found.fidelity < _GATE.min_faithfulness or found.coverage < _GATE.min_coverage


def figures(rows: Sequence[Row], clean: float) -> dict[str, dict[str, float]]:
    """Of the references and of each fault: rows, AUC, shares flagged and the median score.

    `clean` is the share of the references that may be flagged.
    """
    rng = Random(0)
    references: list[Faithfulness] = []
    faults: dict[str, list[Faithfulness]] = defaultdict(list)
    for row in rows:
        sample = sample_of(row)
        references.append(measured(sample, row))
        others = [r for r in rows if r["task_type"] == row["task_type"] and r["output"] != row["output"]]
        planted = plant(sample, row["inputs"], sample_of(rng.choice(others)), rng)
        for name, faulty in ({"one constant answer": constant(sample)} | planted).items():
            try:
                parse_answer(row["task_type"], write_answer(faulty))
            except FormatError:
                continue
            faults[name].append(measured(faulty, row))
    good = np.array([found.score for found in references])
    threshold = float(np.quantile(good, clean))
    table = {"references": _cells(references, good, threshold)}
    return table | {name: _cells(found, good, threshold) for name, found in sorted(faults.items())}


def _cells(found: Sequence[Faithfulness], good: np.ndarray, threshold: float) -> dict[str, float]:
    scores = np.array([one.score for one in found])
    return {
        "rows": len(found),
        "auc": round(auc(good, scores), 3),
        "flagged": round(float((scores < threshold).mean()), 3),
        "gated": round(float(np.mean([is_gated(one) for one in found])), 3),
        "median": round(float(np.median(scores)), 3),
    }


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """Prints a table."""
    print(f"\n{title}\n{'':30}{'rows':>6}{'auc':>8}{'flagged':>9}{'gated':>8}{'median':>8}")
    for name, cells in table.items():
        print(
            f"{name:30}{cells['rows']:6d}{cells['auc']:8.3f}{cells['flagged']:9.3f}{cells['gated']:8.3f}"
            f"{cells['median']:8.2f}"
        )


def main() -> int:
    """Prints the tables."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--run", help="run directory with the stage mixture: closed-world rows")
    parser.add_argument("--data", type=Path, help="folder with the files of real text")
    args = parser.parse_args()
    limit = 40 if args.quick else 200
    results = {}
    started = time.perf_counter()
    if args.run:
        rows = sorted(RunDir(args.run).stage("mixture").read().to_pylist(), key=lambda row: row["id"])
        results["closed world"] = figures(rows[: 5 * limit], 0.05)
    if args.data:
        real = real_rows(args.data, limit)
        merged = [row for row in real if "parts" in row]
        results["real text"] = figures([row for row in real if "parts" not in row], 0.1)
        results["real text, two questions merged"] = figures(merged, 0.1)
    for title, table in results.items():
        show(title, table)
    if args.json:
        seconds = round(time.perf_counter() - started, 1)
        config = {"rows of a task type": limit, "seconds": seconds, "gate": _GATE.model_dump()}
        result = {"name": "faithfulness", "machine": harness.machine(), "config": config, "ours": results}
        args.json.write_text(
            json.dumps(result | {"peer": {}, "ratio": None}, indent=2) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
