"""A run that is cut short anywhere, by its learner's death or its own, ends as one that was not.

Rollouts, rewards and learner are arithmetic here: every draw depends on the weights and every update on the
draw, so a step that were left out, done twice or drawn from other weights would change all that follow."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError

from lm_mixup.config import GrpoConfig, RewardsConfig, TrackingConfig
from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.distributed.ray_wait import Hang
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.loop import Actors, train
from lm_mixup.grpo.metrics import UPDATE_KEYS
from lm_mixup.grpo.stage import _run
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.models.engine import Completion
from lm_mixup.rewards.workers import RewardBatch, RewardScores
from lm_mixup.train.tracking import read_metrics

CONFIG = GrpoConfig(
    max_steps=6,
    num_generations=2,
    prompts_per_step=2,
    save_steps=2,
    eval_steps=3,
    save_limit=1,
    max_failures=2,
)


ASYNC = {"mode": "async", "max_staleness": 2}


PROMPTS = [Prompt(str(i), "qa", [i, 7], "Q: a\nA: b", ("iron",)) for i in range(5)]


class Killed(BaseException):
    """Stands for the end of the driver's own process."""


class Learner:
    """One number is its weights. It dies, or its driver does, in the calls that are named."""

    def __init__(self, deaths: Sequence[int] = (), driver_dies: int | None = None) -> None:
        self.weight, self.dead, self.calls, self.restarts = 1, False, 0, 0
        self._deaths, self._driver_dies = deaths, driver_dies

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self._driver_dies:
            raise Killed
        self.dead = self.dead or self.calls in self._deaths
        if self.dead:
            raise RayActorError

    def update(self, episodes: Sequence[Any], rate: float) -> dict[str, float]:
        self._call()
        seen = [(e.prompt_ids, e.completion_ids, e.advantage, e.engine_logps.tolist()) for e in episodes]
        self.weight = zlib.crc32(repr((self.weight, seen, rate)).encode())
        return dict.fromkeys(UPDATE_KEYS, float(self.weight))

    def kl(self, episodes: Sequence[Any]) -> np.ndarray:
        self._call()
        return np.array([zlib.crc32(repr((self.weight, e.completion_ids)).encode()) % 7 for e in episodes])

    def logps(self, token_ids: Sequence[int]) -> np.ndarray:
        self._call()
        return np.zeros(1)

    def weights(self) -> int:
        self._call()
        return self.weight

    def save(self, out: StageDir, tag: str) -> None:
        folder = out.local / "checkpoints" / tag
        folder.mkdir(parents=True, exist_ok=True)
        self._call()
        (folder / "weight").write_text(str(self.weight))

    def load(self, out: StageDir, tag: str) -> None:
        self._call()
        self.weight = int((out.local / "checkpoints" / tag / "weight").read_text())

    def save_model(self, out: StageDir, name: str) -> None:
        self._call()
        folder = out.local / name
        folder.mkdir(exist_ok=True)
        (folder / "weight").write_text(str(self.weight))

    def dead_ranks(self) -> list[int]:
        return [0] if self.dead else []

    def restart(self) -> None:
        self.weight, self.dead = 1, False
        self.restarts += 1
        self._call()


class Rollout:
    """Draws at once what an engine would draw from the weights it holds then."""

    def __init__(self) -> None:
        self.version, self.weight, self.waiting = -1, 0, 0

    def start(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, validation: bool = False
    ) -> list[Group]:
        groups = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = np.random.default_rng([self.weight, seed])
            drawn = [
                Completion(ids, rng.normal(size=3).astype(np.float32), str(ids), True)
                for ids in rng.integers(0, 9, (1 if validation else 2, 3)).tolist()
            ]
            groups.append(Group(prompt, drawn, self.version))
        return groups

    def finish(self, pending: list[Group]) -> list[Group]:
        return pending

    generate = start

    def publish(self, version: int, weights: int, probe: list[int], expected: np.ndarray) -> float:
        self.version, self.weight = version, weights
        return 0.0

    def sleep(self) -> None:
        pass


