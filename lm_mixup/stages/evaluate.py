"""The stages of `evaluate`: what a training set is worth. Benchmarks are yet to come."""

from __future__ import annotations

from typing import Any

from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome
from lm_mixup.stages.stage import Context, Stage, file_versions


def _finetune(c: Context) -> Outcome:
    from lm_mixup.train.finetune import finetune

    config = c.config
    select = c.stage("select")
    rows = config.finetune.train or f"{select.run.uri}/{select.name}/train.jsonl"
    return finetune(rows, c.out, config.finetune, config.model, config.data, config.seed, config.tracking)


def _check_finetune(config: Config) -> None:
    from lm_mixup.models.policy import check_length
    from lm_mixup.train.finetune import check_base
    from lm_mixup.train.tracking import check_tracking

    model = config.finetune.model or config.model
    check_base(model)
    check_length(model, config.finetune.max_length, "finetune.max_length")
    if config.finetune.train is not None and not file_versions(config.finetune.train):
        raise InputError(f"finetune.train: there is no file {config.finetune.train}")
    check_tracking(config.tracking)


def _identity(c: Context) -> Any:
    chosen = c.config.finetune
    versions = file_versions(chosen.train) if chosen.train is not None else []
    return [
        chosen.identity(),
        (chosen.model or c.config.model).identity(),
        c.config.data.identity(),
        versions,
    ]


STAGES = (
    Stage(
        "finetune",
        ("select",),
        _identity,
        _finetune,
        check=_check_finetune,
        reads=lambda config: config.finetune.train is None,
    ),
)
