"""`lm-mixup experiment`: runs the arms of an experiment under several seeds, one after another, and compares.

Layout of the folder: `base/`, a run whose stages all arms share; `arms/ARM/SEED/`, a run for each arm and
seed, with `result.json` once it is measured; `train/`, the rows of arms that are not selected; then
`table.csv`, `table.md` and `plot.png`. Each run is an ordinary run directory. An experiment that was killed
goes on where it stopped, and ends with the same table: what is measured is not measured again unless the
config changed.

The seeds are those of selection and training. Pool, ratings, clusters and distilled rows are the same for all
of them: they are the base run's, under the config's own seed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_mixup.api import with_values
from lm_mixup.config import Config
from lm_mixup.core.errors import InputError, input_error_in, reason_of
from lm_mixup.core.lease import LeaseLost, hold_lease
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import RunDir, fingerprint, write_whole
from lm_mixup.demo import QUESTIONS_TASK, WORLD, write_questions
from lm_mixup.evaluate.mapping import MEASURES, figures
from lm_mixup.experiments.arms import EXPERIMENTS, Arm, Experiment, Row
from lm_mixup.experiments.table import Result, write_table
from lm_mixup.pipeline import Options, run_verb
from lm_mixup.stages.stage import value_at
from lm_mixup.train.tracking import read_stage_metrics

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # of some shared file systems
_QUESTION_SEED = 0  # the same questions for every arm and seed


@dataclass(frozen=True)
class Grid:
    """What is asked of an experiment.

    Attributes:
        name: Of the experiment.
        config: The resolved config; arms change it.
        folder: Where everything is written; on a disk.
        seeds: How many: the config's seed, and those that follow it.
        arms: Which arms; none: all.
        take_over: Whether to take the folder from another command that holds it.
        command: As it was given, for `run.json`.
    """

    name: str
    config: Config
    folder: Path
    seeds: int = 3
    arms: tuple[str, ...] = ()
    take_over: bool = False
    command: Sequence[str] = field(default_factory=tuple)

    @property
    def experiment(self) -> Experiment:
        """The definition."""
        return EXPERIMENTS[self.name]

    @property
    def chosen(self) -> dict[str, Arm]:
        """The arms to run, in the order of the definition."""
        return {
            name: arm
            for name, arm in self.experiment.arms.items()
            if name in self.arms
            or (not self.arms and (not arm.needs or value_at(self.config, arm.needs) is not None))
        }


def check(grid: Grid) -> None:
    """Refuses what cannot be run, before anything is started.

    Raises:
        InputError: An unknown experiment or arm, a value that an arm cannot set, or nothing to measure.
    """
    if grid.name not in EXPERIMENTS:
        raise InputError(f"experiment {grid.name}: there is none; choose one of {', '.join(EXPERIMENTS)}")
    known = grid.experiment.arms
    if unknown := [name for name in grid.arms if name not in known]:
        raise InputError(f"--arms {', '.join(unknown)}: not of {grid.name}; its arms are {', '.join(known)}")
    if grid.seeds < 1:
        raise InputError(f"--seeds {grid.seeds}: at least 1")
    if grid.experiment.measure == "benchmark":
        if not grid.config.benchmark.tasks:
            raise InputError(
                f"experiment {grid.name}: benchmark.tasks is empty, so nothing is measured; name tasks of "
                f"lm-eval, or with augment.pool=world {QUESTIONS_TASK}"
            )
        if QUESTIONS_TASK in grid.config.benchmark.tasks and grid.config.augment.pool != WORLD:
            raise InputError(
                f"benchmark.tasks: {QUESTIONS_TASK} asks what the demo pool says; set augment.pool=world"
            )
    if grid.experiment.measure == "mapping" and not grid.config.mapping.rows:
        raise InputError(
            f"experiment {grid.name}: mapping.rows is 0; set it to the rows to compare, e.g. 100"
        )
    if grid.experiment.measure == "validation" and not grid.config.grpo.eval_prompts:
        raise InputError(
            f"experiment {grid.name}: it measures GRPO's validation, which is off; set grpo.eval_prompts "
            "above 0"
        )
    for name, arm in grid.chosen.items():
        if arm.needs and value_at(grid.config, arm.needs) is None:
            raise InputError(
                f"experiment {grid.name}: the arm {name} needs {arm.needs}, which is not set; set it, or "
                "leave the arm out"
            )
        with_values(grid.config, arm.values)
    asked = RunDir(grid.folder).read_json("experiment.json")
    if asked is not None and asked["name"] != grid.name:
        raise InputError(
            f"{grid.folder} holds the experiment {asked['name']}, whose table would be lost; choose another "
            "--run-dir"
        )


def run_experiment(grid: Grid) -> list[Result]:
    """Runs what is not measured yet, and writes table and plot after each arm; shows the table at the end.

    A run that fails is told in the table, with its reason, and does not stop the others.

    Returns:
        A result for each arm and seed, in order.

    Raises:
        InputError: As `check`; or the base run cannot be made.
        LeaseLost: Another command took the folder over.
    """
    check(grid)
    own = RunDir(grid.folder)
    with hold_lease(own, take_over=grid.take_over):
        own.write_json("experiment.json", {"name": grid.name, "command": list(grid.command)})
        base = _base_run(grid)
        config = _with_own_task(grid, base)
        results: list[Result] = []
        arms = grid.chosen
        for name, arm in arms.items():
            for seed in range(config.seed, config.seed + grid.seeds):
                place = f"run {len(results) + 1} of {len(arms) * grid.seeds}"
                say(f", seed {seed} ({place})", lead=name, style="bold")
                results.append(_result_of(grid, base, config, name, arm, seed))
            write_table(grid.folder, grid.experiment, results)
        for line in (grid.folder / "table.md").read_text(encoding="utf-8").splitlines():
            say(line)
    return results


def _base_run(grid: Grid) -> RunDir:
    base = RunDir(grid.folder / "base")
    for verb, last in grid.experiment.shared:
        run_verb(verb, grid.config, base, Options(until=last, take_over=True, command=grid.command))
    return base


def _with_own_task(grid: Grid, base: RunDir) -> Config:
    """The config, which names the closed world's questions where they are asked for."""
    config = grid.config
    if grid.experiment.measure != "benchmark" or QUESTIONS_TASK not in config.benchmark.tasks:
        return config
    folder = grid.folder / "questions"
    texts = (
        f"{row['prompt']}\n{row['completion']}"
        for table in base.stage("ingest").iter_parts(["prompt", "completion"])
        for row in table.to_pylist()
    )
    asked = write_questions(folder, texts, _QUESTION_SEED)
    say(f"  {QUESTIONS_TASK}: {asked} questions")
    return with_values(config, {"benchmark.include_path": str(folder.resolve())})


