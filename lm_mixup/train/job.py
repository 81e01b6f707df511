"""What the driver hands to the SFT workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_mixup.config import ModelConfig, SftConfig
from lm_mixup.core.run_dir import StageDir


@dataclass(frozen=True)
class SftJob:
    """What every worker is given.

    Attributes:
        out: The stage directory; its parts hold the token rows.
        config: Section `sft`.
        model: Section `model`.
        base: Folder or Hub name of the weights that training starts from.
        seed: Of the data order, dropout and adapters.
    """

    out: StageDir
    config: SftConfig
    model: ModelConfig
    base: str
    seed: int

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.out.local / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log, a JSON line a step and a line an evaluation."""
        return self.out.local / "metrics.jsonl"

    @property
    def refusal(self) -> Path:
        """What a worker says that cannot go on; it would not with another try either."""
        return self.out.local / "refusal.txt"

    @property
    def final(self) -> Path:
        """Folder of the finished model."""
        return self.out.local / "model"

    @property
    def best(self) -> Path:
        """Folder of the model of the best evaluation, with `keep_best`."""
        return self.out.local / "best"
