"""The stages of `build`: MIXTURE, from passages or as others published it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_mixup.config import Config
from lm_mixup.core.run_dir import Outcome
from lm_mixup.stages.stage import Context, Stage, file_versions, is_published, sections


def _passages(c: Context) -> Outcome:
    from lm_mixup.mixture.passages import passages

    return passages(c.out, c.config.build, c.config.data, c.config.seed)


def _generate(c: Context) -> Outcome:
    from lm_mixup.mixture.generate import generate

    config = c.config
    return generate(
        c.stage("passages"), c.out, config.build, config.rate, config.teacher, config.data, config.seed
    )


def _check_teacher(config: Config) -> None:
    from lm_mixup.mixture.generate import check_teacher

    check_teacher(config.build, config.teacher)


def _degrade(c: Context) -> Outcome:
    from lm_mixup.mixture.degrade import degrade

    config = c.config
    return degrade(c.stage("generate"), c.out, config.build, config.rate, config.teacher, config.seed)


def _embed_samples(c: Context) -> Outcome:
    from lm_mixup.augment.embed import embed

    return embed(c.stage("generate"), c.out, c.config.embedder)


def _pair_samples(c: Context) -> Outcome:
    from lm_mixup.mixture.pair_samples import pair_samples

    return pair_samples(
        c.stage("generate"), c.stage("degrade"), c.stage("embed_samples"), c.out, c.config.build
    )


def _crosstopic(c: Context) -> Outcome:
    from lm_mixup.mixture.crosstopic import crosstopic

    config = c.config
    return crosstopic(
        c.stage("generate"),
        c.stage("degrade"),
        c.stage("pair_samples"),
        c.out,
        config.build,
        config.rate,
        config.teacher,
        config.data,
    )


def _mixture(c: Context) -> Outcome:
    if is_published(c.config):
        from lm_mixup.mixture.published import published

        return published(c.out, c.config.build, c.config.data)
    from lm_mixup.mixture.assemble import mixture

    merged = c.stage("crosstopic") if _is_merged(c.config) else None
    return mixture(
        c.stage("generate"), c.stage("degrade"), c.out, c.config.build, c.config.data, c.config.seed, merged
    )


def _check_published(config: Config) -> None:
    if config.build.mixture is not None:
        from lm_mixup.mixture.published import list_files, mixture_folder

        list_files(mixture_folder(config.build.mixture), config.build.mixture)


def _rate_mixture(c: Context) -> Outcome:
    from lm_mixup.mixture.rate_mixture import rate_mixture

    return rate_mixture(c.stage("mixture"), c.out, c.config.rate, c.config.library.rows, c.config.seed)


def _is_built(config: Config) -> bool:
    return not is_published(config)


def _is_merged(config: Config) -> bool:
    """Whether a teacher model merges samples; what the offline one wrote is merged by rules."""
    return _is_built(config) and config.teacher.backend != "offline" and config.build.crosstopic_rate > 0


def _build(c: Context) -> Any:
    return [c.config.build.identity(), c.config.data.identity(), _passage_versions(c)]


def _passage_versions(c: Context) -> list[str]:
    return file_versions(c.config.build.passages, "build.passages")


def _rated_build(c: Context) -> Any:
    return [_build(c), c.config.rate.identity(), c.config.teacher.identity()]


def _mixture_identity(c: Context) -> Any:
    """What decides the MIXTURE: of a published one, its files and how they are read."""
    build = c.config.build
    if build.mixture is None:
        return _build(c)
    from lm_mixup.augment.reading.hf_datasets import is_hub_name
    from lm_mixup.mixture.published import mixture_folder

    folder = mixture_folder(build.mixture)
    versions = [Path(folder).name] if is_hub_name(build.mixture) else file_versions(folder)
    return [build.mixture, build.mixture_separator, c.config.data.identity(), versions]


STAGES = (
    Stage("passages", (), _build, _passages, _is_built),
    Stage("generate", ("passages",), _rated_build, _generate, _is_built, _check_teacher),
    Stage("degrade", ("generate",), _rated_build, _degrade, _is_built),
    Stage("embed_samples", ("generate",), sections("embedder"), _embed_samples, _is_merged),
    Stage("pair_samples", ("generate", "degrade", "embed_samples"), _build, _pair_samples, _is_merged),
    Stage("crosstopic", ("generate", "degrade", "pair_samples"), _rated_build, _crosstopic, _is_merged),
    Stage(
        "mixture", ("generate", "degrade", "crosstopic"), _mixture_identity, _mixture, check=_check_published
    ),
    Stage("rate_mixture", ("mixture",), sections("rate", "library"), _rate_mixture, is_published),
)