def _result_of(grid: Grid, base: RunDir, config: Config, name: str, arm: Arm, seed: int) -> Result:
    """The result of one arm under one seed: read, if it is there; else made."""
    run = RunDir(grid.folder / "arms" / _file_name(name) / str(seed))
    chosen = with_values(config, {**arm.values, **_measured_values(grid, run, config, arm), "seed": seed})
    stages = (*grid.experiment.adopted, "curate")  # the last: arms that are not selected take its rows
    bases = {name: found.fingerprint for name in stages if (found := base.stage(name).manifest())}
    digest = fingerprint(chosen.identity(), arm.stages, bases)
    known = run.read_json("result.json")
    if known is not None and known["digest"] == digest:
        return Result(name, seed, known["rows"], known["scores"])
    try:
        if arm.train is not None:
            file = grid.folder / "train" / f"{_file_name(name)}-{seed}.jsonl"
            _write_rows(file, arm.train(base, chosen, seed))
            chosen = with_values(chosen, {"finetune.train": str(file.resolve())})
        adopt(base, run, grid.experiment.adopted)
        for verb, stage in arm.stages:
            run_verb(
                verb, chosen, run, Options(only=stage, take_over=True, report=False, command=grid.command)
            )
        rows, scores = _measure(grid.experiment, run, arm)
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - it is a line of the table, and the other arms go on
        theirs = input_error_in(error)
        reason = f"{theirs if theirs is not None else reason_of(error):.300}"
        say(f": {reason}; details: {run.uri}/logs/", lead="  failed")
        return Result(name, seed, failure=reason)
    run.write_json("result.json", {"digest": digest, "rows": rows, "scores": scores})
    return Result(name, seed, rows, scores)


