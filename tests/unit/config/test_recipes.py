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
    assert {path.stem for path in CONFIGS} >= {
        "quickstart",
        "laptop",
        "paper-1.5b",
        "paper-7b",
        "cluster-gpu",
    }


def test_quickstart_needs_neither_network_nor_gpu():
    config = load_config(FOLDER / "quickstart.yaml")
    assert (config.model.path, config.embedder.path) == ("nano", "minilm")
    assert (config.build.passages, config.augment.pool) == ("world", "world")
    assert config.rate.backend == "offline"
    assert config.embedder.num_gpus == 0


def test_laptop_needs_no_training_network_or_gpu_and_fits_its_models_and_two_cores():
    config = load_config(FOLDER / "laptop.yaml")
    assert config.augment.policy == "smollm2-distiller"
    assert (config.embedder.path, config.rate.backend, config.embedder.num_gpus) == ("minilm", "offline", 0)
    assert config.build.reads_pool()
    assert {entry.path for entry in config.build.entries().values()} == {"pool"}
    assert config.sft.lora and config.grpo.lora
    assert (
        config.distill.max_prompt_length + config.distill.max_completion_length <= 8192
    )  # SmolLM2's positions
    group = config.grpo.max_prompt_length + config.grpo.num_generations * config.grpo.max_completion_length
    assert group <= config.grpo.micro_tokens
    for section in (config.embedder, config.distill, config.rate):
        assert section.num_actors * section.num_cpus <= 2
    assert config.sft.num_workers * config.sft.cpus_per_worker <= 2
