"""A grid without models: what is shared, resumed, told of failures, and refused."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import pyarrow as pa
import pytest

from lm_mixup.api import with_values
from lm_mixup.config.load import load_config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Manifest, Receipt, RunDir
from lm_mixup.evaluate.benchmark import RESULT
from lm_mixup.experiments import grid as grids
from lm_mixup.experiments.arms import EXPERIMENTS
from lm_mixup.experiments.grid import Grid, adopt, check, failed, run_experiment
from lm_mixup.experiments.table import HEADER, Result, lines_of, markdown


def asked(folder: Path, **changes) -> Grid:
    return Grid(
        **{"name": "ratio", "config": load_config("experiment-closed-world"), "folder": folder} | changes
    )


def finish(run: RunDir, stage: str, fingerprint: str, **files: str) -> None:
    for name, text in files.items():
        run.write_bytes(f"{stage}/{name}.txt", text.encode())
    run.stage(stage).finish(Manifest(stage, fingerprint, {}, 0, 0, 0, 0.0))


class Verbs:
    """Stands for `run_verb`: writes what `_measure` reads, counts, and fails where it is told to."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.fails_in: str | None = None

    def __call__(self, verb, config, run: RunDir, options) -> None:
        where = Path(run.path).relative_to(self.folder).as_posix()
        self.ran.append((where, options.only or options.until))
        if self.fails_in is not None and self.fails_in in where:
            raise ValueError("Ray says\nsomething else") from RuntimeError("Traceback:\n[the] judge is gone")


@pytest.fixture
def verbs(monkeypatch, tmp_path) -> Verbs:
    fake = Verbs()
    fake.folder = tmp_path
    monkeypatch.setattr(grids, "run_verb", fake)
    monkeypatch.setattr(grids, "_with_own_task", lambda grid, base: grid.config)

    def measure(experiment, run: RunDir, arm):
        seed = int(Path(run.path).name)
        low = float(Path(run.path).parent.name.partition("%")[0])
        return 20, {"closed_world/acc": [1.0, float(low < 60), float(seed % 2)]}

    monkeypatch.setattr(grids, "_measure", measure)
    return fake


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))


def test_arms_by_seeds_give_a_table_and_a_plot(verbs, tmp_path):
    results = run_experiment(asked(tmp_path, seeds=2))
    assert len(results) == 10
    assert verbs.ran[0] == ("base", "curate")
    assert verbs.ran[1:3] == [("arms/0%-low/0", "finetune"), ("arms/0%-low/0", "benchmark")]
    rows = table_of(tmp_path)
    assert [row["arm"] for row in rows] == list(EXPERIMENTS["ratio"].arms)
    assert [row["mean"] for row in rows] == ["0.8333"] * 3 + ["0.5000"] * 2
    assert rows[0]["difference"] == "" and rows[4]["difference"] == "-0.3333"
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "| 100% low | 20 | 2 | 0.5000 |" in (tmp_path / "table.md").read_text()


def test_what_is_measured_is_not_measured_again_and_the_table_is_the_same(verbs, tmp_path):
    run_experiment(asked(tmp_path, seeds=2))
    before, verbs.ran = (tmp_path / "table.csv").read_bytes(), []
    run_experiment(asked(tmp_path, seeds=2))
    assert verbs.ran == [("base", "curate")]
    assert (tmp_path / "table.csv").read_bytes() == before


def test_a_killed_experiment_ends_as_an_undisturbed_one(verbs, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    verbs.folder = whole
    run_experiment(asked(whole, seeds=2))
    killed = tmp_path / "killed"
    verbs.folder = killed
    measure, count = grids._measure, 0

    def dies(*given):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(grids, "_measure", dies)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked(killed, seeds=2))
    run_experiment(asked(killed, seeds=2))
    assert (killed / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()


def test_an_arm_that_fails_is_told_and_the_others_go_on(verbs, tmp_path, capsys):
    verbs.fails_in = "25%-low/1"
    results = run_experiment(asked(tmp_path, seeds=2))
    (lost,) = failed(results)
    assert (lost.arm, lost.seed, lost.failure) == ("25% low", 1, "RuntimeError: [the] judge is gone")
    row = next(row for row in table_of(tmp_path) if row["arm"] == "25% low")
    assert (row["seeds"], row["failed"]) == ("1", "seed 1: RuntimeError: [the] judge is gone")
    said = "25% low failed: seed 1: RuntimeError: [the] judge is gone"
    assert said in (tmp_path / "table.md").read_text()
    assert said in capsys.readouterr().err
    verbs.fails_in = None
    assert failed(run_experiment(asked(tmp_path, seeds=2))) == []


def test_where_all_runs_fail_the_table_has_the_reasons(verbs, tmp_path):
    verbs.fails_in = "arms"
    run_experiment(asked(tmp_path, seeds=2))
    rows = table_of(tmp_path)
    assert [row["arm"] for row in rows] == list(EXPERIMENTS["ratio"].arms)
    assert {(row["seeds"], row["mean"]) for row in rows} == {("0", "")}
    assert {row["failed"] for row in rows} == {"seed 0, 1: RuntimeError: [the] judge is gone"}
    assert "100% low failed: seed 0, 1" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "plot.png").exists()


