"""GRPO on the real actors: vLLM engines, DeepSpeed ranks and Ray actors, on a model of random weights.

One rollout pool serves the whole module. The reward here is a plain function of the completion: what is
tested is the loop, what it learns, how it resumes, and what it makes of an actor that dies.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from child_processes import children_like
from grpo_parts import CONFIG, SEED, make_episodes, make_model
from peft import PeftModel
from transformers import PreTrainedModel

from lm_mixup.config import GrpoConfig, LoraConfig, ModelConfig, RewardsConfig, TrackingConfig
from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.grpo import checkpoint
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.learner.collate import collate
from lm_mixup.grpo.learner.forward import completion_logps
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.loop import Actors, publish_weights, train
from lm_mixup.grpo.metrics import UPDATE_KEYS
from lm_mixup.grpo.placement import reserve
from lm_mixup.grpo.rollout.pool import RolloutPool
from lm_mixup.grpo.stage import _run
from lm_mixup.grpo.types import Episode, Group, Prompt
from lm_mixup.grpo.weights.object_store import to_host
from lm_mixup.grpo.weights.transport import StoredWeights
from lm_mixup.grpo.weights.verify import WeightSyncError
from lm_mixup.models.policy import encode_prompt, load_policy, load_tokenizer
from lm_mixup.rewards.workers import RewardBatch, RewardScores
from lm_mixup.train.tracking import read_metrics


class CountsLetters:
    """Rewards completions by their share of lower-case vowels: a signal a few updates can follow."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def score(self, batch: RewardBatch) -> RewardScores:
        share = [sum(map(text.count, "aeiou")) / max(1, len(text)) for text in batch.completions]
        total = self.sign * np.array(share)
        others = dict.fromkeys(("alignment", "format", "faithfulness"), 0 * total)
        return RewardScores(total, {"quality": total} | others)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("grpo") / "nano")


@pytest.fixture(scope="module")
def prompts(model: str) -> list[Prompt]:
    tokenizer = load_tokenizer(model, ModelConfig())
    texts = [[f"What is element {i}?", f"It melts at {i} K."] for i in range(12)]
    encoded = [encode_prompt(tokenizer, "Merge.", inputs) for inputs in texts]
    return [Prompt(str(i), "qa", ids, "Q: a\nA: b") for i, ids in enumerate(encoded)]


@pytest.fixture(scope="module")
def pool(ray_session, model: str):
    placement = reserve(CONFIG, RewardsConfig())
    pool = RolloutPool(model, ModelConfig(), CONFIG, placement)
    yield pool, placement
    pool.shutdown()
    placement.release()


def run(
    actors: Actors,
    prompts: list[Prompt],
    progress: Progress,
    out: StageDir | None = None,
    config: GrpoConfig = CONFIG,
) -> list[dict]:
    lines: list[dict] = []

    def on_step(done: Progress, metrics: dict) -> None:
        lines.append(metrics)
        if out is not None and done.step == 2:
            checkpoint.save(out, actors.learner, done, limit=1)

    train(actors, prompts, config, SEED, progress, lambda step: None, on_step)
    return lines


def without_timings(lines: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in line.items() if not k.startswith(("timing_s", "tokens_per_second"))}
        for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(pool, model: str, prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory):
    rollout, placement = pool
    out = RunDir(tmp_path_factory.mktemp("run")).stage("grpo")
    learner = Learner(model, ModelConfig(), CONFIG, SEED, placement)
    actors = Actors(rollout, CountsLetters(), learner, RewardsConfig(), prompts[0].token_ids)
    lines = run(actors, prompts, Progress(), out)
    learner.save_model(out, "model")
    learner.shutdown()
    return lines, out


