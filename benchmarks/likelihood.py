"""Whether the gain in log-likelihood by a row's own inputs tells planted faults from references.

    python benchmarks/likelihood.py --data DIR [--model smollm2-distiller] [--quick] [--json OUT]

For each fault on real text: rows, the area under the ROC curve of the gain and of the faithfulness that needs
no model, and the median gain in nats a token. Both prompts of a row are those of the stage `likelihood`.
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
from faithfulness import auc, measured
from planted import constant, plant, sample_of
from real_rows import real_rows

from lm_mixup.augment.likelihood import measure
from lm_mixup.augment.perplexity import open_engine
from lm_mixup.config import LikelihoodConfig, ModelConfig
from lm_mixup.core.task_types import FormatError, parse_answer, write_answer, write_output

Row = dict[str, Any]
REFERENCE = "references"


def outputs_of(rows: Sequence[Row]) -> list[tuple[str, Row, Any]]:
    """The name of each output, its row and the sample: all rows' references, then each fault in turn."""
    rng = Random(0)
    made: dict[str, list[tuple[str, Row, Any]]] = defaultdict(list)
    for row in rows:
        sample = sample_of(row)
        others = [r for r in rows if r["task_type"] == row["task_type"] and r["output"] != row["output"]]
        planted = plant(sample, row["inputs"], sample_of(rng.choice(others)), rng)
        for name, output in ({REFERENCE: sample, "one constant answer": constant(sample)} | planted).items():
            try:
                parse_answer(row["task_type"], write_answer(output))
            except FormatError:
                continue
            made[name].append((name, row, output))
    return [output for name in made for output in made[name]]


def main() -> int:
    """Prints the table."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the files of real text")
    parser.add_argument("--model", default="smollm2-distiller", help="the model that scores")
    args = parser.parse_args()
    outputs = outputs_of(real_rows(args.data, 8 if args.quick else 40))
    started = time.perf_counter()
    model = ModelConfig(path=args.model, dtype="float32")
    tokenizer, engine, room = open_engine(LikelihoodConfig(model=args.model), model)
    asked = [
        {
            "cluster_id": str(number),
            "task_type": row["task_type"],
            "raw": write_output("", write_answer(sample)),
            "inputs": row["inputs"],
        }
        for number, (_, row, sample) in enumerate(outputs)
    ]
    found = measure(asked, tokenizer, engine, room).rows.to_pylist()
    gains: dict[str, list[float]] = defaultdict(list)
    faithful: dict[str, list[float]] = defaultdict(list)
    for cell in found:
        name, row, sample = outputs[int(cell["cluster_id"])]
        gains[name].append(cell["likelihood_gain"])
        faithful[name].append(measured(sample, row).score)
    good_gain, good_faithful = np.array(gains[REFERENCE]), np.array(faithful[REFERENCE])
    table = {
        name: {
            "rows": len(values),
            "gain_auc": round(auc(good_gain, np.array(values)), 3),
            "faithfulness_auc": round(auc(good_faithful, np.array(faithful[name])), 3),
            "median_gain": round(float(np.median(values)), 3),
        }
        for name, values in gains.items()
    }
    print(f"{'':30}{'rows':>6}{'gain':>8}{'faithful':>10}{'median':>8}")
    for name, cells in table.items():
        print(
            f"{name:30}{cells['rows']:6d}{cells['gain_auc']:8.3f}{cells['faithfulness_auc']:10.3f}"
            f"{cells['median_gain']:8.2f}"
        )
    if args.json:
        config = {"model": args.model, "seconds": round(time.perf_counter() - started, 1)}
        result = {"name": "likelihood", "machine": harness.machine(), "config": config, "ours": table}
        args.json.write_text(
            json.dumps(result | {"peer": {}, "ratio": None}, indent=2) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
