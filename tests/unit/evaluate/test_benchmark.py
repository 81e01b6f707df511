"""Benchmarks without a model: which files stand for which data sets, the rows of a result, and the table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from lm_mixup.config import BenchmarkConfig, Config
from lm_mixup.core.errors import InputError
from lm_mixup.evaluate.benchmark import _csv, labels_of, markdown, models_of, table_of
from lm_mixup.evaluate.harness import rows_of
from lm_mixup.evaluate.local_tasks import FILES, files_for, missing_files, write_local_tasks
from lm_mixup.stages import stages_of

MMLU = {"dataset_path": "cais/mmlu", "dataset_name": "anatomy", "test_split": "test", "fewshot_split": "dev"}
TRUTHFUL = {
    "dataset_path": "truthfulqa/truthful_qa",
    "dataset_name": "multiple_choice",
    "validation_split": "validation",
}


def put(folder, name: str, rows: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def question(subject: str, text: str, answer: int) -> dict:
    return {"subject": subject, "question": text, "choices": ["w", "x", "y", "z"], "answer": answer}


@pytest.mark.parametrize(
    ("task", "files"),
    [
        (MMLU, ("mmlu_test.jsonl", "mmlu_dev.jsonl")),
        (MMLU | {"validation_split": "validation"}, ()),  # a split that the files do not hold
        (TRUTHFUL, ("truthfulqa.jsonl",)),
        (TRUTHFUL | {"dataset_name": "generation"}, ()),
        (
            {"dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"},
            ("gsm8k_test.jsonl",),
        ),
        ({"dataset_path": "openai/gsm8k", "dataset_name": "socratic", "test_split": "test"}, ()),
        (
            {"dataset_path": "SaylorTwift/bbh", "dataset_name": "navigate", "test_split": "test"},
            ("bbh.jsonl",),
        ),
        ({"dataset_path": "someone/else", "test_split": "test"}, ()),
        ({}, ()),
    ],
)
def test_files_stand_for_the_data_set_that_a_task_reads(task, files):
    assert files_for(task) == files


def test_a_local_task_is_the_definition_over_the_rows_of_its_subject(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    put(data, "mmlu_test.jsonl", [question("anatomy", "a?", 1), question("law", "l?", 0)])
    put(data, "mmlu_dev.jsonl", [question("anatomy", "d?", 2)])
    assert missing_files(str(data)) == [file for file in FILES if not file.startswith("mmlu")]
    write_local_tasks(str(data), {"mmlu_anatomy": ("/defs/anatomy.yaml", MMLU)}, out)
    task = yaml.safe_load((out / "mmlu_anatomy.yaml").read_text())
    assert (task["include"], task["task"]) == ("/defs/anatomy.yaml", "mmlu_anatomy")
    assert (task["dataset_path"], task["dataset_name"]) == ("json", None)
    files = task["dataset_kwargs"]["data_files"]
    assert {split: json.loads(Path(path).read_text())["question"] for split, path in files.items()} == {
        "test": "a?",
        "dev": "d?",
    }
    assert [path.name for path in out.glob("*.yaml")] == ["mmlu_anatomy.yaml"]


def test_a_subject_or_a_field_that_is_missing_is_named(tmp_path):
    put(tmp_path, "mmlu_test.jsonl", [question("law", "l?", 0)])
    put(tmp_path, "mmlu_dev.jsonl", [])
    with pytest.raises(InputError, match=r"mmlu_test.jsonl has no rows of anatomy, which mmlu_anatomy"):
        write_local_tasks(str(tmp_path), {"mmlu_anatomy": ("x.yaml", MMLU)}, tmp_path / "out")
    put(tmp_path, "truthfulqa.jsonl", [{"question": "q?"}])
    with pytest.raises(InputError, match=r"truthfulqa.jsonl is not of the benchmark's layout .KeyError"):
        write_local_tasks(str(tmp_path), {"truthfulqa_mc1": ("x.yaml", TRUTHFUL)}, tmp_path / "out")


def test_truthfulqas_choices_begin_with_the_right_ones(tmp_path):
    row = {
        "question": "q?",
        "best_answer": "best",
        "correct_answers": ["also", "best"],
        "incorrect_answers": ["no", "never"],
    }
    put(tmp_path, "truthfulqa.jsonl", [row, row | {"correct_answers": ["also"]}])
    write_local_tasks(str(tmp_path), {"truthfulqa_mc2": ("x.yaml", TRUTHFUL)}, tmp_path / "out")
    text = (tmp_path / "out/data/truthfulqa_mc2/validation.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert first["mc1_targets"] == {"choices": ["best", "no", "never"], "labels": [1, 0, 0]}
    assert first["mc2_targets"] == {"choices": ["also", "best", "no", "never"], "labels": [1, 1, 0, 0]}
    assert second["mc2_targets"]["choices"] == ["best", "also", "no", "never"]


FOUND = {  # as lm-eval gives it: a group of two tasks
    "results": {
        "g": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "g"},
        "a": {"acc,none": 0.25, "acc_stderr,none": "N/A", "alias": " - a"},
        "b": {"exact_match,strict": 0.75, "exact_match_stderr,strict": 0.2, "alias": " - b"},
    },
    "groups": {"g": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "g"}},
    "group_subtasks": {"g": ["a", "b"], "a": [], "b": []},
    "n-samples": {"a": {"original": 9, "effective": 4}, "b": {"original": 9, "effective": 6}},
    "n-shot": {"a": 5, "b": 0},
    "versions": {"g": 2, "a": 1.0},
}


def test_a_result_is_a_row_for_each_metric():
    rows = {(row["task"], row["metric"]): row for row in rows_of(FOUND, "m", "g")}
    assert set(rows) == {("g", "acc"), ("a", "acc"), ("b", "exact_match,strict")}
    group = rows["g", "acc"]
    assert (group["value"], group["stderr"], group["questions"]) == (0.5, 0.1, 10)
    assert rows["a", "acc"]["stderr"] is None
    assert rows["b", "exact_match,strict"]["num_fewshot"] == 0


def test_the_table_has_a_line_a_group_and_a_column_a_model():
    rows = rows_of(FOUND, "/runs/x/finetune/model", "g") + rows_of(FOUND, "smollm2", "g")
    labels = {"/runs/x/finetune/model": "model", "smollm2": "smollm2"}
    header, lines = table_of(rows, ["g"], labels)
    assert header == ["task", "metric", "questions", "model", "smollm2"]
    assert lines == [["g", "acc", "10", "0.5000 ± 0.1000", "0.5000 ± 0.1000"]]
    assert markdown(header, lines).splitlines()[1] == "| --- | --- | --- | --- | --- |"
    _, alone = table_of([row | {"benchmark": "tag"} for row in rows], ["tag"], labels)
    assert len(alone) == 3  # a tag has no figure of its own


def test_models_are_told_apart_by_as_much_of_their_paths_as_it_takes():
    assert labels_of(["/r/one/model", "smollm2"]) == ["model", "smollm2"]
    assert labels_of(["/r/one/model", "/r/two/model"]) == ["one/model", "two/model"]
    assert models_of(BenchmarkConfig(model=["a/b", "nano", "a/b"])) == ["a/b", "nano"]
    assert models_of(BenchmarkConfig(model="nano")) == ["nano"]


def test_the_stage_needs_the_fine_tuned_model_only_where_no_other_is_named():
    assert "benchmark" not in stages_of("evaluate", Config())
    asked = Config.model_validate({"benchmark": {"tasks": ["mmlu"]}})
    assert stages_of("evaluate", asked)["benchmark"].inputs == ("finetune",)
    named = Config.model_validate({"benchmark": {"tasks": ["mmlu"], "model": "nano"}})
    assert stages_of("evaluate", named)["benchmark"].inputs == ()


def test_the_number_of_examples_is_for_all_tasks_or_by_name():
    assert BenchmarkConfig(num_fewshot=3).fewshot_of("mmlu") == 3
    by_name = BenchmarkConfig(num_fewshot={"mmlu": 5})
    assert (by_name.fewshot_of("mmlu"), by_name.fewshot_of("gsm8k_cot")) == (5, None)


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1+cmd", "@SUM(1)", "-x", "\t=1"])
def test_no_cell_of_the_table_is_a_formula(cell: str):
    ((head, value),) = list(csv.reader(io.StringIO(_csv([cell, "-0.5"], []))))
    assert (head, value) == (f"'{cell}", "-0.5")