def test_every_metric_of_the_contract_is_there(undisturbed):
    expected = """step reward reward_std rewards/quality/mean rewards/alignment/mean rewards/format/mean
        frac_reward_zero_std completions/mean_length completions/clipped_ratio kl entropy
        clip_ratio/region_mean loss grad_norm lr sampling/logp_difference/mean sampling/logp_difference/max
        sampling/importance_sampling_ratio/mean weight_version staleness/mean timing_s/rollout timing_s/reward
        timing_s/advantage timing_s/update timing_s/sync timing_s/step tokens_per_second/rollout
        tokens_per_second/update num_tokens"""
    for line in undisturbed[0]:
        assert set(expected.split()) <= line.keys()


def test_engine_and_learner_agree(undisturbed):
    lines, _ = undisturbed
    for step, line in enumerate(lines, start=1):
        assert line["sync/probe_logp_difference"] <= 1e-4
        assert line["sampling/logp_difference/max"] <= 1e-4
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert line["weight_version"] == step
        assert line["staleness/mean"] == 0
        assert line["grad_norm"] > 0


def test_reward_rises(undisturbed):
    rewards = [line["reward"] for line in undisturbed[0]]
    assert rewards[-1] > rewards[0] + 0.05


def test_the_model_loads_and_has_moved(undisturbed, model: str):
    before = load_policy(model, ModelConfig()).state_dict()
    after = load_policy(undisturbed[1].location("model"), ModelConfig()).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_a_resumed_run_equals_an_undisturbed_one(undisturbed, pool, model: str, prompts: list[Prompt]):
    lines, out = undisturbed
    rollout, placement = pool
    learner = Learner(model, ModelConfig(), CONFIG, SEED, placement)
    progress = checkpoint.load_latest(out, learner)
    assert progress.step == 2
    actors = Actors(rollout, CountsLetters(), learner, RewardsConfig(), prompts[0].token_ids)
    resumed = run(actors, prompts, progress)
    learner.shutdown()
    assert without_timings(resumed) == without_timings(lines[2:])


def test_the_opposite_reward_moves_the_other_way(undisturbed, pool, model: str, prompts: list[Prompt]):
    rollout, placement = pool
    learner = Learner(model, ModelConfig(), CONFIG, SEED, placement)
    actors = Actors(rollout, CountsLetters(sign=-1.0), learner, RewardsConfig(), prompts[0].token_ids)
    lines = run(actors, prompts, Progress())
    learner.shutdown()
    assert -lines[-1]["reward"] < undisturbed[0][-1]["reward"] - 0.05


