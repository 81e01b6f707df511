"""The stages of `build`: MIXTURE, from passages or as others published it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_mixup.config import Config
from lm_mixup.runs import Outcome
from lm_mixup.stages.stage import Context, Stage, file_versions, is_published, sections


def _passages(c: Context) -> Outcome:
    from lm_mixup.mixture.passages import passages

    return passages(c.out, c.config.build, c.config.data, c.config.seed)


def _generate(c: Context) -> Outcome:
    from lm_mixup.mixture.generate import generate

    config = c.config
    if config.build.samples_from is not None:
        from lm_mixup.mixture.read_samples import read_samples

        return read_samples(c.out, config.build, config.ingest, config.data, config.seed)
    return generate(
        c.stage("passages"), c.out, config.build, config.rate, config.teacher, config.data, config.seed
    )


def _check_teacher(config: Config) -> None:
    if config.build.samples_from is not None:
        from lm_mixup.mixture.read_samples import check_samples

        check_samples(config.build)
        return
    from lm_mixup.mixture.generate import check_teacher

    check_teacher(config.build, config.teacher)


def _degrade(c: Context) -> Outcome:
    from lm_mixup.mixture.degrade import degrade

    config = c.config
    return degrade(c.stage("generate"), c.out, config.build, config.rate, config.teacher, config.seed)


def _embed_samples(c: Context) -> Outcome:
    from lm_mixup.data.embed import embed

    return embed(c.stage("generate"), c.out, c.config.embedder)


def _pair_samples(c: Context) -> Outcome:
    from lm_mixup.mixture.pair_samples import pair_samples

    return pair_samples(
        c.stage("generate"), c.stage("degrade"), c.stage("embed_samples"), c.out, c.config.build
    )


def _crosstopic(c: Context) -> Outcome:
    from lm_mixup.mixture.taught_crosstopic import crosstopic

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
    if _is_ruled(c.config):
        from lm_mixup.mixture.compose_rows import compose_rows

        samples, embedded = c.stage("generate"), c.stage("embed_samples")
        return compose_rows(samples, embedded, c.out, c.config.build, c.config.data, c.config.seed)
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


def _has_samples(config: Config) -> bool:
    return not is_published(config)


def _is_ruled(config: Config) -> bool:
    """Whether MIXTURE is made by rule from good rows that others wrote."""
    return config.build.samples_from is not None


def _is_taught(config: Config) -> bool:
    """Whether a teacher writes samples and variants about passages."""
    return not is_published(config) and not _is_ruled(config)


def _is_unrated(config: Config) -> bool:
    return is_published(config) or _is_ruled(config)


def _is_embedded(config: Config) -> bool:
    return _is_ruled(config) or _is_merged(config)


def _is_merged(config: Config) -> bool:
    """Whether a teacher model merges samples; what the offline one wrote is merged by rules."""
    return _is_taught(config) and config.teacher.backend != "offline" and config.build.crosstopic_rate > 0


def _build(c: Context) -> Any:
    return [c.config.build.identity(), c.config.data.identity(), _passage_versions(c)]


def _passage_versions(c: Context) -> list[str]:
    entries = c.config.build.entries().values()
    if entries:
        paths = [entry.path for entry in entries if entry.path != "world"]
        return [version for path in paths for version in file_versions(path, "build.samples_from")]
    return file_versions(c.config.build.passages, "build.passages")


def _rated_build(c: Context) -> Any:
    return [_build(c), c.config.rate.identity(), c.config.teacher.identity()]


def _mixture_identity(c: Context) -> Any:
    """What decides the MIXTURE: of a published one, its files and how they are read."""
    build = c.config.build
    if build.mixture is None:
        return _build(c)
    from lm_mixup.data.hf_datasets import is_hub_name
    from lm_mixup.mixture.published import mixture_folder

    folder = mixture_folder(build.mixture)
    versions = [Path(folder).name] if is_hub_name(build.mixture) else file_versions(folder)
    return [build.mixture, build.mixture_separator, c.config.data.identity(), versions]


STAGES = (
    Stage("passages", (), _build, _passages, _is_taught),
    Stage("generate", ("passages",), _rated_build, _generate, _has_samples, _check_teacher),
    Stage("degrade", ("generate",), _rated_build, _degrade, _is_taught),
    Stage("embed_samples", ("generate",), sections("embedder"), _embed_samples, _is_embedded),
    Stage("pair_samples", ("generate", "degrade", "embed_samples"), _build, _pair_samples, _is_merged),
    Stage("crosstopic", ("generate", "degrade", "pair_samples"), _rated_build, _crosstopic, _is_merged),
    Stage(
        "mixture",
        ("generate", "degrade", "embed_samples", "crosstopic"),
        _mixture_identity,
        _mixture,
        check=_check_published,
    ),
    Stage("rate_mixture", ("mixture",), sections("rate", "library"), _rate_mixture, _is_unrated),
)
