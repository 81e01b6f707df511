"""The stages of `augment`: a pool becomes a training set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_mixup.config import Config, EmbedDecontaminateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome
from lm_mixup.stages.stage import Context, Stage, file_versions, sections

DEMO_POLICY = "runs/demo/grpo/model"


def _ingest(c: Context) -> Outcome:
    from lm_mixup.augment.ingest import ingest

    return ingest(c.out, c.config.augment.pool, c.config.ingest, c.config.data, c.config.seed)


def _check_pool(config: Config) -> None:
    if config.augment.pool != "world":
        from lm_mixup.augment.reading.files import list_units

        list_units(config.augment.pool, split_bytes=1 << 30)


def _eval_versions(c: Context) -> list[list[str]]:
    """Versions of the evaluation sets that rows are compared with."""
    chosen = c.config.ingest.decontaminate
    return [file_versions(pool) for pool in chosen.files] if chosen else []


def _rate(c: Context) -> Outcome:
    from lm_mixup.augment.rate import rate

    return rate(c.stage("ingest"), c.out, c.config.rate)


def _embed(c: Context) -> Outcome:
    from lm_mixup.augment.embed import embed

    return embed(c.stage("ingest"), c.out, c.config.embedder, _eval_sets(c))


def _check_eval_sets(config: Config) -> None:
    from lm_mixup.augment.reading.files import list_units

    for files in config.eval_files():
        list_units(files, split_bytes=1 << 30, key="embed.decontaminate.files")


def _eval_sets(c: Context) -> EmbedDecontaminateConfig | None:
    """What embeddings are compared with, the files filled in."""
    chosen = c.config.embed.decontaminate
    return chosen.model_copy(update={"files": c.config.eval_files()}) if chosen else None


def _embed_identity(c: Context) -> Any:
    known: list[Any] = [c.config.embedder.identity()]
    if chosen := _eval_sets(c):
        known += [chosen.identity(), [file_versions(pool) for pool in chosen.files]]
    return known


def _neighbors(c: Context) -> Outcome:
    from lm_mixup.augment.neighbors import neighbors

    return neighbors(c.stage("embed"), c.out, c.config.neighbors, c.config.seed)


def _curate(c: Context) -> Outcome:
    from lm_mixup.augment.curate import curate

    return curate(c.stage("rate"), c.stage("neighbors"), c.out, c.config.curate, embed=c.stage("embed"))


def _cluster(c: Context) -> Outcome:
    from lm_mixup.augment.cluster import cluster

    return cluster(c.stage("curate"), c.stage("embed"), c.out, c.config.cluster, c.config.data, c.config.seed)


def _distill(c: Context) -> Outcome:
    from lm_mixup.augment.distill import DEMONSTRATION_NOTICE, distill, is_demonstration

    policy = distiller(c)
    if is_demonstration(policy) and c.config.augment.pool != "world":
        say(f"[bold yellow]note[/]: {DEMONSTRATION_NOTICE}")
    return distill(c.stage("cluster"), c.stage("curate"), c.out, policy, c.config.distill, c.config.model)


def distiller(c: Context) -> str:
    """The policy that distils: the config's, else the one this run trained, else the demo's.

    Raises:
        InputError: There is none.
    """
    from lm_mixup.models.policy import check_model_path

    if c.config.augment.policy:
        check_model_path(c.config.augment.policy)
        return c.config.augment.policy
    for trained in ("grpo", "sft"):
        if c.stage(trained).manifest() is not None:
            return str(c.stage(trained).local / "model")
    if c.config.model.path == "nano" and (Path(DEMO_POLICY) / "config.json").is_file():
        return DEMO_POLICY
    raise InputError(
        f"{c.run.uri}: no trained policy to distil with; set augment.policy to a model folder, or run "
        "`lm-mixup train` (or `make demo`) first"
    )


def _distiller_identity(c: Context) -> Any:
    """The policy's identity: the training stage's fingerprint, or the model file's version."""
    policy = distiller(c)
    for trained in ("grpo", "sft"):
        manifest = c.stage(trained).manifest()
        if manifest is not None and policy == str(c.stage(trained).local / "model"):
            return manifest.fingerprint
    return [policy, file_versions(policy)]


def _rate_distilled(c: Context) -> Outcome:
    from lm_mixup.augment.rate_distilled import rate_distilled

    select = c.config.select
    return rate_distilled(
        c.stage("distill"), c.out, c.config.rate, c.config.embedder, select.neighbors, select.min_score
    )


def _perplexity(c: Context) -> Outcome:
    from lm_mixup.augment.perplexity import perplexity

    config = c.config
    return perplexity(
        c.stage("rate_distilled"), c.stage("curate"), c.out, config.select.perplexity, config.model
    )


def _is_measured(config: Config) -> bool:
    return config.select.method == "perplexity"


def _check_measuring(config: Config) -> None:
    from lm_mixup.augment.perplexity import measuring_model

    measuring_model(config.select.perplexity, config.model)


def _perplexity_identity(c: Context) -> Any:
    """The model that measures, and what it has room for; not which end is taken."""
    from lm_mixup.augment.perplexity import measuring_model

    config = c.config.select.perplexity
    model = measuring_model(config, c.config.model)
    return [model.identity(), file_versions(model.path), config.max_length]


def _select(c: Context) -> Outcome:
    from lm_mixup.augment.select import select

    return select(
        c.stage("rate_distilled"),
        c.stage("curate"),
        c.stage("embed"),
        c.stage("neighbors"),
        c.out,
        c.config.select,
        c.config.seed,
        c.stage("perplexity") if _is_measured(c.config) else None,
    )


STAGES = (
    Stage(
        "ingest",
        (),
        lambda c: [
            c.config.augment.pool,
            file_versions(c.config.augment.pool),
            c.config.ingest.identity(),
            _eval_versions(c),
            c.config.data.identity(),
        ],
        _ingest,
        check=_check_pool,
    ),
    Stage("rate", ("ingest",), sections("rate"), _rate),
    Stage("embed", ("ingest",), _embed_identity, _embed, check=_check_eval_sets),
    Stage("neighbors", ("embed",), sections("neighbors"), _neighbors),
    Stage("curate", ("rate", "embed", "neighbors"), sections("curate"), _curate),
    Stage("cluster", ("curate", "embed"), sections("cluster", "data"), _cluster),
    Stage(
        "distill",
        ("cluster", "curate"),
        lambda c: [sections("distill", "model")(c), _distiller_identity(c)],
        _distill,
    ),
    Stage(
        "rate_distilled",
        ("distill",),
        lambda c: [sections("rate", "embedder")(c), c.config.select.neighbors, c.config.select.min_score],
        _rate_distilled,
    ),
    Stage(
        "perplexity",
        ("rate_distilled", "curate"),
        _perplexity_identity,
        _perplexity,
        _is_measured,
        _check_measuring,
    ),
    Stage(
        "select",
        ("rate_distilled", "curate", "embed", "neighbors", "perplexity"),
        sections("select"),
        _select,
    ),
)
