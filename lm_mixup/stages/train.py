"""The stages of `train`: SFT, the library of the quality reward, GRPO."""

from __future__ import annotations

from lm_mixup.config import Config
from lm_mixup.stages.build import is_unrated
from lm_mixup.stages.stage import Stage


def _check_tracking(config: Config) -> None:
    from lm_mixup.train.tracking import check_tracking

    check_tracking(config.tracking)


def _check_sft(config: Config) -> None:
    from lm_mixup.models.resolve import check_length

    check_length(config.model, config.sft.max_length, "sft.max_length")
    _check_tracking(config)


def _check_grpo(config: Config) -> None:
    from lm_mixup.grpo.weights.transport import check_transport
    from lm_mixup.models.resolve import check_length
    from lm_mixup.rewards.custom import check_custom

    check_custom(config.rewards.custom)
    check_transport(config.grpo, config.ray)
    _check_tracking(config)
    tokens = config.grpo.max_prompt_length + config.grpo.max_completion_length
    check_length(config.model, tokens, "grpo.max_prompt_length + grpo.max_completion_length")


def _custom_rewards(config: Config) -> list[str | None]:
    """The text of every custom reward function."""
    from lm_mixup.rewards.custom import source_digest

    return [source_digest(name, reward) for name, reward in config.rewards.custom.items()]


_LIBRARY_SETTINGS = ("library", "rewards", "embedder", "seed")

STAGES = (
    Stage(
        "sft",
        "lm_mixup.train.sft:sft",
        inputs=("mixture",),
        settings=("sft", "model", "seed", "tracking"),
        check=_check_sft,
    ),
    Stage(
        "library",
        "lm_mixup.rewards.library:library",
        inputs=("generate", "degrade"),
        settings=_LIBRARY_SETTINGS,
        when=lambda config: not is_unrated(config),
    ),
    Stage(
        "library",
        "lm_mixup.rewards.library:library",
        inputs=("rate_mixture", "degrade?"),
        settings=_LIBRARY_SETTINGS,
        when=is_unrated,
    ),
    Stage(
        "grpo",
        "lm_mixup.grpo.stage:grpo",
        inputs=("mixture", "library", "sft"),
        settings=("grpo", "model", "rewards", "embedder", "seed", "tracking"),
        check=_check_grpo,
        versions=_custom_rewards,
    ),
)
