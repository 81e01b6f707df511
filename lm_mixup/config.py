"""The YAML configuration as pydantic models.

One model a section, and a stage is given only its own section. Unknown keys are errors that name the nearest
valid key. Fields marked `resources()` say how fast the work is done and not what comes out: they are left out
of the stage fingerprints, so a run may be resumed with more workers without redoing finished stages.

This module imports neither Ray, torch nor vLLM: `lm-mixup config` answers in well under a second.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lm_mixup.tasks import TASK_TYPES, TaskType

T = TypeVar("T")

SelectMethod = Literal[
    "long_tail",
    "score",
    "random",
    "longest",
    "knn_diversity",
    "alpagasus",
    "deita",
    "ds2",
    "perplexity",
]


def resources(default: T, **kwargs: Any) -> T:
    """A field that changes speed or place but never the rows that come out."""
    field: T = Field(default, json_schema_extra={"resources": True}, **kwargs)
    return field


class Section(BaseModel):
    """Base of every section: unknown keys refused, values frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, Any]:
        """The JSON-able values that decide the output: everything but the `resources` fields."""
        chosen: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if not (isinstance(extra, dict) and extra.get("resources")):
                chosen[name] = _identity_of(getattr(self, name))
        return chosen


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, dict):
        return {key: _identity_of(inner) for key, inner in value.items()}
    return value


class ModelConfig(Section):
    """The policy model that is trained to distil."""

    path: str = Field(
        "nano", description="Hub name, local folder, `nano` (the packaged model) or `nano-untrained`."
    )
    revision: str | None = Field(None, description="Hub revision: a branch, tag or commit.")
    trust_remote_code: bool = Field(
        False, description="Run code that ships with the model. Off unless needed."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 on GPU, float32 on CPU."
    )


class EmbedderConfig(Section):
    """The sentence embedder shared by clustering, rewards and selection."""

    path: str = Field(
        "minilm", description="Hub name, local folder, or `minilm` (all-MiniLM-L6-v2, packaged)."
    )
    trust_remote_code: bool = Field(False, description="Run code that ships with the model.")
    max_length: int = Field(256, ge=8, description="Tokens of a text that are embedded; the rest is cut.")
    batch_size: int = resources(64, ge=1, description="Texts a forward pass.")
    num_actors: int = resources(1, ge=1, description="Embedding actors.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs an actor.")
    num_gpus: float = resources(0.0, ge=0, description="GPUs an actor (fractions allowed).")


class EmbedDecontaminateConfig(Section):
    """Refusing rows that say the same as an evaluation item in other words."""

    files: list[str] = Field(
        default_factory=list,
        description="Evaluation sets, as in `ingest.decontaminate`; default: those named there.",
    )
    min_similarity: float = Field(
        0.8, gt=0, le=1, description="Cosine to an evaluation item from which a row is refused."
    )
    columns: list[str] = Field(
        default_factory=list,
        description="Columns that make up an item's text; default: the question, under its common names.",
    )


class EmbedConfig(Section):
    """The embeddings of the pool; `embedder` is the model."""

    decontaminate: EmbedDecontaminateConfig | None = Field(
        None, description="Refuse rows whose embedding is close to an evaluation item's; off if null."
    )


class RayConfig(Section):
    """Where Ray runs. Without an address, the cluster in RAY_ADDRESS or else a local one."""

    address: str | None = resources(None, description="`auto`, `host:port`, or nothing for a local cluster.")
    num_cpus: int | None = resources(None, ge=1, description="CPUs of a local cluster; default: all.")
    object_store_gib: float = resources(1.0, gt=0.1, description="Object store of a local cluster, GiB.")


class DataConfig(Section):
    """How rows are laid out in files."""

    rows_per_part: int = Field(
        2048, ge=1, description="Rows of one Parquet part: the unit of work and resume."
    )


