"""Checkpoints that count only when every rank has written its share, and a log that a resume continues."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_MARK = "complete.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, if there is one."""
    return max(_whole(folder), key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint folder `checkpoint-N`; 0 for none."""
    return int(checkpoint.name.rsplit("-", 1)[-1]) if checkpoint else 0


def drop_others(folder: Path, keep: Path | None) -> None:
    """Removes checkpoints that a killed run left half-written, or newer ones than `keep`."""
    for found in folder.glob("checkpoint-*"):
        if step_of(found) > step_of(keep) or not (found / _MARK).is_file():
            shutil.rmtree(found)


def trim_metrics(path: Path, step: int) -> None:
    """Cuts the log back to a step: what a killed run did after its last checkpoint is done, and logged, again."""
    kept = [json.dumps(line) for line in read_metrics(path) if line["step"] <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    scratch.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The log's lines; a last line that is cut short by a kill is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def _whole(folder: Path) -> list[Path]:
    return [found for found in folder.glob("checkpoint-*") if (found / _MARK).is_file()]


class KeepWhole(TrainerCallback):
    """Marks a checkpoint as whole once all ranks are past it, then removes the oldest ones.

    The trainer's own rotation would delete an old checkpoint while a new one is still being written.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank after it has written its share."""
        import torch.distributed as dist

        dist.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        (folder / f"checkpoint-{state.global_step}" / _MARK).write_text("{}\n", encoding="utf-8")
        for old in sorted(_whole(folder), key=step_of)[: -self._limit]:
            (old / _MARK).unlink()
            shutil.rmtree(old)


class MetricsLog(TrainerCallback):
    """Writes `metrics.jsonl`: a line a step with the loss, a line an evaluation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        earlier = [line for line in read_metrics(path) if "num_tokens" in line]
        self._tokens_before = earlier[-1]["num_tokens"] if earlier else 0
        self._tokens = 0.0
        self._clock = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock that tokens per second are measured by."""
        self._clock = time.monotonic()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Time spent in evaluation is not training time."""
        self._clock = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends one line, on rank 0."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            self._write({"step": state.global_step, "eval_loss": logs["eval_loss"]})
        elif "loss" in logs:
            self._write(self._step_line(state.global_step, logs))

    def _step_line(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        now, tokens = time.monotonic(), float(logs["num_tokens"])
        speed = (tokens - self._tokens) / max(now - self._clock, 1e-9)
        self._clock, self._tokens = now, tokens
        return {
            "step": step,
            "loss": float(logs["loss"]),
            "lr": float(logs["learning_rate"]),
            "grad_norm": float(logs["grad_norm"]),
            "epoch": float(logs["epoch"]),
            "num_tokens": int(self._tokens_before + tokens),
            "tokens_per_second": round(speed, 1),
        }

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
