"""What flows through a GRPO step: prompts, groups of completions, episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm_mixup.core.task_types import TaskType
from lm_mixup.models.engine import Completion


@dataclass(frozen=True)
class Episode:
    """One completion, ready to train on.

    Attributes:
        prompt_ids: Prompt tokens.
        completion_ids: Sampled tokens, at least one.
        engine_logps: float32 [T], log π_engine of the sampled tokens.
        advantage: Group-relative advantage.
        group: Index of its group in the rollout batch; episodes of a group share their prompt.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    engine_logps: np.ndarray
    advantage: float
    group: int

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Prompt:
    """The prompt of one group.

    Attributes:
        id: Of the MIXTURE row.
        task_type: Of the MIXTURE row.
        token_ids: The encoded prompt.
        reference: The target's answer text.
        entities: What the row is about.
        inputs: The low-quality texts to merge, which faithfulness is measured against.
    """

    id: str
    task_type: TaskType
    token_ids: list[int]
    reference: str
    entities: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The completions of one prompt, and the version of the weights that drew them."""

    prompt: Prompt
    completions: list[Completion]
    weight_version: int
