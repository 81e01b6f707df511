"""Custom rewards: functions by import path, real HTTP endpoints, and what each may not do."""

from __future__ import annotations

import itertools
import math
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_server import lengths, serving
from typer.testing import CliRunner

from lm_mixup.cli import app
from lm_mixup.config import Config, CustomReward, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.rewards import custom
from lm_mixup.rewards.batch import RewardBatch, whole_groups
from lm_mixup.rewards.combine import combine, component_names, weight_matrix
from lm_mixup.rewards.custom import CustomRewards, check_custom, rewards_of, source_digest

BATCH = RewardBatch(
    task_types=["qa", "mcq", "para"],
    completions=["a", "bb", "ccc"],
    references=["r", "s", "t"],
    groups=[0, 0, 1],
    inputs=[["x", "y"], ["x", "y"], ["z\ud800", "w"]],  # half a surrogate pair, as a pool may hold it
    finished=[True, True, False],
)
MODULE = """
import asyncio, math
calls = []
def lengths(batch): return [len(text) for text in batch.completions]
async def slowly(batch):
    await asyncio.sleep(0)
    return lengths(batch)
def with_a_loop_of_its_own(batch): return asyncio.run(slowly(batch))
lock = asyncio.Lock()
async def with_a_lock(batch):
    async with lock:
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0)
    await waiting
    lock.release()
    return lengths(batch)
class Kept:
    def score(self, batch): return tuple(len(text) / 2 for text in batch.inputs)
kept = Kept()
def second_time(batch):
    calls.append(1)
    if len(calls) < 2: raise KeyError("nothing yet")
    return lengths(batch)
def broken(batch): return batch.no_such_field
def too_few(batch): return [1.0]
def holed(batch): return [1.0, None, 2.0]
async def sleeps(batch): await asyncio.sleep(60)
async def own_timeout(batch): raise TimeoutError("the database")
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, which is on no path."""
    name = f"own_rewards_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(custom, "_MOST_WAIT_S", 0.01)
    return name


def score(batch: RewardBatch = BATCH, **settings: Any) -> list[float]:
    rewards = CustomRewards({"mine": CustomReward.model_validate({"weight": 1, "max_retries": 1} | settings)})
    try:
        first = rewards.score(batch)["mine"]
        np.testing.assert_array_equal(rewards.score(batch)["mine"], first)
        return first.tolist()
    finally:
        rewards.close()


@pytest.mark.parametrize(
    "function", ["lengths", "slowly", "with_a_loop_of_its_own", "with_a_lock", "second_time"]
)
def test_a_function_scores_every_completion(module: str, function: str):
    assert score(path=f"{module}:{function}") == [1.0, 2.0, 3.0]


def test_a_method_may_be_named_and_sees_the_inputs(module: str):
    assert score(path=f"{module}:kept.score") == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", "returned 1 rewards for 3 completions; tried 2 times"),
        ("holed", "returned None for completion 1, which is not a number; tried 2 times"),
        ("broken", r"raised AttributeError: .*no_such_field.*\.py, line \d+\); tried 2 times"),
        ("sleeps", "did not answer within 0.05 s; tried 2 times"),
        ("own_timeout", "raised TimeoutError: the database"),
    ],
)
def test_a_function_that_fails_ends_in_one_line(module: str, function: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        score(path=f"{module}:{function}", timeout_s=0.05)
    assert str(caught.value).startswith(f"rewards.custom.mine: {module}:{function} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "a NoneType"),
        ("123", "a str"),
        ({"a": 1.0}, "a dict"),
        (1.0, "a float"),
        ([1, 2, 3, 4], "4 rewards for 3"),
        ([1, "2", 3], "'2' for completion 1"),
        ([1, True, 3], "True for completion 1"),
        ([1, [2], 3], "for completion 1"),
        ([1, 2, math.nan], "nan for completion 2, which is not finite"),
        ([1, 2, -math.inf], "not finite"),
        ([1, 2, 10**400], "not finite"),
        (np.array([1, np.nan, 3]), "not finite"),
        (np.array([[1, 2, 3]]), "1 rewards for 3"),
    ],
)
def test_what_is_not_one_finite_number_a_completion_is_refused(values: Any, message: str):
    with pytest.raises(ValueError, match=message):
        rewards_of(values, 3)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)))
