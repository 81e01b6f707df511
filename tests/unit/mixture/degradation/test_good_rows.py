"""Items of files as good rows: every layout, every reason why not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.augment.reading.rows import REASONS, Refused
from lm_mixup.core.task_types import Mcq, Tfq, parse_answer
from lm_mixup.mixture.degradation.good_rows import read_good, without_reasoning_calls


def read(record: Any, **more: Any) -> list[dict[str, Any]]:
    return read_good(record, {}, "file", 400, **more)


def test_pairs_in_any_layout_of_ingest():
    for record in (
        {"prompt": "what is iron", "completion": "A metal."},
        {"instruction": "what is iron", "output": "A metal.", "input": ""},
        {
            "messages": [
                {"role": "user", "content": "what is iron"},
                {"role": "assistant", "content": "A metal."},
            ]
        },
    ):
        (row,) = read(record)
        assert (row["prompt"], row["completion"], row["task_type"]) == ("What is iron?", "A metal.", "qa")
        assert row == read(json.dumps(record).encode())[0]


def test_worked_solutions_are_written_as_a_person_would():
    (row,) = read({"question": "How much?", "answer": "It is 12/60 = $<<12/60=0.2>>0.2.\n#### 10"})
    assert row["completion"] == "It is 12/60 = $0.2.\nThe answer is 10."


def test_a_backslash_n_without_other_backslashes_is_a_line_end():
    assert read({"prompt": "a b", "completion": "x\\ny"})[0]["completion"] == "x\ny"
    assert read({"prompt": "a b", "completion": "of\\new\\x"})[0]["completion"] == "of\\new\\x"


def test_a_passage_is_a_paragraph_an_answer_and_a_task():
    text = "Iron is a metal.[1] It was used in 1200 BC by smiths. It rusts. It melts at 1538 degrees."
    rows = {row["id"].rpartition("/")[2]: row for row in read({"id": "p", "title": "Iron", "text": text})}
    assert set(rows) == {"para", "what", "ask", "task"}
    assert rows["para"]["answer"] == text.replace("[1]", "")
    assert rows["what"]["prompt"] == "What is Iron?"
    assert rows["ask"]["completion"] in rows["para"]["completion"]
    assert {row["entity"] for row in rows.values()} == {"Iron"}
    person = {
        "title": "Ada Byron",
        "text": "Ada Byron (1815 – 1852) was a mathematician. She wrote a program.",
    }
    assert "Who was Ada Byron?" in [row["prompt"] for row in read(person)]


def test_questions_with_options():
    record = {"question": "Which is a gas?", "choices": ["iron", "neon", "gold", "lead"]}
    for answer in (1, "B", "neon"):
        (row,) = read(record | {"answer": answer})
        expected = Mcq("Which is a gas?", ("iron", "neon", "gold", "lead"), "B")
        assert parse_answer("mcq", row["answer"]) == expected
        assert row["completion"] == "B) neon"


def test_claims_with_and_without_an_explanation():
    rows = read(
        {"ex_id": "d", "sentence": "Soup is solid.", "label": "false", "explanation": "It is liquid."}
    )
    assert [row["task_type"] for row in rows] == ["tfq", "qa"]
    assert parse_answer("tfq", rows[0]["answer"]) == Tfq("Soup is solid.", False)
    assert rows[1]["completion"] == "False. It is liquid."
    assert len(read({"claim": "Soup is wet.", "label": True})) == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "blank_line"),
        (b"{", "bad_json"),
        ([], "not_an_object"),
        ({"prompt": "a"}, "no_completion"),
        ({"prompt": "a", "completion": "x" * 401}, "too_long"),
        ({"prompt": "a", "completion": "One.\nA: two"}, "marks_in_text"),
        ({"title": "Iron", "text": "Iron is a metal."}, "too_short"),
        ({"title": "Iron", "text": "It is. These are:"}, "too_short"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 0}, "wrong_type"),
        ({"question": "Which?", "choices": ["a", "a", "b", "c"], "answer": 0}, "wrong_type"),
        ({"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 4}, "no_completion"),
        ({"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": True}, "no_completion"),
        ({"claim": "Soup is wet.", "label": "maybe"}, "no_completion"),
    ],
)
def test_what_is_no_good_row_says_why(record: Any, reason: str):
    with pytest.raises(Refused) as refusal:
        read(record)
    assert refusal.value.reason == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Where?\nOptions:\n- basket\n- desk Let's think hard:", "Where?\nOptions:\n- basket\n- desk"),
        ("Answer by reasoning step-by-step. Would a duke obey a Tsar?", "Would a duke obey a Tsar?"),
        ("Question: What is rain in the ground? OK. Let's think hard:", "What is rain in the ground?"),
        ("What is the answer, and why do you think so?", "What is the answer, and why do you think so?"),
        ("Explain your reasoning.", "Explain your reasoning."),
    ],
)  # fmt: skip
def test_calls_to_reason_are_taken_out(prompt: str, expected: str):
    assert without_reasoning_calls(prompt) == expected


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
keys = [
    "title",
    "text",
    "question",
    "choices",
    "answer",
    "sentence",
    "label",
    "explanation",
    "prompt",
    "completion",
]


@given(st.dictionaries(st.sampled_from(keys), json_like, max_size=5) | json_like)
def test_any_item_is_rows_or_a_reason(record: Any):
    try:
        assert read(record)
    except Refused as refusal:
        assert refusal.reason in REASONS
