"""What one Ray Train worker does in SFT: TRL's SFTTrainer over DeepSpeed, resumable at any step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTTrainer

from lm_mixup.backends.policy import load_policy, load_tokenizer, policy_dtype, save_model
from lm_mixup.config import SftConfig
from lm_mixup.train.adapter import adapter, merge
from lm_mixup.train.callbacks import KeepWhole, MetricsLog
from lm_mixup.train.checkpoint import drop_others, last_checkpoint, step_of, trim_metrics
from lm_mixup.train.deepspeed import deepspeed_config, leave_out_shared_memory_op, whole_weights
from lm_mixup.train.encode import EVAL_SPLIT, TRAIN_SPLIT
from lm_mixup.train.job import SftJob
from lm_mixup.train.order import EpochSampler

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import Dataset
    from trl import SFTConfig as TrlConfig

IGNORED = -100  # label of a token that carries no loss
_PADDED_TO = 32  # few different shapes: kernels are compiled, and buffers kept, for each anew


def train(job: SftJob) -> None:
    """Trains from the last whole checkpoint, or from the start, and writes the finished model."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(max(1, int(job.config.cpus_per_worker)))
    _join_deepspeed()
    last = last_checkpoint(job.checkpoints)
    dist.barrier()
    if dist.get_rank() == 0:
        drop_others(job.checkpoints, keep=last)
        trim_metrics(job.metrics, step_of(last))
    dist.barrier()
    trainer = make_trainer(job)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    finish(trainer, job)


def _join_deepspeed() -> None:
    """Tells accelerate of Ray Train's process group: on CPU it would take each rank for a lone one."""
    import torch
    from accelerate import PartialState

    leave_out_shared_memory_op()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="nccl" if torch.cuda.is_available() else "gloo")


def trainer_arguments(job: SftJob, world_size: int, has_eval: bool) -> TrlConfig:
    """The trainer's arguments for a job."""
    import torch
    from trl import SFTConfig as TrlConfig

    config = job.config
    accumulation = config.batch_size // (config.micro_batch_size * world_size)
    bf16 = policy_dtype(job.model) == torch.bfloat16
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
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused there
        gradient_checkpointing=config.gradient_checkpointing,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=config.packing,
        max_length=config.max_length,
        pad_to_multiple_of=None if config.packing else _PADDED_TO,
        logging_steps=config.logging_steps,
        eval_strategy="steps" if has_eval else "no",
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
        metric_for_best_model="eval_loss" if has_eval else None,
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
        ),
    )


class OrderedTrainer(SFTTrainer):
    """TRL's trainer with a data order that does not depend on ranks and micro-batches."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        arguments = self.args
        rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        return EpochSampler(dataset["length"], rows * arguments.world_size, arguments.seed)


def make_trainer(job: SftJob) -> SFTTrainer:
    """The trainer of this worker. Arguments come first: ZeRO-3 shards the weights as they are loaded."""
    import torch.distributed as dist

    rows = job.out.read()
    evaluation = eval_rows(rows, job.config.eval_rows)
    arguments = trainer_arguments(job, dist.get_world_size(), evaluation is not None)
    callbacks: list[TrainerCallback] = [MetricsLog(job.metrics), KeepWhole(job.config.save_limit)]
    if job.config.patience is not None and evaluation is not None:
        callbacks.append(EarlyStoppingCallback(job.config.patience))
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
    """The training split as the trainer reads it; packed rows keep their borders in `seq_lengths`."""
    from trl import pack_dataset

    dataset = _labelled(rows, TRAIN_SPLIT)
    if config.packing:
        packed = pack_dataset(dataset.select_columns(["input_ids", "labels"]), config.max_length, "bfd")
        return packed.add_column("length", [len(ids) for ids in packed["input_ids"]])
    return dataset


def eval_rows(rows: pa.Table, count: int) -> Dataset | None:
    """The first `count` rows of the evaluation split, or None if there are none."""
    dataset = _labelled(rows, EVAL_SPLIT)
    count = min(count, len(dataset))
    return dataset.select(range(count)) if count else None


def _labelled(rows: pa.Table, split: str) -> Dataset:
    """Rows of a split with `labels` (prompt tokens ignored) and `length`, in the order of their ids."""
    import pyarrow.compute as pc
    from datasets import Dataset

    chosen = rows.filter(pc.equal(rows["split"], split)).sort_by("id")
    pairs = zip(chosen["input_ids"].to_pylist(), chosen["prompt_length"].to_pylist(), strict=True)
    listed = [
        {"input_ids": ids, "labels": labels_of(ids, prompt), "length": len(ids)} for ids, prompt in pairs
    ]
    return Dataset.from_list(listed)


def labels_of(input_ids: list[int], prompt_length: int) -> list[int]:
    """The labels of a row: its target's tokens, EOS included; none for its prompt."""
    return [IGNORED] * prompt_length + input_ids[prompt_length:]


def finish(trainer: SFTTrainer, job: SftJob) -> None:
    """Gathers the weights, merges the adapters and writes the model folder, on rank 0."""
    import torch.distributed as dist

    weights = whole_weights(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    if trainer.accelerator.is_main_process:
        _write_model(weights, job)
    dist.barrier()


def _write_model(weights: dict[str, torch.Tensor], job: SftJob) -> None:
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # this copy is whole, whatever the stage
    policy = load_policy(job.base, job.model)
    _load(policy, merge(weights, job.config.lora))
    save_model(job.final, policy, load_tokenizer(job.base, job.model))


def _load(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Loads trained weights; only tied copies, which are stored once, may be missing."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    stored = {name for name, _ in module.named_parameters()}
    if unexpected or set(missing) - (tied - stored):
        raise RuntimeError(
            f"trained weights do not fit the model: missing {missing}, unexpected {unexpected}"
        )