def test_numbers_come_through_unchanged(values: list[float]):
    assert rewards_of(values, len(values)).tolist() == values
    assert rewards_of(np.array(values, dtype=np.float64), len(values)).tolist() == values
    assert rewards_of(iter(values), len(values)).dtype == np.float64


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "no_such_module cannot be imported .*ModuleNotFoundError"),
        ("{module}:absent", "has no absent"),
        ("{module}:number", "is a int; name a function"),
        ("faulty:f", "faulty cannot be imported .*ZeroDivisionError"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_before_anything_starts(module: str, tmp_path, path, message):
    (tmp_path / "faulty.py").write_text("1 / 0")
    path = path.format(module=module)
    with pytest.raises(InputError, match=message):
        check_custom({"mine": CustomReward(path=path, weight=1)})
    settings = ["--set", f"rewards.custom.mine.path={path}", "--set", "rewards.custom.mine.weight=1"]
    (tmp_path / "c.yaml").write_text("seed: 0")
    result = CliRunner().invoke(app, ["train", "c.yaml", "--run-dir", str(tmp_path / "run"), *settings])
    assert result.exit_code == 2
    assert f"rewards.custom.mine.path {path}" in result.output + (result.stderr or "")
    assert not (tmp_path / "run").exists()


def test_the_text_of_a_function_is_part_of_what_a_run_is(module: str, tmp_path):
    reward = CustomReward(path=f"{module}:lengths", weight=1)
    before = source_digest("mine", reward)
    (tmp_path / f"{module}.py").write_text(MODULE + "\n")
    assert source_digest("mine", reward) != before
    (tmp_path / f"{module}_package.py").write_text(f"from {module} import kept, lengths\n")
    for taken in ("lengths", "kept.score"):
        elsewhere = CustomReward(path=f"{module}_package:{taken}", weight=1)
        before = source_digest("mine", elsewhere)
        with (tmp_path / f"{module}.py").open("a") as file:
            file.write("# another text\n")
        assert source_digest("mine", elsewhere) != before
    assert source_digest("mine", CustomReward(path="builtins:len", weight=1)) is None
    assert source_digest("mine", CustomReward(url="http://x", weight=1)) is None


# ---- endpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(custom, "_MOST_WAIT_S", 0.2)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_an_endpoint_gets_the_whole_batch_and_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REWARD_KEY", "s3cret")
    with serving(lengths) as endpoint:
        assert score(url=endpoint.url, api_key_env="REWARD_KEY") == [1.0, 2.0, 3.0]
    first = endpoint.seen[0]
    assert first.headers["Authorization"] == "Bearer s3cret"
    assert first.body == {
        "reward": "mine",
        "task_types": ["qa", "mcq", "para"],
        "completions": ["a", "bb", "ccc"],
        "references": ["r", "s", "t"],
        "groups": [0, 0, 1],
        "inputs": [["x", "y"], ["x", "y"], ["z\ud800", "w"]],
        "finished": [True, True, False],
    }


@pytest.mark.parametrize(
    "failure",
    [
        (503, {}, {}),
        (429, {}, {"retry-after": "0.15"}),
        b"not json",
        {"reward": [1, 2, 3]},
        {"rewards": [1, 2]},
        {"rewards": [1, 2, None]},
        b'{"rewards": [1, 2, NaN]}',
        {"rewards": "123"},
        [1, 2, 3],
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again_and_never_filled_in(failure: Any):
    with serving(failure, lengths) as endpoint:
        assert score(url=endpoint.url) == [1.0, 2.0, 3.0]
        assert len(endpoint.seen) == 3
        if isinstance(failure, tuple) and failure[2]:
            assert endpoint.seen[1].at - endpoint.seen[0].at >= 0.15
    with serving(failure) as endpoint:
        with pytest.raises(InputError, match=r"^rewards\.custom\.mine: .*; tried 2 times$") as caught:
            score(url=endpoint.url)
        assert len(endpoint.seen) == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_a_refusal_stops_at_once_and_shows_no_secret(monkeypatch: pytest.MonkeyPatch, status: int):
    monkeypatch.setenv("REWARD_KEY", "s3cret")
    with serving((status, b"no, s3cret\nand pa55", {"location": "/"})) as endpoint:
        url = endpoint.url.replace("http://", "http://me:pa55@")
        with pytest.raises(InputError, match=f"refuses the batch .HTTP {status}") as caught:
            score(url=url, api_key_env="REWARD_KEY")
        assert len(endpoint.seen) == 1
    assert "s3cret" not in str(caught.value) and "pa55" not in str(caught.value)


def test_an_endpoint_that_is_away_or_slow_is_said_so(monkeypatch: pytest.MonkeyPatch):
    with serving(lengths) as endpoint:
        pass
    with pytest.raises(InputError, match=r"does not respond \(ConnectError: .*\); tried 2 times"):
        score(url=endpoint.url)

    def late(body: dict) -> dict:
        time.sleep(0.5)
        return lengths(body)

    message = r"did not answer within 0\.1 s; tried once"
    with serving(late) as endpoint, pytest.raises(InputError, match=message):
        score(url=endpoint.url, timeout_s=0.1, max_retries=0)


def test_an_empty_key_is_noticed_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REWARD_KEY", raising=False)
    reward = CustomReward(url="http://x", weight=1, api_key_env="REWARD_KEY")
    with pytest.raises(InputError, match=r"rewards\.custom\.mine\.api_key_env: \$REWARD_KEY is empty"):
        check_custom({"mine": reward})


# ---- config and composition --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"custom": {"a": {"weight": 1}}}, "either path"),
        ({"custom": {"a": {"weight": 1, "path": "m:f", "url": "http://x"}}}, "either path"),
        ({"custom": {"a": {"path": "m:f"}}}, "weight"),
        ({"custom": {"a": {"weight": 1, "path": "m.f"}}}, "path"),
        ({"custom": {"a": {"weight": 1, "url": "file:///etc/passwd"}}}, "url"),
        ({"custom": {"a": {"weight": math.inf, "path": "m:f"}}}, "weight"),
        ({"custom": {"a": {"weight": 1, "path": "m:f", "task_weights": {"essay": 1}}}}, "task_weights"),
        ({"custom": {"a": {"weight": 1, "path": "m:f", "task_weights": {"qa": math.nan}}}}, "finite"),
        ({"custom": {"a": {"weight": 1, "path": "m:f", "api_key_env": "K"}}}, "belongs to a url"),
        ({"custom": {"format": {"weight": 1, "path": "m:f"}}}, "built-in"),
        ({"custom": {"a/b": {"weight": 1, "path": "m:f"}}}, "no name"),
        ({"custom": {"a": {"weight": 1, "path": "m:f", "timeout_s": 301, "max_retries": 1}}}, "timeout_s"),
    ],
)
def test_bad_settings_are_refused(rewards: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"rewards": rewards})


