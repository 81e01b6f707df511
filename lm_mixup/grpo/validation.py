"""Validation: rollouts on held-out prompts, and the model that did best on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_mixup.demo import has_entities, recall
from lm_mixup.grpo.loop import Parts
from lm_mixup.grpo.scored_batch import reward_batch
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.train.tracking import append_metrics, trim_metrics


class Validation:
    """A line a validation in `validation.jsonl`, and in `best/` the model of the line with most reward."""

    def __init__(self, folder: Path, parts: Parts, prompts: Sequence[Prompt], resume_step: int) -> None:
        """Takes up where the run goes on, dropping lines after `resume_step`: those steps are done again.

        Args:
            folder: The stage's folder.
            parts: The run's live parts.
            prompts: What is completed; with none, nothing is validated.
            resume_step: Steps that the learner's weights have seen.
        """
        self._folder = folder
        self._path = folder / "validation.jsonl"
        self._parts = parts
        self._prompts = prompts
        self._lines = trim_metrics(self._path, resume_step) if self._path.exists() else []
        self.on_line: Callable[[dict[str, Any]], None] = lambda line: None

    @property
    def tracked(self) -> list[dict[str, Any]]:
        """The lines so far under the names that trackers show: `eval/reward` and so on."""
        return [_tracked(line) for line in self._lines]

    def before(self, step: int) -> None:
        """Validates the starting weights, where no step has been done."""
        if step == 0 and not self._lines:
            self.run(0)

    def run(self, step: int) -> None:
        """Completes the held-out prompts, scores them, writes a line; keeps the model if it is the best."""
        if not self._prompts:
            return
        groups = self._parts.rollout.generate(self._prompts, range(len(self._prompts)), validation=True)
        scores = self._parts.rewards.score(reward_batch(groups))
        line: dict[str, Any] = {"step": step, "reward": float(scores.total.mean())}
        line |= {f"rewards/{name}/mean": float(values.mean()) for name, values in scores.components.items()}
        line["format/compliance"] = float((scores.components["format"] >= 1.0).mean())
        line |= fact_recall(groups)
        if all(line["reward"] > earlier["reward"] for earlier in self._lines):
            self._parts.learner.save_model(self._folder / "best")
        self._lines.append(line)
        append_metrics(self._path, line)  # last: a validation with a line is not run again
        self.on_line(_tracked(line))

    def use_best(self, model: Path) -> None:
        """Puts the best model in a finished model's place, if anything was validated."""
        best = self._folder / "best"
        if self._lines:
            if not best.is_dir():
                raise RuntimeError(
                    f"{best}: the best model is gone; set grpo.keep_best: false for the last one"
                )
            shutil.rmtree(model)
            shutil.copytree(best, model)


def _tracked(line: dict[str, Any]) -> dict[str, Any]:
    return {key if key == "step" else f"eval/{key}": value for key, value in line.items()}


def fact_recall(groups: Sequence[Group]) -> dict[str, float]:
    """In the closed world: the share of the references' facts that the completions state.

    Args:
        groups: Completions of held-out prompts; one whose entities are not of the closed world is left out.

    Returns:
        `facts/recall`, and `facts/other`, the facts stated beside those, per completion. Nothing where no
        prompt is about the closed world.
    """
    found = [
        recall(g.prompt.task_type, completion.text, g.prompt.reference, g.prompt.entities)
        for g in groups
        if g.prompt.entities and has_entities(g.prompt.entities)
        for completion in g.completions
    ]
    if not found:
        return {}
    wanted = sum(result.wanted for result in found)
    return {
        "facts/recall": sum(result.found for result in found) / max(1, wanted),
        "facts/other": float(np.mean([result.other for result in found])),
    }
