"""What a stage is: the function that does its work, what it reads, and which settings decide its output."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm_mixup.config import ChatConfig, Config, ModelConfig, Section
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir
from lm_mixup.models.resolve import model_version


@dataclass(frozen=True)
class Stage:
    """One row of the tables in this package: `function(*inputs, out, *settings)` is the work of a stage.

    Two rows may share a name where a stage has two ways of doing its work; `when` tells them apart.

    Attributes:
        name: The stage's folder in the run directory.
        run: `module:function`. Imported when the stage runs, so heavy libraries load then.
        inputs: Stages that are read, each passed as a `StageDir` in this order. `a?` is passed as None where
            the config has no stage `a`; `a|b` is the first of the two that is done.
        settings: Dotted config keys, each value passed in this order. They decide the output, but for those
            that the config marks as `resources`.
        when: Whether a config has this row.
        check: Refuses, before any stage runs, what would fail minutes later: missing keys, files, models.
            Raises `InputError`.
        versions: What decides the output beside the settings: versions of the files that these name.
        identity: Takes the place of `settings` in the fingerprint where only a part of them decides.
        needs_output: Whether the run has failed if not a single row comes out.
    """

    name: str
    run: str
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    when: Callable[[Config], bool] = lambda config: True
    check: Callable[[Config], None] = lambda config: None
    versions: Callable[[Config], Any] = lambda config: None
    identity: Callable[[Config], Any] | None = None
    needs_output: bool = False

    def function(self) -> Callable[..., Outcome]:
        """Imports the function that does the work."""
        module, _, name = self.run.partition(":")
        function: Callable[..., Outcome] = getattr(importlib.import_module(module), name)
        return function

    def settings_identity(self, config: Config) -> Any:
        """The JSON-able values that decide the output, with the versions of the files that they name."""
        own = self.identity(config) if self.identity else [_identity(config, key) for key in self.settings]
        return [own, self.versions(config)]

    def call(self, config: Config, inputs: list[StageDir | None], out: StageDir) -> Outcome:
        """Does the work."""
        return self.function()(*inputs, out, *(value_at(config, key) for key in self.settings))


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted config key."""
    return functools.reduce(getattr, key.split("."), config)


def _identity(config: Config, key: str) -> Any:
    """What a key adds to the fingerprint: nothing where it is marked as `resources`."""
    holder, _, name = key.rpartition(".")
    section = value_at(config, holder) if holder else config
    extra = type(section).model_fields[name].json_schema_extra
    if isinstance(extra, dict) and extra.get("resources"):
        return None
    value = getattr(section, name)
    return section_identity(value) if isinstance(value, Section) else value


def section_identity(section: Section) -> Any:
    """A section's identity; of one that calls a model by a name of the package, the model's digests too.

    Where such a model lies, and since when, is no part of it.
    """
    named: list[str] = []
    if isinstance(section, ModelConfig):
        named = model_version(section.path)
    elif isinstance(section, ChatConfig) and section.backend == "vllm" and section.model:
        named = model_version(section.model)
    return [section.identity(), named] if named else section.identity()


def file_versions(path: str, key: str = "augment.pool") -> list[str]:
    """Digests of size and time of the files under a path, so that a changed input is noticed."""
    import fsspec

    from lm_mixup.augment.reading.hf_datasets import hub_files, is_hub_name

    if is_hub_name(path):
        return hub_files(path, key)  # each names the revision
    fs, root = fsspec.core.url_to_fs(path)
    found = fs.glob(root) if "*" in root else [root]
    files = sorted(f for top in found for f in (fs.find(top) if fs.isdir(top) else [top]) if fs.exists(f))
    return [str(fs.ukey(file)) for file in files]


def choose_input(run: RunDir, names: str) -> StageDir:
    """The first stage of `a|b` that is done.

    Raises:
        InputError: None is.
    """
    stages = [run.stage(name) for name in names.split("|")]
    for stage in stages:
        if stage.manifest() is not None:
            return stage
    raise InputError(f"{run.uri}: stage {' or '.join(names.split('|'))} is not done; run it first")
