"""Checkpoints of a GRPO run: the driver's files beside the learner's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.grpo import checkpoint
from lm_mixup.grpo.checkpoint import Progress, read_groups, write_groups
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.models.engine import Completion


class FakeLearner:
    """Stands in for the learner's own files only: the bookkeeping around them is what is tested."""

    def __init__(self) -> None:
        self.loaded: str | None = None

    def save(self, out: StageDir, tag: str) -> None:
        out.run.write_bytes(f"{out.name}/checkpoints/{tag}/weights", b"")

    def load(self, out: StageDir, tag: str) -> None:
        self.loaded = tag


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> StageDir:
    run = RunDir(tmp_path / "run" if request.param == "local" else f"memory://{tmp_path.name}/run")
    return run.stage("grpo")


def test_a_checkpoint_without_its_last_file_is_not_one(out: StageDir):
    learner = FakeLearner()
    for step in (1, 2, 3):
        checkpoint.save(out, learner, Progress(step, 10 * step), limit=2)
    learner.save(out, "step-000009")
    assert checkpoint.load_latest(out, learner) == Progress(3, 30)
    assert learner.loaded == "step-000003"
    assert out.run.listing("grpo/checkpoints") == ["step-000002", "step-000003", "step-000009"]


def test_without_a_checkpoint_the_run_starts_at_the_start(out: StageDir):
    assert checkpoint.load_latest(out, FakeLearner()) == Progress(0, 0)


tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    text = st.text(st.characters(exclude_categories=["Cs"]))
    prompt = Prompt(draw(text), "mcq", draw(tokens), draw(text), tuple(draw(st.lists(text, max_size=2))))
    completions = []
    for ids in draw(st.lists(tokens, min_size=1, max_size=3)):
        logps = draw(st.lists(st.floats(width=32, allow_nan=False), min_size=len(ids), max_size=len(ids)))
        array = np.array(logps, dtype=np.float32)
        completions.append(Completion(ids, array, draw(text), draw(st.booleans())))
    return Group(prompt, completions, draw(st.integers(0, 1000)))


def plain(buffered: list[list[Group]]) -> Any:
    return [
        [
            (
                g.prompt,
                g.weight_version,
                [(c.token_ids, c.logprobs.tobytes(), c.text, c.finished) for c in g.completions],
            )
            for g in step
        ]
        for step in buffered
    ]


@settings(max_examples=30)
@given(st.lists(st.lists(groups(), min_size=1, max_size=2), min_size=1, max_size=3))
def test_buffered_rollouts_are_read_as_they_were_written(tmp_path_factory, buffered: list[list[Group]]):
    path = tmp_path_factory.mktemp("buffered") / "buffered.parquet"
    write_groups(path, buffered)
    again = read_groups(path)
    assert plain(again) == plain(buffered)
    assert all(c.logprobs.dtype == np.float32 for step in again for g in step for c in g.completions)
