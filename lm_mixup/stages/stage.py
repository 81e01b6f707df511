"""What a stage is, and what the identities of several stages are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm_mixup.config import Config
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir


@dataclass(frozen=True)
class Context:
    """What a stage's runner is given."""

    run: RunDir
    config: Config
    out: StageDir

    def stage(self, name: str) -> StageDir:
        """Another stage's directory."""
        return self.run.stage(name)


def nothing_to_check(config: Config) -> None:
    """Of stages that nothing but their inputs can stop."""


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: Its folder.
        inputs: The stages it reads.
        identity: The config values that decide its output, beside the seed.
        run: Does the work.
        when: Whether a config has this stage; the others do without it, and read nothing of it.
        check: Refuses, before any stage is run, what would fail after minutes: missing keys, files, models.
            Raises `InputError`.
        reads: Whether it reads its inputs under a config.
    """

    name: str
    inputs: tuple[str, ...]
    identity: Callable[[Context], Any]
    run: Callable[[Context], Outcome]
    when: Callable[[Config], bool] = lambda config: True
    check: Callable[[Config], None] = nothing_to_check
    reads: Callable[[Config], bool] = lambda config: True


def sections(*names: str) -> Callable[[Context], Any]:
    """Identity of a stage that whole sections decide."""
    return lambda c: [getattr(c.config, name).identity() for name in names]


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


def is_published(config: Config) -> bool:
    """Whether MIXTURE is one that others published, not built from passages."""
    return config.build.mixture is not None