def score(batch: RewardBatch) -> RewardScores:
    total = np.array([zlib.crc32(text.encode()) % 97 / 97 for text in batch.completions])
    return RewardScores(total, dict.fromkeys(("quality", "alignment", "format", "faithfulness"), total))


def run(folder: Path, learner: Learner, **changes: Any) -> dict[str, Any]:
    """Runs the stage's loop in a folder and returns all it wrote that a clock does not decide."""
    rewards: Any = SimpleNamespace(score=score)
    rollout: Any = Rollout()
    fake: Any = learner
    actors = Actors(rollout, rewards, fake, RewardsConfig(), [1, 2])
    folder.mkdir(exist_ok=True)
    tracking = TrackingConfig(report_to=[])
    out = RunDir(folder.parent).stage(folder.name)
    _run(actors, PROMPTS[:4], PROMPTS[4:], out, CONFIG.model_copy(update=changes), tracking, seed=0)
    timed = ("timing_s", "tokens_per_second")
    lines = read_metrics(folder / "metrics.jsonl")
    return {
        "metrics": [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines],
        "validation": read_metrics(folder / "validation.jsonl"),
        "model": (folder / "model" / "weight").read_text(),
        "best": (folder / "best" / "weight").read_text(),
    }


@pytest.mark.parametrize(
    "changes", [{}, ASYNC, {"kl_in": "reward", "beta": 0.1}], ids=["synchronous", "async", "kl in rewards"]
)
def test_a_learner_that_dies_in_any_call_changes_nothing(tmp_path: Path, changes: dict):
    calm = Learner()
    undisturbed = run(tmp_path / "calm", calm, **changes)
    assert [line["step"] for line in undisturbed["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in undisturbed["validation"]] == [0, 3, 6]
    assert all((line["kl"] == line["loss"]) == ("kl_in" not in changes) for line in undisturbed["metrics"])
    for call in range(1, calm.calls + 1):
        learner = Learner(deaths=[call])
        assert run(tmp_path / f"dies-{call}", learner, **changes) == undisturbed, call
        assert learner.restarts == 1


def test_refills_do_not_wait_behind_rollouts_of_coming_steps():
    sent: list[tuple[str, int]] = []

    class Noting(Rollout):
        def start(self, prompts: Any, seeds: Any, **options: Any) -> list[Group]:
            sent.append(("start", len(prompts)))
            return super().start(prompts, seeds, **options)

        def generate(self, prompts: Any, seeds: Any, **options: Any) -> list[Group]:
            sent.append(("refill", len(prompts)))
            return super().start(prompts, seeds, **options)

    def first_group_zero_std(batch: RewardBatch) -> RewardScores:
        total = np.array([0.0 if group == 0 else float(i) for i, group in enumerate(batch.groups)])
        return RewardScores(total, dict.fromkeys(("quality", "alignment", "format", "faithfulness"), total))

    rewards: Any = SimpleNamespace(score=first_group_zero_std)
    rollout: Any = Noting()
    learner: Any = Learner()
    actors = Actors(rollout, rewards, learner, RewardsConfig(), [1, 2])
    once = CONFIG.model_copy(update=ASYNC | {"max_staleness": 1, "max_steps": 2, "max_refills": 1})
    train(actors, PROMPTS, once, 0, Progress(), lambda step: None, lambda progress, line: None)
    assert sent == [("start", 2), ("refill", 1), ("start", 2), ("refill", 1)]
    sent.clear()
    never = once.model_copy(update={"max_refills": 0})  # then nothing waits: scoring overlaps as well
    train(actors, PROMPTS, never, 0, Progress(), lambda step: None, lambda progress, line: None)
    assert sent == [("start", 2), ("start", 2)]


def test_it_may_die_again_while_it_recovers(tmp_path: Path):
    undisturbed = run(tmp_path / "calm", Learner())
    learner = Learner(deaths=[12, 13])
    assert run(tmp_path / "twice", learner) == undisturbed
    assert learner.restarts == 2


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_run_that_was_killed_anywhere_ends_as_one_that_was_not(tmp_path: Path, staleness: int):
    changes = {"mode": "async", "max_staleness": staleness} if staleness else {}
    calm = Learner()
    undisturbed = run(tmp_path / "calm", calm, **changes)
    stale = [line["staleness/max"] for line in undisturbed["metrics"]]
    assert stale == [min(step, staleness) for step in range(6)]
    for call in range(1, calm.calls + 1):
        folder = tmp_path / f"killed-{call}"
        with pytest.raises(Killed):
            run(folder, Learner(driver_dies=call), **changes)
        assert run(folder, Learner(), **changes) == undisturbed, call


def test_a_run_goes_back_before_it_goes_on(tmp_path: Path):
    """Between recovery and the next line, the logs end at the checkpoint."""
    seen: dict[str, list[int]] = {}

    class Watched(Learner):
        def logps(self, token_ids: Sequence[int]) -> np.ndarray:
            if self.restarts and not seen:
                seen.update({n: steps(tmp_path / f"{n}.jsonl") for n in ("metrics", "validation")})
            return super().logps(token_ids)

    def steps(path: Path) -> list[int]:
        return [line["step"] for line in read_metrics(path)]

    calls = Learner()
    run(tmp_path / "calm", calls)
    at_the_end = calls.calls  # the model is written last: six lines and three validations are there
    run(tmp_path, Watched(deaths=[at_the_end - 1]))
    assert seen == {"metrics": [1, 2, 3, 4], "validation": [0, 3]}


def test_a_learner_that_keeps_dying_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    learner = Learner(deaths=range(12, 99))
    with pytest.raises(RuntimeError, match=r"learner rank 0 died, after 2 recoveries.*max_failures=2"):
        run(tmp_path, learner)
    assert learner.restarts == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "died" in line]
    assert len(said) == 2
    assert "from the checkpoint of step 2 (failure 1 of 2 tolerated)" in said[0]


def test_a_learner_that_dies_before_any_checkpoint_starts_again_from_the_sft_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    learner = Learner(deaths=[1])
    run(tmp_path, learner)
    assert learner.restarts == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "died" in line]
    expected = "from the SFT model: there is no checkpoint yet (failure 1 of 2 tolerated)"
    assert expected in " ".join(said.split())


