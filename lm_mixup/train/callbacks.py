"""Callbacks of the SFT trainer: complete checkpoints, the best model, and the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import StageDir
from lm_mixup.train import remote_checkpoint
from lm_mixup.train.checkpoint import MARK, drop_oldest, mark_complete
from lm_mixup.train.tracking import append_metrics, read_metrics

if TYPE_CHECKING:
    import torch


_PUBLISH_EVERY_S = 5.0


class MarkComplete(TrainerCallback):
    """Marks a checkpoint as complete once all ranks have written it, then removes the oldest ones.

    The trainer's own rotation would delete an old checkpoint while the new one is still being written. Of a
    run at a URI the checkpoint is uploaded first, its mark last.
    """

    def __init__(self, out: StageDir, limit: int) -> None:
        self._out, self._limit = out, limit

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank after it has written its share."""
        import torch.distributed as dist

        dist.barrier()
        remote_checkpoint.upload_shares(self._out, f"checkpoint-{state.global_step}")
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        self._out.upload("metrics.jsonl")  # a step that a run goes on from has its line there
        mark_complete(folder, state.global_step, dist.get_world_size())
        self._out.upload(f"checkpoints/checkpoint-{state.global_step}/{MARK}")
        if self._out.run.is_local:
            drop_oldest(folder, self._limit)
        else:
            remote_checkpoint.drop_oldest(self._out, MARK, self._limit)


class SaveBest(TrainerCallback):
    """Saves the model after every evaluation that improves on all earlier ones."""

    def __init__(self, best: Path, write: Callable[[torch.nn.Module], None]) -> None:
        """Takes the folder that `write` saves the model into; `write` is called on every rank."""
        self._best, self._write = best, write

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank before the trainer records the loss as its best."""
        earlier = state.best_metric
        if earlier is None or not self._best.is_dir() or kwargs["metrics"]["eval_loss"] < earlier:
            self._write(kwargs["model"])


class RestoreParamGroups(TrainerCallback):
    """Restores each parameter group's weight decay and step count after loading a universal checkpoint.

    Under ZeRO-3, DeepSpeed 0.19 loads the first group's settings for all groups, so norms and biases would
    decay too, and one shared tensor as the step count of all, which every group would increment.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank; the trainer's groups are the parameters with decay, then the others."""
        optimizer = kwargs["optimizer"]
        for group, decay in zip(optimizer.param_groups, (args.weight_decay, 0.0), strict=False):
            group["weight_decay"] = decay
        for values in optimizer.state.values():
            if "step" in values:
                values["step"] = values["step"].clone()


class MetricsLog(TrainerCallback):
    """Writes `metrics.jsonl`: one line with the loss every `logging_steps`, one line per evaluation.

    Every step with an evaluation or a checkpoint also logs its loss, so that the last step always has a line
    and a resumed run continues the token count from there.
    """

    def __init__(self, path: Path, publish: Callable[[], None] = lambda: None) -> None:
        """Takes the log, and what is called after a new line, at most every few seconds."""
        self._path, self._publish, self._published = path, publish, 0.0
        earlier = [line for line in read_metrics(path) if "num_tokens" in line]
        self._tokens_before = earlier[-1]["num_tokens"] if earlier else 0
        self._tokens = 0.0
        self._clock = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock for tokens per second."""
        self._clock = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank after the trainer has decided what follows the step; logging comes first."""
        control.should_log |= control.should_evaluate or control.should_save

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
        """Appends one line, on rank 0.

        Raises:
            InputError: On every rank: the loss is not finite. Logging comes first, so no checkpoint was
                written with these weights.
        """
        for name in ("loss", "eval_loss"):
            if logs and not math.isfinite(logs.get(name, 0.0)):
                raise InputError(
                    f"{name} is {logs[name]} at step {state.global_step}: training has diverged. Lower "
                    "learning_rate (or raise warmup_ratio); in low precision, try model.dtype: float32"
                )
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            append_metrics(self._path, {"step": state.global_step, "eval_loss": logs["eval_loss"]})
        elif "loss" in logs:
            append_metrics(self._path, self._step_line(state.global_step, logs))
        if time.monotonic() - self._published > _PUBLISH_EVERY_S:
            self._publish()
            self._published = time.monotonic()

    def _step_line(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        now, tokens = time.monotonic(), float(logs["num_tokens"])
        norm = logs.get("grad_norm")  # ZeRO stage 0 clips without reporting the norm
        speed = (tokens - self._tokens) / max(now - self._clock, 1e-9)
        self._clock, self._tokens = now, tokens
        return {
            "step": step,
            "loss": float(logs["loss"]),
            "lr": float(logs["learning_rate"]),
            "grad_norm": norm if norm is None or math.isfinite(norm) else None,
            "epoch": float(logs["epoch"]),
            "num_tokens": int(self._tokens_before + tokens),
            "tokens_per_second": round(speed, 1),
        }
