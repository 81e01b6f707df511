"""The stages of `evaluate`: what a training set is worth. Benchmarks are yet to come."""

from __future__ import annotations

from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.models.resolve import model_version
from lm_mixup.stages.stage import Stage, file_versions


def _check_finetune(config: Config) -> None:
    from lm_mixup.models.resolve import check_length
    from lm_mixup.train.finetune import check_base
    from lm_mixup.train.tracking import check_tracking

    model = config.finetune.model or config.model
    check_base(model)
    check_length(model, config.finetune.max_length, "finetune.max_length")
    if config.finetune.train is not None and not file_versions(config.finetune.train):
        raise InputError(f"finetune.train: there is no file {config.finetune.train}")
    check_tracking(config.tracking)


def _versions(config: Config) -> list[list[str]]:
    chosen = config.finetune
    rows = file_versions(chosen.train) if chosen.train is not None else []
    return [rows, model_version((chosen.model or config.model).path)]


_SETTINGS = ("finetune", "model", "data", "seed", "tracking")

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
        settings=("finetune.train", *_SETTINGS),
        when=lambda config: config.finetune.train is not None,
        check=_check_finetune,
        versions=_versions,
    ),
)