def with_custom(**settings: Any) -> RewardsConfig:
    mine = {"path": "m:f", "weight": 2.0, "task_weights": {"mcq": 0.0}}
    return RewardsConfig.model_validate({"custom": {"mine": mine}} | settings)


def test_components_and_weights_follow_the_config():
    config = with_custom()
    assert component_names(config) == ("quality", "alignment", "format", "faithfulness", "mine")
    np.testing.assert_array_equal(
        weight_matrix(["qa", "mcq"], config).T, [[0.25, 0.15, 0.1, 0.5, 2.0], [0.25, 0.15, 0.1, 0.5, 0.0]]
    )
    assert weight_matrix([], config).shape == (5, 0)
    assert component_names(RewardsConfig()) == ("quality", "alignment", "format", "faithfulness")


PARTS = {
    "quality": np.array([1.0, 0.0]),
    "alignment": np.zeros(2),
    "format": np.ones(2),
    "faithfulness": np.zeros(2),
    "mine": np.array([3.0, 5.0]),
}


def test_a_custom_reward_joins_the_sum_with_its_weight():
    np.testing.assert_allclose(combine(PARTS, ["qa", "mcq"], [0, 0], with_custom()), [0.25 + 0.1 + 6.0, 0.1])


@pytest.mark.parametrize("composition", ["weighted_sum", "normalize_then_sum"])
def test_a_weight_of_zero_is_zero(composition: str):
    without = {name: values for name, values in PARTS.items() if name != "mine"}
    silent = with_custom(custom={"mine": {"path": "m:f", "weight": 0.0}}, composition=composition)
    expected = combine(without, ["qa"] * 2, [0, 0], RewardsConfig(composition=composition))
    np.testing.assert_array_equal(combine(PARTS, ["qa"] * 2, [0, 0], silent), expected)


def test_normalize_then_sum_takes_the_range_out_of_a_custom_reward():
    config = with_custom(composition="normalize_then_sum")
    one = combine(PARTS, ["qa"] * 2, [0, 0], config)
    tenfold = combine(PARTS | {"mine": 10 * PARTS["mine"]}, ["qa"] * 2, [0, 0], config)
    np.testing.assert_allclose(one, tenfold, atol=1e-3)
    assert one[1] > 0 > one[0]  # weight 2 of mine against 0.25 of quality


def test_an_endpoint_that_moves_is_another_reward_but_patience_is_not():
    base = with_custom().identity()
    assert base != RewardsConfig().identity()
    patient = {"path": "m:f", "weight": 2.0, "task_weights": {"mcq": 0.0}, "timeout_s": 9, "max_retries": 5}
    assert with_custom(custom={"mine": patient}).identity() == base
    assert with_custom(custom={"mine": patient | {"path": "m:g"}}).identity() != base


@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 9))
def test_chunks_hold_whole_groups_in_order(sizes: list[int], size: int):
    groups = [group for group, count in enumerate(sizes) for _ in range(count)]
    chunks = [groups[cut] for cut in whole_groups(groups, size)]
    assert [group for chunk in chunks for group in chunk] == groups
    assert all(size <= len(chunk) < size + 5 for chunk in chunks[:-1])
    for before, after in itertools.pairwise(chunks):
        assert before[-1] != after[0]


def test_a_batch_of_unequal_lists_is_refused():
    with pytest.raises(ValueError, match="must be equal"):
        RewardBatch(["qa"], ["a"], ["b"], [0], [["x"], ["y"]])
    assert RewardBatch(["qa"] * 2, ["a", "b"], ["b", "c"], [0, 0]).rows(slice(1, 2)).inputs == ()
    assert BATCH.rows(slice(1, 3)).inputs == [["x", "y"], ["z\ud800", "w"]]
