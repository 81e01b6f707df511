"""SFT against TRL's SFTTrainer as a user would call it: same model, rows, batch, learning rate and cores.

    python benchmarks/sft.py [--quick] [--run-dir runs/demo] [--json OUT]

The rows are those of a finished `mixture` stage, encoded once, so that every side trains on the same tokens.
One side after the other, in processes of its own:

* ours: what the workers of the `sft` stage do, a rank a core (a GPU): batches of rows of like length, padded
  to a multiple of 8, under DeepSpeed;
* trl: SFTTrainer with its defaults: random order, padded to the longest row of a forward pass, gradient
  checkpointing; on CPU one process with as many threads as ours has ranks;
* trl_no_checkpointing: the same with gradient checkpointing off, as ours is.

Figures are medians over the steps after warm-up, and of these the medians over the rounds, in which the sides
take turns; tokens are those of the rows, padding not counted. The ratio is that of `trl`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

SIDES = ("ours", "trl", "trl_no_checkpointing")


def options() -> Any:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--run-dir", default="runs/demo", help="run directory with a finished mixture stage")
    parser.add_argument("--model", default="nano", help="folder, Hub name or `nano`")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=16, help="rows an optimizer step")
    parser.add_argument("--micro", type=int, default=8, help="rows a forward pass, on each rank")
    parser.add_argument("--workers", type=int, help="cores (GPUs); default: two on CPU, one on GPU")
    parser.add_argument("--zero-stage", type=int, default=2, help="of ours")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=640)
    parser.add_argument("--steps", type=int, help="measured steps; default 60, or 20 with --quick")
    parser.add_argument("--rounds", type=int, default=1, help="times that the sides take turns")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help="only this one, in this process, into --scratch")
    parser.add_argument("--scratch", type=Path)
    args = parser.parse_args()
    args.steps = args.steps or (20 if args.quick else 60)
    args.workers = args.workers or (1 if on_gpu() else min(2, os.cpu_count() or 1))
    return args


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def encode(args: Any) -> dict[str, Any]:
    """Writes the token rows of both sides as the `sft` stage has them; says how long they are."""
    import numpy as np

    from lm_mixup.config import ModelConfig
    from lm_mixup.core.run_dir import RunDir
    from lm_mixup.distributed.map_parts import receipt_of
    from lm_mixup.models.policy import load_tokenizer
    from lm_mixup.models.resolve import model_folder
    from lm_mixup.train.tokenize import COLUMNS, encode_rows

    mixture = RunDir(args.run_dir).stage("mixture")
    if mixture.manifest() is None:
        sys.exit(
            f"{args.run_dir}: no finished mixture stage; "
            f"run `lm-mixup build configs/quickstart.yaml --run-dir {args.run_dir}`"
        )
    tokenizer = load_tokenizer(model_folder(args.model), ModelConfig())
    out, lengths = RunDir(args.scratch).stage("sft"), []
    for part, rows in enumerate(mixture.iter_parts(COLUMNS)):
        result = encode_rows(rows, tokenizer, args.max_length)
        out.write_part(part, result.rows, None, receipt_of(part, result))
        lengths += [len(ids) for ids in result.rows["input_ids"].to_pylist()]
    low, middle, high = np.percentile(lengths, [5, 50, 95]).astype(int)
    return {"rows": len(lengths), "tokens a row (5, 50, 95%)": f"{low}, {middle}, {high}"}


def make_job(args: Any) -> Any:
    """What the workers of the `sft` stage are given."""
    from lm_mixup.config import ModelConfig, SftConfig
    from lm_mixup.core.run_dir import RunDir
    from lm_mixup.models.resolve import model_folder
    from lm_mixup.train.checkpoint import SftJob

    config = SftConfig(
        max_steps=args.warm_up + args.steps,
        learning_rate=args.learning_rate,
        max_length=args.max_length,
        batch_size=args.batch,
        micro_batch_size=args.micro,
        num_workers=args.workers,
        zero_stage=args.zero_stage,
        eval_rows=0,
        save_steps=1_000_000,
    )
    model = ModelConfig(dtype=args.dtype)
    return SftJob(RunDir(args.scratch).stage("sft"), config, model, model_folder(args.model), seed=0)


def run_ours(args: Any) -> None:
    """One rank; Ray Train, which starts the ranks in a run, has no part in a step."""
    import torch
    import torch.distributed as dist

    from lm_mixup.train.sft_worker import train

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(make_job(args))
    dist.destroy_process_group()


def run_trl(args: Any) -> None:
    import torch
    from trl import SFTConfig, SFTTrainer

    from lm_mixup.models.policy import load_policy, load_tokenizer
    from lm_mixup.train.callbacks import MetricsLog
    from lm_mixup.train.sft_worker import train_rows

    job = make_job(args)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if not torch.cuda.is_available():
        torch.set_num_threads(args.workers)
    checkpointing = {} if args.side == "trl" else {"gradient_checkpointing": False}
    config = SFTConfig(
        output_dir=str(args.scratch / "trl"),
        use_cpu=not torch.cuda.is_available(),
        bf16=args.dtype == "bfloat16",
        max_steps=args.warm_up + args.steps,
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.batch // (args.micro * ranks),
        learning_rate=args.learning_rate,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        **checkpointing,
    )
    trainer = SFTTrainer(
        model=load_policy(job.base, job.model),
        args=config,
        processing_class=load_tokenizer(job.base, job.model),
        train_dataset=train_rows(job.out.read(), job.config).remove_columns("length"),
        callbacks=[MetricsLog(job.metrics)],
    )
    trainer.train()


def in_processes_of_its_own(side: str, args: Any, argv: list[str]) -> dict[str, float]:
    """Runs a side and reads its log, which both sides' trainers write in the same way."""
    from lm_mixup.train.tracking import read_metrics

    ranks = args.workers if side == "ours" or on_gpu() else 1
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(args.workers // ranks)}
    if not on_gpu():
        env["DS_ACCELERATOR"] = "cpu"
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # as `make` does
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    alone = side != "ours" and ranks == 1
    command = [sys.executable, *([] if alone else launch), __file__, *argv]
    command += ["--side", side, "--scratch", str(args.scratch), "--workers", str(args.workers)]
    log = args.scratch / "sft" / "metrics.jsonl"
    for left in ("checkpoints", "model"):  # of an earlier round: training would go on from it
        shutil.rmtree(args.scratch / "sft" / left, ignore_errors=True)
    log.unlink(missing_ok=True)
    subprocess.run(command, env=env, check=True, stdout=sys.stderr)
    lines = read_metrics(log)
    return figures(lines, args.warm_up)


def figures(lines: list[dict[str, Any]], warm_up: int) -> dict[str, float]:
    """Medians and totals of the steps after warm-up, from the lines of `metrics.jsonl`."""
    before, kept = lines[warm_up - 1], lines[warm_up:]
    starts = [before, *kept[:-1]]
    tokens = [line["num_tokens"] - start["num_tokens"] for start, line in zip(starts, kept, strict=True)]
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, kept, strict=True)]
    return {
        "tokens_per_second": round(statistics.median(line["tokens_per_second"] for line in kept), 1),
        "tokens_per_second_overall": round(sum(tokens) / sum(seconds), 1),
        "seconds_per_step": round(statistics.median(seconds), 4),
        "tokens_per_step": round(statistics.mean(tokens), 1),
        "first_loss": round(lines[0]["loss"], 3),
        "last_loss": round(lines[-1]["loss"], 3),
    }


def main() -> None:
    args = options()
    if args.side:
        (run_ours if args.side == "ours" else run_trl)(args)
        return
    argv = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = Path(scratch)
        config = encode(args)
        turns = [
            {side: in_processes_of_its_own(side, args, argv) for side in args.sides}
            for _ in range(args.rounds)
        ]
    results = {side: harness.medians([turn[side] for turn in turns]) for side in args.sides}
    ours, peer = results["ours"], results["trl"]
    other = results.get("trl_no_checkpointing")
    if other:
        ours["ratio_without_checkpointing"] = round(ours["tokens_per_second"] / other["tokens_per_second"], 3)
        peer |= {f"no_ckpt {key}": value for key, value in other.items()}
    shown = ("model", "dtype", "batch", "micro", "workers", "zero_stage", "learning_rate", "warm_up")
    shown = (*shown, "steps", "rounds")
    config |= {key: getattr(args, key) for key in shown}
    ratio = ours["tokens_per_second"] / peer["tokens_per_second"]
    harness.finish("sft", config, ours, peer, ratio, args.json)


if __name__ == "__main__":
    main()
