"""What is scored, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from lm_mixup.core.task_types import TaskType
from lm_mixup.rewards.quality import Floats


@dataclass(frozen=True)
class RewardBatch:
    """Completions to be scored: lists of equal length, row i about completion i.

    Custom rewards get this too, an endpoint as a JSON object of the same fields.

    Attributes:
        task_types: What each answer should be.
        completions: The policy's raw texts.
        references: The answer texts of the targets (`tasks.write_answer`).
        groups: Equal for completions of one prompt.
        inputs: The poor texts of each prompt; empty where nobody asked for them.
    """

    task_types: Sequence[TaskType]
    completions: Sequence[str]
    references: Sequence[str]
    groups: Sequence[int]
    inputs: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        columns = [self.task_types, self.completions, self.references, self.groups]
        lengths = {len(column) for column in (*columns, self.inputs or self.groups)}
        if len(lengths) != 1:
            raise ValueError(
                f"the lists of a reward batch have lengths {sorted(lengths)}; they must be equal"
            )

    def __len__(self) -> int:
        return len(self.completions)

    def rows(self, cut: slice) -> RewardBatch:
        """Some of the rows."""
        return RewardBatch(**{column.name: getattr(self, column.name)[cut] for column in fields(self)})


@dataclass(frozen=True)
class RewardScores:
    """Rewards in the order of the batch.

    Attributes:
        total: float64 [N].
        components: `quality`, `alignment`, `format` and the custom ones, before weights, float64 [N] each.
    """

    total: Floats
    components: dict[str, Floats] = field(default_factory=dict)


def whole_groups(groups: Sequence[int], size: int) -> list[slice]:
    """Cuts a batch into chunks of at least `size` rows (but the last), never between rows of a group.

    A reward that compares the completions of a prompt so sees all of them, whatever the size.

    Args:
        groups: [N], the completions of a group standing together.
        size: Rows from which a chunk is full.
    """
    cuts, start = [], 0
    for row in range(1, len(groups) + 1):
        if row == len(groups) or (row - start >= size and groups[row] != groups[row - 1]):
            cuts.append(slice(start, row))
            start = row
    return cuts