def _measured_values(grid: Grid, run: RunDir, config: Config, arm: Arm) -> dict[str, Any]:
    """What is measured: one model, where the stage would measure several."""
    if grid.experiment.measure == "mapping":
        begun = config.model.path
        model = begun if arm.measured == "base" else f"{grid.folder.resolve()}/base/{arm.measured}/model"
        return {"mapping.models": [model]}
    if grid.experiment.measure != "benchmark":
        return {}
    base = (config.finetune.model or config.model).path
    trained = str((Path(run.path) / "finetune" / "model").resolve())
    return {"benchmark.model": trained if arm.measured == "trained" else base}


def adopt(base: RunDir, run: RunDir, stages: Iterable[str]) -> None:
    """Takes finished stages of one run directory into another, as hard links where the disk has them.

    A stage appears whole or not at all. One of another fingerprint is replaced.
    """
    for name in stages:
        theirs, ours = base.stage(name).manifest(), run.stage(name).manifest()
        if theirs is None or (ours is not None and ours.fingerprint == theirs.fingerprint):
            continue
        source, target = Path(base.path) / name, Path(run.path) / name
        scratch = target.with_name(f".{name}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)  # of a command that was killed
        shutil.copytree(source, scratch, copy_function=_link)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    """The same rows leave the file as it is: its time is part of what `finetune` is known by."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)


def _measure(experiment: Experiment, run: RunDir, arm: Arm) -> tuple[int, dict[str, list[float]]]:
    """Rows trained on, and for each measure its values by question: one value where there are none."""
    if experiment.measure == "validation":
        lines = read_stage_metrics(run.stage("grpo"), "validation.jsonl")
        if not lines:
            raise InputError("GRPO wrote no validation: no row of MIXTURE's split grpo is left for it")
        chosen = lines[0] if arm.measured == "base" else lines[-1]
        found = {name: [float(v)] for name, v in chosen.items() if name != "step" and v is not None}
        manifest = run.stage("grpo").manifest()
        rows = manifest.rows_used if manifest and arm.measured == "trained" else 0
        return rows or 0, found
    if experiment.measure == "mapping":
        return 0, _by_row(run)
    manifest = run.stage("finetune").manifest() if arm.measured == "trained" else None
    return manifest.rows_out if manifest else 0, _by_question(run)


def _by_row(run: RunDir) -> dict[str, list[float]]:
    """The figures of each row of the stage `mapping`, by id; of facts, the rows whose reference has some."""
    rows = sorted(run.stage("mapping").read().to_pylist(), key=lambda row: str(row["id"]))
    one_by_one = [figures([row]) for row in rows]
    values = {name: [row[name] for row in one_by_one if row[name] is not None] for name in MEASURES}
    return {name: found for name, found in values.items() if found}


def _by_question(run: RunDir) -> dict[str, list[float]]:
    """The metrics of the stage `benchmark`, `TASK/METRIC`: every question's value, in order.

    Of a group, its questions are those of its tasks, where their mean is the group's figure; its tasks have
    no figures of their own here.
    """
    results = run.stage("benchmark").read().to_pylist()
    samples: dict[str, list[Mapping[str, Any]]] = {}
    for name in run.listing("benchmark/samples"):
        for line in run.read_bytes(f"benchmark/samples/{name}").splitlines():
            row = json.loads(line)
            samples.setdefault(row["task"], []).append(row)
    groups = {row["benchmark"] for row in results if row["task"] == row["benchmark"]} - samples.keys()
    found: dict[str, list[float]] = {}
    for row in results:
        if row["benchmark"] in groups and row["task"] != row["benchmark"]:
            continue
        names = [row["task"]]
        if row["task"] in groups:
            own = {leaf["task"] for leaf in results if leaf["benchmark"] == row["task"]}
            names = sorted(own & samples.keys())
        values = [value for name in names for value in _values(samples.get(name, []), row["metric"])]
        questions = values and math.isclose(sum(values) / len(values), row["value"], abs_tol=1e-9)
        found[f"{row['task']}/{row['metric']}"] = values if questions else [row["value"]]
    return found


def _values(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Each question's value of `METRIC` or `METRIC,FILTER`, in order; none if a question has no number."""
    name, _, filtered = metric.partition(",")
    asked = [sample for sample in samples if sample.get("filter", "none") == (filtered or "none")]
    values = [sample.get(name) for sample in sorted(asked, key=lambda sample: sample["doc_id"])]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(values) else []


def _file_name(name: str) -> str:
    return re.sub(r"[^\w%.-]+", "-", name)


def failed(results: Sequence[Result]) -> list[Result]:
    """Those without a figure."""
    return [result for result in results if result.failure]
