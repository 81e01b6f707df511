"""The format reward."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_mixup.core.task_types import FormatError, TaskType, parse_answer, parse_output

TAGS_SHARE = 0.5
PATTERN_SHARE = 0.5
_PADDING = re.compile(r"\s{9,}(?:$|</)|(?:^|>)\s{9,}|\n{9,}")


def format_reward(task_type: TaskType, completion: str) -> float:
    """0.5 for the tags, 0.5 for the answer's pattern (paper section 3.3).

    * Tags: `task_types.parse_output` accepts the whole text: exactly one `<think>` and one `<answer>` block,
      in this order and case, nothing outside, the answer not empty. Two blocks or an empty one earn nothing.
    * Pattern: `task_types.parse_answer` accepts the answer. It requires the tags: text outside them is no
      answer. Every non-empty paragraph has the pattern of a paragraph. Runs of blanks, at the end or around a
      block, lose it: a policy that pads up to the length limit would be rejected by `distill`.

    Returns:
        0.0, 0.5 or 1.0.
    """
    try:
        output = parse_output(completion)
    except FormatError:
        return 0.0
    if _PADDING.search(completion):
        return TAGS_SHARE
    try:
        parse_answer(task_type, output.answer)
    except FormatError:
        return TAGS_SHARE
    return TAGS_SHARE + PATTERN_SHARE


def format_rewards(task_types: Sequence[TaskType], completions: Sequence[str]) -> NDArray[np.float64]:
    """`format_reward` of each completion, float64 [N]."""
    pairs = zip(task_types, completions, strict=True)
    return np.array([format_reward(task_type, text) for task_type, text in pairs], dtype=np.float64)
