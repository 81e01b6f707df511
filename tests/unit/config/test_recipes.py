"""The shipped configs: all load, none silently says something else than it seems to."""

from pathlib import Path

import pytest
import yaml

from lm_mixup.config.load import load_config

FOLDER = Path(__file__).resolve().parents[3] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def _leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads_and_every_key_takes_effect(path):
    config = load_config(path).model_dump()
    for keys, value in _leaves(yaml.safe_load(path.read_text(encoding="utf-8"))):
        loaded = config
        for key in keys:
            loaded = loaded[key]
        assert loaded == value, ".".join(keys)
        assert type(loaded) is type(value) or {type(loaded), type(value)} == {int, float}, ".".join(keys)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_names_an_environment_variable_and_never_a_key(path):
    config = load_config(path)
    for section in (config.rate, config.teacher):
        assert section.api_key_env is None or section.api_key_env.isupper()


def test_the_recipes_of_the_readme_are_there():
    assert {path.stem for path in CONFIGS} >= {"quickstart", "paper-1.5b", "paper-7b", "cluster-gpu"}


def test_quickstart_needs_neither_network_nor_gpu():
    config = load_config(FOLDER / "quickstart.yaml")
    assert (config.model.path, config.embedder.path) == ("nano", "minilm")
    assert (config.build.passages, config.augment.pool) == ("world", "world")
    assert config.rate.backend == "offline"
    assert config.embedder.num_gpus == 0


@pytest.mark.parametrize("name", ["paper-1.5b", "paper-7b"])
def test_paper_numbers(name):
    """Figures of arXiv 2510.20449, section 4.1."""
    config = load_config(FOLDER / f"{name}.yaml")
    sft, grpo = config.sft, config.grpo
    assert (sft.learning_rate, sft.epochs, sft.max_length, sft.warmup_ratio) == (2e-5, 3, 2400, 0.05)
    assert (grpo.num_generations, grpo.prompts_per_step, grpo.update_batch_size) == (4, 128, 16)
    assert (grpo.learning_rate, grpo.beta, grpo.kl_estimator, grpo.temperature) == (1e-6, 0.01, "k3", 1.0)
    assert (grpo.max_prompt_length, grpo.max_completion_length, grpo.max_grad_norm) == (2400, 2400, 1.0)
    weights = config.rewards.weights
    assert (weights.quality, weights.alignment, weights.format) == (0.5, 0.4, 0.1)
    assert {t for t, w in config.rewards.task_weights.items() if (w.quality, w.format) == (0.8, 0.2)} == {
        "mcq",
        "tfq",
        "para",
    }
    assert (config.cluster.min_size, config.cluster.max_size, config.select.budget) == (2, 5, 10000)
    assert config.select.neighbors == 15
