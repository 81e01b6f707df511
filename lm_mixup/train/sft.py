"""The SFT stage: MIXTURE rows in, a policy that distils out (paper section 3.2, cold start).

The loss is on the completion alone, the end-of-sequence token included. The data order comes from the seed,
and checkpoints make the stage resumable: killed anywhere, the same call ends with the same model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lm_mixup.config import ModelConfig, SftConfig, TrackingConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import map_parts
from lm_mixup.models.resolve import check_model_path
from lm_mixup.train.checkpoint import SftJob, last_checkpoint, step_of
from lm_mixup.train.tokenize import EVAL_SPLIT, TRAIN_SPLIT, base_model, make_encoder
from lm_mixup.train.tracking import mirrored, read_metrics, trim_metrics

_POLL_S = 0.5


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
        mixture: The MIXTURE rows; split `sft` is trained on, split `test` evaluated.
        out: Where to.
        config: Section `sft`.
        model: Section `model`: what training starts from.
        seed: Of the data order and of what is initialised at random.
        tracking: Section `tracking`; default: its defaults.

    Raises:
        InputError: No such model; or as `fit`.
        ray.train.TrainingFailedError: As `fit`.
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
    """Trains on the token rows that lie in the job's stage directory, unless that is done.

    Args:
        job: What is trained, and how.
        tracking: Section `tracking`; default: its defaults.

    Raises:
        InputError: There is no row to train on, or none held out for `patience` or `keep_best`; the cluster
            has no room for the workers, the model cannot be loaded, or the loss is no number any more.
        ray.train.TrainingFailedError: The workers failed repeatedly.
    """
    counts, name = _split_counts(job.out), job.out.name
    if not counts[TRAIN_SPLIT]:
        raise InputError(
            f"{name}: no row to train on fits in {name}.max_length={job.config.max_length}; raise it"
        )
    config = job.config
    if not counts[EVAL_SPLIT] and (config.patience is not None or config.keep_best):
        share = "finetune.eval_fraction" if name == "finetune" else "build.test_fraction"
        raise InputError(
            f"{name}: no held-out row for {name}.patience or {name}.keep_best to go by; raise {share}, or "
            "switch them off"
        )
    if not job.final.is_dir():
        total = planned_steps(job.config, counts[TRAIN_SPLIT])
        _run_workers(job, total, tracking or TrackingConfig())
    return _outcome(job, counts)


def planned_steps(config: SftConfig, rows: int) -> int:
    """Optimizer steps of the run (packing makes them fewer; the bar then ends early)."""
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
    """Runs the Ray Train workers while the driver shows and mirrors what they log."""
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    storage = tempfile.mkdtemp(prefix="ray-train-", dir=job.out.local)
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.config.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=job.out.name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=job.config.max_failures, controller_failure_limit=0),
            worker_runtime_env={"env_vars": _worker_env(use_gpu)},
        ),
    )
    done = step_of(last_checkpoint(job.checkpoints))
    lines = trim_metrics(job.metrics, done)  # workers trim it too, but the log is followed before they start
    settings = job.config.model_dump(mode="json")
    try:
        with (
            mirrored(job.out.local, tracking, settings, lines) as mirror,
            _shown(job, total, done, mirror),
            _placed(job, use_gpu),
            _refusals_passed_on(job),
        ):
            trainer.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _placed(job: SftJob, use_gpu: bool) -> Iterator[None]:
    """Bounds the wait for the cluster's resources, which Ray Train would wait for without end.

    Raises:
        InputError: They were not free in time; the message says what was asked for and what there is.
    """
    import ray
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    name, config = job.out.name, job.config
    has = ray.cluster_resources()
    gpus = config.num_workers if use_gpu else 0
    report = (
        f"{name} asks for {config.num_workers} workers of {config.cpus_per_worker:g} CPUs each and {gpus} "
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
def _refusals_passed_on(job: SftJob) -> Iterator[None]:
    """Raises what a worker refused as it said it, without Ray Train's wrapping.

    Raises:
        InputError: A worker raised it.
    """
    from ray.train import WorkerGroupError

    job.refusal.unlink(missing_ok=True)
    try:
        yield
    except WorkerGroupError:
        if job.refusal.exists():
            raise InputError(job.refusal.read_text(encoding="utf-8")) from None
        raise


def _train_loop(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker. The heavy imports of the worker's module happen there.

    Ray Train starts workers again whatever they raised. What another try would not mend is written down, so
    that the tries that are left end at once.
    """
    from lm_mixup.train.sft_worker import train

    job: SftJob = loop_config["job"]
    if job.refusal.exists():
        raise InputError(job.refusal.read_text(encoding="utf-8"))
    try:
        train(job)
    except InputError as error:
        job.refusal.write_text(str(error), encoding="utf-8")  # every worker that says it says the same
        raise


