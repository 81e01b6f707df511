"""Rows that ask in numbered parts: one answer each, and each question whole."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lm_mixup.augment.rate_distilled import keep_faithful
from lm_mixup.config import RateDistilledConfig
from lm_mixup.core.schemas import DISTILLED
from lm_mixup.rewards.faithfulness.numbered import answers_each_part, parts_keep_their_text

ASKED = "1. Name a cold drink.\n2. Name a hot drink."


@pytest.mark.parametrize(
    ("completion", "holds"),
    [
        ("1. Iced tea.\n2. Cocoa.", True),
        ("1. Iced tea,\nwith lemon.\n2. Cocoa.", True),
        ("1. Iced tea.\n2. Cocoa.\n3. Mulled wine.", False),
        ("1. Iced tea.\n2. 1. Cocoa.\n2. Mulled wine.", False),
        ("1. Iced tea.", False),
        ("Iced tea and cocoa.", False),
    ],
)
def test_a_row_of_two_questions_has_two_answers(completion, holds):
    assert answers_each_part(ASKED, completion) is holds


def test_a_prompt_that_is_not_in_parts_may_have_any_answer():
    assert answers_each_part("Sort:\n1. b\n2. a", "1. a\n2. b\n3. c")
    assert answers_each_part("1. Name a drink.", "Tea.")


def test_a_part_keeps_the_text_that_its_question_is_about():
    sources = [
        ("Remove the third item from the list\n\n[1, 2, 3, 4, 5]", "[1, 2, 4, 5]"),
        ("Sort the list\n\n[3, 1, 2]", "[1, 2, 3]"),
    ]
    whole = "1. Remove the third item from the list.\n[1, 2, 3, 4, 5]\n2. Sort the list.\n[3, 1, 2]"
    lost = "1. Remove the third item from the list.\n2. Sort the list.\n[3, 1, 2]"
    assert parts_keep_their_text(whole, sources, 0.8)
    assert not parts_keep_their_text(lost, sources, 0.8)
    assert parts_keep_their_text(lost, sources, 0.3)
    assert parts_keep_their_text("Remove the third item.", sources, 1.0)


def test_the_gate_refuses_such_rows_with_a_reason_and_keeps_the_others():
    inputs = [
        "Q: Name a cold drink.\nA: Iced tea.",
        "Q: Name a hot drink, of cocoa or milk or tea.\nA: Cocoa.",
    ]
    said = [
        ("1. Name a cold drink.\n2. Name a hot drink, of cocoa or milk or tea.", "1. Iced tea.\n2. Cocoa."),
        (
            "1. Name a cold drink.\n2. Name a hot drink, of cocoa or milk or tea.",
            "1. Iced tea.\nCocoa.",
        ),
        (ASKED, "1. Iced tea.\n2. Cocoa."),
    ]
    rows = pa.Table.from_pylist(
        [
            {"cluster_id": str(n), "task_type": "qa", "prompt": prompt, "completion": completion, "cot": "",
             "raw": "", "parent_ids": ["a", "b"], "inputs": inputs}
            for n, (prompt, completion) in enumerate(said)
        ],
        schema=DISTILLED,
    )  # fmt: skip
    kept, refused = keep_faithful(rows, RateDistilledConfig())
    assert kept["cluster_id"].to_pylist() == ["0"]
    assert refused["reason"].to_pylist() == ["not_one_answer_per_question", "question_words_below_0.8"]
    off = RateDistilledConfig(min_question_words=0.0)
    assert keep_faithful(rows, off)[0].num_rows == 3
