"""The rewards of GRPO, and the library that one of them looks things up in."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lm_mixup.config.section import KeyVariable, Section, UrlWithoutQuery, resources
from lm_mixup.core.task_types import TaskType


class RewardWeights(Section):
    """Weights of the reward components; one of weight 0.0 is logged and has no effect."""

    quality: float = Field(
        0.25, allow_inf_nan=False, description="The rating that the answer's neighbours stand for."
    )
    alignment: float = Field(0.15, allow_inf_nan=False, description="Closeness to the reference.")
    format: float = Field(0.1, allow_inf_nan=False, description="Tags, and the pattern of the task type.")
    faithfulness: float = Field(
        0.5,
        allow_inf_nan=False,
        description="Whether the inputs bear out what is said, and all of it is said.",
    )


class CustomReward(Section):
    """A reward of your own: a function, or an HTTP endpoint. See docs/training.md."""

    path: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Import path `package.module:function` of a `(batch) -> list[float]`, sync or async.",
    )
    url: UrlWithoutQuery | None = Field(
        None, pattern="^https?://", description='Gets a batch as JSON, answers `{"rewards": [...]}`.'
    )
    weight: float = Field(allow_inf_nan=False, description="At 0.0 it is measured and has no effect.")
    task_weights: dict[TaskType, float] = Field(
        default_factory=dict, description="Weights for single task types, in place of `weight`."
    )
    api_key_env: KeyVariable | None = resources(
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


class RewardsConfig(Section):
    """Reward components and how they are joined (paper section 3.3)."""

    weights: RewardWeights = Field(
        default_factory=RewardWeights, description="Weights of the four built-in components."
    )
    task_weights: dict[TaskType, RewardWeights] = Field(
        default_factory=dict,
        description="Weights of single task types: whole sets of all four, in place of `weights`.",
    )
    custom: dict[str, CustomReward] = Field(
        default_factory=dict, description="Rewards beyond the four, by name, each with its weight."
    )
    composition: Literal["weighted_sum", "normalize_then_sum"] = Field(
        "weighted_sum", description="normalize_then_sum: each component is normalised in its group first."
    )
    neighbors: int = Field(16, ge=1, description="Nearest library samples that vote on a completion's score.")
    prior_neighbors: int = Field(
        2, ge=1, description="Neighbours from which prior and transition matrix are estimated."
    )
    smoothing: float = Field(0.01, gt=0, description="Added to transition counts before they are normalised.")
    alignment: Literal["threshold", "continuous"] = Field(
        "threshold", description="1 from `alignment_threshold` on and else 0; or the cosine itself."
    )
    alignment_threshold: float = Field(0.8, ge=-1, le=1, description="Least cosine that earns 1.")
    num_actors: int = resources(1, ge=1, description="Reward actors.")
    num_cpus: float = resources(
        0.1, ge=0, description="CPUs a reward actor reserves; it works between rollout and update."
    )
    num_gpus: float = resources(
        0.0,
        ge=0,
        description="GPUs a reward actor reserves (fractions allowed). Above 0 with grpo.mode colocated, it "
        "shares a GPU with learner and engine instead, of which a tenth is for rewards.",
    )
    batch_size: int = resources(
        64, ge=1, description="Completions an actor scores at a time: the unit of retry."
    )
    timeout_s: float = resources(
        600.0, gt=0, description="Longest wait for one batch before its actor is replaced."
    )
    max_retries: int = resources(
        2, ge=0, description="Times a failed reward batch is tried again before the run stops."
    )

    @field_validator("task_weights")
    @classmethod
    def _whole(cls, given: dict[TaskType, RewardWeights]) -> dict[TaskType, RewardWeights]:
        # A set that is cut short would be filled up with the class's defaults, not with `weights`.
        for task_type, weights in given.items():
            lacking = RewardWeights.model_fields.keys() - weights.model_fields_set
            if lacking:
                raise ValueError(f"{task_type} is a whole set of weights; add {', '.join(sorted(lacking))}")
        return given

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
