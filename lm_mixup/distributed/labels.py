"""The names of a run's actors, tasks and placement groups in Ray, and its gauges for Prometheus.

Ray exports the gauges of every process on its node's metrics port, with `ray_` before the name;
docs/cluster.md lists them. The driver sets them all, so a figure of a stage has one series.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Any

GAUGES = {
    "lm_mixup_tokens_per_second": "Tokens generated or trained on, over the last step.",
    "lm_mixup_rows_per_second": "Rows out of the parts of a stage that are done.",
    "lm_mixup_rejected_rows": "Rows refused with a reason since the stage began.",
    "lm_mixup_queue_depth": "Work handed out and not done.",
    "lm_mixup_staleness": "Versions by which the weights of the rollouts were behind.",
    "lm_mixup_sync_seconds": "From the end of an update until every engine holds its weights.",
}
TAGS = ("run", "stage", "role")

_run = "run"  # of this process, as the connection to Ray is
_counter = itertools.count()
_made: dict[str, Any] = {}


def name_run(uri: str) -> None:
    """Sets what stands for the run in names and tags: the last part of its run directory.

    Ray's tags and Ray Train's names take ASCII alone: what is none is written without its accents, or with a
    hyphen.
    """
    global _run
    last = unicodedata.normalize("NFKD", uri.rstrip("/").rpartition("/")[2])
    plain = "".join(char for char in last if not unicodedata.combining(char))
    _run = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.") or "run"


def run_name() -> str:
    """What stands for the run."""
    return _run


def label(stage: str, role: str) -> str:
    """A name for Ray, `run/stage/role`, that no other actor or placement group of this driver has."""
    return f"{_run}/{stage}/{role}.{next(_counter)}"


def set_gauge(name: str, value: float, stage: str, role: str = "") -> None:
    """Sets a gauge of `GAUGES`; does nothing where Ray does not run."""
    import ray

    if not ray.is_initialized():
        return
    if name not in _made:
        from ray.util.metrics import Gauge

        _made[name] = Gauge(name, description=GAUGES[name], tag_keys=TAGS)
    _made[name].set(float(value), tags={"run": _run, "stage": stage, "role": role})