class BuildConfig(Section):
    """MIXTURE from passages."""

    mixture: str | None = Field(
        None,
        description="A published MIXTURE to train on, in place of one written from passages: "
        "`hf:dokiik/MIXTURE[@REVISION]`, or a folder with data_sft/ and data_grpo/.",
    )
    mixture_separator: str | None = Field(
        None, min_length=1, description="What stands between the inputs of its rows; default: recognised."
    )
    passages: str = Field(
        "world", description="`world` (the closed world), or JSONL/Parquet of {id, title, text}."
    )
    passage_words: int = Field(
        300, ge=20, description="Most words of a passage; longer texts are cut between sentences."
    )
    passage_min_words: int = Field(15, ge=1, description="Passages with fewer words are refused.")
    samples: int = Field(3000, ge=1, description="High-quality samples to write.")
    task_mix: dict[TaskType, float] = Field(
        default={"qa": 0.3, "mcq": 0.2, "tfq": 0.2, "cs": 0.15, "para": 0.15},
        description="Share of samples of each task type.",
    )
    min_score: int = Field(4, ge=0, le=5, description="High-quality samples are kept at this score or above.")
    min_inputs: int = Field(2, ge=2, le=20, description="Fewest low-quality inputs of a MIXTURE row.")
    max_inputs: int = Field(5, ge=2, le=20, description="Most low-quality inputs of a MIXTURE row.")
    cot_rate: float = Field(1.0, ge=0, le=1, description="Share of rows whose target carries its reasoning.")
    noise_rate: float = Field(0.2, ge=0, le=1, description="Share of rows whose inputs get surface noise.")
    fiction_rate: float = Field(
        0.0, ge=0, le=1, description="Share of SFT rows of the closed world with invented names and values."
    )
    crosstopic_rate: float = Field(
        0.1, ge=0, le=1, description="Share of rows merged from two close samples."
    )
    crosstopic_min_similarity: float = Field(
        0.5, ge=-1, le=1, description="Least cosine of two samples of a teacher model that it merges."
    )
    grpo_fraction: float = Field(0.2, ge=0, lt=1, description="Share of entities held for GRPO prompts.")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="Share of entities held for the test split.")
    num_actors: int = resources(1, ge=1, description="Actors that assemble MIXTURE.")

    @field_validator("task_mix")
    @classmethod
    def _mix(cls, mix: dict[TaskType, float]) -> dict[TaskType, float]:
        if any(share < 0 for share in mix.values()) or sum(mix.values()) <= 0:
            raise ValueError(
                f"shares must be non-negative and not all zero; task types are {list(TASK_TYPES)}"
            )
        return mix

    @model_validator(mode="after")
    def _ordered(self) -> BuildConfig:
        if self.min_inputs > self.max_inputs:
            raise ValueError("min_inputs must not exceed max_inputs")
        if self.passage_min_words > self.passage_words:
            raise ValueError("passage_min_words must not exceed passage_words")
        return self


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
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
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
    rollout_actors: int = resources(1, ge=1)
    tensor_parallel_size: int = resources(1, ge=1)
    learner_ranks: int = Field(1, ge=1)
    cpus_per_actor: float = resources(1.0, gt=0, description="CPUs a rollout actor or learner rank.")
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
    save_steps: int = Field(20, ge=1)
    save_limit: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _supported(self) -> GrpoConfig:
        if self.prompts_per_step * self.num_generations % self.learner_ranks:
            raise ValueError("prompts_per_step × num_generations must be a multiple of learner_ranks")
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


class AugmentConfig(Section):
    """The pool to be distilled."""

    pool: str = Field(
        "world",
        description="JSONL or Parquet: a file, folder, glob or URI; a folder of `save_to_disk`; "
        "`hf:ORG/NAME[:CONFIG][@SPLIT]`; `world`: the demo pool.",
    )
    policy: str | None = Field(
        None, description="Distiller to use; default: grpo/model of this run, else sft/model."
    )


class NearDuplicatesConfig(Section):
    """Folding rows that say the same in nearly the same words (MinHash LSH, verified exactly)."""

    threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of the word n-grams from which rows are the same."
    )
    completion_threshold: float = Field(
        0.5, ge=0, le=1, description="The same for the completions alone: other answers are other rows."
    )
    ngram: int = Field(2, ge=1, le=16, description="Words of an n-gram.")
    num_perm: int = Field(128, ge=16, le=1024, description="Hash functions of a MinHash signature.")
    recall: float = Field(
        0.98, gt=0, lt=1, description="Chance that a pair right at the threshold is looked at; above: higher."
    )


class DecontaminateConfig(Section):
    """Refusing rows that share text with evaluation sets."""

    files: list[str] = Field(
        min_length=1, description="Evaluation sets: whatever a pool can be, JSONL, Parquet, folders, globs."
    )
    ngram: int = Field(13, ge=2, le=64, description="Words in a row that must not be in common.")
    min_words: int = Field(
        8, ge=1, description="Items shorter than `ngram` count as a whole; below this many words, not at all."
    )
    columns: list[str] = Field(
        default_factory=list,
        description="Text columns of the evaluation sets; default: the question, under its common names.",
    )


class IngestConfig(Section):
    """Reading the pool."""

    max_chars: int = Field(
        100_000, ge=100, description="Longest prompt or completion; longer rows are refused."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Our column → the pool's, e.g. {prompt: question}; recognised if empty.",
    )
    split_mib: float = Field(
        8.0, gt=0, description="JSONL files are read in pieces of this size, a piece a part."
    )
    near_duplicates: NearDuplicatesConfig | None = Field(
        None,
        description="Keep the first of rows that are nearly the same; `{}` for the defaults; off if null.",
    )
    decontaminate: DecontaminateConfig | None = Field(
        None, description="Refuse rows that share n-grams with evaluation sets; off if null."
    )
    world_rows: int = Field(600, ge=1, description="Rows of the demo pool, for `pool: world`.")
    num_actors: int = resources(1, ge=1)


