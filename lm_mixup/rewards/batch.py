"""The input and the output of reward functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from lm_mixup.core.task_types import TaskType
from lm_mixup.rewards.quality import Floats


@dataclass(frozen=True)
class RewardBatch:
    """Completions to score: lists of equal length, where row i describes completion i.

    Custom rewards receive the same; an endpoint as a JSON object with these fields.

    Attributes:
        task_types: Of each prompt.
        completions: The policy's raw texts.
        references: The answer texts of the targets (`task_types.write_answer`).
        groups: Equal for completions of one prompt.
        inputs: The low-quality texts of each prompt (`task_types.write_input`).
        finished: Whether the policy ended each completion by itself; empty: all did.
    """

    task_types: Sequence[TaskType]
    completions: Sequence[str]
    references: Sequence[str]
    groups: Sequence[int]
    inputs: Sequence[Sequence[str]] = ()
    finished: Sequence[bool] = ()

    def __post_init__(self) -> None:
        columns = [self.task_types, self.completions, self.references, self.groups]
        # The two that may be left out count as of the right length then.
        optional = (self.inputs or self.groups, self.finished or self.groups)
        lengths = {len(column) for column in (*columns, *optional)}
        if len(lengths) != 1:
            raise ValueError(
                f"the lists of a reward batch have lengths {sorted(lengths)}; they must be equal"
            )

    def __len__(self) -> int:
        return len(self.completions)

    def rows(self, cut: slice) -> RewardBatch:
        """A slice of the rows."""
        return RewardBatch(**{column.name: getattr(self, column.name)[cut] for column in fields(self)})


@dataclass(frozen=True)
class RewardScores:
    """Rewards in the order of the batch.

    Attributes:
        total: What the policy is trained on, float64 [N]: the weighted sum, or with `normalize_then_sum` the
            sum of normalized components, whose mean is 0 in every group.
        components: `quality`, `alignment`, `format`, `faithfulness` and the custom ones, before weights,
            float64 [N] each.
        weighted: The weighted sum of the components with any composition, float64 [N], which is logged and
            compared between steps. Default: `total`.
    """

    total: Floats
    components: dict[str, Floats] = field(default_factory=dict)
    weighted: Floats | None = None

    @property
    def reported(self) -> Floats:
        """The weighted sum, float64 [N]."""
        return self.total if self.weighted is None else self.weighted


def whole_groups(groups: Sequence[int], size: int) -> list[slice]:
    """Splits a batch into chunks of at least `size` rows (except the last), never within a group.

    So a reward that compares the completions of a prompt always sees all of them. `groups` is [N], with the
    completions of a group adjacent.
    """
    cuts, start = [], 0
    for row in range(1, len(groups) + 1):
        if row == len(groups) or (row - start >= size and groups[row] != groups[row - 1]):
            cuts.append(slice(start, row))
            start = row
    return cuts
