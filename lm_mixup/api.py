"""The public Python interface: the verbs of the command line as functions, and a run as an object.

    import lm_mixup

    run = lm_mixup.augment(pool="my.jsonl")
    run.train.to_pandas()

Works in a script and in a notebook. Results are those of the command line: both call `pipeline.run_verb`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.config import Config
from lm_mixup.config.load import load_config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Manifest, RunDir
from lm_mixup.stages import STAGES

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_RECIPE = "laptop"


class Run:
    """A run directory, finished or not.

    Args:
        run_dir: A local path or URI.

    Raises:
        InputError: There is no run in it.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._run = RunDir(run_dir)
        if not self._run.exists("run.json"):
            raise InputError(f"{run_dir}: not a run directory (no run.json in it)")

    @property
    def uri(self) -> str:
        """Where the run lies."""
        return self._run.uri

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests of the stages that are done, in pipeline order."""
        found = {name: self._run.stage(name).manifest() for name in STAGES}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    @property
    def train(self) -> Dataset:
        """The training set: `prompt, completion, id, origin, parent_ids`.

        Raises:
            InputError: The stage `select` is not done.
        """
        return self._dataset("select", "data")

    def rows(self, stage: str) -> Dataset:
        """The rows that came out of a stage.

        Raises:
            InputError: There is no such stage, or it is not done.
        """
        return self._dataset(stage, "data")

    def rejected(self, stage: str) -> Dataset:
        """The rows that a stage rejected, with their `reason`; an empty data set where it rejected none.

        Raises:
            InputError: There is no such stage, or it is not done.
        """
        return self._dataset(stage, "rejected")

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a training stage's `metrics.jsonl`, one per step.

        Raises:
            InputError: The stage has written none.
        """
        path = f"{stage}/metrics.jsonl"
        if not self._run.exists(path):
            raise InputError(f"{self.uri}: there is no {path}; sft, grpo and finetune write one")
        return [json.loads(line) for line in self._run.read_bytes(path).splitlines() if line.strip()]

    def report(self) -> str:
        """Writes the report anew; returns the path of its page."""
        from lm_mixup.config import ReportConfig
        from lm_mixup.report.page import report

        settings = (self._run.read_json("run.json") or {}).get("config", {}).get("report", {})
        report(self._run, ReportConfig.model_validate(settings))
        return f"{self.uri}/report/index.html"

    def _dataset(self, stage: str, kind: Any) -> Dataset:
        from datasets import Dataset

        if stage not in STAGES:
            raise InputError(f"{stage}: no such stage; stages are {', '.join(STAGES)}")
        opened = self._run.stage(stage)
        if opened.manifest() is None:
            raise InputError(f"{self.uri}: stage {stage} is not done")
        table = opened.read(kind=kind)
        return Dataset(table) if table.num_columns else Dataset.from_dict({"reason": []})

    def __repr__(self) -> str:
        return f"Run({self.uri!r}, done: {', '.join(self.manifests) or 'nothing'})"

    def _repr_html_(self) -> str:
        """A table of the stages, as notebooks show it."""
        head = "".join(f"<th>{name}</th>" for name in ("stage", "rows in", "out", "rejected", "seconds"))
        body = "".join(
            f"<tr><td>{name}</td><td>{m.rows_in:,}</td><td>{m.rows_out:,}</td><td>{m.rows_rejected:,}</td>"
            f"<td>{m.seconds:.1f}</td></tr>"
            for name, m in self.manifests.items()
        )
        return f"<p><code>{html.escape(self.uri)}</code></p><table><tr>{head}</tr>{body}</table>"


def build(**options: Any) -> Run:
    """Writes MIXTURE. Options as for `run`."""
    return _run("build", options)


def train(**options: Any) -> Run:
    """Trains the distiller on the MIXTURE of the same run directory. Options as for `run`."""
    return _run("train", options)


def augment(pool: str | Path | None = None, policy: str | Path | None = None, **options: Any) -> Run:
    """Turns a pool into a training set.

    Args:
        pool: JSONL, Parquet, a folder, a glob, `hf:ORG/NAME`; default: the recipe's.
        policy: The distiller, a folder or Hub name; default: what this run has trained.
        options: As for `run`.
    """
    return _run("augment", options, {"augment.pool": pool, "augment.policy": policy})


def evaluate(**options: Any) -> Run:
    """Fine-tunes a model on the training set of the same run directory. Options as for `run`."""
    return _run("evaluate", options)


def run(**options: Any) -> Run:
    """Builds, trains and augments.

    Args:
        options: `config`, a `Config`, a YAML file or nothing; `recipe`, the packaged recipe where there is no
            config (default: laptop); `run_dir` (default: runs/default); `set`, a mapping of dotted keys
            to values; `until`, `only`, `fresh` and `take_over` as on the command line.

    Returns:
        The run, its finished stages skipped if they were done before.

    Raises:
        InputError: A config, key, file or model is not valid; one line that says what to do.
    """
    return _run("run", options)


def _run(verb: str, options: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Run:
    from lm_mixup.pipeline import Options, run_verb

    known = ("config", "recipe", "run_dir", "set", "until", "only", "fresh", "take_over")
    if unknown := options.keys() - set(known):
        raise TypeError(f"{verb}: unknown options {sorted(unknown)}; there are {', '.join(known)}")
    config = options.get("config")
    if not isinstance(config, Config):
        config = load_config(config or options.get("recipe", DEFAULT_RECIPE))
    chosen = {**(overrides or {}), **options.get("set", {})}
    config = with_values(config, {key: value for key, value in chosen.items() if value is not None})
    opened = RunDir(options.get("run_dir", "runs/default"))
    wanted = Options(
        options.get("until"),
        options.get("only"),
        options.get("fresh", False),
        options.get("take_over", False),
    )
    run_verb(verb, config, opened, wanted)
    return Run(opened.uri)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A config with some dotted keys set, validated anew.

    Raises:
        InputError: A key or value is not valid.
    """
    from pydantic import ValidationError

    from lm_mixup.config.load import explain_errors

    raw = config.model_dump(mode="json")
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = raw
        for name in parents:
            if not isinstance(node.get(name), dict):
                raise InputError(f"{key}: {name} is not a section")
            node = node[name]
        node[leaf] = str(value) if isinstance(value, Path) else value
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain_errors(error)) from None


__all__ = ["Run", "augment", "build", "evaluate", "load_config", "run", "train"]
