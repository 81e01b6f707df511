"""SFT, fine-tuning and GRPO, and the trackers of their metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lm_mixup.config.models import ModelConfig
from lm_mixup.config.section import Section, resources


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning (paper: r 256, alpha 16)."""

    r: int = Field(256, ge=1, description="Rank of the adapters.")
    alpha: int = Field(16, ge=1, description="The adapters' update is scaled by alpha / r.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout before the adapters. In GRPO it makes ratios noisy from the first update on, "
        "because engines sample without it.",
    )


class SftConfig(Section):
    """SFT cold start (paper section 4.1: lr 2e-5, 3 epochs, max length 2400, warm-up 0.05)."""

    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; -1: derived from `epochs`.")
    epochs: float = Field(3.0, gt=0, description="Passes over the rows; `max_steps` takes precedence.")
    learning_rate: float = Field(2e-5, gt=0, description="Learning rate of AdamW, after the warm-up.")
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Fraction of the steps used for linear warm-up."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW; none on norms and biases.")
    adam_beta2: float = Field(
        0.999, gt=0, lt=1, description="β2 of AdamW; 0.95 suits runs of a few hundred steps."
    )
    lr_scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine", "cosine_with_min_lr"] = (
        Field("cosine", description="Learning rate schedule after the warm-up; `constant` has no warm-up.")
    )
    lr_scheduler_kwargs: dict[str, float] = Field(
        {},
        description="Scheduler arguments, such as {min_lr_rate: 0.1} for cosine_with_min_lr.",
    )
    max_length: int = Field(
        2400, ge=16, description="Maximum tokens of prompt plus completion; longer rows are rejected."
    )
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step, over all workers.")
    micro_batch_size: int = resources(4, ge=1, description="Rows per forward pass on one worker.")
    packing: bool = Field(
        False, description="Pack several rows into a sequence, without attention across rows."
    )
    gradient_checkpointing: bool | None = resources(
        None,
        description="Recompute activations in the backward pass: less memory, more time. Default: on GPUs.",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Maximum gradient norm; larger gradients are clipped."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="DeepSpeed ZeRO stage: 1 shards optimizer state, 2 also gradients, 3 also parameters.",
    )
    offload: bool = Field(
        False, description="Keep the optimizer state (at stage 3 also parameters) in host memory."
    )
    lora: LoraConfig | None = Field(None, description="Train adapters only; the model is saved merged.")
    num_workers: int = resources(
        1, ge=1, description="Ray Train workers (DeepSpeed ranks); a run may resume with another number."
    )
    cpus_per_worker: float = resources(1.0, gt=0, description="CPUs and threads per worker.")
    max_failures: int = resources(
        3, ge=0, description="How often failed workers are restarted before the run stops."
    )
    placement_timeout_s: float = resources(
        300.0, gt=0, description="Maximum wait for the cluster's resources, in seconds."
    )
    logging_steps: int = Field(
        1,
        ge=1,
        description="Steps between lines of metrics.jsonl, each the mean over these steps. Steps with an "
        "evaluation or a checkpoint are logged too.",
    )
    eval_steps: int = Field(100, ge=1, description="Steps between evaluations on the held-out split.")
    eval_rows: int = Field(64, ge=0, description="Rows of the dev split to evaluate; 0 disables evaluation.")
    save_steps: int = Field(100, ge=1, description="Steps between checkpoints.")
    save_limit: int = Field(2, ge=1, description="Number of checkpoints kept.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without improvement."
    )
    keep_best: bool = Field(
        False, description="Keep the model of the best evaluation instead of the last one."
    )

    @model_validator(mode="after")
    def _divides(self) -> SftConfig:
        if self.batch_size % (self.micro_batch_size * self.num_workers):
            raise ValueError("batch_size must be a multiple of micro_batch_size × num_workers")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> SftConfig:
        """Refuses settings that would be ignored silently, or fail in the workers."""
        if self.max_steps == 0:
            raise ValueError("max_steps must be -1 (derived from epochs) or above 0")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload needs zero_stage 1, 2 or 3: stage 0 shards nothing")
        if (self.patience is not None or self.keep_best) and self.eval_rows == 0:
            raise ValueError("patience and keep_best need evaluations: set eval_rows above 0")
        least = {"min_lr", "min_lr_rate"} & self.lr_scheduler_kwargs.keys()
        if self.lr_scheduler == "cosine_with_min_lr" and len(least) != 1:
            raise ValueError("lr_scheduler cosine_with_min_lr needs lr_scheduler_kwargs {min_lr_rate: …}")
        return self


