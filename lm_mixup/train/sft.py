"""The SFT stage: MIXTURE rows in, a policy that distils out (paper section 3.2, cold start).

The loss is on the completion alone, the end-of-sequence token included. The data order comes from the seed,
and checkpoints make the stage resumable: killed anywhere, the same call ends with the same model.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lm_mixup.backends.policy import check_model_path
from lm_mixup.config import ModelConfig, SftConfig, TrackingConfig
from lm_mixup.errors import InputError
from lm_mixup.parts import map_parts
from lm_mixup.progress import say, track
from lm_mixup.runs import Outcome, StageDir
from lm_mixup.tracking import mirrored
from lm_mixup.train.checkpoint import last_checkpoint, read_metrics, step_of, trim_metrics
from lm_mixup.train.encode import EVAL_SPLIT, TRAIN_SPLIT, base_model, make_encoder
from lm_mixup.train.job import SftJob

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
        InputError: No such model, or no row of the training split fits in `max_length`.
        ray.train.TrainingFailedError: The workers failed repeatedly.
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
    counts = _split_counts(out)
    if not counts[TRAIN_SPLIT]:
        raise InputError(
            f"sft: no MIXTURE row of split {TRAIN_SPLIT} fits in sft.max_length={config.max_length}; raise it"
        )
    job = SftJob(out=out, config=config, model=model, base=base, seed=seed)
    if not job.final.is_dir():
        total = planned_steps(config, counts[TRAIN_SPLIT])
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

    resources = ray.cluster_resources()
    use_gpu = resources.get("GPU", 0) >= 1
    wanted = job.config.num_workers * job.config.cpus_per_worker
    if wanted > resources.get("CPU", 0):
        say(f"  sft: asks for {wanted:g} CPUs, the cluster has {resources.get('CPU', 0):g}; waiting for more")
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
            name="sft",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
            worker_runtime_env={"env_vars": _worker_env(use_gpu)},
        ),
    )
    done = step_of(last_checkpoint(job.checkpoints))
    trim_metrics(job.metrics, done)  # the workers do so too, but the log is looked at before they are there
    settings = job.config.model_dump(mode="json")
    try:
        with (
            mirrored(job.out.local, tracking, settings, read_metrics(job.metrics)) as mirror,
            _shown(job, total, done, mirror),
        ):
            trainer.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _train_loop(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker. The heavy imports of the worker's module happen there."""
    from lm_mixup.train.sft_worker import train

    train(loop_config["job"])


def _worker_env(use_gpu: bool) -> dict[str, str]:
    env = {"TOKENIZERS_PARALLELISM": "false"}
    return env if use_gpu else env | {"DS_ACCELERATOR": "cpu"}


@contextmanager
def _shown(job: SftJob, total: int, done: int, mirror: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """A progress bar, and the trackers, that follow the workers' log."""
    ended = threading.Event()
    with track("sft", total=total, completed=done) as advance, ThreadPoolExecutor(1) as thread:
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
        "eval_loss": evaluations[-1] if evaluations else None,
        "num_tokens": steps[-1]["num_tokens"],
        "train_rows": counts[TRAIN_SPLIT],
        "eval_rows": min(counts[EVAL_SPLIT], job.config.eval_rows),
    }
    files = [f"{job.out.name}/metrics.jsonl"]
    files += [f"{job.out.name}/model/{path.name}" for path in sorted(job.final.iterdir())]
    other = sum(receipt.metrics["rows_of_other_splits"] for receipt in job.out.receipts().values())
    left_out = {
        "test_rows_not_evaluated": counts[EVAL_SPLIT] - metrics["eval_rows"],
        "rows_of_other_splits": int(other),
    }
    return Outcome(
        metrics=metrics,
        rows_used=counts[TRAIN_SPLIT] + metrics["eval_rows"],
        left_out=left_out,
        files=files,
    )