def test_a_learner_that_hangs_is_restarted_as_one_that_died(tmp_path: Path, capsys):
    class Stuck(Learner):
        def update(self, episodes: Sequence[Any], rate: float) -> dict[str, float]:
            if self.restarts == 0:
                raise Hang("waited 5 s for the learner to update (grpo.timeout_s); it did not answer")
            return super().update(episodes, rate)

    undisturbed = run(tmp_path / "calm", Learner())
    learner = Stuck()
    assert run(tmp_path / "stuck", learner) == undisturbed
    assert learner.restarts == 1
    assert "the learner hangs: waited 5 s for the learner to update" in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_error_of_a_living_learner_is_not_tried_again(tmp_path: Path):
    class Faulty(Learner):
        def update(self, episodes: Sequence[Any], rate: float) -> dict[str, float]:
            raise RayTaskError("update", "traceback", ValueError("a fault"))

    learner = Faulty()
    with pytest.raises(RayTaskError):
        run(tmp_path, learner)
    assert learner.restarts == 0


def test_a_checkpoint_whose_rollouts_are_missing_is_not_used_without_them(tmp_path: Path):
    with pytest.raises(Killed):
        run(tmp_path, Learner(driver_dies=20), **ASYNC)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text())["buffered"] == 2
    (checkpoint / "buffered.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="buffered"):
        run(tmp_path, Learner(), **ASYNC)