class FinetuneConfig(SftConfig):
    """Fine-tuning on a finished training set (paper: LoRA r 64, lr 1e-4, 5 epochs, length 2048)."""

    train: str | None = Field(
        None,
        description="A training set, in any layout that `ingest` reads; default: the output of `select`.",
    )
    model: ModelConfig | None = Field(
        None, description="The model to fine-tune; default: the section `model`."
    )
    chat_template: str | None = Field(
        None, description="As `model.chat_template`: `chatml` or `tulu`, or a file; for base models."
    )
    eval_fraction: float = Field(
        0.02, ge=0, lt=1, description="Fraction of the rows held out for evaluation."
    )
    epochs: float = Field(5.0, gt=0, description="Passes over the rows; `max_steps` takes precedence.")
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of AdamW, after the warm-up.")
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, description="Fraction of the steps used for linear warm-up."
    )
    max_length: int = Field(
        2048, ge=16, description="Maximum tokens of prompt plus completion; longer rows are rejected."
    )
    batch_size: int = Field(128, ge=1, description="Rows per optimizer step, over all workers.")
    lora: LoraConfig | None = Field(
        LoraConfig(r=64, alpha=16, dropout=0.1),
        description="Train adapters only; the model is saved merged. null: train all weights.",
    )


class GrpoConfig(Section):
    """Group relative policy optimisation (paper section 4.1 unless said otherwise)."""

    max_steps: int = Field(100, ge=0, description="Steps of the GRPO loop, one rollout batch each.")
    num_generations: int = Field(4, ge=2, description="Completions per prompt (group size).")
    prompts_per_step: int = Field(128, ge=1, description="Prompts (groups) per step.")
    max_prompt_length: int = Field(
        2400, ge=8, description="Maximum tokens of a prompt; longer prompts are rejected."
    )
    max_completion_length: int = Field(
        2400, ge=8, description="Maximum tokens of a completion; longer ones are truncated."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Learning rate of AdamW, after the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate schedule after the warm-up."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    beta: float = Field(
        0.01, ge=0, description="Weight of the KL to the reference model; 0 disables the reference."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Single-sample estimator of the KL; k3 is non-negative and has the lowest variance."
    )
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="Add the KL to the loss, or subtract it from each reward before advantages."
    )
    temperature: float = Field(  # vLLM raises lower values to it, the learner would not
        1.0, ge=0.01, description="Sampling temperature of rollouts, and of the learner's log-probs."
    )
    epsilon: float = Field(0.2, gt=0, description="PPO clip range below 1.")
    epsilon_high: float | None = Field(None, gt=0, description="Clip range above 1; default: `epsilon`.")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="Dual clip: where the advantage is negative, ratios above this have no gradient; "
        "default: unbounded, as in PPO.",
    )
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo"] = Field(
        "grpo", description="Advantage estimator: baseline and scale."
    )
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = Field(
        "dapo", description="Policy loss: its ratio, clipping and averaging."
    )
    lora: LoraConfig | None = Field(None, description="Train adapters only; engines get merged weights.")
    num_iterations: int = Field(1, ge=1, description="Passes over each rollout batch.")
    update_batch_size: int | None = Field(
        None,
        ge=1,
        description="Maximum completions per optimizer step; default: the whole rollout batch (on-policy). "
        "The steps of a batch have similar size.",
    )
    importance_correction: Literal["none", "token", "sequence"] = Field(
        "token", description="Weight by π_learner / π_engine, per token or per completion."
    )
    importance_cap: float = Field(2.0, gt=0, description="Maximum weight of the importance correction.")
    importance_limit: Literal["truncate", "mask"] = Field(
        "truncate", description="Weights above the cap: set to the cap, or masked out of the loss."
    )
    drop_zero_std: bool = Field(
        True, description="Drop groups whose rewards do not differ: they give no gradient."
    )
    max_refills: int = Field(
        1, ge=0, description="How often per step other prompts are drawn in place of dropped groups."
    )
    micro_tokens: int = resources(
        16384, ge=64, description="Maximum tokens per forward pass, padding included."
    )
    shared_prompt: bool = resources(
        True, description="Compute a group's prompt once per forward pass, not once per completion."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Maximum gradient norm; larger gradients are clipped."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="DeepSpeed ZeRO stage: 1 shards optimizer state, 2 also gradients, 3 also parameters.",
    )
    gradient_checkpointing: bool | None = resources(
        None,
        description="Recompute activations in the backward pass: less memory, more time. Default: on GPUs.",
    )
    mode: Literal["colocated", "disaggregated", "async"] = Field(
        "colocated",
        description="Engines and learner share GPUs and take turns (colocated), have their own and take "
        "turns (disaggregated), or have their own and engines run ahead (async).",
    )
    max_staleness: int = Field(
        1,
        ge=1,
        description="Maximum steps between the weights of a rollout and the current ones, in async mode.",
    )
    weight_transport: Literal["object_store", "nccl", "ipc"] = resources(
        "object_store",
        description="How engines get weights: through Ray's object store; nccl: broadcast to engines on "
        "their own GPUs; ipc: handed over on GPUs shared by learner and engines (colocated).",
    )
    rollout_actors: int = resources(1, ge=1, description="Number of vLLM engines.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs per engine.")
    learner_ranks: int = Field(1, ge=1, description="Number of DeepSpeed ranks of the learner.")
    cpus_per_actor: float = resources(
        1.0,
        gt=0,
        description="CPUs per rollout actor and learner rank; in colocated mode a pair shares them.",
    )
    gpu_memory_utilization: float = resources(
        0.45, gt=0, lt=1, description="Fraction of each GPU's memory for vLLM."
    )
    kv_cache_gib: int = resources(1, ge=1, description="Size of vLLM's key-value cache on CPU, in GiB.")
    timeout_s: float = resources(
        1800.0, gt=0, description="Maximum wait for any single part of a step, in seconds."
    )
    max_failures: int = resources(
        3,
        ge=0,
        description="How often, within failure_window_s, a dead learner is restarted from its checkpoint, "
        "and dead rollout actors are replaced, before the run stops. Actors that die together count as one.",
    )
    failure_window_s: float = resources(
        3600.0, gt=0, description="Failures older than this no longer count against max_failures, in seconds."
    )
    placement_timeout_s: float = resources(
        300.0, gt=0, description="Maximum wait for the cluster's resources, in seconds."
    )
    verify_tolerance: float | None = resources(
        None,
        gt=0,
        description="Maximum mean |Δ log-prob| between engine and learner on the probe after a weight sync; "
        "default: 1e-4 in float32, 0.2 in bfloat16.",
    )
    eval_steps: int = Field(20, ge=1, description="Steps between validations on the MIXTURE dev split.")
    keep_best: bool = Field(
        False, description="Keep the model of the best validation instead of the last one."
    )
    eval_prompts: int = Field(64, ge=0, description="Prompts per validation; 0 disables it.")
    eval_temperature: float = Field(
        0.0,
        ge=0,
        description="Sampling temperature of validations. 0 is greedy, as in `distill`; at `temperature` it "
        "measures what training optimizes, the reward of sampled completions.",
    )
    save_steps: int = resources(20, ge=1, description="Steps between checkpoints.")
    save_limit: int = resources(2, ge=1, description="Number of checkpoints kept.")

    @model_validator(mode="after")
    def _consistent(self) -> GrpoConfig:
        """Refuses settings that would be ignored silently, or leave a rank without work."""
        if self.prompts_per_step * self.num_generations < self.learner_ranks:
            raise ValueError("prompts_per_step × num_generations must not be less than learner_ranks")
        if self.keep_best and self.eval_prompts == 0:
            raise ValueError("keep_best needs validations: set eval_prompts above 0")
        if self.kl_estimator == "k1" and self.kl_in == "loss" and self.beta > 0:
            raise ValueError(
                "kl_estimator k1 has no effect in the loss: its gradient is 0 in expectation; use k2 or k3, "
                "or kl_in: reward"
            )
        if self.warmup_steps > self.max_steps > 0:
            raise ValueError("warmup_steps must not be more than max_steps")
        if self.dual_clip is not None and self.loss == "cispo":
            raise ValueError("dual_clip has no effect on loss cispo, which limits every ratio by itself")
        if self.dual_clip is not None and self.dual_clip <= 1 + (self.epsilon_high or self.epsilon):
            raise ValueError("dual_clip must be above 1 + epsilon_high")
        if self.kl_in == "reward" and self.advantage == "gdpo":
            raise ValueError(
                "kl_in reward needs an advantage of the total reward; gdpo uses the reward components"
            )
        return self

    @model_validator(mode="after")
    def _reachable(self) -> GrpoConfig:
        """NCCL cannot put two ranks on one GPU, and CUDA IPC only works within one."""
        if self.weight_transport == "nccl" and self.mode == "colocated":
            raise ValueError(
                "weight_transport nccl needs engines on their own GPUs: set mode to disaggregated or "
                "async, or weight_transport to ipc"
            )
        shared = self.mode == "colocated" and self.rollout_actors == self.learner_ranks
        if self.weight_transport == "ipc" and not shared:
            raise ValueError(
                "weight_transport ipc needs mode colocated and as many rollout_actors as learner_ranks: each "
                "engine gets the weights from the rank on its own GPU; otherwise set it to nccl"
            )
        return self


class TrackingConfig(Section):
    """Trackers that mirror metrics.jsonl of SFT and GRPO."""

    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        ["tensorboard"],
        description="Trackers. `wandb` reads environment variables: WANDB_API_KEY, WANDB_MODE=offline, …",
    )
    project: str = Field("lm-mixup", description="W&B project.")
    entity: str | None = Field(None, description="W&B user or team; default: your own.")
    name: str | None = Field(None, description="W&B group of the stages; default: the run directory's name.")
