"""Validation: rollouts on held-out prompts, and the model with the best reward on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_mixup.core.run_dir import StageDir
from lm_mixup.demo import has_entities, recall
from lm_mixup.grpo.loop import Actors
from lm_mixup.grpo.scored_batch import reward_batch
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.train.lora import adapter_of
from lm_mixup.train.remote_checkpoint import has_model, upload_model
from lm_mixup.train.tracking import append_metrics, trim_metrics

_SAMPLES = 6  # prompts whose completions are kept at every validation


class Validation:
    """Writes one line per validation to `validation.jsonl`, and the best model so far to `best/`.

    `completions.jsonl` beside it has what the policy wrote for the first few prompts, a line per validation.
    """

    def __init__(self, out: StageDir, actors: Actors, prompts: Sequence[Prompt], resume_step: int) -> None:
        """Opens the log and drops the lines after `resume_step`, because those steps run again.

        Args:
            out: The stage.
            actors: The run's actors.
            prompts: Held-out prompts; if empty, nothing is validated.
            resume_step: Steps the learner's weights have been trained for.
        """
        self._out = out
        self._path = out.fetch("validation.jsonl")
        self._kept = out.fetch("completions.jsonl")
        self._actors = actors
        self._prompts = prompts
        self._lines = trim_metrics(self._path, resume_step) if self._path.exists() else []
        self.on_line: Callable[[dict[str, Any]], None] = lambda line: None

    @property
    def tracker_lines(self) -> list[dict[str, Any]]:
        """The lines so far under the names trackers show: `eval/reward` and so on."""
        return [_tracker_line(line) for line in self._lines]

    def run_first(self, step: int) -> None:
        """Validates the starting weights if no step has been done yet."""
        if step == 0 and not self._lines:
            self.run(0)

    def run(self, step: int) -> None:
        """Completes and scores the held-out prompts, writes a line, and saves the model if it is the best."""
        if not self._prompts:
            return
        groups = self._actors.rollout.generate(self._prompts, range(len(self._prompts)), validation=True)
        scores = self._actors.rewards.score(reward_batch(groups))
        line: dict[str, Any] = {"step": step, "reward": float(scores.reported.mean())}
        line |= {f"rewards/{name}/mean": float(values.mean()) for name, values in scores.components.items()}
        line["format/compliance"] = float((scores.components["format"] >= 1.0).mean())
        line |= fact_recall(groups)
        if all(line["reward"] > earlier["reward"] for earlier in self._lines):
            self._actors.learner.save_model(self._out, "best")
        self._lines.append(line)
        kept = self._kept
        trim_metrics(kept, step - 1)  # a kill between the two files leaves a line that is written again
        append_metrics(kept, {"step": step, "samples": samples_of(groups, scores.reported)})
        self._out.upload(kept.name)
        append_metrics(self._path, line)  # last: a validation with a line is not run again
        self._out.upload(self._path.name)
        self.on_line(_tracker_line(line))

    def use_best(self) -> None:
        """Replaces the final model with the best one, if there was a validation."""
        if self._lines:
            if not has_model(self._out, "best"):
                raise RuntimeError(
                    f"{self._out.location('best')}: the best model is missing; set grpo.keep_best: false to "
                    "keep the last one"
                )
            best, model = self._out.fetch("best"), self._out.local / "model"
            adapter = self._out.fetch(adapter_of(best).name)
            if adapter.is_dir():  # with grpo.lora
                shutil.copytree(adapter, adapter_of(model), dirs_exist_ok=True)
                self._out.upload(adapter_of(model).name)
            self._out.run.remove(f"{self._out.name}/model")
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(best, model)
            upload_model(self._out, "model")


def samples_of(
    groups: Sequence[Group], rewards: NDArray[np.float64], most: int = _SAMPLES
) -> list[dict[str, Any]]:
    """The first completion of the first few prompts, beside its inputs and reference.

    Args:
        groups: Of the held-out prompts, in their order.
        rewards: float64 [N], of all completions, group after group.
        most: How many prompts.
    """
    starts = np.cumsum([0, *(len(group.completions) for group in groups)])
    return [
        {
            "id": group.prompt.id,
            "task_type": group.prompt.task_type,
            "inputs": list(group.prompt.inputs),
            "reference": group.prompt.reference,
            "completion": group.completions[0].text,
            "reward": float(rewards[start]),
        }
        for group, start in zip(groups[:most], starts, strict=False)
    ]


def _tracker_line(line: dict[str, Any]) -> dict[str, Any]:
    return {key if key == "step" else f"eval/{key}": value for key, value in line.items()}


def fact_recall(groups: Sequence[Group]) -> dict[str, float]:
    """In the closed world: the share of the references' facts that the completions state.

    Groups whose entities are not in the closed world are left out.

    Returns:
        `facts/recall`, and `facts/other`, the other facts stated per completion. Empty if no prompt is about
        the closed world.
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
