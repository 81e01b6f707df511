"""Maps a stage over Parquet parts with Ray Data.

The work of a stage is a callable on one item, usually an input part. Ray Data provides actors, retries and
back-pressure. Parts provide determinism and resume: a part depends only on its item, not on the number of
workers or their failures, and a part with a receipt is not computed again. Memory is bounded by
`workers × rows_per_part`, whatever the size of the corpus.
"""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Receipt, StageDir
from lm_mixup.core.run_log import LogPlace, current_place, flush_log, log, open_log
from lm_mixup.distributed.labels import run_name, set_gauge
from lm_mixup.distributed.ray_cluster import nodes
from lm_mixup.distributed.ray_wait import deaths


@dataclass(frozen=True)
class PartResult:
    """The result of one part.

    Attributes:
        rows: The rows that came out.
        rejected: Rejected rows, with a string column `reason`; None if there are none.
        rows_in: Input rows; `rows_in == rows.num_rows + rejected.num_rows` for stages that map rows to rows.
        metrics: Metrics that are summed over the parts.
    """

    rows: pa.Table
    rejected: pa.Table | None = None
    rows_in: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


Work = Callable[[Any], PartResult]
_ATTEMPTS = 3  # of a part whose worker dies
_NODE_LOST_S = 75.0  # Ray gives a node up after 5 health checks, of up to 10 s each and 3 s apart
_SEEN_S = 30.0  # a mounted file system may show a file of another node only after its attribute cache expires


