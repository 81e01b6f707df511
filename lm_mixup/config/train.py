"""SFT and GRPO: trainers, rewards, trackers."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lm_mixup.config.section import Section, resources
from lm_mixup.tasks import TaskType


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning (paper: r 256, alpha 16)."""

    r: int = Field(256, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class SftConfig(Section):
    """SFT cold start (paper section 4.1: lr 2e-5, 3 epochs, max length 2400, warm-up 0.05)."""

    max_steps: int = Field(-1, description="Optimizer steps; -1: as many as `epochs` asks for.")
    epochs: float = Field(3.0, gt=0)
    learning_rate: float = Field(2e-5, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="AdamW; 0.95 suits runs of few hundred steps.")
    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_with_min_lr"] = "cosine"
    lr_scheduler_kwargs: dict[str, float] = Field(
        {}, description="Of Transformers' scheduler: {min_lr_rate: 0.1} for cosine_with_min_lr."
    )
    max_length: int = Field(
        2400, ge=16, description="Tokens of prompt and completion; longer rows are refused."
    )
    batch_size: int = Field(16, ge=1, description="Rows an optimizer step, over all workers.")
    micro_batch_size: int = Field(4, ge=1, description="Rows a forward pass on one worker.")
    packing: bool = Field(False, description="Several rows a sequence, without attention across rows.")
    gradient_checkpointing: bool = False
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage.")
    offload: bool = Field(
        False, description="ZeRO optimizer state (and at stage 3 parameters) in host memory."
    )
    lora: LoraConfig | None = None
    num_workers: int = Field(1, ge=1, description="Ray Train workers (DeepSpeed ranks).")
    cpus_per_worker: float = resources(1.0, gt=0, description="CPUs, and threads, of a worker.")
    max_failures: int = resources(
        3, ge=0, description="Times dead workers are replaced before the run stops."
    )
    logging_steps: int = Field(
        1, ge=1, description="Steps between lines of metrics.jsonl: each is their mean."
    )
    eval_steps: int = Field(100, ge=1, description="Steps between evaluations on the held-out split.")
    eval_rows: int = Field(
        64, ge=0, description="Rows of the test split that are evaluated; 0 switches it off."
    )
    save_steps: int = Field(100, ge=1, description="Steps between checkpoints.")
    save_limit: int = Field(2, ge=1)
    patience: int | None = Field(None, ge=1, description="Stop after this many evaluations without progress.")

    @model_validator(mode="after")
    def _divides(self) -> SftConfig:
        if self.batch_size % (self.micro_batch_size * self.num_workers):
            raise ValueError("batch_size must be a multiple of micro_batch_size × num_workers")
        return self


class RewardWeights(Section):
    """Weights of the reward components. 0.0 means 0.0."""

    quality: float = 0.5
    alignment: float = 0.4
    format: float = 0.1


class CustomReward(Section):
    """A reward of your own: a function, or an HTTP endpoint. See docs/training.md."""

    path: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Import path `package.module:function` of a `(batch) -> list[float]`, sync or async.",
    )
    url: str | None = Field(
        None, pattern="^https?://", description='Gets a batch as JSON, answers `{"rewards": [...]}`.'
    )
    weight: float = Field(allow_inf_nan=False, description="0.0 means 0.0: measured, and without effect.")
    task_weights: dict[TaskType, float] = Field(
        default_factory=dict, description="Weights for single task types, in place of `weight`."
    )
    api_key_env: str | None = resources(
        None, description="Name of the environment variable that holds the endpoint's key."
    )
    timeout_s: float = resources(
        60.0, gt=0, description="Longest wait for one answer of an endpoint or an async function."
    )
    max_retries: int = resources(
        2, ge=0, description="Times a batch that failed is tried again before the run stops."
    )

    @field_validator("task_weights")
    @classmethod
    def _finite(cls, weights: dict[TaskType, float]) -> dict[TaskType, float]:
        if not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError("weights must be finite")
        return weights

    @model_validator(mode="after")
    def _one_source(self) -> CustomReward:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path (package.module:function) or url (http://…)")
        if self.path is not None and self.api_key_env is not None:
            raise ValueError("api_key_env belongs to a url; a function reads the environment by itself")
        return self


def _task_weights() -> dict[TaskType, RewardWeights]:
    fallback = RewardWeights(quality=0.8, alignment=0.0, format=0.2)
    return {"mcq": fallback, "tfq": fallback, "para": fallback}


class RewardsConfig(Section):
    """Reward components and how they are joined (paper section 3.3)."""

    weights: RewardWeights = Field(default_factory=RewardWeights)
    task_weights: dict[TaskType, RewardWeights] = Field(
        default_factory=_task_weights,
        description="Weights of single task types, whole sets that replace `weights`.",
    )
    custom: dict[str, CustomReward] = Field(
        default_factory=dict, description="Rewards beyond the three, by name, each with its weight."
    )
    composition: Literal["weighted_sum", "normalize_then_sum"] = "weighted_sum"
    neighbors: int = Field(16, ge=1, description="Nearest library samples that vote on a completion's score.")
    prior_neighbors: int = Field(
        2, ge=1, description="Neighbours from which prior and transition matrix are estimated."
    )
    smoothing: float = Field(0.01, gt=0, description="Added to transition counts before they are normalised.")
    alignment: Literal["threshold", "continuous"] = "threshold"
    alignment_threshold: float = Field(0.8, ge=-1, le=1)
    num_actors: int = resources(1, ge=1, description="Reward actors.")
    num_cpus: float = resources(
        0.1, ge=0, description="CPUs a reward actor reserves; it works between rollout and update."
    )
    num_gpus: float = resources(0.0, ge=0, description="GPUs a reward actor reserves (fractions allowed).")
    batch_size: int = resources(
        64, ge=1, description="Completions an actor scores at a time: the unit of retry."
    )
    timeout_s: float = resources(
        600.0, gt=0, description="Longest wait for one batch before its actor is replaced."
    )
    max_retries: int = resources(
        2, ge=0, description="Times a failed reward batch is tried again before the run stops."
    )

    @field_validator("custom")
    @classmethod
    def _names(cls, custom: dict[str, CustomReward]) -> dict[str, CustomReward]:
        for name in custom:
            if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise ValueError(f"{name!r} is no name: letters, digits and _, a letter first")
            if name in RewardWeights.model_fields:
                raise ValueError(f"{name} is the name of a built-in reward; choose another")
        return custom

    @model_validator(mode="after")
    def _patient(self) -> RewardsConfig:
        for name, reward in self.custom.items():
            if reward.timeout_s * (1 + reward.max_retries) > self.timeout_s:
                raise ValueError(
                    f"timeout_s ({self.timeout_s:g}, for a whole batch) must not be less than "
                    f"custom.{name}.timeout_s × (1 + max_retries)"
                )
        return self


class LibraryConfig(Section):
    """The rated samples whose neighbours judge a completion."""

    rows: int = Field(2000, ge=32, description="Most rated rows kept, spread over task types and scores.")


class GrpoConfig(Section):
    """Group relative policy optimisation (paper section 4.1 unless said otherwise)."""

    max_steps: int = Field(100, ge=0)
    num_generations: int = Field(4, ge=2, description="Completions a prompt: the group.")
    prompts_per_step: int = Field(128, ge=1)
    max_prompt_length: int = Field(2400, ge=8)
    max_completion_length: int = Field(2400, ge=8)
    learning_rate: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(0.01, ge=0)
    beta: float = Field(
        0.01, ge=0, description="Weight of the KL to the reference model; 0 drops the reference."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    temperature: float = Field(1.0, gt=0)
    epsilon: float = Field(0.2, gt=0, description="PPO clip range below 1.")
    epsilon_high: float | None = Field(None, gt=0, description="Clip range above 1; default: `epsilon`.")
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo"] = "grpo"
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "dapo"
    lora: LoraConfig | None = Field(None, description="Train adapters alone; engines get merged weights.")
    num_iterations: int = Field(1, ge=1, description="Passes over each rollout batch.")
    update_batch_size: int | None = Field(
        None, ge=1, description="Completions an optimizer step; default: the whole rollout batch (on-policy)."
    )
    importance_correction: Literal["none", "token", "sequence"] = Field(
        "token", description="Weight by π_learner / π_engine, truncated at `importance_cap`."
    )
    importance_cap: float = Field(2.0, gt=0)
    drop_zero_std: bool = Field(
        True, description="Groups whose rewards do not differ carry no signal: drop them."
    )
    max_refills: int = Field(
        1, ge=0, description="Times that other prompts are drawn in place of dropped groups."
    )
    micro_tokens: int = Field(16384, ge=64, description="Tokens (padding counted) of one forward pass.")
    shared_prompt: bool = Field(
        True, description="A group's prompt is computed once a forward pass, not once a completion."
    )
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    gradient_checkpointing: bool = False
    mode: Literal["colocated", "disaggregated", "async"] = "colocated"
    max_staleness: int = Field(
        1, ge=1, description="Steps a rollout may be behind the weights, in async mode."
    )
    weight_transport: Literal["object_store", "nccl", "ipc"] = resources(
        "object_store",
        description="How engines get weights: through Ray's object store; nccl: broadcast to engines on GPUs "
        "of their own; ipc: handed over on GPUs that learner and engines share (colocated).",
    )
    rollout_actors: int = resources(1, ge=1)
    tensor_parallel_size: int = resources(1, ge=1)
    learner_ranks: int = Field(1, ge=1)
    cpus_per_actor: float = resources(
        1.0,
        gt=0,
        description="CPUs of a rollout actor or learner rank; in colocated mode of both, as they take turns.",
    )
    gpu_memory_utilization: float = resources(0.45, gt=0, lt=1)
    kv_cache_gib: int = resources(1, ge=1, description="vLLM's key-value cache on CPU, GiB.")
    timeout_s: float = resources(1800.0, gt=0, description="Longest wait for any one part of a step.")
    max_failures: int = resources(
        3,
        ge=0,
        description="Times a learner that died starts again from the last checkpoint before the run stops.",
    )
    placement_timeout_s: float = resources(
        300.0, gt=0, description="Longest wait for the cluster's resources."
    )
    verify_tolerance: float = Field(
        1e-4,
        gt=0,
        description="Largest |Δ log-prob| of the probe after a weight sync (float32; 5e-2 suits bf16).",
    )
    eval_steps: int = Field(20, ge=1, description="Steps between validations on the MIXTURE test split.")
    keep_best: bool = Field(
        False, description="The model of the best validation is the result, not that of the last step."
    )
    eval_prompts: int = Field(64, ge=0, description="Prompts of a validation; 0 switches it off.")
    eval_temperature: float = Field(
        0.0,
        ge=0,
        description="Sampling temperature of a validation. 0 is greedy, as `distill` writes; at "
        "`temperature` it measures what the updates raise: the reward of what is sampled.",
    )
    save_steps: int = Field(20, ge=1)
    save_limit: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _supported(self) -> GrpoConfig:
        if self.prompts_per_step * self.num_generations % self.learner_ranks:
            raise ValueError("prompts_per_step × num_generations must be a multiple of learner_ranks")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> GrpoConfig:
        """NCCL has no two ranks on one GPU, and CUDA IPC does not leave it."""
        if self.weight_transport == "nccl" and self.mode == "colocated":
            raise ValueError(
                "weight_transport nccl needs engines on GPUs of their own: set mode to disaggregated or "
                "async, or weight_transport to ipc"
            )
        shared = self.mode == "colocated" and self.rollout_actors == self.learner_ranks
        if self.weight_transport == "ipc" and not shared:
            raise ValueError(
                "weight_transport ipc needs mode colocated and as many rollout_actors as learner_ranks: each "
                "engine takes the weights of the rank on its own GPU; else set it to nccl"
            )
        return self


class TrackingConfig(Section):
    """Where the metrics of SFT and GRPO are shown beside their metrics.jsonl."""

    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        ["tensorboard"],
        description="Trackers. `wandb` reads its own environment: WANDB_API_KEY, WANDB_MODE=offline, …",
    )
    project: str = Field("lm-mixup", description="W&B project.")
    entity: str | None = Field(None, description="W&B user or team; default: your own.")
    name: str | None = Field(None, description="W&B group of the stages; default: the run directory's name.")
