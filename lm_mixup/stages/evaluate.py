"""The stages of `evaluate`: what a training set is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.models.resolve import check_model_path, model_version
from lm_mixup.stages.stage import Stage, file_versions


def _check_finetune(config: Config) -> None:
    from lm_mixup.models.policy import load_tokenizer
    from lm_mixup.models.resolve import check_length, model_folder
    from lm_mixup.train.finetune import check_base, trained_model
    from lm_mixup.train.tracking import check_tracking

    model = trained_model(config.finetune, config.model)
    check_base(model)
    check_length(model, config.finetune.max_length, "finetune.max_length")
    if config.finetune.train is not None and not file_versions(config.finetune.train):
        raise InputError(f"finetune.train: there is no file {config.finetune.train}")
    if Path(model_folder(model.path)).is_dir():
        load_tokenizer(model.path, model, "finetune.model.path")  # says if it has no chat template
    check_tracking(config.tracking)


def _versions(config: Config) -> list[list[str]]:
    chosen = config.finetune
    rows = file_versions(chosen.train) if chosen.train is not None else []
    return [rows, model_version((chosen.model or config.model).path)]


def _check_benchmark(config: Config) -> None:
    from lm_mixup.evaluate.benchmark import models_of
    from lm_mixup.evaluate.harness import check_tasks
    from lm_mixup.models.policy import load_tokenizer

    for path in models_of(config.benchmark):
        check_model_path(path, "benchmark.model")
        if config.benchmark.chat_template:
            load_tokenizer(path, config.model, "benchmark.model")
    check_tasks(config.benchmark)


def _benchmark_versions(config: Config) -> Any:
    from importlib.metadata import version

    from lm_mixup.evaluate.benchmark import models_of

    chosen = config.benchmark
    models = [model_version(path) or file_versions(path) for path in models_of(chosen)]
    data = [file_versions(path) for path in (chosen.data_dir, chosen.include_path) if path is not None]
    return [models, data, version("lm-eval")]


def _check_mapping(config: Config) -> None:
    for path in config.mapping.models:
        check_model_path(path, "mapping.models")


def _mapping_versions(config: Config) -> Any:
    return [model_version(path) or file_versions(path) for path in config.mapping.models]


def _check_compare(config: Config) -> None:
    from lm_mixup.chat.client import check_chat

    if config.rate.backend == "offline":
        raise InputError(
            "compare: a chat model compares two answers, and rate.backend is offline; set it to openai or "
            "vllm, and rate.model"
        )
    check_chat(config.rate, config.rate.backend, "rate")
    for path in config.compare.models:
        check_model_path(path, "compare.models")
    if not file_versions(str(config.compare.prompts), "compare.prompts"):
        raise InputError(f"compare.prompts: there is no file {config.compare.prompts}")


def _compare_versions(config: Config) -> Any:
    chosen = config.compare
    models = [model_version(path) or file_versions(path) for path in chosen.models]
    return [models, file_versions(str(chosen.prompts), "compare.prompts")]


def _benchmarks(config: Config) -> bool:
    return bool(config.benchmark.tasks)


_SETTINGS = ("finetune", "model", "seed", "tracking")

STAGES = (
    Stage(
        "finetune",
        "lm_mixup.train.finetune:finetune_selected",
        inputs=("select",),
        settings=_SETTINGS,
        when=lambda config: config.finetune.train is None,
        check=_check_finetune,
        versions=_versions,
    ),
    Stage(
        "finetune",
        "lm_mixup.train.finetune:finetune",
        settings=("finetune.train", "ingest.columns", "ingest.turns", *_SETTINGS),
        when=lambda config: config.finetune.train is not None,
        check=_check_finetune,
        versions=_versions,
    ),
    Stage(
        "benchmark",
        "lm_mixup.evaluate.benchmark:benchmark_finetuned",
        inputs=("finetune",),
        settings=("benchmark", "model", "finetune.model", "seed"),
        when=lambda config: _benchmarks(config) and config.benchmark.model is None,
        check=_check_benchmark,
        versions=_benchmark_versions,
        needs_output=True,
    ),
    Stage(
        "benchmark",
        "lm_mixup.evaluate.benchmark:benchmark",
        settings=("benchmark", "model", "seed"),
        when=lambda config: _benchmarks(config) and config.benchmark.model is not None,
        check=_check_benchmark,
        versions=_benchmark_versions,
        needs_output=True,
    ),
    Stage(
        "mapping",
        "lm_mixup.evaluate.mapping:mapping_trained",
        inputs=("mixture", "sft", "grpo"),
        settings=("mapping", "model", "rate", "seed"),
        when=lambda config: config.mapping.rows > 0 and not config.mapping.models,
    ),
    Stage(
        "mapping",
        "lm_mixup.evaluate.mapping:mapping",
        inputs=("mixture",),
        settings=("mapping", "model", "rate", "seed"),
        when=lambda config: config.mapping.rows > 0 and bool(config.mapping.models),
        check=_check_mapping,
        versions=_mapping_versions,
    ),
    Stage(
        "compare",
        "lm_mixup.evaluate.compare:compare_finetuned",
        inputs=("finetune",),
        settings=("compare", "model", "finetune.model", "rate", "seed"),
        when=lambda config: config.compare.prompts is not None and not config.compare.models,
        check=_check_compare,
        versions=_compare_versions,
    ),
    Stage(
        "compare",
        "lm_mixup.evaluate.compare:compare",
        settings=("compare", "model", "rate", "seed"),
        when=lambda config: config.compare.prompts is not None and bool(config.compare.models),
        check=_check_compare,
        versions=_compare_versions,
    ),
)
