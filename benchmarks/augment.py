"""The data stages of `augment` on a real pool, once and grown: seconds, memory, and where every row went.

    python benchmarks/augment.py --pool my.jsonl [--grown 1 4] [--config configs/quickstart.yaml]

A pool is grown by copies whose words are edited at random (a twentieth of them doubled or left out), so that
no copy is an exact repeat. Each size is a command of its own, `lm-mixup augment … --until cluster`; memory is
the proportional set size of all its processes. It stops with an error where a stage's rows do not add up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import harness

from lm_mixup.config.load import load_config
from lm_mixup.core.run_dir import Manifest, RunDir
from lm_mixup.stages import stages_of

_EDITED = 0.05


def arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True, help="JSONL with prompt and completion")
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--grown", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--set", nargs="+", default=[], metavar="key.path=value", help="more of the config")
    parser.add_argument("--curate", action="store_true", help="also with the ratings' noise estimated")
    args = parser.parse_args()
    if args.quick:
        args.grown = args.grown[:1]
    return args


def edited(text: str, rng: Random) -> str:
    """The text with a twentieth of its words doubled or left out."""
    words: list[str] = []
    for word in text.split(" "):
        drawn = rng.random()
        words += [] if drawn < _EDITED / 2 else [word, word] if drawn < _EDITED else [word]
    return " ".join(words) or text


def grown(pool: Path, times: int) -> Iterator[str]:
    """The lines of a pool, then `times` − 1 edited copies of each."""
    yield from pool.read_text(encoding="utf-8").splitlines()
    for copy in range(1, times):
        for number, line in enumerate(pool.read_text(encoding="utf-8").splitlines()):
            row, rng = json.loads(line), Random(f"{copy}-{number}")
            row |= {
                "id": f"{row.get('id', number)}-{copy}",
                "prompt": f"{edited(row['prompt'], rng)} ({copy})",
            }
            row["completion"] = edited(row["completion"], rng)
            yield json.dumps(row)


def unaccounted(manifest: Manifest) -> int:
    """Rows of a stage neither out nor refused; where rows are merged, neither used nor left out."""
    if manifest.rows_used is None:
        return manifest.rows_in - manifest.rows_out - manifest.rows_rejected
    return manifest.rows_in - manifest.rows_used - sum(manifest.left_out.values())


def augment(args: argparse.Namespace, times: int, folder: Path) -> dict[str, Any]:
    """Runs the stages on a pool grown so many times."""
    pool, run = folder / f"pool-{times}.jsonl", folder / f"run-{times}"
    pool.write_text("".join(f"{line}\n" for line in grown(args.pool, times)), encoding="utf-8")
    overrides = [f"augment.pool={pool}", f"curate.enabled={str(args.curate).lower()}", *args.set]
    command = [sys.executable, "-m", "lm_mixup.cli", "augment", args.config, "--run-dir", str(run)]
    command += ["--until", "cluster", *(part for word in overrides for part in ("--set", word))]
    start = time.perf_counter()
    with harness.PeakMemory() as memory:
        subprocess.run(command, check=True, stdout=sys.stderr)
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "gib": round(memory.peak, 2)}
    stages = tuple(stages_of("augment", load_config(args.config, overrides)))
    for stage in stages[: stages.index("cluster") + 1]:
        manifest = RunDir(run).stage(stage).manifest()
        if manifest is None or unaccounted(manifest):
            sys.exit(f"{stage}: {unaccounted(manifest) if manifest else 'all'} rows are not accounted for")
        counts = {"in": manifest.rows_in, "out": manifest.rows_out, "rejected": manifest.rows_rejected}
        counts |= {} if manifest.rows_used is None else {"used": manifest.rows_used}
        left = {f"left: {reason}": count for reason, count in manifest.left_out.items()}
        result[stage] = {"seconds": round(manifest.seconds, 1), **counts, **left}
    return result


def main() -> None:
    args = arguments()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for times in args.grown:
            results[f"x{times}"] = result = augment(args, times, Path(folder))
            print(f"pool x{times}: {result['seconds']} s with start-up, at most {result['gib']} GiB")
            for stage, row in result.items():
                if isinstance(row, dict):
                    print(f"  {stage:10}" + "  ".join(f"{key} {value:,}" for key, value in row.items()))
    if args.json:
        config = {"config": args.config, "grown": args.grown, "curate": args.curate, "set": args.set}
        report = {"name": "augment", "machine": harness.machine(), "config": config, "ours": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