def test_the_table_has_the_arms_that_were_finished_before_a_kill(verbs, tmp_path, monkeypatch):
    measure = grids._measure

    def dies(experiment, run, arm):
        if "50%" in run.uri:
            raise KeyboardInterrupt
        return measure(experiment, run, arm)

    monkeypatch.setattr(grids, "_measure", dies)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked(tmp_path, seeds=1))
    assert [row["arm"] for row in table_of(tmp_path)] == ["0% low", "25% low"]


def test_another_experiment_is_refused_in_the_same_folder(verbs, tmp_path):
    run_experiment(asked(tmp_path, seeds=1))
    with pytest.raises(InputError, match="holds the experiment ratio, whose table would be lost"):
        check(asked(tmp_path, name="budget"))


def test_a_changed_setting_is_measured_again(verbs, tmp_path):
    one = asked(tmp_path, seeds=1, arms=("0% low",))
    run_experiment(one)
    verbs.ran = []
    changed = one.config.model_copy(
        update={"finetune": one.config.finetune.model_copy(update={"max_steps": 7})}
    )
    run_experiment(asked(tmp_path, seeds=1, arms=("0% low",), config=changed))
    assert ("arms/0%-low/0", "finetune") in verbs.ran


def test_a_finished_stage_is_linked_whole_and_replaced_when_it_is_another(tmp_path):
    base, run = RunDir(tmp_path / "base"), RunDir(tmp_path / "arm")
    finish(base, "embed", "one", rows="first")
    adopt(base, run, ["embed", "cluster"])
    assert run.stage("embed").manifest().fingerprint == "one"
    assert (tmp_path / "arm/embed/rows.txt").stat().st_ino == (tmp_path / "base/embed/rows.txt").stat().st_ino
    (tmp_path / "arm/.embed.tmp").mkdir()  # of a command that was killed
    finish(base, "embed", "two", rows="second")
    adopt(base, run, ["embed"])
    assert (tmp_path / "arm/embed/rows.txt").read_text() == "second"
    assert not (tmp_path / "arm/.embed.tmp").exists()


def test_an_arm_that_lacks_what_it_needs_is_left_out_unless_it_is_asked_for(tmp_path):
    plain = asked(tmp_path, name="budget")
    assert "less" not in plain.chosen and "random" in plain.chosen
    assert list(asked(tmp_path, name="budget", arms=("less",)).chosen) == ["less"]
    with_target = with_values(plain.config, {"select.less.target": "rows.jsonl"})
    assert "less" in asked(tmp_path, name="budget", config=with_target).chosen


