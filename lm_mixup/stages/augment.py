"""The stages of `augment`: a pool becomes a training set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_mixup.config import Config, ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.models.resolve import check_model_path, model_version
from lm_mixup.stages.stage import Stage, file_versions, section_identity


def _check_pool(config: Config) -> None:
    if config.augment.pool != "world":
        from lm_mixup.augment.reading.files import list_units

        list_units(config.augment.pool, split_bytes=1 << 30)


def _pool_versions(config: Config) -> Any:
    decontaminate = config.ingest.decontaminate
    return [
        file_versions(config.augment.pool),
        [file_versions(files) for files in decontaminate.files] if decontaminate else [],
    ]


def _check_eval_sets(config: Config) -> None:
    from lm_mixup.augment.reading.files import list_units

    for files in config.eval_files():
        list_units(files, split_bytes=1 << 30, key="embed.decontaminate.files")


def _eval_versions(config: Config) -> list[list[str]]:
    return [file_versions(files) for files in config.eval_files()]


def _check_policy(config: Config) -> None:
    """Refuses a distiller that is not there, and the demonstration model on a pool that it cannot read.

    A folder's tokenizer is loaded: without one, `distill` would fail after all the stages before it.
    """
    from lm_mixup.augment.distill import is_demonstration
    from lm_mixup.models.policy import load_tokenizer

    policy = config.augment.policy or config.model.path
    key = "model.path" if config.augment.policy is None else "augment.policy"
    check_model_path(policy, key)
    if Path(policy).expanduser().is_dir():
        load_tokenizer(policy, config.model, key)
    own = config.augment.pool != "world" and not config.augment.demo_policy
    if own and is_demonstration(policy):
        raise InputError(
            f"augment.policy: {policy} is the demonstration model, which understands the closed world alone; "
            "what it writes about other pools is wrong. Name a real model, or set augment.demo_policy=true "
            "to see it run"
        )


def _check_judge(config: Config) -> None:
    """Refuses a judge without a model or a key, before the pool is read."""
    if config.rate.backend != "offline":
        from lm_mixup.chat.client import check_chat

        check_chat(config.rate, config.rate.backend, "rate")


def _policy_versions(config: Config) -> list[str]:
    policy = config.augment.policy
    return [] if policy is None else model_version(policy) or file_versions(policy)


def _by_perplexity(config: Config) -> bool:
    return config.select.method == "perplexity"


def _check_perplexity(config: Config) -> None:
    from lm_mixup.augment.perplexity import measuring_model

    measuring_model(config.select.perplexity.model, config.model)


def _perplexity_identity(config: Config) -> Any:
    """The model that measures and the length it reads; not which end of the perplexities is taken."""
    from lm_mixup.augment.perplexity import measuring_model

    measured = config.select.perplexity
    return [section_identity(measuring_model(measured.model, config.model)), measured.max_length]


def _scoring_model(config: Config) -> ModelConfig:
    """The model of the stage `likelihood`."""
    from lm_mixup.augment.likelihood import KEY
    from lm_mixup.augment.perplexity import measuring_model

    return measuring_model(config.rate_distilled.likelihood.model, config.model, KEY)


def _check_likelihood(config: Config) -> None:
    _scoring_model(config)


def _likelihood_identity(config: Config) -> Any:
    """The model that scores and the length it reads; not the least gain, which `rate_distilled` asks for."""
    return [section_identity(_scoring_model(config)), config.rate_distilled.likelihood.max_length]


def _perplexity_versions(config: Config) -> list[str]:
    from lm_mixup.augment.perplexity import measuring_model

    return file_versions(measuring_model(config.select.perplexity.model, config.model).path)


def _likelihood_versions(config: Config) -> list[str]:
    return file_versions(_scoring_model(config).path)


def _check_less(config: Config) -> None:
    from lm_mixup.augment.influence import KEY, target_rows
    from lm_mixup.augment.perplexity import measuring_model

    measuring_model(config.select.less.model, config.model, KEY)
    target_rows(config.select.less, config.seed)


def _less_versions(config: Config) -> Any:
    less = config.select.less
    target = [] if less.target is None else file_versions(less.target, "select.less.target")
    return [file_versions(less.model or config.model.path), target]


def _by_less(config: Config) -> bool:
    return config.select.method == "less"


STAGES = (
    Stage(
        "ingest",
        "lm_mixup.augment.ingest:ingest",
        settings=("augment.pool", "ingest", "data", "seed"),
        check=_check_pool,
        versions=_pool_versions,
        needs_output=True,
    ),
    Stage(
        "rate",
        "lm_mixup.augment.rate:rate",
        inputs=("ingest",),
        settings=("rate",),
        check=_check_judge,
        needs_output=True,
    ),
    Stage(
        "embed",
        "lm_mixup.augment.embed:embed",
        inputs=("ingest",),
        settings=("embedder", "embed.decontaminate"),
        check=_check_eval_sets,
        versions=_eval_versions,
        needs_output=True,
    ),
    Stage(
        "neighbors",
        "lm_mixup.augment.neighbors:neighbors",
        inputs=("embed",),
        settings=("neighbors", "seed"),
        needs_output=True,
    ),
    Stage(
        "curate",
        "lm_mixup.augment.curate:curate",
        inputs=("rate", "embed", "neighbors"),
        settings=("curate",),
        needs_output=True,
    ),
    Stage(
        "cluster",
        "lm_mixup.augment.cluster:cluster",
        inputs=("curate", "embed"),
        settings=("cluster", "data", "seed"),
    ),
    Stage(
        "distill",
        "lm_mixup.augment.distill:distill",
        inputs=("cluster", "curate"),
        settings=("augment.policy", "distill", "model"),
        when=lambda config: config.augment.policy is not None,
        check=_check_policy,
        versions=_policy_versions,
    ),
    Stage(
        "distill",
        "lm_mixup.augment.distill:distill_with_trained",
        inputs=("cluster", "curate", "grpo|sft"),
        settings=("distill", "model"),
        when=lambda config: config.augment.policy is None,
        check=_check_policy,
    ),
    Stage(
        "likelihood",
        "lm_mixup.augment.likelihood:likelihood",
        inputs=("distill",),
        settings=("rate_distilled.likelihood", "model"),
        when=lambda config: config.rate_distilled.likelihood.model is not None,
        check=_check_likelihood,
        versions=_likelihood_versions,
        identity=_likelihood_identity,
    ),
    Stage(
        "rate_distilled",
        "lm_mixup.augment.rate_distilled:rate_distilled",
        inputs=("distill", "likelihood?"),
        settings=("rate", "embedder", "select.neighbors", "select.min_score", "rate_distilled"),
    ),
    Stage(
        "perplexity",
        "lm_mixup.augment.perplexity:perplexity",
        inputs=("rate_distilled", "curate"),
        settings=("select.perplexity", "model"),
        when=_by_perplexity,
        check=_check_perplexity,
        versions=_perplexity_versions,
        identity=_perplexity_identity,
    ),
    Stage(
        "influence",
        "lm_mixup.augment.influence:influence",
        inputs=("rate_distilled", "curate"),
        settings=("select.less", "model", "seed"),
        when=_by_less,
        check=_check_less,
        versions=_less_versions,
    ),
    Stage(
        "select",
        "lm_mixup.augment.select:select",
        inputs=("rate_distilled", "curate", "embed", "neighbors", "perplexity?"),
        settings=("select", "seed"),
        when=lambda config: not _by_less(config),
        needs_output=True,
    ),
    Stage(
        "select",
        "lm_mixup.augment.select:select",
        inputs=("rate_distilled", "curate", "embed", "neighbors", "influence"),
        settings=("select", "seed"),
        when=_by_less,
        needs_output=True,
    ),
)
