"""The SFT stage: MIXTURE rows in, a policy that distills out (paper section 3.2, cold start).

The loss covers the completion only, including the end-of-sequence token. The data order depends on the seed,
and checkpoints make the stage resumable: killed at any point, the same call ends with the same model.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lm_mixup.config import ModelConfig, SftConfig, TrackingConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.run_log import current_place, log, open_log
from lm_mixup.distributed.gpus import check_gpu_nodes
from lm_mixup.distributed.labels import run_name, set_gauge
from lm_mixup.distributed.map_parts import map_parts
from lm_mixup.distributed.ray_cluster import has_gpu
from lm_mixup.models.resolve import check_model_path
from lm_mixup.train.checkpoint import MARK, SftJob
from lm_mixup.train.remote_checkpoint import has_model, newest_complete, step_of
from lm_mixup.train.tokenize import EVAL_SPLIT, TRAIN_SPLIT, base_model, make_encoder
from lm_mixup.train.tracking import read_stage_metrics, stage_trackers, trim_metrics

_POLL_S = 0.5
_POLL_REMOTE_S = 5.0  # each look fetches the log


def sft(
    mixture: StageDir,
    out: StageDir,
    config: SftConfig,
    model: ModelConfig,
    seed: int,
    tracking: TrackingConfig | None = None,
) -> Outcome:
    """Fine-tunes the policy on MIXTURE.

    Writes the encoded rows as parts, `metrics.jsonl`, `checkpoints/` and `model/` (Hugging Face format).

    Args:
        mixture: The MIXTURE rows; split `sft` is trained on, split `dev` is evaluated.
        out: The stage directory.
        config: The `sft` section.
        model: The `model` section: what training starts from.
        seed: Of the data order and of random initialization.
        tracking: The `tracking` section; its defaults if None.

    Raises:
        InputError: There is no such model; or as in `fit`.
        ray.train.TrainingFailedError: As in `fit`.
    """
    check_model_path(model.path)
    base = base_model(mixture, out, model, seed)
    map_parts(
        out,
        mixture.parts(),
        make_encoder,
        {"mixture": mixture, "base": base, "model": model, "max_length": config.max_length},
        num_actors=config.num_workers,
        label="encode",
    )
    return fit(SftJob(out=out, config=config, model=model, base=base, seed=seed), tracking)


def fit(job: SftJob, tracking: TrackingConfig | None = None) -> Outcome:
    """Trains on the token rows in the job's stage directory, unless the model is already there.

    Raises:
        InputError: There is no row to train on, or none held out for `patience` or `keep_best`; the cluster
            has no room for the workers, the model cannot be loaded, or the loss is not finite.
        ray.train.TrainingFailedError: The workers failed more often than `max_failures`.
    """
    counts, name = _split_counts(job.out), job.out.name
    if not counts[TRAIN_SPLIT]:
        raise InputError(_nothing_to_train_on(job))
    config = job.config
    if not counts[EVAL_SPLIT] and (config.patience is not None or config.keep_best):
        raise InputError(
            f"{name}: {name}.patience and {name}.keep_best need held-out rows and there are none; raise "
            f"{_held_out_share(name)}, or disable both"
        )
    if not has_model(job.out):
        total = planned_steps(job.config, counts[TRAIN_SPLIT])
        _run_workers(job, total, tracking or TrackingConfig())
    return _outcome(job, counts)


def _nothing_to_train_on(job: SftJob) -> str:
    """One line: how many rows there were, why each was rejected, and what helps against that."""
    name, receipts = job.out.name, job.out.receipts().values()
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        reasons.update(receipt.rejected_by_reason)
    held_out = sum(receipt.rows_out for receipt in receipts)
    if not reasons and not held_out:
        return f"{name}: there is no row to train on: no rows came in"
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
    limit = f"raise {name}.max_length ({job.config.max_length})"
    where = f"see {job.out.run.uri}/{name}/rejected/"
    found = [f"{held_out} held out; lower {_held_out_share(name)}"] * bool(held_out)
    found += [f"rejected {counted}; {limit if set(reasons) == {'too_long'} else where}"] * bool(reasons)
    return f"{name}: there is no row to train on: {'; '.join(found)}"


def _held_out_share(stage: str) -> str:
    return "finetune.eval_fraction" if stage == "finetune" else "build.dev_fraction"


def planned_steps(config: SftConfig, rows: int) -> int:
    """Optimizer steps of the run; with packing there are fewer, and the progress bar ends early."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, round(config.epochs * rows / config.batch_size))