class PriceConfig(Section):
    """What a chat model costs, per million tokens, in any one currency."""

    input: float = Field(0.0, ge=0, description="Prompt tokens.")
    output: float = Field(0.0, ge=0, description="Completion tokens.")


class ChatConfig(Section):
    """A chat model that fills in JSON: behind an OpenAI-compatible server, or inside vLLM actors."""

    backend: Literal["offline", "openai", "vllm"] = Field(
        "offline", description="`offline`: no chat model, but what the package can do without one."
    )
    base_url: str | None = Field(None, description="Of the server, for backend `openai`; default: OpenAI's.")
    model: str | None = Field(None, description="Name on the server; for `vllm` a folder or Hub name.")
    api_key_env: str | None = Field(None, description="Name of the environment variable that holds the key.")
    max_tokens: int = Field(256, ge=16, description="Most tokens of a reply.")
    request: dict[str, Any] = Field(
        default_factory=dict, description="More fields of each request; null drops one of ours."
    )
    requests_per_minute: int | None = resources(None, ge=1, description="Of all actors together.")
    tokens_per_minute: int | None = resources(None, ge=1, description="Of all actors together.")
    concurrency: int = resources(16, ge=1, description="Requests that an actor has under way.")
    timeout_s: float = resources(120.0, gt=0, description="Longest wait for one whole reply.")
    max_retries: int = resources(6, ge=0, description="Times a request that failed in passing is repeated.")
    price_per_million: PriceConfig | None = resources(None, description="Prices, for cost and `max_cost`.")
    max_cost: float | None = resources(
        None, gt=0, description="Most that the run directory may cost in all, in the prices' currency."
    )
    num_actors: int = resources(1, ge=1)
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and, for vLLM, CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of a vLLM actor, where there are any.")
    gpu_memory_utilization: float = resources(0.9, gt=0, lt=1, description="vLLM's share of each GPU.")
    kv_cache_gib: int = resources(1, ge=1, description="vLLM's key-value cache on CPU, GiB.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of the model in vLLM.")
    max_model_len: int | None = Field(
        None, ge=64, description="Tokens of prompt and reply in vLLM; default: the model's, 8192 at most."
    )
    trust_remote_code: bool = Field(False, description="Run code that ships with the model in vLLM.")

    @model_validator(mode="after")
    def _priced(self) -> ChatConfig:
        if self.max_cost is not None and self.price_per_million is None:
            raise ValueError("max_cost needs price_per_million: {input, output}")
        return self


class RateConfig(ChatConfig):
    """The judge."""


class TeacherConfig(ChatConfig):
    """Writes samples and their poor variants; offline it knows the closed world and nothing else."""

    max_tokens: int = Field(2048, ge=16, description="Most tokens of a reply: a sample, or all its variants.")


class NeighborsConfig(Section):
    """Nearest neighbours of every pool row."""

    k: int = Field(16, ge=1, description="Neighbours kept of each row.")
    exact_below: int = Field(
        300_000, ge=2, description="Most rows that are compared with all others; beyond, with near cells."
    )
    cell_rows: int = Field(1024, ge=2, description="Rows of a cell of the approximate search.")
    probes: int = Field(32, ge=1, description="Nearest cells that each row is looked up in.")
    num_actors: int = resources(1, ge=1)
    num_cpus: float = resources(1.0, gt=0, description="CPUs an actor.")
    num_gpus: float = resources(0.0, ge=0, description="GPUs an actor (fractions allowed).")


class CurateConfig(Section):
    """Score curation (DS2)."""

    enabled: bool = Field(True, description="Off: scores pass through with confidence 1.")
    neighbors: int = Field(2, ge=2, description="Nearest neighbours that vote on a row's score.")
    min_similarity: float = Field(0.7, ge=-1, le=1, description="Least cosine of a neighbour that votes.")
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="Vote confidence from which a score is corrected."
    )
    steps: int = Field(1500, ge=1, description="Gradient steps of the transition matrix's fit.")
    num_actors: int = resources(1, ge=1)


