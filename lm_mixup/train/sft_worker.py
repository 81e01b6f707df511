"""One Ray Train worker of SFT: TRL's SFTTrainer with DeepSpeed, resumable at any step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from trl import SFTTrainer

from lm_mixup.config import SftConfig
from lm_mixup.models.policy import load_policy, load_tokenizer, policy_dtype, save_model
from lm_mixup.train.callbacks import MarkComplete, MetricsLog, RestoreParamGroups, SaveBest
from lm_mixup.train.checkpoint import MARK, SftJob, drop_incomplete, last_checkpoint, ranks_of, step_of
from lm_mixup.train.deepspeed import (
    deepspeed_config,
    gather_weights,
    leave_out_shared_memory_op,
    write_universal,
)
from lm_mixup.train.lora import adapter, adapter_of, merge, save_adapter
from lm_mixup.train.remote_checkpoint import (
    fetch_checkpoint,
    is_first_of_node,
    newest_complete,
    upload_model,
)
from lm_mixup.train.tokenize import EVAL_SPLIT, TRAIN_SPLIT
from lm_mixup.train.tracking import trim_metrics

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from trl import SFTConfig as TrlConfig

IGNORED = -100  # label of a token without loss
_LABELLED_ROWS = 1_024  # labelled at once: NumPy needs about 30 bytes per token meanwhile
_POOL_BATCHES = 16  # batches among which rows are sorted by length
_PADDED_TO = 8  # suits tensor cores; 32 would add 5% padding


def train(job: SftJob) -> None:
    """Trains from the last complete checkpoint, or from the start, and writes the final model."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(max(1, int(job.config.cpus_per_worker)))
    join_deepspeed()
    fetch_checkpoint(job.out, newest_complete(job.out, MARK))
    last = last_checkpoint(job.checkpoints)
    dist.barrier()
    reshaped = _is_reshaped(job, last)
    if dist.get_rank() == 0:
        drop_incomplete(job.checkpoints, keep=last)
        for name in ("metrics.jsonl", job.best.name, adapter_of(job.best).name):
            job.out.fetch(name)
        trim_metrics(job.metrics, step_of(last))
    converts = dist.get_rank() == 0 if job.out.run.is_local else is_first_of_node()
    if converts and last is not None and reshaped:
        write_universal(last)
    dist.barrier()
    trainer = make_trainer(job, load_universal=reshaped)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    finish(trainer, job)


def _is_reshaped(job: SftJob, last: Path | None) -> bool:
    """Whether ZeRO sharded the checkpoint over a different number of workers than there are now."""
    import torch.distributed as dist

    return last is not None and job.config.zero_stage > 0 and ranks_of(last) != dist.get_world_size()


def join_deepspeed() -> None:
    """Tells accelerate about Ray Train's process group; on CPU it would treat each rank as alone."""
    import torch
    from accelerate import PartialState

    leave_out_shared_memory_op()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="nccl" if torch.cuda.is_available() else "gloo")


def trainer_arguments(
    job: SftJob, world_size: int, *, has_eval: bool, load_universal: bool = False
) -> TrlConfig:
    """The trainer's arguments for a job."""
    import torch
    from trl import SFTConfig as TrlConfig

    config = job.config
    accumulation = config.batch_size // (config.micro_batch_size * world_size)
    bf16 = policy_dtype(job.model) == torch.bfloat16
    on_gpu, checkpointing = torch.cuda.is_available(), config.gradient_checkpointing
    return TrlConfig(
        output_dir=str(job.checkpoints),
        seed=job.seed,
        data_seed=job.seed,
        max_steps=config.max_steps,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs=config.lr_scheduler_kwargs or None,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=bf16,
        use_cpu=not on_gpu,  # otherwise bf16 is refused on CPU
        gradient_checkpointing=on_gpu if checkpointing is None else checkpointing,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=config.packing,
        max_length=config.max_length,
        pad_to_multiple_of=None if config.packing else _PADDED_TO,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # it would log a loss of 0 for a diverged run
        eval_strategy="steps" if has_eval else "no",
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
        metric_for_best_model="eval_loss" if has_eval else None,
        restore_callback_states_from_checkpoint=True,  # the counter of early stopping
        report_to=[],
        disable_tqdm=True,
        accelerator_config={"use_configured_state": True},
        deepspeed=deepspeed_config(
            zero_stage=config.zero_stage,
            offload=config.offload,
            bf16=bf16,
            max_grad_norm=config.max_grad_norm,
            micro_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=accumulation,
            world_size=world_size,
            load_universal=load_universal,
        ),
    )


