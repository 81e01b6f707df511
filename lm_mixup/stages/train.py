"""The stages of `train`: SFT, the library of the quality reward, GRPO."""

from __future__ import annotations

from typing import Any

from lm_mixup.config import Config
from lm_mixup.core.run_dir import Outcome
from lm_mixup.stages.stage import Context, Stage, is_published, sections


def _sft(c: Context) -> Outcome:
    from lm_mixup.train.sft import sft

    config = c.config
    return sft(c.stage("mixture"), c.out, config.sft, config.model, config.seed, config.tracking)


def _check_tracking(config: Config) -> None:
    from lm_mixup.train.tracking import check_tracking

    check_tracking(config.tracking)


def _check_sft(config: Config) -> None:
    from lm_mixup.models.policy import check_length

    check_length(config.model, config.sft.max_length, "sft.max_length")
    _check_tracking(config)


def _library(c: Context) -> Outcome:
    from lm_mixup.rewards.library import library

    config = c.config
    sources = ("rate_mixture",) if is_published(config) else ("generate", "degrade")
    return library(
        [c.stage(name) for name in sources],
        c.out,
        config.library,
        config.rewards,
        config.embedder,
        config.seed,
    )


def _grpo(c: Context) -> Outcome:
    from lm_mixup.grpo.stage import grpo

    config = c.config
    return grpo(
        c.stage("mixture"),
        c.stage("library"),
        str(c.stage("sft").local / "model"),
        c.out,
        config.grpo,
        config.model,
        config.rewards,
        config.embedder,
        config.seed,
        config.tracking,
    )


def _check_grpo(config: Config) -> None:
    from lm_mixup.grpo.weights.transport import check_transport
    from lm_mixup.models.policy import check_length
    from lm_mixup.rewards.custom import check_custom

    check_custom(config.rewards.custom)
    check_transport(config.grpo, config.ray)
    _check_tracking(config)
    tokens = config.grpo.max_prompt_length + config.grpo.max_completion_length
    check_length(config.model, tokens, "grpo.max_prompt_length + grpo.max_completion_length")


def _grpo_identity(c: Context) -> Any:
    """The sections, and the text of every custom reward function."""
    from lm_mixup.rewards.custom import source_digest

    custom = c.config.rewards.custom
    digests = [source_digest(name, reward) for name, reward in custom.items()]
    return [*sections("grpo", "model", "rewards", "embedder")(c), *digests]


STAGES = (
    Stage("sft", ("mixture",), sections("sft", "model"), _sft, check=_check_sft),
    Stage(
        "library",
        ("generate", "degrade", "rate_mixture"),
        sections("library", "rewards", "embedder"),
        _library,
    ),
    Stage("grpo", ("mixture", "sft", "library"), _grpo_identity, _grpo, check=_check_grpo),
)