class ClusterConfig(Section):
    """Size-bounded clusters of low-quality rows."""

    min_size: int = Field(2, ge=1, le=20)
    max_size: int = Field(5, ge=1, le=20)
    min_similarity: float = Field(
        0.3, ge=-1, le=1, description="Least cosine of a row to its cluster's centre."
    )
    low_below: int = Field(4, ge=0, le=5, description="Rows with a score below this are clustered.")
    by_source: bool = Field(True, description="Clusters never cross sources.")
    cell_rows: int = Field(1024, ge=16, description="Rows of one coarse cell: the unit of parallel work.")
    num_tasks: int = resources(2, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.min_size > self.max_size:
            raise ValueError("min_size must not exceed max_size")
        return self


class DistillConfig(Section):
    """Generation of one row a cluster."""

    max_prompt_length: int = Field(2400, ge=8)
    max_completion_length: int = Field(2400, ge=8)
    temperature: float = Field(0.0, ge=0)
    num_actors: int = resources(1, ge=1)
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1)


class PerplexityConfig(Section):
    """The pass over all rows that `select.method: perplexity` asks for, and no other method."""

    model: str | None = Field(
        None, description="Whose perplexity: a Hub name, folder or `nano`; default: model.path."
    )
    take: Literal["low", "mid", "high"] = Field(
        "mid", description="Lowest first, nearest to the median first, or highest first."
    )
    max_length: int = Field(
        2048, ge=16, description="Tokens of prompt and completion; longer rows are refused."
    )
    num_actors: int = resources(1, ge=1)
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1)
    gpu_memory_utilization: float = resources(
        0.8, gt=0, lt=1, description="vLLM's share of each GPU; prompts' logits need room beside it."
    )
    kv_cache_gib: int = resources(1, ge=1, description="vLLM's key-value cache on CPU, GiB.")


class SelectConfig(Section):
    """The final training set."""

    method: SelectMethod = Field("long_tail", description="How rows are ranked; docs/data.md has a table.")
    budget: int | str = Field("3%", description='Rows, or a percentage of the pool such as "3%".')
    original_ratio: float = Field(0.5, ge=0, le=1, description="Share of originals among the selected rows.")
    stratify_by: Literal["none", "source", "task_type"] = Field(
        "none", description="Each side's rows are shared out over these in proportion to their candidates."
    )
    min_score: int = Field(
        4, ge=0, le=5, description="Least score; originals under a method with a rule of its own need none."
    )
    neighbors: int = Field(15, ge=1, description="Nearest neighbours of the long-tail score.")
    score_threshold: float = Field(
        4.5, ge=0, le=5, description="alpagasus: least rating of the judge, `overall` / 2."
    )
    similarity_threshold: float = Field(
        0.9, gt=-1, le=1, description="deita: a row as similar as this to a chosen one is passed over."
    )
    perplexity: PerplexityConfig = Field(default_factory=PerplexityConfig)

    @field_validator("budget")
    @classmethod
    def _budget(cls, budget: int | str) -> int | str:
        text = str(budget).strip()
        try:
            value = float(text[:-1]) if text.endswith("%") else int(text)
        except ValueError:
            raise ValueError('budget is a number of rows or a percentage such as "3%"') from None
        if value <= 0 or (text.endswith("%") and value > 100):
            raise ValueError("budget must be positive, and at most 100%")
        return text if text.endswith("%") else int(text)


class ReportConfig(Section):
    """The HTML page."""

    title: str = "lm-mixup run"
    examples: int = Field(10, ge=0, description="Distilled rows shown beside their parents.")


class Config(Section):
    """A whole run: what `configs/*.yaml` holds."""

    seed: int = 0
    model: ModelConfig = Field(default_factory=ModelConfig)
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig)
    ray: RayConfig = resources(RayConfig())
    data: DataConfig = Field(default_factory=DataConfig)
    build: BuildConfig = Field(default_factory=BuildConfig)
    sft: SftConfig = Field(default_factory=SftConfig)
    library: LibraryConfig = Field(default_factory=LibraryConfig)
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    tracking: TrackingConfig = resources(TrackingConfig())
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    rate: RateConfig = Field(default_factory=RateConfig)
    embed: EmbedConfig = Field(default_factory=EmbedConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    neighbors: NeighborsConfig = Field(default_factory=NeighborsConfig)
    curate: CurateConfig = Field(default_factory=CurateConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _enough_neighbors(self) -> Config:
        if self.select.method in ("knn_diversity", "ds2") and self.select.neighbors > self.neighbors.k:
            raise ValueError(
                f"select.neighbors ({self.select.neighbors}) must not exceed neighbors.k "
                f"({self.neighbors.k}) with select.method {self.select.method}"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_sets(self) -> Config:
        if self.embed.decontaminate and not self.eval_files():
            raise ValueError(
                "embed.decontaminate.files: name evaluation sets, here or in ingest.decontaminate"
            )
        return self

    def eval_files(self) -> list[str]:
        """The evaluation sets that embeddings are compared with: none if that is off."""
        if self.embed.decontaminate is None:
            return []
        ngrams = self.ingest.decontaminate
        return self.embed.decontaminate.files or (ngrams.files if ngrams else [])
