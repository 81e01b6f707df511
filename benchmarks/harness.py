"""What every benchmark does alike: arguments, the machine, timing, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

T = TypeVar("T")


def parser(description: str) -> argparse.ArgumentParser:
    """`--quick` and `--json OUT`; a benchmark adds options of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a size that ends within minutes on two cores")
    parser.add_argument("--json", type=Path, help="where the result is written")
    return parser


def arguments(description: str) -> argparse.Namespace:
    """The parsed arguments of a benchmark that has no options of its own."""
    return parser(description).parse_args()


def timed(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median seconds of some runs, and what the last one returned."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    assert result is not None
    return statistics.median(seconds), result


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure the median over the rounds: sides that take turns see the same machine."""
    return {key: round(statistics.median(found[key] for found in rounds), 4) for key in rounds[0]}


def finish(
    name: str,
    config: dict[str, Any],
    ours: dict[str, Any],
    peer: dict[str, Any],
    ratio: float,
    out: Path | None,
) -> None:
    """Prints both sides next to each other and writes the JSON."""
    print(f"{name}: {', '.join(f'{key} {value}' for key, value in config.items())}")
    print(f"{'':28}{'ours':>14}{'peer':>14}")
    for key in [*ours, *(key for key in peer if key not in ours)]:
        print(f"{key:28}{ours.get(key, ''):>14}{peer.get(key, ''):>14}")
    print(f"ratio {ratio:.2f} (above 1: ours is better)")
    if out:
        result = {"name": name, "machine": machine(), "config": config, "ours": ours, "peer": peer}
        out.write_text(json.dumps(result | {"ratio": round(ratio, 3)}, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Enough to tell whether two results may be compared."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def topics(rows: int, width: int, seed: int = 0, rows_per_topic: int = 6, spread: float = 1.0) -> np.ndarray:
    """Unit rows about topics within 40 fields: float32 [rows, width].

    Rows of a topic have a cosine of about 2 / (2 + spread²), topics of a field one of about half that.
    """
    generator = np.random.default_rng(seed)
    fields = generator.standard_normal((40, width))
    count = max(rows // rows_per_topic, 1)
    centres = fields[generator.integers(0, 40, count)] + generator.standard_normal((count, width))
    vectors = centres[generator.integers(0, count, rows)] + spread * generator.standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class PeakMemory:
    """The highest proportional set size of this process and its children, in GiB, sampled every second."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(1.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has ended
            self.peak = max(self.peak, total / 2**30)