def test_a_disk_without_hard_links_gets_a_copy_and_a_full_one_is_told(tmp_path, monkeypatch):
    base, run = RunDir(tmp_path / "base"), RunDir(tmp_path / "arm")
    finish(base, "embed", "one", rows="first")

    def refuses(code: int):
        def link(source: str, target: str) -> None:
            raise OSError(code, "no")

        return link

    monkeypatch.setattr(grids.os, "link", refuses(errno.ENOSPC))
    with pytest.raises(OSError, match="no"):
        adopt(base, run, ["embed"])
    assert run.stage("embed").manifest() is None
    monkeypatch.setattr(grids.os, "link", refuses(errno.EOPNOTSUPP))
    adopt(base, run, ["embed"])
    assert (tmp_path / "arm/embed/rows.txt").read_text() == "first"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "budgets"}, r"^experiment budgets: there is none; choose one of budget, ratio"),
        ({"arms": ("half",)}, r"^--arms half: not of ratio; its arms are 0% low"),
        (
            {"name": "budget", "arms": ("random", "less")},
            r"^experiment budget: the arm less needs select.less.target, which is not set",
        ),
        ({"seeds": 0}, r"^--seeds 0: at least 1"),
        ({"name": "mapping"}, r"^experiment mapping: mapping.rows is 0; set it"),
        ({"config": load_config("quickstart")}, r"^experiment ratio: benchmark.tasks is empty"),
        (
            {"name": "rewards", "config": load_config("quickstart", ["grpo.eval_prompts=0"])},
            r"^experiment rewards: it measures GRPO's validation, which is off",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        check(asked(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_differences_are_over_the_seeds_that_both_have():
    results = [
        Result("0% low", 0, 5, {"m": [1.0, 0.0]}),
        Result("0% low", 1, 5, {"m": [1.0, 1.0]}),
        Result("100% low", 1, 5, {"m": [0.0, 1.0]}),
        Result("100% low", 2, failure="no room"),
    ]
    reference, other = lines_of(EXPERIMENTS["ratio"], results)
    assert reference.estimate.mean == 0.75 and reference.difference is None
    assert other.difference.mean == -0.5 and other.seeds == 1
    assert len(other.cells()) == len(HEADER)
    assert "no room" in markdown(EXPERIMENTS["ratio"], [reference, other])


def results_with(folder: Path, rows: list[dict], samples: list[dict]) -> RunDir:
    run = RunDir(folder)
    table = pa.Table.from_pylist([{"model": "m"} | row for row in rows], schema=RESULT)
    run.stage("benchmark").write_part(0, table, None, Receipt(0, 1, len(rows), 0))
    text = "".join(f"{json.dumps(sample)}\n" for sample in samples)
    run.write_bytes("benchmark/samples/a.jsonl", text.encode())
    return run


def test_scores_by_question_are_read_from_the_samples(tmp_path):
    world = {"benchmark": "closed_world", "task": "closed_world"}
    gsm8k = {"benchmark": "gsm8k", "task": "gsm8k"}
    rows = [
        world | {"metric": "acc", "value": 0.5},
        gsm8k | {"metric": "exact_match,strict-match", "value": 1.0},
        world | {"metric": "bleu", "value": 0.3},
    ]
    samples = [
        {"task": "closed_world", "doc_id": 1, "filter": "none", "acc": 0.0, "bleu": 7},
        {"task": "closed_world", "doc_id": 0, "filter": "none", "acc": 1.0, "bleu": 8},
        {"task": "gsm8k", "doc_id": 0, "filter": "strict-match", "exact_match": 1.0},
        {"task": "gsm8k", "doc_id": 0, "filter": "flexible-extract", "exact_match": 0.0},
    ]
    assert grids._by_question(results_with(tmp_path, rows, samples)) == {
        "closed_world/acc": [1.0, 0.0],
        "gsm8k/exact_match,strict-match": [1.0],
        "closed_world/bleu": [0.3],  # is no mean over questions
    }


def test_rows_of_the_mapping_are_pairs_by_id(tmp_path):
    run = RunDir(tmp_path)
    row = {"reason": None, "faithfulness": 1.0, "coverage": 0.5, "rouge_l": 0.4, "score": 4}
    rows = [
        row | {"id": "b", "facts_wanted": 4, "facts_found": 1},
        row | {"id": "a", "facts_wanted": None, "facts_found": None, "reason": "no tags", "score": None},
    ]
    run.stage("mapping").write_part(0, pa.Table.from_pylist(rows), None, Receipt(0, 2, 2, 0))
    found = grids._by_row(run)
    assert found["in_format"] == [0.0, 1.0] and found["good"] == [0.0, 1.0]
    assert found["facts_recall"] == [0.25]


def test_the_model_of_each_arm_of_the_mapping_is_the_one_that_it_is_called_after(tmp_path):
    grid = asked(tmp_path, name="mapping")
    models = {
        name: grids._measured_values(grid, RunDir(tmp_path / "arms"), grid.config, arm)["mapping.models"]
        for name, arm in grid.chosen.items()
    }
    base = tmp_path.resolve() / "base"
    assert models == {
        "before": ["nano"],
        "sft": [f"{base}/sft/model"],
        "sft + grpo": [f"{base}/grpo/model"],
    }


def test_a_group_has_the_questions_of_its_tasks(tmp_path):
    rows = [
        {"benchmark": "mmlu", "task": "mmlu", "metric": "acc", "value": 2 / 3},
        {"benchmark": "mmlu", "task": "mmlu_law", "metric": "acc", "value": 1.0},
        {"benchmark": "mmlu", "task": "mmlu_art", "metric": "acc", "value": 0.5},
    ]
    samples = [
        {"task": "mmlu_law", "doc_id": 0, "acc": 1.0},
        {"task": "mmlu_art", "doc_id": 1, "acc": 0.0},
        {"task": "mmlu_art", "doc_id": 0, "acc": 1.0},
    ]
    assert grids._by_question(results_with(tmp_path / "a", rows, samples)) == {"mmlu/acc": [1.0, 0.0, 1.0]}
    rows[0]["value"] = 0.75  # the mean of its tasks, whatever their size
    assert grids._by_question(results_with(tmp_path / "b", rows, samples)) == {"mmlu/acc": [0.75]}


def test_validation_is_read_first_line_for_what_arms_start_from(tmp_path):
    experiment, run = EXPERIMENTS["estimators"], RunDir(tmp_path)
    with pytest.raises(InputError, match="GRPO wrote no validation"):
        grids._measure(experiment, run, experiment.arms["grpo"])
    run.write_bytes(
        "grpo/validation.jsonl",
        b'{"step": 0, "reward": 0.1, "coverage": null}\n{"step": 4, "reward": 0.5, "coverage": 1}\n',
    )
    assert grids._measure(experiment, run, experiment.arms["sft"]) == (0, {"reward": [0.1]})
    assert grids._measure(experiment, run, experiment.arms["grpo"])[1] == {"reward": [0.5], "coverage": [1.0]}
