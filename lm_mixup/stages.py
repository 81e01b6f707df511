"""The stages: which follows which, what each reads, and which config values decide its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_mixup.config import Config, EmbedDecontaminateConfig
from lm_mixup.errors import InputError
from lm_mixup.progress import say
from lm_mixup.runs import Outcome, RunDir, StageDir

DEMO_POLICY = "runs/demo/grpo/model"


@dataclass(frozen=True)
class Context:
    """What a stage's runner is given."""

    run: RunDir
    config: Config
    out: StageDir

    def stage(self, name: str) -> StageDir:
        """Another stage's directory."""
        return self.run.stage(name)


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: Its folder.
        inputs: The stages it reads.
        identity: The config values that decide its output, beside the seed.
        run: Does the work.
        when: Whether a config has this stage; the others do without it, and read nothing of it.
    """

    name: str
    inputs: tuple[str, ...]
    identity: Callable[[Context], Any]
    run: Callable[[Context], Outcome]
    when: Callable[[Config], bool] = lambda config: True


def _passages(c: Context) -> Outcome:
    from lm_mixup.mixture.passages import passages

    return passages(c.out, c.config.build, c.config.data, c.config.seed)


def _generate(c: Context) -> Outcome:
    from lm_mixup.mixture.generate import generate

    config = c.config
    return generate(
        c.stage("passages"), c.out, config.build, config.rate, config.teacher, config.data, config.seed
    )


def _degrade(c: Context) -> Outcome:
    from lm_mixup.mixture.degrade import degrade

    config = c.config
    return degrade(
        c.stage("generate"), c.out, config.build, config.rate, config.teacher, config.data, config.seed
    )


def _embed_samples(c: Context) -> Outcome:
    from lm_mixup.data.embed import embed

    return embed(c.stage("generate"), c.out, c.config.embedder)


def _pair_samples(c: Context) -> Outcome:
    from lm_mixup.mixture.pair_samples import pair_samples

    return pair_samples(c.stage("generate"), c.stage("embed_samples"), c.out, c.config.build)


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
    if _is_published(c.config):
        from lm_mixup.mixture.published import published

        return published(c.out, c.config.build, c.config.data)
    from lm_mixup.mixture.assemble import mixture

    merged = c.stage("crosstopic") if _is_merged(c.config) else None
    return mixture(
        c.stage("generate"), c.stage("degrade"), c.out, c.config.build, c.config.data, c.config.seed, merged
    )


def _rate_mixture(c: Context) -> Outcome:
    from lm_mixup.mixture.rate_mixture import rate_mixture

    return rate_mixture(c.stage("mixture"), c.out, c.config.rate, c.config.library.rows, c.config.seed)


def _sft(c: Context) -> Outcome:
    from lm_mixup.train.sft import sft

    config = c.config
    return sft(c.stage("mixture"), c.out, config.sft, config.model, config.seed, config.tracking)


def _library(c: Context) -> Outcome:
    from lm_mixup.rewards.library import library

    config = c.config
    return library(
        [c.stage(name) for name in inputs_of(BY_NAME["library"], config)],
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


def _ingest(c: Context) -> Outcome:
    from lm_mixup.data.ingest import ingest

    return ingest(c.out, c.config.augment.pool, c.config.ingest, c.config.data, c.config.seed)


def _rate(c: Context) -> Outcome:
    from lm_mixup.data.rate import rate

    return rate(c.stage("ingest"), c.out, c.config.rate)


def _embed(c: Context) -> Outcome:
    from lm_mixup.data.embed import embed

    return embed(c.stage("ingest"), c.out, c.config.embedder, _eval_sets(c))


def _eval_sets(c: Context) -> EmbedDecontaminateConfig | None:
    """What embeddings are compared with, the files filled in."""
    chosen = c.config.embed.decontaminate
    return chosen.model_copy(update={"files": c.config.eval_files()}) if chosen else None


def _embed_identity(c: Context) -> Any:
    known: list[Any] = [c.config.embedder.identity()]
    if chosen := _eval_sets(c):
        known += [chosen.identity(), [_file_versions(pool) for pool in chosen.files]]
    return known


def _neighbors(c: Context) -> Outcome:
    from lm_mixup.data.neighbors import neighbors

    return neighbors(c.stage("embed"), c.out, c.config.neighbors, c.config.seed)


def _curate(c: Context) -> Outcome:
    from lm_mixup.data.curate import curate

    config = c.config
    return curate(
        c.stage("rate"), c.stage("neighbors"), c.out, config.curate, config.seed, embed=c.stage("embed")
    )


def _cluster(c: Context) -> Outcome:
    from lm_mixup.data.cluster import cluster

    return cluster(c.stage("curate"), c.stage("embed"), c.out, c.config.cluster, c.config.data, c.config.seed)


def _distill(c: Context) -> Outcome:
    from lm_mixup.data.distill import DEMONSTRATION_NOTICE, distill, is_demonstration

    policy = distiller(c)
    if is_demonstration(policy) and c.config.augment.pool != "world":
        say(f"[bold yellow]note[/]: {DEMONSTRATION_NOTICE}")
    return distill(c.stage("cluster"), c.stage("curate"), c.out, policy, c.config.distill, c.config.model)


def _rate_distilled(c: Context) -> Outcome:
    from lm_mixup.data.rate_distilled import rate_distilled

    select = c.config.select
    return rate_distilled(
        c.stage("distill"), c.out, c.config.rate, c.config.embedder, select.neighbors, select.min_score
    )


def _perplexity(c: Context) -> Outcome:
    from lm_mixup.data.perplexity import perplexity

    config = c.config
    return perplexity(
        c.stage("rate_distilled"), c.stage("curate"), c.out, config.select.perplexity, config.model
    )


def _select(c: Context) -> Outcome:
    from lm_mixup.data.select import select

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


def distiller(c: Context) -> str:
    """The policy that distils: the config's, else the one this run trained, else the demo's.

    Raises:
        InputError: There is none.
    """
    from lm_mixup.backends.policy import check_model_path

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
    return [policy, _file_versions(policy)]


def _file_versions(path: str) -> list[str]:
    """Digests of size and time of the files under a path, so that a changed input is noticed."""
    import fsspec

    from lm_mixup.data.hf_datasets import hub_files, is_hub_name

    if is_hub_name(path):
        return hub_files(path)  # each names the revision
    fs, root = fsspec.core.url_to_fs(path)
    found = fs.glob(root) if "*" in root else [root]
    files = sorted(f for top in found for f in (fs.find(top) if fs.isdir(top) else [top]) if fs.exists(f))
    return [str(fs.ukey(file)) for file in files]


def _eval_versions(c: Context) -> list[list[str]]:
    """Versions of the evaluation sets that rows are compared with."""
    chosen = c.config.ingest.decontaminate
    return [_file_versions(pool) for pool in chosen.files] if chosen else []


def _is_published(config: Config) -> bool:
    return config.build.mixture is not None


def _is_built(config: Config) -> bool:
    return config.build.mixture is None


def _is_merged(config: Config) -> bool:
    """Whether a teacher model merges samples; what the offline one wrote is merged by rules."""
    return _is_built(config) and config.teacher.backend != "offline" and config.build.crosstopic_rate > 0


def _mixture_identity(c: Context) -> Any:
    """What decides the MIXTURE: of a published one, its files and how they are read."""
    build = c.config.build
    if build.mixture is None:
        return _build(c)
    from lm_mixup.data.hf_datasets import is_hub_name
    from lm_mixup.mixture.published import mixture_folder

    folder = mixture_folder(build.mixture)
    versions = [Path(folder).name] if is_hub_name(build.mixture) else _file_versions(folder)
    return [build.mixture, build.mixture_separator, c.config.data.identity(), versions]


def _is_measured(config: Config) -> bool:
    return config.select.method == "perplexity"


def _perplexity_identity(c: Context) -> Any:
    """The model that measures, and what it has room for; not which end is taken."""
    from lm_mixup.data.perplexity import measuring_model

    config = c.config.select.perplexity
    model = measuring_model(config, c.config.model)
    return [model.identity(), _file_versions(model.path), config.max_length]


def _build(c: Context) -> Any:
    return [c.config.build.identity(), c.config.data.identity(), _file_versions(c.config.build.passages)]


def _rated_build(c: Context) -> Any:
    return [_build(c), c.config.rate.identity(), c.config.teacher.identity()]


def _sections(*names: str) -> Callable[[Context], Any]:
    """Identity of a stage that whole sections decide."""
    return lambda c: [getattr(c.config, name).identity() for name in names]


def _grpo_identity(c: Context) -> Any:
    """The sections, and the text of every custom reward function."""
    from lm_mixup.rewards.custom import source_digest

    custom = c.config.rewards.custom
    digests = [source_digest(name, reward) for name, reward in custom.items()]
    return [*_sections("grpo", "model", "rewards", "embedder")(c), *digests]


STAGES: tuple[Stage, ...] = (
    Stage("passages", (), _build, _passages, _is_built),
    Stage("generate", ("passages",), _rated_build, _generate, _is_built),
    Stage("degrade", ("generate",), _rated_build, _degrade, _is_built),
    Stage("embed_samples", ("generate",), _sections("embedder"), _embed_samples, _is_merged),
    Stage("pair_samples", ("generate", "embed_samples"), _build, _pair_samples, _is_merged),
    Stage("crosstopic", ("generate", "degrade", "pair_samples"), _rated_build, _crosstopic, _is_merged),
    Stage("mixture", ("generate", "degrade", "crosstopic"), _mixture_identity, _mixture),
    Stage("rate_mixture", ("mixture",), _sections("rate", "library"), _rate_mixture, _is_published),
    Stage("sft", ("mixture",), _sections("sft", "model"), _sft),
    Stage(
        "library",
        ("generate", "degrade", "rate_mixture"),
        _sections("library", "rewards", "embedder"),
        _library,
    ),
    Stage("grpo", ("mixture", "sft", "library"), _grpo_identity, _grpo),
    Stage(
        "ingest",
        (),
        lambda c: [
            c.config.augment.pool,
            _file_versions(c.config.augment.pool),
            c.config.ingest.identity(),
            _eval_versions(c),
            c.config.data.identity(),
        ],
        _ingest,
    ),
    Stage("rate", ("ingest",), _sections("rate"), _rate),
    Stage("embed", ("ingest",), _embed_identity, _embed),
    Stage("neighbors", ("embed",), _sections("neighbors"), _neighbors),
    Stage("curate", ("rate", "embed", "neighbors"), _sections("curate"), _curate),
    Stage("cluster", ("curate", "embed"), _sections("cluster", "data"), _cluster),
    Stage(
        "distill",
        ("cluster", "curate"),
        lambda c: [_sections("distill", "model")(c), _distiller_identity(c)],
        _distill,
    ),
    Stage(
        "rate_distilled",
        ("distill",),
        lambda c: [_sections("rate", "embedder")(c), c.config.select.neighbors, c.config.select.min_score],
        _rate_distilled,
    ),
    Stage("perplexity", ("rate_distilled", "curate"), _perplexity_identity, _perplexity, _is_measured),
    Stage(
        "select",
        ("rate_distilled", "curate", "embed", "neighbors", "perplexity"),
        _sections("select"),
        _select,
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}

GROUPS: dict[str, tuple[str, ...]] = {
    "build": (
        "passages",
        "generate",
        "degrade",
        "embed_samples",
        "pair_samples",
        "crosstopic",
        "mixture",
        "rate_mixture",
    ),
    "train": ("sft", "library", "grpo"),
    "augment": (
        "ingest",
        "rate",
        "embed",
        "neighbors",
        "curate",
        "cluster",
        "distill",
        "rate_distilled",
        "perplexity",
        "select",
    ),
}
VERBS = GROUPS | {"run": sum(GROUPS.values(), ())}


def stages_of(verb: str, config: Config) -> tuple[str, ...]:
    """The stages of a verb that a config has, in order."""
    return tuple(name for name in VERBS[verb] if BY_NAME[name].when(config))


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """The stages that a stage reads under a config."""
    return tuple(name for name in stage.inputs if BY_NAME[name].when(config))