def _split_counts(out: StageDir) -> dict[str, int]:
    counts = {TRAIN_SPLIT: 0, EVAL_SPLIT: 0}
    for table in out.iter_parts(["split"]):
        for name in table["split"].to_pylist():
            counts[name] += 1
    return counts


def _run_workers(job: SftJob, total: int, tracking: TrackingConfig) -> None:
    """Runs the Ray Train workers while the driver follows their log."""
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    use_gpu = has_gpu()
    if use_gpu:
        check_gpu_nodes()
    worker_env = {"TOKENIZERS_PARALLELISM": "false"} | ({} if use_gpu else {"DS_ACCELERATOR": "cpu"})
    storage = f"{job.out.name}/ray-train-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"job": job, "log_place": current_place()},
        scaling_config=ScalingConfig(
            num_workers=job.config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.config.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"{run_name()}.{job.out.name}",
            **_storage(job, storage),
            failure_config=FailureConfig(max_failures=job.config.max_failures, controller_failure_limit=0),
            worker_runtime_env={"env_vars": worker_env},
        ),
    )
    done = step_of(newest_complete(job.out, MARK))
    # Workers trim it too, but the log is followed before they start.
    lines = trim_metrics(job.out.fetch("metrics.jsonl"), done)
    job.out.upload("metrics.jsonl")
    settings = job.config.model_dump(mode="json")
    try:
        with (
            stage_trackers(job.out, tracking, settings, lines) as write_trackers,
            _progress_bar(job, total, done, write_trackers),
            _bounded_placement(job, use_gpu),
            _reraise_refusals(job),
        ):
            trainer.fit()
    finally:
        job.out.run.remove(storage)


def _storage(job: SftJob, relative: str) -> dict[str, Any]:
    """Where Ray Train keeps its own state: in the run directory, which every node sees."""
    run = job.out.run
    if run.is_local:
        return {"storage_path": str(job.out.local.parent / relative)}
    import pyarrow.fs

    files = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(run.fs))
    return {"storage_path": f"{run.path}/{relative}", "storage_filesystem": files}


@contextmanager
def _bounded_placement(job: SftJob, use_gpu: bool) -> Iterator[None]:
    """Bounds the wait for the cluster's resources; Ray Train alone would wait forever.

    Raises:
        InputError: They were not free in time; the message states what was requested and what there is.
    """
    import ray
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    name, config = job.out.name, job.config
    has = ray.cluster_resources()
    gpus = config.num_workers if use_gpu else 0
    report = (
        f"{name} requests {config.num_workers} workers of {config.cpus_per_worker:g} CPUs each and {gpus} "
        f"GPUs; the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
    )
    if config.num_workers * config.cpus_per_worker > has.get("CPU", 0) or gpus > has.get("GPU", 0):
        say(f"  {report}; waiting {config.placement_timeout_s:.0f} s for more nodes")
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.placement_timeout_s)
    try:
        yield
    except ControllerError as error:
        if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise
        free = ray.available_resources()
        raise InputError(
            f"{report}, of which {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free; lower "
            f"{name}.num_workers or {name}.cpus_per_worker, or add nodes"
        ) from None


@contextmanager
def _reraise_refusals(job: SftJob) -> Iterator[None]:
    """Re-raises the InputError of a worker with its own message, without Ray Train's wrapping."""
    from ray.train import WorkerGroupError

    run = job.out.run
    run.remove(job.refusal)
    try:
        yield
    except WorkerGroupError:
        if run.exists(job.refusal):
            raise InputError(run.read_bytes(job.refusal).decode("utf-8")) from None
        raise


