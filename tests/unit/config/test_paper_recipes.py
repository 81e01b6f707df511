"""The recipes of the paper hold its numbers, and what their stages ask for fits the GPUs that they name."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lm_mixup.config import ChatConfig, Config, RateDistilledConfig
from lm_mixup.config.load import load_config
from lm_mixup.grpo.placement import plan_bundles
from lm_mixup.stages.stage import value_at

FOLDER = Path(__file__).resolve().parents[3] / "configs"
PAPER = sorted(FOLDER.glob("paper-*.yaml"))
ON_GPU = [*PAPER, FOLDER / "cluster-gpu.yaml"]

# arXiv 2510.20449, sections 3 and 4.1, and the authors' code.
OFFICIAL = {
    "build.mixture": "hf:dokiik/MIXTURE",
    "embedder.path": "BAAI/bge-m3",
    "sft.epochs": 3,
    "sft.learning_rate": 2e-5,
    "sft.warmup_ratio": 0.05,
    "sft.weight_decay": 0.01,
    "sft.max_length": 2400,
    "sft.lora": None,
    "grpo.num_generations": 4,
    "grpo.prompts_per_step": 128,
    "grpo.update_batch_size": 64,  # 16 prompts, of which each has 4 completions
    "grpo.num_iterations": 1,
    "grpo.max_steps": 575,
    "grpo.learning_rate": 1e-6,
    "grpo.weight_decay": 0.01,
    "grpo.max_grad_norm": 1.0,
    "grpo.beta": 0.01,
    "grpo.kl_estimator": "k3",
    "grpo.kl_in": "loss",
    "grpo.temperature": 1.0,
    "grpo.max_prompt_length": 2400,
    "grpo.max_completion_length": 2400,
    "grpo.advantage": "grpo",
    "grpo.loss": "dapo",  # the mean over all tokens of an optimizer step
    "grpo.epsilon": 0.2,
    "grpo.epsilon_high": 0.3,
    "grpo.dual_clip": 3.0,
    "grpo.drop_zero_std": False,
    "grpo.max_refills": 0,
    "grpo.lora": None,
    "rewards.composition": "weighted_sum",
    "rewards.neighbors": 16,
    "rewards.prior_neighbors": 2,
    "rewards.smoothing": 0.01,
    "rewards.alignment": "threshold",
    "rewards.alignment_threshold": 0.8,
    "curate.neighbors": 2,
    "curate.min_confidence": 0.5,
    "cluster.min_size": 2,
    "cluster.max_size": 5,
    "cluster.low_below": 4,
    "cluster.by_source": True,
    "distill.temperature": 0.0,
    "distill.max_completion_length": 2400,
    "distill.repetition_penalty": 1.05,
    "select.method": "long_tail",
    "select.neighbors": 15,
    "select.min_score": 4,
    "select.budget": 10000,
    "finetune.learning_rate": 1e-4,
    "finetune.epochs": 5,
    "finetune.max_length": 2048,
    "finetune.warmup_ratio": 0.03,
    "finetune.batch_size": 128,
    "finetune.lora.r": 64,
    "finetune.lora.alpha": 16,
    "finetune.lora.dropout": 0.1,
}
WEIGHTS = {"quality": 0.5, "alignment": 0.4, "format": 0.1}
FALLBACK = {"quality": 0.8, "alignment": 0.0, "format": 0.2}


@pytest.fixture(params=PAPER, ids=lambda path: path.stem)
def recipe(request) -> Config:
    return load_config(request.param)


def test_each_recipe_of_the_paper_has_a_faithful_one_beside_it():
    names = {"paper-1.5b", "paper-7b"}
    assert {path.stem for path in PAPER} == names | {f"{name}-faithful" for name in names}


def test_numbers_are_the_papers(recipe):
    assert {key: value_at(recipe, key) for key in OFFICIAL} == OFFICIAL


@pytest.mark.parametrize("name", ["paper-1.5b", "paper-7b"])
def test_reward_weights_are_the_papers(name):
    rewards = load_config(FOLDER / f"{name}.yaml").rewards
    assert nonzero(rewards.weights) == nonzero(WEIGHTS)
    assert {task: nonzero(weights) for task, weights in rewards.task_weights.items()} == dict.fromkeys(
        ("mcq", "tfq", "para"), nonzero(FALLBACK)
    )
    assert not rewards.custom


@pytest.mark.parametrize("name", ["paper-1.5b", "paper-7b"])
def test_the_faithful_recipe_differs_in_the_reward_and_the_gate_alone(name):
    official, ours = (load_config(FOLDER / f"{name}{suffix}.yaml") for suffix in ("", "-faithful"))
    assert official.rewards.weights.faithfulness == 0.0
    assert ours.rewards.weights.faithfulness == max(dict(ours.rewards.weights).values())
    assert ours.rewards.task_weights == {}
    changed = {key for key in type(official).model_fields if getattr(official, key) != getattr(ours, key)}
    assert changed == {"rewards", "rate_distilled", "report"}
    assert (official.rate_distilled.min_faithfulness, official.rate_distilled.min_coverage) == (0.0, 0.0)
    assert ours.rate_distilled == RateDistilledConfig()  # the default
    weights = {"weights": ours.rewards.weights, "task_weights": {}}
    assert official.rewards.model_copy(update=weights) == ours.rewards


def nonzero(weights) -> dict[str, float]:
    return {name: weight for name, weight in dict(weights).items() if weight}


def gpus_of(path: Path) -> int:
    """The GPUs that a recipe's heading says it is for."""
    heading = path.read_text(encoding="utf-8").split("\nseed:")[0]
    return max(int(number) for number in re.findall(r"(\d+) GPUs", heading))


def asked_for(config: Config) -> dict[str, float]:
    """GPUs that are held at a time in each stage."""
    bundles, _ = plan_bundles(config.grpo, config.rewards, on_gpu=True)
    embedder, judge = config.embedder, engines_of(config.rate)
    return {
        "embed": embedder.num_actors * embedder.num_gpus,
        "library": embedder.num_actors * embedder.num_gpus,
        "neighbors": config.neighbors.num_actors * config.neighbors.num_gpus,
        "rate": judge,
        "rate_distilled": max(judge, config.rate.num_actors * embedder.num_gpus if judge else 0),
        "sft": config.sft.num_workers,
        "grpo": sum(bundle.get("GPU", 0) for bundle in bundles),
        "distill": config.distill.num_actors * config.distill.tensor_parallel_size,
        "finetune": config.finetune.num_workers,
        "benchmark": config.benchmark.num_actors * config.benchmark.tensor_parallel_size,
    }


def engines_of(chat: ChatConfig) -> int:
    return chat.num_actors * chat.tensor_parallel_size if chat.backend == "vllm" else 0


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_gpus_add_up(path):
    config, gpus = load_config(path), gpus_of(path)
    for stage, asked in asked_for(config).items():
        assert asked <= gpus, stage
    assert asked_for(config)["sft"] == asked_for(config)["grpo"] == gpus  # and none is idle


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_no_server_takes_a_gpu_that_ray_counts_as_free(path):
    config = load_config(path)
    for chat in (config.rate, config.teacher):
        if chat.backend == "openai":
            assert urlsplit(chat.base_url or "").hostname not in ("localhost", "127.0.0.1", "0.0.0.0", "::1")


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_halves_do_not_wait_for_each_other_and_nothing_is_offloaded(path):
    config = load_config(path)
    assert config.grpo.mode in ("colocated", "async")
    assert not config.sft.offload and not config.finetune.offload
