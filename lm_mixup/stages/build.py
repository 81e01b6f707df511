"""The stages of `build`: MIXTURE, written from passages or read as others published it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_mixup.config import Config
from lm_mixup.stages.stage import Stage, file_versions


def is_published(config: Config) -> bool:
    """Whether MIXTURE is one that others published, not written from passages."""
    return config.build.mixture is not None


def is_composed(config: Config) -> bool:
    """Whether MIXTURE is made by rule from good rows that others wrote."""
    return config.build.samples_from is not None


def is_unrated(config: Config) -> bool:
    """Whether samples and variants come without ratings, so that a draw of MIXTURE is rated."""
    return is_published(config) or is_composed(config)


def _is_written(config: Config) -> bool:
    return not is_unrated(config)


def _merges_samples(config: Config) -> bool:
    """Whether a teacher model merges samples; those of the offline teacher are merged by rules."""
    return _is_written(config) and config.teacher.backend != "offline" and config.build.crosstopic_rate > 0


def _passage_versions(config: Config) -> list[str]:
    return file_versions(config.build.passages, "build.passages")


def _sample_versions(config: Config) -> list[str]:
    given = (entry.path for entry in config.build.entries().values())
    paths = [path for path in given if path not in ("world", "pool")]
    return [version for path in paths for version in file_versions(path, "build.samples_from")]


def _check_samples(config: Config) -> None:
    from lm_mixup.mixture.read_samples import check_samples

    check_samples(config.build)


def _check_teacher(config: Config) -> None:
    from lm_mixup.mixture.generate import check_teacher

    check_teacher(config.build, config.teacher)


def _check_published(config: Config) -> None:
    from lm_mixup.mixture.published import list_files, mixture_folder

    assert config.build.mixture is not None  # noqa: S101
    list_files(mixture_folder(config.build.mixture), config.build.mixture)


def _published_identity(config: Config) -> Any:
    build = config.build
    held_out = [build.dev_fraction, build.split_seed]
    return [build.mixture, build.mixture_separator, held_out, config.data.identity()]


def _published_versions(config: Config) -> list[str]:
    from lm_mixup.augment.reading.hf_datasets import is_hub_name
    from lm_mixup.mixture.published import mixture_folder

    assert config.build.mixture is not None  # noqa: S101
    folder = mixture_folder(config.build.mixture)
    return [Path(folder).name] if is_hub_name(config.build.mixture) else file_versions(folder)


STAGES = (
    Stage(
        "passages",
        "lm_mixup.mixture.passages:passages",
        settings=("build", "data", "seed"),
        when=_is_written,
        versions=_passage_versions,
        needs_output=True,
    ),
    Stage(
        "generate",
        "lm_mixup.mixture.generate:generate",
        inputs=("passages",),
        settings=("build", "rate", "teacher", "data", "seed"),
        when=_is_written,
        check=_check_teacher,
        needs_output=True,
    ),
    Stage(
        "generate",
        "lm_mixup.mixture.read_samples:read_samples",
        settings=("build", "ingest", "data", "seed"),
        when=lambda config: is_composed(config) and not config.build.reads_pool(),
        check=_check_samples,
        versions=_sample_versions,
        needs_output=True,
    ),
    Stage(
        "generate",
        "lm_mixup.mixture.read_samples:read_pool_samples",
        inputs=("curate",),
        settings=("build", "ingest", "data", "seed"),
        when=lambda config: config.build.reads_pool(),
        check=_check_samples,
        versions=_sample_versions,
        needs_output=True,
    ),
    Stage(
        "degrade",
        "lm_mixup.mixture.degrade:degrade",
        inputs=("generate",),
        settings=("build", "rate", "teacher", "seed"),
        when=_is_written,
        needs_output=True,
    ),
    Stage(
        "embed_samples",
        "lm_mixup.augment.embed:embed",
        inputs=("generate",),
        settings=("embedder",),
        when=lambda config: is_composed(config) or _merges_samples(config),
    ),
    Stage(
        "pair_samples",
        "lm_mixup.mixture.pair_samples:pair_samples",
        inputs=("generate", "degrade", "embed_samples"),
        settings=("build",),
        when=_merges_samples,
    ),
    Stage(
        "crosstopic",
        "lm_mixup.mixture.crosstopic:crosstopic",
        inputs=("generate", "degrade", "pair_samples"),
        settings=("build", "rate", "teacher", "data"),
        when=_merges_samples,
    ),
    Stage(
        "mixture",
        "lm_mixup.mixture.assemble:mixture",
        inputs=("generate", "degrade", "crosstopic?"),
        settings=("build", "data", "seed"),
        when=_is_written,
        needs_output=True,
    ),
    Stage(
        "mixture",
        "lm_mixup.mixture.compose_rows:compose_rows",
        inputs=("generate", "embed_samples"),
        settings=("build", "data", "seed"),
        when=is_composed,
        needs_output=True,
    ),
    Stage(
        "mixture",
        "lm_mixup.mixture.published:published",
        settings=("build", "data"),
        when=is_published,
        check=_check_published,
        versions=_published_versions,
        identity=_published_identity,
        needs_output=True,
    ),
    Stage(
        "rate_mixture",
        "lm_mixup.mixture.rate_mixture:rate_mixture",
        inputs=("mixture",),
        settings=("rate", "library.rows", "seed"),
        when=is_unrated,
    ),
)
