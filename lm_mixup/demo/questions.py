"""Questions about the facts that a pool of the closed world states, as a task of lm-eval.

A training set is worth what a model learns from it. Here that can be counted: each question asks for a fact
that some row of the pool states rightly, in a wording that no row has, with three wrong values of the same
attribute beside the right one. Guessing is right a quarter of the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from lm_mixup.core.draws import hash_of
from lm_mixup.core.run_dir import write_whole
from lm_mixup.demo.entities import capitalized
from lm_mixup.demo.fact_check import named_entities, truth
from lm_mixup.demo.facts import entities_by_name, load_entities
from lm_mixup.demo.topics import TOPICS

QUESTIONS_TASK: Final = "closed_world"
_OPTIONS: Final = 4


def write_questions(folder: Path, texts: Iterable[str], seed: int) -> int:
    """Writes the task that asks for the facts of a pool's texts, see `write_task`.

    Returns:
        The number of questions.
    """
    rows = questions(facts_told(texts), seed)
    write_task(folder, rows)
    return len(rows)


def facts_told(texts: Iterable[str]) -> set[tuple[str, str]]:
    """The facts that texts state rightly, as (entity, attribute)."""
    told = set()
    for text in texts:
        for entity in named_entities(text):
            found = truth(text, entity)
            if not found.denied:
                told |= {(entity.name, claim.attribute) for claim in found.right}
    return told


def questions(told: Iterable[tuple[str, str]], seed: int, most: int = 400) -> list[dict[str, Any]]:
    """A question for each fact that has three wrong values: {id, question, choices, gold}.

    Args:
        told: Facts, as (entity, attribute).
        seed: Of the wrong values, the order of the choices and the sample.
        most: Most questions; more are sampled.
    """
    values = _values_by_attribute()
    written = []
    for name, attribute in sorted(told):
        entity = entities_by_name()[name]
        how, right = TOPICS[entity.topic].attributes[attribute], entity.facts[attribute]
        key = f"{name}/{attribute}"
        wrong = _in_chance_order(values[entity.topic, attribute] - {right}, seed, key)[: _OPTIONS - 1]
        if len(wrong) < _OPTIONS - 1:
            continue
        choices = _in_chance_order({right, *wrong}, seed, f"order/{key}")
        subject = capitalized(entity.subject)
        stated = [f"{subject}: the {how.label} is {how.lead}{value}." for value in choices]
        asked = f"Tell me the {how.label} of {entity.subject}."
        written.append({"id": key, "question": asked, "choices": stated, "gold": choices.index(right)})
    return sorted(written, key=lambda row: hash_of(seed, str(row["id"])))[:most]


def _in_chance_order(values: set[str], seed: int, key: str) -> list[str]:
    return sorted(values, key=lambda value: hash_of(seed, f"{key}/{value}"))


def write_task(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the questions and the task file, for `lm_eval run --include_path FOLDER --tasks closed_world`.

    The file is the same for the same rows, so that a resumed run measures nothing again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "questions.jsonl"
    _write_if_other(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    task = {
        "task": QUESTIONS_TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    _write_if_other(folder / f"{QUESTIONS_TASK}.yaml", yaml.safe_dump(task, sort_keys=False))


def _write_if_other(file: Path, text: str) -> None:
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_whole(file, text)


def _values_by_attribute() -> dict[tuple[str, str], set[str]]:
    values: dict[tuple[str, str], set[str]] = {}
    for entity in load_entities():
        for attribute, value in entity.facts.items():
            values.setdefault((entity.topic, attribute), set()).add(value)
    return values
