r"""The `sft` stage in one process on one GPU, on a machine that has neither Ray nor vLLM.

    python benchmarks/one_gpu_sft.py CONFIG --run-dir RUN [--set key.path=value]… [--seconds 330]
        [--test-rows 200] [--clusters FILE] [--out FOLDER]

Reads RUN/mixture as `lm-mixup train CONFIG --until sft` does, encodes its rows with the same function, trains
with the same trainer (TRL's over DeepSpeed, `lm_mixup/train`) and writes the same `RUN/sft`: token rows,
`metrics.jsonl`, `model/` and, with `sft.lora`, `model_adapter/`. What Ray does in a run is missing, and with
it resuming, the replacing of dead workers, and the stage's manifest: the pipeline takes this for a stage that
is not done. It serves a machine that is lent for minutes.

With `--seconds`, training is made to fit: 20 steps are timed, and `sft.max_steps` becomes what fits into the
seconds, so that the learning rate ends its schedule. The same command with `sft.max_steps` set to the printed
number, and no `--seconds`, trains the same model again.

Then the model writes, greedily, for rows of the test split and for the clusters of a JSONL file
(`{"id", "instruction", "inputs"}`); see `greedy.py`. A file per answer list, the adapter and the log go to
`--out`, and a short table to stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import shutil
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lm_mixup.config import ModelConfig, SftConfig
from lm_mixup.config.load import load_config
from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.distributed.map_parts import receipt_of
from lm_mixup.models.resolve import model_folder
from lm_mixup.train.checkpoint import SftJob
from lm_mixup.train.tokenize import base_model, make_encoder
from lm_mixup.train.tracking import read_metrics

if TYPE_CHECKING:
    import numpy as np

    from lm_mixup.distributed.map_parts import Work

_WARM_UP, _TIMED = 8, 16  # steps before the clock starts, and those that it runs for
_OVER = 1.1  # times its seconds that a run may take before it is stopped: the estimate is not exact
_EVALUATIONS = 8  # over a run that is made to fit
_HELD_OUT = "test"  # the split that answers are written for
_FULL = 0.85  # share of the GPU's memory that may be needed by the estimate
_work: Work  # of an encoding process


class Stop(TrainerCallback):
    """Ends training at a time, whatever step it is at, with an evaluation of what there is."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock: loading and sharding come before it."""
        self._end = time.monotonic() + self._seconds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after the trainer has settled what follows the step."""
        if time.monotonic() > self._end:
            control.should_training_stop = control.should_evaluate = control.should_log = True


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory with a mixture stage")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides")
    parser.add_argument("--seconds", type=float, help="of training; default: as the config says")
    parser.add_argument("--test-rows", type=int, default=0, help="of the test split, to write answers for")
    parser.add_argument("--clusters", type=Path, help="JSONL of clusters to write answers for")
    parser.add_argument("--write-seconds", type=float, default=90.0, help="for all the answers")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, help="folder of what is kept; default: RUN/sft/out")
    return parser.parse_args()


def join_alone() -> None:
    """A process group of this process alone, as Ray Train would make it of its workers."""
    import torch
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # cuDNN's attention makes a plan for each new row length.
    torch.backends.cuda.enable_cudnn_sdp(False)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def encode(mixture: StageDir, out: StageDir, job: SftJob) -> None:
    """Writes the token rows, a part of MIXTURE each, on all cores."""
    settings = (mixture, job.base, job.model, job.config.max_length)
    parts = mixture.parts()
    with ProcessPoolExecutor(
        min(len(parts), os.cpu_count() or 1), initializer=_begin_encoding, initargs=settings
    ) as pool:
        for _ in pool.map(_encode_part, [out] * len(parts), range(len(parts)), parts):
            pass


def _begin_encoding(mixture: StageDir, base: str, model: ModelConfig, max_length: int) -> None:
    global _work
    _work = make_encoder(mixture, base, model, max_length)


def _encode_part(out: StageDir, part: int, relative: str) -> None:
    result = _work(relative)
    out.write_part(part, result.rows, result.rejected, receipt_of(part, result))


def fitted(job: SftJob, seconds: float) -> tuple[SftJob, float]:
    """The job with as many steps as fit into the seconds, by the speed of its first ones.

    Returns:
        The job, and the tokens per second that were measured, padding not counted.
    """
    import numpy as np
    import torch
    from accelerate.state import AcceleratorState
    from transformers.trainer_utils import SaveStrategy

    from lm_mixup.train.sft_worker import make_trainer

    steps = {"max_steps": _WARM_UP + _TIMED, "eval_rows": 0, "logging_steps": 1}
    trainer = make_trainer(dataclasses.replace(job, config=job.config.model_copy(update=steps)))
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.train()
    lines = read_metrics(job.metrics)
    job.metrics.unlink()
    rows = np.asarray(trainer.train_dataset["length"])
    del trainer
    AcceleratorState._reset_state()  # else it refuses a second trainer in this process
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    config = _that_fits(job, rows)
    before, timed = lines[_WARM_UP - 1], lines[_WARM_UP:]
    counts = np.diff([line["num_tokens"] for line in (before, *timed)])
    taken = sum(n / line["tokens_per_second"] for n, line in zip(counts, timed, strict=True))
    speed = float(counts.sum() / taken)
    tokens_a_step = float(rows.mean()) * job.config.batch_size
    count = max(1, int(seconds * speed / tokens_a_step))
    every = max(1, count // _EVALUATIONS)
    count -= count % every  # the last step ends in an evaluation
    changes = {"max_steps": count, "eval_steps": every, "save_steps": count + 1}  # nothing resumes here
    return dataclasses.replace(job, config=config.model_copy(update=changes)), speed


def _that_fits(job: SftJob, lengths: np.ndarray) -> SftConfig:
    """Smaller forward passes, if the longest rows would not fit by the peak memory of the timed steps."""
    import torch

    from lm_mixup.train.sft_worker import epoch_order

    config = job.config
    if not torch.cuda.is_available():
        return config
    drawn = epoch_order(lengths, config.batch_size, job.seed, 0)
    passes = lengths[drawn[: (_WARM_UP + _TIMED) * config.batch_size]].reshape(-1, config.micro_batch_size)
    held = torch.cuda.max_memory_allocated() * lengths.max() / passes.max(axis=1).max()
    micro = config.micro_batch_size
    while held > _FULL * torch.cuda.get_device_properties(0).total_memory and micro % 2 == 0:
        micro, held = micro // 2, held / 2
    return config.model_copy(update={"micro_batch_size": micro})


def train(job: SftJob, seconds: float | None) -> None:
    """What a worker of the stage does from the start, stopped where the estimate was too high."""
    from lm_mixup.train.sft_worker import finish, make_trainer

    trainer = make_trainer(job)
    if seconds is not None:
        trainer.add_callback(Stop(_OVER * seconds))
    trainer.train()
    finish(trainer, job)


def keep(job: SftJob, out: Path) -> None:
    """Copies the log, and the adapter or else the model, to where results are collected."""
    from lm_mixup.train.sft_worker import adapter_of

    shutil.copy(job.metrics, out / "metrics.jsonl")
    if job.config.lora is None:
        shutil.make_archive(str(out / "model"), "tar", job.final)
        return
    adapter = adapter_of(job.final)
    shutil.copy(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    peft = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    peft["base_model_name_or_path"] = job.model.path  # not the folder of this machine
    (out / "adapter_config.json").write_text(json.dumps(peft, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    args = options()
    clock = {"start": time.monotonic()}
    config = load_config(args.config, args.overrides)
    run = RunDir(args.run_dir)
    mixture, stage = run.stage("mixture"), run.stage("sft")
    shutil.rmtree(stage.local, ignore_errors=True)
    out: Path = args.out or stage.local / "out"
    out.mkdir(parents=True, exist_ok=True)
    base = base_model(mixture, stage, config.model, config.seed)
    model_folder(base)  # a model that has to be converted is so once, not in each of the encoding processes
    job = SftJob(out=stage, config=config.sft, model=config.model, base=base, seed=config.seed)
    encode(mixture, stage, job)  # before CUDA, which does not outlive a fork
    clock["encoded"] = time.monotonic()

    import torch.distributed as dist

    from lm_mixup.train.sft_worker import join_deepspeed

    join_alone()
    join_deepspeed()
    speed = None
    if args.seconds is not None:
        job, speed = fitted(job, args.seconds)
        print(f"{speed:.0f} tokens/s: sft.max_steps={job.config.max_steps}", flush=True)
    clock["fitted"] = time.monotonic()
    train(job, args.seconds)
    keep(job, out)
    clock["trained"] = time.monotonic()
    lines = read_metrics(job.metrics)
    steps = [line for line in lines if "loss" in line]
    figures: dict[str, Any] = {
        "max_steps": job.config.max_steps,
        "steps": steps[-1]["step"],
        "num_tokens": steps[-1]["num_tokens"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "eval_losses": [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line],
        "measured_tokens_per_second": speed,
        "sft": job.config.model_dump(mode="json"),
        "rows": sum(receipt.rows_out for receipt in stage.receipts().values()),
        "rows_too_long": sum(receipt.rows_rejected for receipt in stage.receipts().values()),
    }
    figures["answers"] = write_answers(args, mixture, job, out)
    clock["written"] = time.monotonic()
    marks = list(clock.values())
    figures["seconds"] = {
        name: round(end - start, 1)
        for name, start, end in zip(list(clock)[1:], marks, marks[1:], strict=False)
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key, value in figures.items():
        print(f"{key:28}{value}")
    dist.destroy_process_group()


def write_answers(args: argparse.Namespace, mixture: StageDir, job: SftJob, out: Path) -> dict[str, Any]:
    """Lets the finished model write for the test split's rows and for the clusters of a file."""
    import greedy

    end = time.monotonic() + args.write_seconds
    lists = {}
    if args.test_rows:
        rows = [row for table in mixture.iter_parts() for row in table.to_pylist()]
        lists["test"] = sorted((r for r in rows if r["split"] == _HELD_OUT), key=lambda r: r["id"])
        lists["test"] = lists["test"][: args.test_rows]
    if args.clusters:
        lines = args.clusters.read_text(encoding="utf-8").splitlines()
        lists["clusters"] = [json.loads(line) for line in lines if line.strip()]
    writer = greedy.Writer(job.final, job.model, args.max_new_tokens)
    figures = {}
    for name, rows in lists.items():
        answers = writer.write(rows, end)
        greedy.save(answers, out / f"{name}.jsonl")
        figures[name] = greedy.summary(answers)
    return figures


if __name__ == "__main__":
    main()
