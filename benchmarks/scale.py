"""How time and memory of the data stages grow with the pool: from reading N rows to selecting of them.

    python benchmarks/scale.py [--rows 10000 100000 300000] [--width 256] [--stages cluster neighbors curate]

Rows have about 1 KB of made-up text. Embeddings are synthetic (topics within fields), scores (0 to 4: all
rows are poor) are those topics' own with one in five off. `ingest` reads a JSONL of the rows; `select` takes
3% out of them and of distilled rows, a fourth as many. What embeds or rates is not measured here. Every size
runs in a process of its own on a Ray of its own. Memory is the proportional set size of all its processes,
so the object store is counted once. The growth exponent is the slope of log seconds over log rows from the
first size to the last; 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa

STAGES = ("ingest", "neighbors", "curate", "cluster", "select")
ROWS_PER_PART = 8_192
_TEXTS, _WORDS = 4096, 150  # different answers, and their length: about 1 KB


def arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", help="sizes of the pool")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rows = args.rows or ([4_000, 16_000] if args.quick else [10_000, 100_000, 300_000])
    return args


def write_pool(run: Any, rows: int, width: int) -> None:
    """The stages that the measured ones read: `embed` and `rate`, without holding all rows."""
    from lm_mixup.augment.embed import embedding_table
    from lm_mixup.core.run_dir import Receipt

    embed, rate, distilled = (run.stage(name) for name in ("embed", "rate", "rate_distilled"))
    answers = write_texts()
    generator = np.random.default_rng(0)
    topics = max(rows // 6, 1)
    fields = generator.standard_normal((40, width)).astype(np.float32)
    for part, start in enumerate(range(0, rows, ROWS_PER_PART)):
        count = min(ROWS_PER_PART, rows - start)
        topic = generator.integers(0, topics, count)
        centres = np.stack([_direction(int(t), width) + fields[t % 40] for t in topic])
        vectors = centres + generator.standard_normal((count, width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        off = generator.random(count) < 0.2
        score = np.where(off, generator.integers(0, 5, count), topic % 5).astype(np.int8)
        ids = [f"row{start + i:09d}" for i in range(count)]
        table = pa.table(
            {
                "id": ids,
                "source": ["pool"] * count,
                "task_type": ["qa"] * count,
                "prompt": [f"What is told of {row}?" for row in ids],
                "completion": [answers[int(t) % _TEXTS] for t in topic],
                "score": score,
            }
        )
        dense = table.slice(0, count // 4).drop_columns(["id", "source", "score"])
        dense = dense.append_column("parent_ids", pa.array([[row] for row in ids[: count // 4]]))
        dense = dense.append_column("score", pa.array(np.full(count // 4, 5, np.int8)))
        dense = dense.append_column("long_tail", pa.array(generator.random(count // 4, np.float32)))
        distilled.write_part(part, dense, None, Receipt(part, count // 4, count // 4, 0))
        embed.write_part(part, embedding_table(ids, vectors), None, Receipt(part, count, count, 0))
        rate.write_part(part, table, None, Receipt(part, count, count, 0))


def write_texts() -> list[str]:
    """Answers of so many words of six letters."""
    letters = np.random.default_rng(2).integers(97, 123, (_TEXTS, _WORDS, 6), np.uint8)
    return [" ".join(bytes(word).decode() for word in text) for text in letters]


def write_jsonl(run: Any, path: Path) -> None:
    """The pool as a user would have it."""
    with path.open("w", encoding="utf-8") as file:
        for part in run.stage("rate").iter_parts(["id", "prompt", "completion"]):
            file.writelines(f"{json.dumps(row)}\n" for row in part.to_pylist())


def _direction(topic: int, width: int) -> np.ndarray:
    return np.random.default_rng([1, topic]).standard_normal(width, dtype=np.float32)


def measure(rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak GiB of each stage at one size."""
    from lm_mixup.augment.cluster import cluster
    from lm_mixup.augment.curate import curate
    from lm_mixup.augment.ingest import ingest
    from lm_mixup.augment.neighbors import neighbors
    from lm_mixup.augment.select import select
    from lm_mixup.config import (
        ClusterConfig,
        CurateConfig,
        DataConfig,
        IngestConfig,
        NeighborsConfig,
        RayConfig,
        SelectConfig,
    )
    from lm_mixup.core.run_dir import RunDir
    from lm_mixup.distributed.ray_cluster import start_ray

    start_ray(RayConfig())
    cores = len(os.sched_getaffinity(0))
    data = DataConfig(rows_per_part=ROWS_PER_PART)
    # Clusters need a curated score: without curation the rated one.
    passed = CurateConfig(enabled=False, num_actors=cores)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        write_pool(run, rows, args.width)
        embed, rate, near, curated = (run.stage(name) for name in ("embed", "rate", "neighbors", "curate"))
        dense, pool = run.stage("rate_distilled"), Path(folder) / "pool.jsonl"
        if "ingest" in args.stages:
            write_jsonl(run, pool)
        reading, choice = IngestConfig(num_actors=cores), SelectConfig(min_score=0)
        work = {
            "ingest": lambda: ingest(run.stage("ingest"), str(pool), reading, data, 0),
            "neighbors": lambda: neighbors(embed, near, NeighborsConfig(num_actors=cores), 0),
            "curate": lambda: curate(rate, None, near, curated, CurateConfig(num_actors=cores)),
            "cluster": lambda: cluster(
                curated, embed, run.stage("cluster"), ClusterConfig(low_below=5, num_tasks=cores), data, 0
            ),
            "select": lambda: select(dense, curated, embed, near, None, run.stage("select"), choice, 0),
        }
        if "curate" not in args.stages:
            curate(rate, None, rate, curated, passed)
        for stage in (name for name in STAGES if name in args.stages):
            with harness.PeakMemory() as memory:
                start = time.perf_counter()
                outcome = work[stage]()
                result[stage] = {"seconds": round(time.perf_counter() - start, 2)}
            result[stage]["gib"] = round(memory.peak, 2)
            told = ("recall", "clusters", "residual", "cohesion/mean", "triples")
            result[stage] |= {key: outcome.metrics[key] for key in told if key in outcome.metrics}
    return result


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log rows."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def main() -> None:
    args = arguments()
    if args.side:
        args.json.write_text(json.dumps(measure(args.side, args)), encoding="utf-8")
        return
    found = {}
    for rows in args.rows:
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [sys.executable, __file__, "--side", str(rows), "--width", str(args.width)]
            command += ["--stages", *args.stages, "--json", out.name]
            subprocess.run(command, check=True, stdout=sys.stderr)
            found[rows] = json.loads(Path(out.name).read_text(encoding="utf-8"))
    growth = {}
    print(f"scale: width {args.width}, {len(os.sched_getaffinity(0))} cores")
    for stage in (name for name in STAGES if name in args.stages):
        print(f"{stage}\n{'rows':>12}{'seconds':>10}{'rows/s':>10}{'GiB':>8}")
        for rows in args.rows:
            row = found[rows][stage]
            more = "  ".join(f"{key} {value}" for key, value in row.items() if key not in ("seconds", "gib"))
            print(f"{rows:12,}{row['seconds']:10.1f}{rows / row['seconds']:10,.0f}{row['gib']:8.2f}  {more}")
        if len(args.rows) > 1:
            growth[stage] = round(
                exponent(args.rows, [found[rows][stage]["seconds"] for rows in args.rows]), 3
            )
            print(f"growth exponent {growth[stage]}")
    if args.json:
        result = {"name": "scale", "machine": harness.machine(), "config": {"width": args.width}}
        result |= {"ours": {str(rows): found[rows] for rows in args.rows}, "exponent": growth}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
