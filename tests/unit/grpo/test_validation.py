"""Validation: the lines it writes, the facts it counts, and the model it keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.demo.fact_check import recall
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.grpo.validation import Validation, fact_recall
from lm_mixup.models.engine import Completion
from lm_mixup.rewards.workers import RewardScores
from lm_mixup.train.tracking import read_metrics

REFERENCE = (
    "Q: What are the symbol and group of the element iron?\n"
    "A: The element iron has the symbol Fe and belongs to group 8."
)


def answered(text: str) -> str:
    return f"<think>Facts.</think>\n<answer>{text}</answer>"


def group(text: str, entities: tuple[str, ...] = ("iron",)) -> Group:
    prompt = Prompt("1", "qa", [1, 2], REFERENCE, entities)
    return Group(prompt, [Completion([3], np.zeros(1, dtype=np.float32), text, True)], 0)


HALF = answered("Q: What is iron?\nA: The element iron has the symbol Fe and belongs to group 9.")


def test_recall_by_hand():
    whole = recall("qa", answered(REFERENCE), REFERENCE, ("iron",))
    assert (whole.parsed, whole.wanted, whole.found, whole.other) == (True, 2, 2, 0)
    half = recall("qa", HALF, REFERENCE, ("iron",))
    assert (half.wanted, half.found, half.other) == (2, 1, 1)
    broken = recall("qa", REFERENCE, REFERENCE, ("iron",))  # the facts are there, the tags are not
    assert (broken.parsed, broken.wanted, broken.found) == (False, 2, 0)


def test_facts_are_counted_over_all_completions_of_the_closed_world():
    groups = [group(answered(REFERENCE)), group(HALF), group(HALF, entities=("a book",)), group(HALF, ())]
    assert fact_recall(groups) == {"facts/recall": 3 / 4, "facts/other": 1 / 2}
    assert fact_recall(groups[2:]) == {}


class Actors(SimpleNamespace):
    """A run whose validations earn the rewards given, in turn; `best` says of which step a model was kept."""

    def __init__(self, rewards: list[float]) -> None:
        left = iter(rewards)

        def score(batch):
            total = np.full(len(batch.completions), next(left))
            return RewardScores(
                total, dict.fromkeys(("quality", "alignment", "format", "faithfulness"), total)
            )

        def save_model(out: StageDir, name: str) -> None:
            out.run.write_bytes(f"{out.name}/{name}/step", str(self.step).encode())

        super().__init__(
            step=0,
            rollout=SimpleNamespace(
                generate=lambda prompts, seeds, validation: [group(HALF) for _ in prompts]
            ),
            rewards=SimpleNamespace(score=score),
            learner=SimpleNamespace(save_model=save_model),
        )


def validate(folder: Path, rewards: list[float], resume_step: int = 0) -> Validation:
    actors = Actors(rewards)
    validation = Validation(RunDir(folder).stage("grpo"), actors, [group(HALF).prompt], resume_step)
    validation.run_first(resume_step)
    for step in range(resume_step + 1, resume_step + 1 + len(rewards) - (resume_step == 0)):
        actors.step = step
        validation.run(step)
    return validation


@pytest.mark.parametrize(("rewards", "best"), [([0.1, 0.3, 0.2], "1"), ([0.5, 0.3, 0.2], "0")])
def test_the_best_model_is_kept_and_may_be_the_result(tmp_path: Path, rewards: list[float], best: str):
    validation = validate(tmp_path, rewards)
    lines = read_metrics(tmp_path / "grpo" / "validation.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["reward"] for line in lines] == rewards
    assert lines[0]["facts/recall"] == 0.5
    model = tmp_path / "grpo" / "model"
    model.mkdir()
    (model / "step").write_text("2")
    validation.use_best()
    assert (model / "step").read_text() == best


def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path: Path):
    validate(tmp_path, [0.1, 0.3, 0.9])
    validate(tmp_path, [0.2], resume_step=1)
    lines = read_metrics(tmp_path / "grpo" / "validation.jsonl")
    assert [(line["step"], line["reward"]) for line in lines] == [(0, 0.1), (1, 0.3), (2, 0.2)]
    written = read_metrics(tmp_path / "grpo" / "completions.jsonl")
    rewards = {line["step"]: line["samples"][0]["reward"] for line in written}
    assert rewards == {0: 0.1, 1: 0.3, 2: 0.2}
    assert written[0]["samples"][0]["completion"] == group(HALF).completions[0].text
