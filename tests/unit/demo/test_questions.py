"""Questions of the closed world: about what the pool states rightly, answerable, and a task of lm-eval."""

from __future__ import annotations

import json

import pytest

from lm_mixup.demo.facts import entities_by_name
from lm_mixup.demo.pool import demo_pool
from lm_mixup.demo.questions import facts_told, questions, write_questions


def texts(rows: int) -> list[str]:
    return [f"{row.get('prompt')}\n{row.get('completion')}" for row in demo_pool(rows, 0)]


def test_what_is_stated_rightly_is_a_fact_that_is_told():
    told = facts_told(
        [
            "Tell me of France.\nFrance has the capital Paris and has about 5 people.",
            "Mali has the capital Rome.\nAnswer: False",
            "What is the capital of Chad?",
        ]
    )
    assert told == {("France", "capital")}


def test_the_right_choice_is_the_fact_and_the_others_are_not():
    asked = questions(facts_told(texts(200)), seed=0)
    assert len(asked) > 100
    places = [row["gold"] for row in asked]
    assert {places.count(place) > len(asked) / 8 for place in range(4)} == {True}
    for row in asked:
        name, _, attribute = row["id"].partition("/")
        right = entities_by_name()[name].facts[attribute]
        assert len(set(row["choices"])) == 4
        assert [choice.endswith(f" {right}.") for choice in row["choices"]].count(True) == 1
        assert row["choices"][row["gold"]].endswith(f" {right}.")


def test_questions_are_a_function_of_the_facts_and_the_seed():
    told = facts_told(texts(60))
    assert questions(sorted(told)[::-1], 1) == questions(told, 1) != questions(told, 2)
    assert len(questions(told, 1, most=7)) == 7


def test_lm_eval_reads_the_task_and_a_second_writing_changes_nothing(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_mixup.evaluate.harness import leaves_of, open_tasks

    count = write_questions(tmp_path, texts(60), seed=0)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write_questions(tmp_path, texts(60), seed=0) == count
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert "closed_world" in leaves_of(open_tasks(tmp_path, include_defaults=False), "closed_world")
    assert len((tmp_path / "questions.jsonl").read_text().splitlines()) == count
    assert json.loads((tmp_path / "questions.jsonl").read_text().splitlines()[0])["question"]