def map_parts(
    stage: StageDir,
    items: Sequence[Any],
    make_work: Callable[..., Work],
    make_kwargs: Mapping[str, Any],
    *,
    num_actors: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    label: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> None:
    """Maps work over items, one part per item, and skips parts that have a receipt.

    When a node is lost, the parts that have no receipt yet run again on the others.

    Args:
        items: Item i becomes part i.
        make_work: Called once in each actor with `make_kwargs`; returns the function that maps an item to a
            `PartResult`. Models are loaded here.
        label: Of the progress bar; default: the name of the stage.
        runtime_env: Ray runtime environment of the actors, e.g. thread counts.

    Raises:
        InputError: Raised by the work or by `make_work`; it is passed through Ray unchanged.
        ray.exceptions.RayTaskError: The work failed; parts finished before keep their receipts.
        RuntimeError: A part's workers died three times, or nodes were lost three times without a part done.
    """
    pending = _pending(stage, len(items))
    shown, idle = len(items) - len(pending), 0
    with track(label or stage.name, total=len(items), completed=shown) as advance:
        while pending:
            here = _node_ids()
            try:
                for note in _run_parts(
                    stage,
                    [(index, items[index]) for index in pending],
                    make_work,
                    make_kwargs,
                    num_actors=num_actors,
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    role=label or "parts",
                    runtime_env=runtime_env,
                ):
                    shown += 1
                    advance(1, note)
                return
            except deaths() as error:
                left = _pending(stage, len(items))
                idle = 0 if len(left) < len(pending) else idle + 1
                if idle == _ATTEMPTS or not _node_was_lost(here):
                    raise RuntimeError(_killed(stage, left, num_actors)) from error
                say(f"  {stage.name}: a node was lost; {len(left)} parts that are not done run again")
                advance(len(items) - len(left) - shown)
                pending, shown = left, len(items) - len(left)


def _pending(stage: StageDir, count: int) -> list[int]:
    done = stage.receipts()
    return [index for index in range(count) if index not in done]


def _run_parts(
    stage: StageDir,
    pending: Sequence[tuple[int, Any]],
    make_work: Callable[..., Work],
    make_kwargs: Mapping[str, Any],
    *,
    num_actors: int,
    num_cpus: float,
    num_gpus: float,
    role: str,
    runtime_env: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Runs parts on Ray Data; yields the rows so far and their speed, in words, as each is done."""
    import ray.data

    place = current_place()
    names: list[str] = []  # of the actors started so far

    def name_actor() -> dict[str, str]:
        names.append(f"{stage.name}-{uuid.uuid4().hex}")
        return {"name": names[-1]}

    rows = [{"part": index, "item": _Box(item)} for index, item in pending]
    with warnings.catch_warnings():
        # Ray 2.60 has no other way yet to set these, and warns of the way it has.
        warnings.filterwarnings("ignore", message="`ray_remote_args(_fn)?` is deprecated")
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            type(f"{run_name()}/{stage.name}", (_PartWorker,), {}),  # how Ray's dashboard names it
            fn_constructor_kwargs={
                "stage": stage,
                "make_work": make_work,
                "make_kwargs": dict(make_kwargs),
                "log_place": None if place is None else replace(place, role=role),
            },
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(num_actors, len(pending))),
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
            runtime_env=dict(runtime_env) if runtime_env else None,
            ray_remote_args_fn=name_actor,
            max_task_retries=_ATTEMPTS - 1,  # Ray Data alone would try for ever
        )
    nodes_of: dict[int, str] = {}
    figures = _Figures(stage.name, len(pending))
    try:
        for row in dataset.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            nodes_of[row["part"]] = row["node"]
            yield figures.add(row["rows"], row["rejected"])
    except deaths():
        _kill_actors(names)
        raise
    _require_receipts(stage, nodes_of)


def _kill_actors(names: Sequence[str]) -> None:
    """Ends the actors that are left.

    Ray Data drops an actor that is just being restarted, but Ray starts it all the same, and it would hold
    its CPUs until the driver ends.
    """
    import ray

    for name in names:
        with suppress(ValueError):  # it has ended
            ray.kill(ray.get_actor(name))


def _node_ids() -> set[str]:
    return {node["NodeID"] for node in nodes()}


def _node_was_lost(before: set[str]) -> bool:
    """Whether one of several nodes has gone. Its actors are out of reach before Ray has given it up."""
    until = time.monotonic() + (_NODE_LOST_S if len(before) > 1 else 0.0)
    while not before - _node_ids():
        if time.monotonic() >= until:
            return False
        time.sleep(1.0)
    return True


class _Figures:
    """The gauges of a stage over parts, as they are done."""

    def __init__(self, stage: str, pending: int) -> None:
        self._stage, self._left, self._rows, self._rejected = stage, pending, 0, 0
        self._started = time.monotonic()
        set_gauge("lm_mixup_queue_depth", pending, stage, "parts")

    def add(self, rows: int, rejected: int) -> str:
        """Counts a part; the rows so far and their speed, in words."""
        self._left, self._rows, self._rejected = self._left - 1, self._rows + rows, self._rejected + rejected
        speed = self._rows / max(time.monotonic() - self._started, 1e-9)
        set_gauge("lm_mixup_rows_per_second", speed, self._stage)
        set_gauge("lm_mixup_rejected_rows", self._rejected, self._stage)
        set_gauge("lm_mixup_queue_depth", self._left, self._stage, "parts")
        return f"{self._rows:,} rows, {speed:,.0f} rows/s"


def _killed(stage: StageDir, pending: Sequence[int], num_actors: int) -> str:
    """One line on parts that killed their workers: those begun first and not finished are the likely ones."""
    done = stage.receipts()
    begun = [index for index in pending if index not in done][:num_actors]
    return (
        f"{stage.name}: a worker died {_ATTEMPTS} times of one part, {' or '.join(map(str, begun))}; "
        "a process killed by the system usually ran out of memory: lower data.rows_per_part or num_actors"
    )


def _require_receipts(stage: StageDir, nodes_of: Mapping[int, str], patience_s: float = _SEEN_S) -> None:
    """Refuses parts that a worker has written and this process does not see.

    Args:
        nodes_of: The node that wrote each part.

    Raises:
        InputError: The run directory of a node is another one than here; the message names the node.
    """
    until = time.monotonic() + patience_s
    while unseen := nodes_of.keys() - stage.receipts().keys():
        if time.monotonic() > until:
            named = ", ".join(sorted({nodes_of[part] for part in unseen}))
            raise InputError(
                f"{stage.name}: node {named} wrote {len(unseen)} parts to {stage.run.uri}, and they are not "
                "there for the driver; mount the same folder on every node, or use a URI such as s3://…"
            )
        time.sleep(min(1.0, patience_s / 10))


@dataclass(frozen=True)
class _Box:
    """Prevents Ray Data from converting an item to columns."""

    value: Any


class _PartWorker:
    """The actor: creates its work once, then maps one item at a time and writes the part."""

    def __init__(
        self,
        stage: StageDir,
        make_work: Callable[..., Work],
        make_kwargs: dict[str, Any],
        log_place: LogPlace | None = None,
    ) -> None:
        if log_place is not None:
            open_log(log_place)
        self._stage = stage
        self._error = ""
        try:
            self._work = make_work(**make_kwargs)
        except InputError as error:
            self._error = str(error)
        except Exception as error:
            log("cannot start", level=logging.ERROR, error=error)
            raise

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import ray

        part, item = int(batch["part"][0]), batch["item"][0].value
        rows, rejected = 0, 0
        # Returned as a value: Ray Data would wrap the exception and print a traceback.
        try:
            if not self._error:
                log("part %d begins", part)
                result = self._work(item)
                receipt = receipt_of(part, result)
                self._stage.write_part(part, result.rows, result.rejected, receipt)
                rows, rejected = receipt.rows_out, receipt.rows_rejected
                log("part %d: %d rows, %d rejected", part, rows, rejected)
                flush_log()  # a worker may be ended at any time
        except InputError as error:
            self._error = str(error)
        except Exception as error:
            log("part %d failed", part, level=logging.ERROR, error=error)
            raise
        return {
            "part": np.array([part]),
            "rows": np.array([rows]),
            "rejected": np.array([rejected]),
            "error": np.array([self._error], dtype=object),
            "node": np.array([ray.util.get_node_ip_address()], dtype=object),
        }


def receipt_of(part: int, result: PartResult) -> Receipt:
    """The receipt of a part."""
    reasons: Counter[str] = Counter()
    if result.rejected is not None and result.rejected.num_rows:
        reasons.update(result.rejected["reason"].to_pylist())
    return Receipt(
        part=part,
        rows_in=result.rows_in,
        rows_out=result.rows.num_rows,
        rows_rejected=sum(reasons.values()),
        rejected_by_reason=dict(sorted(reasons.items())),
        metrics={key: float(value) for key, value in result.metrics.items()},
    )