def _train_loop(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker; the worker module's heavy imports happen here.

    Ray Train restarts workers whatever they raised. An InputError would come again, so it is written to a
    file, and the remaining attempts end at once.
    """
    from lm_mixup.train.sft_worker import train

    job: SftJob = loop_config["job"]
    run = job.out.run
    if loop_config["log_place"] is not None:
        open_log(replace(loop_config["log_place"], role="worker"))
    if run.exists(job.refusal):
        raise InputError(run.read_bytes(job.refusal).decode("utf-8"))
    try:
        log("training begins")
        train(job)
    except InputError as error:
        run.write_bytes(job.refusal, str(error).encode("utf-8"))  # all workers write the same message
        raise
    except Exception as error:
        log("training failed", level=logging.ERROR, error=error)
        raise


@contextmanager
def _progress_bar(
    job: SftJob, total: int, done: int, write_trackers: Callable[[dict[str, Any]], None]
) -> Iterator[None]:
    """Shows a progress bar and feeds the trackers from the workers' log."""
    ended = threading.Event()
    with track(job.out.name, total=total, completed=done) as advance, ThreadPoolExecutor(1) as thread:
        following = thread.submit(_follow_log, job, done, advance, write_trackers, ended)
        try:
            yield
        finally:
            ended.set()
        following.result()


def _follow_log(
    job: SftJob,
    done: int,
    advance: Callable[..., None],
    write_trackers: Callable[[dict[str, Any]], None],
    ended: threading.Event,
) -> None:
    """Handles each line once, even if a restarted worker repeats some steps."""
    last, newest = False, (done, True)
    while not last:
        last = ended.wait(_POLL_S if job.out.run.is_local else _POLL_REMOTE_S)
        for line in read_stage_metrics(job.out):
            place = (line["step"], "eval_loss" in line)  # a step's evaluation follows its loss
            if place <= newest:
                continue
            if "loss" in line:
                advance(line["step"] - newest[0], f"loss {line['loss']:.3f}")
                if "tokens_per_second" in line:
                    speed = line["tokens_per_second"]
                    set_gauge("lm_mixup_tokens_per_second", speed, job.out.name, "update")
            write_trackers(line)
            newest = place


def _outcome(job: SftJob, counts: dict[str, int]) -> Outcome:
    config, rows = job.config, counts[TRAIN_SPLIT]
    lines = read_stage_metrics(job.out)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    eval_loss = None  # of the model that is written: the last evaluation, or the best one
    if evaluations:
        eval_loss = min(evaluations) if config.keep_best else evaluations[-1]
    metrics: dict[str, Any] = {
        "steps": steps[-1]["step"],
        "loss": steps[-1]["loss"],
        "first_loss": steps[0]["loss"],
        "eval_loss": eval_loss,
        "num_tokens": steps[-1]["num_tokens"],
        "train_rows": rows,
        "eval_rows": min(counts[EVAL_SPLIT], config.eval_rows),
    }
    # Fewer than all rows if the first epoch was cut short. A packed step draws `batch_size` sequences of one
    # or more rows each; only the workers know how many, so all rows count as drawn.
    drawn = rows if config.packing else min(rows, metrics["steps"] * config.batch_size)
    other = sum(receipt.metrics.get("rows_of_other_splits", 0) for receipt in job.out.receipts().values())
    return Outcome(
        metrics=metrics,
        rows_used=drawn + metrics["eval_rows"],
        left_out={
            "not_drawn": rows - drawn,
            "dev_rows_not_evaluated": counts[EVAL_SPLIT] - metrics["eval_rows"],
            "rows_of_other_splits": int(other),
        },
        files=[
            f"{job.out.name}/metrics.jsonl",
            *(f"{job.out.name}/model/{name}" for name in job.out.run.listing(f"{job.out.name}/model")),
        ],
    )