def test_rollouts_that_run_ahead_are_stale_by_no_more_than_allowed_and_still_learn(
    undisturbed, pool, model: str, prompts: list[Prompt], tmp_path: Path
):
    rollout, placement = pool
    out = RunDir(tmp_path).stage("grpo")
    config = CONFIG.model_copy(update={"mode": "async", "max_staleness": 2, "max_steps": 5})
    learner = Learner(model, ModelConfig(), config, SEED, placement)
    actors = Actors(rollout, CountsLetters(), learner, RewardsConfig(), prompts[0].token_ids)
    lines = run(actors, prompts, Progress(), out, config)
    learner.restart()
    progress = checkpoint.load_latest(out, learner)
    assert [[g.weight_version for g in groups] for groups in progress.buffered] == [[0] * 8, [1] * 8]
    resumed = run(actors, prompts, progress, config=config)
    learner.shutdown()
    assert without_timings(resumed) == without_timings(lines[2:])
    assert [line["staleness/max"] for line in lines] == [0, 1, 2, 2, 2]
    assert [line["weight_version"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["reward"] == undisturbed[0][0]["reward"]
    assert lines[2]["sampling/logp_difference/mean"] > 1e-3 > lines[0]["sampling/logp_difference/mean"]
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.03


def test_validation_has_a_temperature_of_its_own(undisturbed, pool, prompts: list[Prompt], monkeypatch):
    rollout, _ = pool

    def drawn(seed: int) -> list[list[list[int]]]:
        groups = rollout.generate(prompts, [seed] * len(prompts), validation=True)
        return [[completion.token_ids for completion in group.completions] for group in groups]

    greedy = drawn(0)
    assert [len(group) for group in greedy] == [1] * len(prompts)
    assert drawn(1) == greedy
    monkeypatch.setattr(rollout, "_config", CONFIG.model_copy(update={"eval_temperature": 1.0}))
    assert drawn(1) == drawn(1) != drawn(0)


def assert_logps_are_of(policy: PreTrainedModel, groups: list[Group], temperature: float) -> None:
    """The engine's log-probs are those that the learner computes at the same temperature."""
    for group in groups:
        drawn = [Episode(group.prompt.token_ids, c.token_ids, c.logprobs, 0.0, 0) for c in group.completions]
        micro = collate(drawn, pad_id=0)
        with torch.no_grad():
            logps, _ = completion_logps(policy, micro, temperature)
        difference = (logps - micro.engine_logp).abs() * micro.mask
        assert float(difference.max()) <= 1e-4


def test_stale_weights_are_noticed_and_an_actor_killed_mid_generation_changes_nothing(
    pool, model: str, prompts: list[Prompt], monkeypatch
):
    import ray

    rollout, placement = pool
    learner = Learner(model, ModelConfig(), CONFIG, SEED, placement)
    probe = prompts[0].token_ids
    with pytest.raises(WeightSyncError):
        rollout.publish(1, learner.weights(), probe, learner.logps(probe) + 0.01)
    actors = Actors(rollout, CountsLetters(), learner, RewardsConfig(), probe)
    publish_weights(actors, version=5)
    seeds = list(range(len(prompts)))
    cooler = CONFIG.model_copy(update={"temperature": 0.7})
    monkeypatch.setattr(rollout, "_config", cooler)
    calm = rollout.generate(prompts, seeds)
    assert_logps_are_of(load_policy(model, ModelConfig()), calm[:4], cooler.temperature)
    doomed = rollout.actors[0]
    threading.Timer(0.05, lambda: ray.kill(doomed)).start()
    disturbed = rollout.generate(prompts, seeds)
    learner.shutdown()
    assert rollout.actors[0] is not doomed
    assert [g.weight_version for g in disturbed] == [5] * len(prompts)
    tokens = [[c.token_ids for c in g.completions] for g in calm]
    assert [[c.token_ids for c in g.completions] for g in disturbed] == tokens


def kill_learners(folder: Path, at_lines: list[int], mapped: list[str], timeout_s: float = 300.0) -> None:
    """SIGKILL to the learner's process each time that the metrics have so many lines."""
    ends = time.monotonic() + timeout_s
    while at_lines and time.monotonic() < ends:
        time.sleep(0.02)
        if len(read_metrics(folder / "metrics.jsonl")) < at_lines[0]:
            continue
        for process in children_like("LearnerRank"):
            mapped += [mapping.path for mapping in process.memory_maps()]
            process.kill()
        del at_lines[0]


def test_a_learner_killed_before_its_first_checkpoint_changes_nothing(
    undisturbed, pool, model: str, prompts: list[Prompt], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rollout, placement = pool
    config = CONFIG.model_copy(update={"save_steps": 2})
    learner = Learner(model, ModelConfig(), config, SEED, placement)
    actors = Actors(rollout, CountsLetters(), learner, RewardsConfig(), prompts[0].token_ids)
    kills, mapped = [1], []  # one after a checkpoint is killed in `tests/chaos`
    thread = threading.Thread(target=kill_learners, args=(tmp_path, kills, mapped), daemon=True)
    thread.start()
    progress = _run(
        actors,
        prompts,
        [],
        RunDir(tmp_path.parent).stage(tmp_path.name),
        config,
        TrackingConfig(report_to=[]),
        SEED,
    )
    thread.join()
    learner.shutdown()
    assert not kills, "the run ended before its learner was killed"
    assert progress.step == 4
    assert without_timings(read_metrics(tmp_path / "metrics.jsonl")) == without_timings(undisturbed[0])
    said = [line.strip() for line in capsys.readouterr().err.splitlines() if "died" in line]
    assert [line.partition(" (")[0] for line in said] == [
        "learner rank 0 died; restarting the learner from the SFT model: there is no checkpoint yet"
    ]
    assert mapped and not [path for path in mapped if "deepspeed_allreduce" in path]


def kl_by_hand(model: str, episode: Episode) -> float:
    """The k3 estimate between an episode's engine and the model as it was, summed over the completion."""
    ids = torch.tensor([episode.prompt_ids + episode.completion_ids])
    with torch.no_grad():
        logits = load_policy(model, ModelConfig())(ids).logits[0, :-1] / CONFIG.temperature
    logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[len(episode.prompt_ids) - 1 :, 0]
    x = logps - torch.from_numpy(episode.engine_logps)
    return float((x.exp() - 1 - x).sum())


def test_an_engine_over_two_workers_is_as_one_and_is_replaced_when_it_loses_one(
    ray_session, model: str, prompts: list[Prompt]
):
    import ray

    config = CONFIG.model_copy(update={"mode": "disaggregated", "tensor_parallel_size": 2})
    placement = reserve(config, RewardsConfig())
    pool = RolloutPool(model, ModelConfig(), config, placement)
    policy = load_policy(model, ModelConfig())
    weights = {name: to_host(value) for name, value in policy.state_dict().items()}
    probe = prompts[0].token_ids
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([probe])).logits[0, :-1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(probe[1:])[:, None])[:, 0].numpy()
    assert pool.publish(1, StoredWeights(ray.put(weights), "one"), probe, expected) <= 1e-4
    groups = pool.generate(prompts[:2], [0, 1])
    assert_logps_are_of(policy, groups, config.temperature)
    workers = children_like("Worker_TP")
    assert len(workers) == 2
    workers[1].kill()
    again = pool.generate(prompts[:2], [0, 1])
    pool.shutdown()
    placement.release()
    assert pool._restarts == 1
    tokens = [[c.token_ids for c in g.completions] for g in groups]
    assert [[c.token_ids for c in g.completions] for g in again] == tokens


@pytest.mark.parametrize("change", [{"zero_stage": 0}, {"zero_stage": 3, "learner_ranks": 2}], ids=str)
def test_adapters_alone_are_trained_and_engines_get_them_merged(
    ray_session, pool, model: str, change: dict, tmp_path: Path
):
    out = RunDir(tmp_path).stage("grpo")
    change = {"lora": LoraConfig(r=4, alpha=8, dropout=0.2), "beta": 0.1, "rollout_actors": 1} | change
    config = CONFIG.model_copy(update=change)
    rollout, _ = pool
    placement = reserve(config, RewardsConfig())
    learner = Learner(model, ModelConfig(), config, SEED, placement)
    updates = [learner.update(make_episodes(12), 1e-2)]
    learner.save(out, "first")
    updates += [learner.update(make_episodes(12), 1e-2)]
    assert updates[0]["kl"] == pytest.approx(0, abs=1e-6) and updates[1]["kl"] > 1e-5
    expected = [kl_by_hand(model, episode) for episode in make_episodes(12)]
    np.testing.assert_allclose(learner.kl(make_episodes(12)), expected, rtol=1e-4)
    probe = list(range(20, 60))
    assert rollout.publish(1, learner.weights(), probe, learner.logps(probe)) <= 1e-4
    learner.save_model(out, "model")
    if config.zero_stage == 0:  # a resumed learner drops out what one that went on drops out
        learner.restart()
        learner.load(out, "first")
        again = learner.update(make_episodes(12), 1e-2)
        assert {k: again[k] for k in UPDATE_KEYS} == {k: updates[1][k] for k in UPDATE_KEYS}
    learner.shutdown()
    placement.release()
    before = load_policy(model, ModelConfig()).state_dict()
    after = load_policy(out.location("model"), ModelConfig()).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    base = load_policy(model, ModelConfig())
    adapted = PeftModel.from_pretrained(base, out.local / "model_adapter").merge_and_unload().state_dict()
    for name, value in after.items():
        torch.testing.assert_close(adapted[name], value, rtol=0, atol=1e-6)
