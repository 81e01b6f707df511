"""lm-eval's own task definitions, reading files of a folder in place of data sets of the Hub.

A task keeps its name, prompt, examples and metrics; only where its questions come from is another. The folder
that `write_local_tasks` writes is one that lm-eval reads itself:
`lm_eval run --include_path FOLDER --tasks mmlu …`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import yaml

from lm_mixup.core.errors import InputError

KEY = "benchmark.data_dir"
Row = dict[str, Any]
Splits = dict[str, list[Row]]
Read = Callable[[str], list[Row]]


def _mmlu(read: Read) -> dict[str, Splits]:
    subjects: dict[str, Splits] = defaultdict(dict)
    for split in ("test", "dev"):
        for row in read(f"mmlu_{split}.jsonl"):
            subjects[row["subject"]].setdefault(split, []).append(row)
    return subjects


def _gsm8k(read: Read) -> dict[str, Splits]:
    return {"main": {"test": read("gsm8k_test.jsonl")}}


def _bbh(read: Read) -> dict[str, Splits]:
    tasks: dict[str, Splits] = defaultdict(lambda: {"test": []})
    for row in read("bbh.jsonl"):
        tasks[row["task"]]["test"].append({"input": row["input"], "target": row["target"]})
    return tasks


def _truthfulqa(read: Read) -> dict[str, Splits]:
    """mc1: the best answer among the wrong ones. mc2: all right answers among them."""
    rows = []
    for row in read("truthfulqa.jsonl"):
        right, wrong = row["correct_answers"], row["incorrect_answers"]
        right = right if row["best_answer"] in right else [row["best_answer"], *right]
        rows.append(
            {
                "question": row["question"],
                "mc1_targets": {"choices": [row["best_answer"], *wrong], "labels": [1] + [0] * len(wrong)},
                "mc2_targets": {
                    "choices": [*right, *wrong],
                    "labels": [1] * len(right) + [0] * len(wrong),
                },
            }
        )
    return {"multiple_choice": {"validation": rows}}


@dataclass(frozen=True)
class _Local:
    """A data set of the Hub that a folder may hold: its files, and its splits by configuration."""

    files: tuple[str, ...]
    read: Callable[[Read], dict[str, Splits]]
    splits: tuple[str, ...]
    only: tuple[str, ...] = ()  # its configurations, where not all are in the files


_DATASETS = {
    "cais/mmlu": _Local(("mmlu_test.jsonl", "mmlu_dev.jsonl"), _mmlu, ("test", "dev")),
    "openai/gsm8k": _Local(("gsm8k_test.jsonl",), _gsm8k, ("test",), ("main",)),
    "SaylorTwift/bbh": _Local(("bbh.jsonl",), _bbh, ("test",)),
    "truthfulqa/truthful_qa": _Local(
        ("truthfulqa.jsonl",), _truthfulqa, ("validation",), ("multiple_choice",)
    ),
}
FILES = tuple(file for local in _DATASETS.values() for file in local.files)


def files_for(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a task could read in place of the Hub; none if it reads what they do not hold.

    Args:
        task: Its definition, with what it includes.
    """
    local = _DATASETS.get(str(task.get("dataset_path")))
    if local is None or (local.only and task.get("dataset_name") not in local.only):
        return ()
    named = ("training_split", "validation_split", "test_split", "fewshot_split")
    wanted = {task[split] for split in named if task.get(split)}
    return local.files if wanted <= set(local.splits) else ()


def missing_files(data_dir: str) -> list[str]:
    """Those of the known files that a folder lacks."""
    fs, root = fsspec.core.url_to_fs(data_dir)
    return [file for file in FILES if not fs.isfile(f"{root}/{file}")]


def write_local_tasks(
    data_dir: str, tasks: Mapping[str, tuple[str, Mapping[str, Any]]], folder: Path
) -> None:
    """Writes task files, and the rows that they read, for those tasks that the folder of data has.

    Args:
        data_dir: Path or URI of the folder.
        tasks: By name the path of lm-eval's definition, and the definition.
        folder: Where to.

    Raises:
        InputError: A file holds rows of another layout, or lacks a part of its data set.
    """
    lacking = set(missing_files(data_dir))
    for dataset, local in _DATASETS.items():
        wanted = {
            name: (path, task)
            for name, (path, task) in tasks.items()
            if task.get("dataset_path") == dataset and files_for(task)
        }
        if not wanted or lacking.intersection(local.files):
            continue
        try:
            configurations = local.read(lambda file: _rows(data_dir, file))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{KEY} {data_dir}: a row of {' or '.join(local.files)} is not of the benchmark's layout "
                f"({type(error).__name__}: {error})"
            ) from error
        for name, (path, task) in wanted.items():
            if task.get("dataset_name") not in configurations:
                raise InputError(
                    f"{KEY} {data_dir}: {local.files[0]} has no rows of {task.get('dataset_name')}, which "
                    f"{name} asks for"
                )
            _write_task(name, path, configurations[task["dataset_name"]], folder)


def _rows(data_dir: str, file: str) -> list[Row]:
    with fsspec.open(f"{data_dir.rstrip('/')}/{file}", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _write_task(name: str, definition: str, splits: Splits, folder: Path) -> None:
    data = folder / "data" / name
    data.mkdir(parents=True)
    for split, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = {
        "include": definition,
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        # A cache of its own: it goes with the folder.
        "dataset_kwargs": {
            "data_files": {split: str(data / f"{split}.jsonl") for split in splits},
            "cache_dir": str(folder / "cache"),
        },
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