def epoch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch: full batches of rows of similar length, in random order.

    Rows are shuffled, sorted by length within pools of 16 batches, and the batches are shuffled. Rows that do
    not fill a last batch are skipped in this epoch (different ones each epoch); fewer rows than one batch are
    repeated to fill it. So every optimizer step sees the same rows, however they are spread over ranks and
    micro-batches.

    Args:
        lengths: Tokens of each row, int [N].
        batch_size: Rows of an optimizer step, over all ranks.
        seed: The run's seed.
        epoch: Counted from 0.

    Returns:
        int64 [max(1, N // batch_size) · batch_size].
    """
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(len(lengths))
    count = max(1, len(rows) // batch_size)
    rows = np.resize(rows, count * batch_size)
    pools = np.array_split(rows, range(_POOL_BATCHES * batch_size, len(rows), _POOL_BATCHES * batch_size))
    by_length = np.concatenate([pool[np.argsort(-lengths[pool], kind="stable")] for pool in pools])
    batches: np.ndarray = by_length.reshape(count, batch_size)[rng.permutation(count)]
    return batches.reshape(-1).astype(np.int64)


class EpochSampler(Sampler[int]):
    """Yields `epoch_order` to the data loader; the trainer sets the epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = np.asarray(lengths), batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from epoch_order(self._lengths, self._batch_size, self._seed, self._epoch).tolist()

    def __len__(self) -> int:
        return max(1, len(self._lengths) // self._batch_size) * self._batch_size


class OrderedTrainer(SFTTrainer):
    """TRL's trainer with a data order independent of ranks and micro-batches."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        arguments = self.args
        rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        self._order = EpochSampler(dataset["length"][:], rows * arguments.world_size, arguments.seed)
        return self._order

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loop, with the mean loss per target token of the whole split.

        The trainer's own mean is over forward passes, which depends on micro-batch size and number of ranks.
        """
        import torch

        self._passes = 0
        self._loss_and_tokens = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output: Any = super().evaluation_loop(*args, **kwargs)
        sums: Any = self.accelerator.reduce(self._loss_and_tokens, reduction="sum")
        loss, tokens = sums.tolist()
        output.metrics["eval_loss"] = loss / tokens
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One forward pass of an evaluation; rows that only pad the last batch do not count."""
        import torch

        rows: Any = self.eval_dataset
        place = self._passes * self.args.world_size + self.args.process_index
        self._passes += 1
        labels = inputs["labels"]
        labels[max(0, len(rows) - place * self.args.per_device_eval_batch_size) :] = IGNORED
        tokens = (labels[:, 1:] != IGNORED).sum()
        loss, *rest = super().prediction_step(model, inputs, *args, **kwargs)
        self._loss_and_tokens += torch.stack([loss.double() * tokens, tokens])
        return (loss, *rest)

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> None:
        # The trainer checks for the end only after a step: from the last checkpoint it would do one too many.
        saved: Any = self.state.stateful_callbacks  # by name, as in the checkpoint
        if saved["TrainerControl"]["args"]["should_training_stop"]:
            self.control.should_training_stop = True
            return
        # The trainer's own call does not reach the sampler if several ranks resume within an epoch: it then
        # lies inside two wrappers, one for the rank's share and one for skipped batches.
        self._order.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)


def make_trainer(job: SftJob, *, load_universal: bool = False) -> SFTTrainer:
    """The trainer of this worker. Arguments come first: ZeRO-3 shards the weights as they are loaded."""
    import torch.distributed as dist

    rows = job.out.read()
    evaluation = eval_rows(rows, job.config.eval_rows)
    has_eval = evaluation is not None
    arguments = trainer_arguments(
        job, dist.get_world_size(), has_eval=has_eval, load_universal=load_universal
    )
    callbacks: list[TrainerCallback] = [
        MetricsLog(job.metrics, lambda: job.out.upload("metrics.jsonl")),
        MarkComplete(job.out, job.config.save_limit),
    ]
    if load_universal:
        callbacks.append(RestoreParamGroups())
    if job.config.patience is not None and evaluation is not None:
        callbacks.append(EarlyStoppingCallback(job.config.patience))
    if job.config.keep_best and evaluation is not None:
        callbacks.append(SaveBest(job.best, lambda module: write_model(module, job, job.best)))
    set_seed(job.seed)  # adapters are initialized before the trainer sets the seed
    return OrderedTrainer(
        model=load_policy(job.base, job.model),
        args=arguments,
        processing_class=load_tokenizer(job.base, job.model),
        train_dataset=train_rows(rows, job.config),
        eval_dataset=evaluation,
        callbacks=callbacks,
        peft_config=adapter(job.config.lora),
    )


def train_rows(rows: pa.Table, config: SftConfig) -> Dataset:
    """The training split for the trainer; packed rows keep their boundaries in `seq_lengths`."""
    from trl import pack_dataset

    dataset = _labelled(rows, TRAIN_SPLIT)
    if config.packing:
        packed = pack_dataset(dataset.select_columns(["input_ids", "labels"]), config.max_length, "bfd")
        return packed.add_column("length", [len(ids) for ids in packed["input_ids"]])
    return dataset


def eval_rows(rows: pa.Table, count: int) -> Dataset | None:
    """The first `count` rows of the evaluation split; None if it is empty."""
    dataset = _labelled(rows, EVAL_SPLIT)
    count = min(count, len(dataset))
    return dataset.select(range(count)) if count else None


def _labelled(rows: pa.Table, split: str) -> Dataset:
    """Rows of a split with `labels` (prompt tokens ignored) and `length`, ordered by id.

    Memory: 8 bytes per token beside `rows`; no Python object per token.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    chosen = rows.filter(pc.equal(rows["split"], split)).sort_by("id")
    parts = chosen.to_batches(max_chunksize=_LABELLED_ROWS)
    labels = [labels_of(part["input_ids"], part["prompt_length"]) for part in parts]
    ids = chosen["input_ids"]
    lengths = pc.list_value_length(ids)
    table = pa.table({"input_ids": ids, "labels": pa.chunked_array(labels, ids.type), "length": lengths})
    return Dataset(table, fingerprint=split)  # otherwise it hashes a pickle of all rows


def labels_of(input_ids: pa.ListArray, prompt_length: pa.Int32Array) -> pa.ListArray:
    """Labels of rows: the tokens of the targets, EOS included; `IGNORED` for the prompts."""
    import pyarrow as pa

    labels = input_ids.flatten().to_numpy().copy()
    lengths = input_ids.value_lengths().to_numpy()
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(labels)) - np.repeat(starts, lengths)
    labels[place < np.repeat(prompt_length.to_numpy(), lengths)] = IGNORED
    edges = np.append(starts, len(labels)).astype(np.int32)
    return pa.ListArray.from_arrays(edges, pa.array(labels))


def finish(trainer: SFTTrainer, job: SftJob) -> None:
    """Writes the model folder: the current weights, or the best ones."""
    import torch.distributed as dist

    if not (job.config.keep_best and job.best.is_dir()):
        write_model(trainer.accelerator.unwrap_model(trainer.model_wrapped), job, job.final)
    elif trainer.accelerator.is_main_process:
        if job.config.lora is not None:
            shutil.copytree(adapter_of(job.best), adapter_of(job.final), dirs_exist_ok=True)
        scratch = job.final.with_name(".model.tmp")
        shutil.copytree(job.best, scratch, dirs_exist_ok=True)
        scratch.rename(job.final)  # last: if the folder exists, the stage is done
        _upload(job, job.final)
    if trainer.accelerator.is_main_process:
        job.out.upload("metrics.jsonl")
    dist.barrier()


def write_model(module: Any, job: SftJob, folder: Path) -> None:
    """Gathers the weights and writes the model, adapters merged, and the adapters beside it.

    A collective call.
    """
    import torch.distributed as dist

    weights = gather_weights(module)
    if dist.get_rank() == 0:
        policy = module
        if job.config.lora is not None:
            save_adapter(module, weights, folder)
            policy = module.get_base_model()
        tokenizer = load_tokenizer(job.base, job.model)
        save_model(folder, policy, tokenizer, merge(weights, job.config.lora))
        _upload(job, folder)


def _upload(job: SftJob, folder: Path) -> None:
    """A model of a run at a URI goes there, its adapters first."""
    job.out.upload("metrics.jsonl")
    job.out.upload(adapter_of(folder).name)
    upload_model(job.out, folder.name)