def _worker_env(use_gpu: bool) -> dict[str, str]:
    env = {"TOKENIZERS_PARALLELISM": "false"}
    return env if use_gpu else env | {"DS_ACCELERATOR": "cpu"}


@contextmanager
def _shown(job: SftJob, total: int, done: int, mirror: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """A progress bar, and the trackers, that follow the workers' log."""
    ended = threading.Event()
    with track(job.out.name, total=total, completed=done) as advance, ThreadPoolExecutor(1) as thread:
        following = thread.submit(_follow, job, done, advance, mirror, ended)
        try:
            yield
        finally:
            ended.set()
        following.result()


def _follow(
    job: SftJob,
    done: int,
    advance: Callable[..., None],
    mirror: Callable[[dict[str, Any]], None],
    ended: threading.Event,
) -> None:
    """Takes each line up once, also when a worker that is replaced does some steps again."""
    last, newest = False, (done, True)
    while not last:
        last = ended.wait(_POLL_S)
        for line in read_metrics(job.metrics):
            place = (line["step"], "eval_loss" in line)  # a step's evaluation comes after its loss
            if place <= newest:
                continue
            if "loss" in line:
                advance(line["step"] - newest[0], f"loss {line['loss']:.3f}")
            mirror(line)
            newest = place


def _outcome(job: SftJob, counts: dict[str, int]) -> Outcome:
    lines = read_metrics(job.metrics)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    metrics: dict[str, Any] = {
        "steps": steps[-1]["step"],
        "loss": steps[-1]["loss"],
        "first_loss": steps[0]["loss"],
        "eval_loss": _eval_loss(evaluations, job.config),
        "num_tokens": steps[-1]["num_tokens"],
        "train_rows": counts[TRAIN_SPLIT],
        "eval_rows": min(counts[EVAL_SPLIT], job.config.eval_rows),
    }
    files = [f"{job.out.name}/metrics.jsonl"]
    files += [f"{job.out.name}/model/{path.name}" for path in sorted(job.final.iterdir())]
    other = sum(receipt.metrics.get("rows_of_other_splits", 0) for receipt in job.out.receipts().values())
    drawn = _drawn_rows(job.config, counts[TRAIN_SPLIT], metrics["steps"])
    left_out = {
        "not_drawn": counts[TRAIN_SPLIT] - drawn,
        "test_rows_not_evaluated": counts[EVAL_SPLIT] - metrics["eval_rows"],
        "rows_of_other_splits": int(other),
    }
    return Outcome(
        metrics=metrics,
        rows_used=drawn + metrics["eval_rows"],
        left_out=left_out,
        files=files,
    )


def _eval_loss(evaluations: list[float], config: SftConfig) -> float | None:
    """The held-out loss of the model that is written: of the last evaluation, or of the best."""
    if not evaluations:
        return None
    return min(evaluations) if config.keep_best else evaluations[-1]


def _drawn_rows(config: SftConfig, rows: int, steps: int) -> int:
    """Training rows that steps have drawn: those of a first epoch that ended, or was cut short, are fewer.

    A packed step draws `batch_size` sequences, of which each holds a row at least, mostly many; how many is
    known to the workers alone, so all rows count as drawn.
    """
    return rows if config.packing else min(rows, steps * config.batch_size)
