"""How long `build` takes, and how much memory, for so many MIXTURE rows of the closed world.

    python benchmarks/build.py [--rows 144000] [--run-dir DIR]

Memory is the proportional set size of the run's processes. No peer: the method's official code asks a
model behind a server for every row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from lm_mixup.core.run_dir import RunDir

STAGES = ("passages", "generate", "degrade", "mixture")
_SAMPLES_PER_ROW = 1.27  # samples that the rater refuses or that find no partner make no row


def arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=144_000, help="MIXTURE rows wanted")
    parser.add_argument("--config", default="configs/nano.yaml")
    parser.add_argument("--run-dir", type=Path, help="where the run is kept; default: nowhere")
    args = parser.parse_args()
    if args.quick:
        args.rows = min(args.rows, 10_000)
    return args


def build(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Builds; seconds, peak GiB and rows."""
    samples = round(args.rows * _SAMPLES_PER_ROW)
    command = [sys.executable, "-m", "lm_mixup.cli", "build", args.config, "--run-dir", str(run)]
    start = time.perf_counter()
    with harness.PeakMemory() as memory:
        subprocess.run([*command, "--set", f"build.samples={samples}"], check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - start
    manifests = {name: RunDir(run).stage(name).manifest() for name in STAGES}
    rows = {name: manifest.rows_out for name, manifest in manifests.items() if manifest}
    return {"seconds": round(seconds, 1), "gib": round(memory.peak, 2), "samples": samples, "rows": rows}


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = build(args, args.run_dir or Path(folder))
    print(f"build: {result['samples']:,} samples, {result['seconds']} s, at most {result['gib']} GiB")
    for name, rows in result["rows"].items():
        print(f"{name:12}{rows:12,} rows")
    print(f"{result['rows']['mixture'] / result['seconds']:,.0f} MIXTURE rows a second")
    if args.json:
        report = {"name": "build", "machine": harness.machine(), "config": {"rows": args.rows}}
        args.json.write_text(json.dumps(report | {"ours": result}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
