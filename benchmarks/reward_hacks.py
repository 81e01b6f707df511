"""What useless outputs earn beside the reference: mean total reward by fault and task type.

    python benchmarks/reward_hacks.py [--quick] [--run RUN_DIR] [--data DIR] [--json OUT]

Real reward functions, real MiniLM, the default weights (or those of --config). The closed world's rows and
its library come from a run with the stages `mixture` and `library`; without --run one is made. Real text
comes from the files of --data, its library from half of them. Exit status 1 where a useless output comes
within `MARGIN` of the reference, over the rows that it could be planted in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import harness
import numpy as np
from planted import constant, plant, sample_of
from real_rows import real_rows

from lm_mixup.config import Config, EmbedderConfig, RewardsConfig
from lm_mixup.config.load import load_config
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import (
    TASK_TYPES,
    FormatError,
    TaskType,
    parse_answer,
    write_answer,
    write_output,
)
from lm_mixup.rewards.batch import RewardBatch
from lm_mixup.rewards.combine import combine
from lm_mixup.rewards.library import load_library
from lm_mixup.rewards.quality import TaskLibrary, make_library
from lm_mixup.rewards.workers import score_components

MARGIN = 0.15
REFERENCE = "the reference"
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
Row = dict[str, Any]
Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Output:
    """One output for a row: the completion, and whether the policy ended it."""

    name: str
    row: Row
    completion: str
    finished: bool = True


def outputs_of(row: Row, other: Row, rng: Random) -> list[Output]:
    """The reference of a row and all its useless neighbours."""
    sample = sample_of(row)
    samples = {REFERENCE: sample, "one constant answer": constant(sample)}
    samples |= plant(sample, row["inputs"], sample_of(other), rng)
    for name, text in zip(("first asked, second answered",), _crossed(row), strict=False):
        samples[name] = parse_answer(row["task_type"], text)
    made = []
    for name, planted in samples.items():
        answer = write_answer(planted)
        try:
            parse_answer(row["task_type"], answer)
        except FormatError:  # a fault may fall on a mark: what cannot be read is no hack
            continue
        made.append(Output(name, row, write_output("", answer)))
    good = write_output("", write_answer(sample))
    made.append(Output("blanks up to the limit", row, good + " " * 400, finished=False))
    made.append(Output("cut at the limit", row, good[: len(good) // 2], finished=False))
    return made


def _crossed(row: Row) -> list[str]:
    """Of a merged row the first question with the second answer."""
    if "parts" not in row:
        return []
    question = row["parts"][0].split("\nA:", 1)[0]
    return [f"{question}\nA:{row['parts'][1].split(chr(10) + 'A:', 1)[1]}"]


def rewards_of(
    outputs: Sequence[Output],
    libraries: Mapping[TaskType, TaskLibrary],
    embed: Any,
    config: RewardsConfig,
) -> np.ndarray:
    """The total reward of each output, float64 [N]."""
    batch = RewardBatch(
        task_types=[output.row["task_type"] for output in outputs],
        completions=[output.completion for output in outputs],
        references=[output.row["output"] for output in outputs],
        groups=list(range(len(outputs))),
        inputs=[output.row["inputs"] for output in outputs],
        finished=[output.finished for output in outputs],
    )
    references = embed(list(batch.references))
    components = score_components(batch, references, embed, libraries, config)
    return combine(components, batch.task_types, batch.groups, config)


def table_of(outputs: Sequence[Output], rewards: np.ndarray) -> tuple[Table, Table]:
    """Mean reward by output and task type; and by how much it is below the reference on the same rows."""
    by_cell: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    reference = {
        id(output.row): reward
        for output, reward in zip(outputs, rewards, strict=True)
        if output.name == REFERENCE
    }
    for output, reward in zip(outputs, rewards, strict=True):
        by_cell[output.name, output.row["task_type"]].append((reward, reference[id(output.row)]))
    means: Table = defaultdict(dict)
    below: Table = defaultdict(dict)
    for (name, task_type), cells in by_cell.items():
        mean, best = np.mean(cells, axis=0)
        means[name][task_type] = round(float(mean), 3)
        below[name][task_type] = round(float(best - mean), 3)
    return dict(means), dict(below)


def closed_world(run: RunDir, config: Config, limit: int) -> tuple[list[Row], dict[TaskType, TaskLibrary]]:
    """Held-out rows of a run, some of each task type, and its library."""
    rows = sorted(run.stage("mixture").read().to_pylist(), key=lambda row: row["id"])
    held_out = [row for row in rows if row["split"] != "sft"]
    chosen = [row for task in TASK_TYPES for row in [r for r in held_out if r["task_type"] == task][:limit]]
    return chosen, load_library(run.stage("library"), config.embedder)


def make_run(folder: Path, samples: int) -> RunDir:
    """A closed-world run as far as the library: without SFT, which rewards do not need."""
    command = [sys.executable, "-m", "lm_mixup.cli"]
    sized = ["--set", f"build.samples={samples}", "--set", f"library.rows={samples}"]
    for verb in (["build"], ["train", "--only", "library"]):
        subprocess.run(
            [*command, verb[0], str(CONFIG), "--run-dir", str(folder), *verb[1:], *sized], check=True
        )
    return RunDir(folder)


def real_text(
    folder: Path, limit: int, embed: Any, config: RewardsConfig
) -> tuple[list[Row], dict[TaskType, TaskLibrary]]:
    """Rows of real text, and a library of as many others: their references as class 5, poor answers as 1."""
    rows = real_rows(folder, 2 * limit)
    judged, library = rows[::2], rows[1::2]
    libraries: dict[TaskType, TaskLibrary] = {}
    for task_type in TASK_TYPES:
        mine = [row for row in library if row["task_type"] == task_type]
        texts = [row["output"] for row in mine] + [row["poor"] for row in mine]
        scores = np.array([5] * len(mine) + [1] * len(mine))
        groups = np.array([*range(len(mine))] * 2)
        libraries[task_type] = make_library(
            embed(texts), scores, groups, config.prior_neighbors, config.smoothing
        )
    return judged, libraries


def judge(
    title: str,
    rows: Sequence[Row],
    libraries: Mapping[TaskType, TaskLibrary],
    embed: Any,
    config: RewardsConfig,
) -> tuple[Table, Table]:
    """Plants, scores and prints."""
    rng = Random(0)
    outputs: list[Output] = []
    for row in rows:
        others = [
            r
            for r in rows
            if r is not row and r["task_type"] == row["task_type"] and r["output"] != row["output"]
        ]
        outputs += outputs_of(row, rng.choice(others), rng)
    means, below = table_of(outputs, rewards_of(outputs, libraries, embed, config))
    present = [task for task in TASK_TYPES if task in means[REFERENCE]]
    print(f"\n{title}: {len(rows)} rows, {len(outputs)} outputs")
    print(f"{'':30}" + "".join(f"{task:>9}" for task in present) + f"{'least gap':>12}")
    for name, cells in means.items():
        gap = "" if name == REFERENCE else f"{min(below[name].values()):.3f}"
        line = "".join(f"{cells[task]:9.3f}" if task in cells else f"{'–':>9}" for task in present)
        print(f"{name:30}{line}{gap:>12}")
    return means, below


def close_calls(below: Table) -> list[str]:
    """The outputs that come within `MARGIN` of the reference."""
    return [
        f"{name} ({task}: {gap:.3f})"
        for name, cells in below.items()
        if name != REFERENCE
        for task, gap in cells.items()
        if gap < MARGIN
    ]


def main() -> int:
    """Prints the tables; 1 where a useless output comes close to the reference."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--run", help="run directory with the stages mixture and library; default: one is made"
    )
    parser.add_argument("--config", default=str(CONFIG), help="whose rewards and embedder")
    parser.add_argument(
        "--data", type=Path, help="folder with the files of real text; default: closed world alone"
    )
    args = parser.parse_args()
    from lm_mixup.models.embedder import Embedder

    config = load_config(args.config)
    limit = 12 if args.quick else 60
    results: dict[str, tuple[Table, Table]] = {}
    with tempfile.TemporaryDirectory() as made:
        run = RunDir(args.run) if args.run else make_run(Path(made), 600 if args.quick else 2000)
        model = Embedder(config.embedder.model_copy(update={"num_actors": 1}))
        rows, libraries = closed_world(run, config, limit)
        results["closed world"] = judge("closed world", rows, libraries, model.embed_whole, config.rewards)
    if args.data:
        wide = Embedder(EmbedderConfig(max_length=256))
        rows, libraries = real_text(args.data, limit, wide.embed_whole, config.rewards)
        results["real text"] = judge("real text", rows, libraries, wide.embed_whole, config.rewards)
    close = [f"{where}: {call}" for where, (_, below) in results.items() for call in close_calls(below)]
    least = min(
        gap
        for _, below in results.values()
        for name, cells in below.items()
        if name != REFERENCE
        for gap in cells.values()
    )
    print(
        f"\nleast gap {least:.3f}"
        + (f"; within {MARGIN} of the reference: {'; '.join(close)}" if close else "")
    )
    if args.json:
        ours = {
            where: {"reward": means, "below the reference": below}
            for where, (means, below) in results.items()
        }
        args.json.write_text(
            json.dumps(
                {
                    "name": "reward_hacks",
                    "machine": harness.machine(),
                    "config": {"weights": config.rewards.weights.model_dump(), "rows of a task type": limit},
                    "ours": ours,
                    "peer": {},
                    "ratio": round(least / MARGIN, 3),
                },
                indent=2,
            )
            + "\n",
            encoding="utf-8",
        )
    return 1 if close else 0


if __name__ == "__main__":
    sys.exit(main())
