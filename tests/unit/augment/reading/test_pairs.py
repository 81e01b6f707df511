"""Layouts of the field: all that the model was given is in the prompt, or the row is refused."""

import datetime
import json
import math
from decimal import Decimal

import pytest

from lm_mixup.augment.reading.pairs import split_turns
from lm_mixup.augment.reading.rows import Refused, read_item


def said(*turns, role="role", text="content"):
    return [{role: who, text: what} for who, what in turns]


def pair(record, turns="last"):
    row = read_item(record, {}, "s", 1000, turns)
    return row.prompt, row.completion


CHAT = said(
    ("user", "Name a river."), ("assistant", "The Po."), ("user", "How long?"), ("assistant", "652 km.")
)
HISTORY = "User: Name a river.\n\nAssistant: The Po.\n\nUser: How long?"
READ = {
    "system turn": (
        {"messages": [{"role": "system", "content": "Be kind."}, *CHAT[:2]]},
        "Be kind.\n\nName a river.",
    ),
    "two questions": (
        {"messages": [CHAT[0], {"role": "user", "content": "One."}, CHAT[1]]},
        "Name a river.\n\nOne.",
    ),
    "later turns": ({"messages": CHAT}, HISTORY),
    "a question without an answer behind": ({"messages": CHAT[:3]}, "Name a river."),
    "a greeting first": (
        {"messages": [{"role": "assistant", "content": "Hi."}, *CHAT[2:]]},
        "Assistant: Hi.\n\nUser: How long?",
    ),
    "ShareGPT": ({"conversations": said(("human", "a?"), ("gpt", "b"), role="from", text="value")}, "a?"),
    "capitals": ({"messages": said((" User ", "a?"), ("BOT", "b"))}, "a?"),
    "JSON text": ({"messages": json.dumps(CHAT[:2])}, "Name a river."),
    "empty messages": ({"messages": [], "prompt": "a?", "completion": "b"}, "a?"),
    "null messages": ({"messages": "", "question": "a?", "answer": "b"}, "a?"),
    "system column and chat": (
        {"system": "Be kind.", "conversations": CHAT[:2]},
        "Be kind.\n\nName a river.",
    ),
    "TRL": ({"prompt": CHAT[:1], "completion": CHAT[1:2]}, "Name a river."),
    "TRL with history": ({"prompt": CHAT[:3], "completion": "652 km."}, HISTORY),
    "parts": ({"messages": said(("user", [{"type": "text", "text": "a?"}]), ("assistant", "b"))}, "a?"),
    "context": ({"instruction": "a?", "context": "It is b.", "response": "b"}, "a?\n\nIt is b."),
    "input": ({"question": "a?", "input": "1;2", "answer": "b"}, "a?\n\n1;2"),
    "blank input": ({"instruction": "a?", "input": " ", "output": "b"}, "a?"),
    "input alone": ({"instruction": "", "input": "a?", "output": "b"}, "a?"),
    "system_prompt": ({"system_prompt": "Short.", "question": "a?", "response": "b"}, "Short.\n\na?"),
    "history": (
        {"instruction": "a?", "output": "b", "history": [["x?", "y"]]},
        "User: x?\n\nAssistant: y\n\nUser: a?",
    ),
    "choices": ({"question": "a?", "choices": ["b", "c"], "answer": "A"}, "a?\n\nA) b\nB) c"),
    "MMLU": ({"question": "a?", "choices": ["b", "c"], "answer": 1}, "a?\n\nA) b\nB) c"),
    "ARC": (
        {"question": "a?", "choices": {"text": ["b", "c"], "label": ["1", "2"]}, "answerKey": "2"},
        "a?\n\n1) b\n2) c",
    ),
    "options by letter": (
        {"question": "a?", "options": {"A": "b", "B": "c"}, "answer": "B"},
        "a?\n\nA) b\nB) c",
    ),
    "SQuAD": (
        {"question": "a?", "context": "b.", "answers": {"text": ["b", "B"], "answer_start": [0, 0]}},
        "a?\n\nb.",
    ),
    "a number": ({"question": "6 x 7?", "answer": 42}, "6 x 7?"),
    "a list of one": ({"question": ["a?"], "answer": ["b"]}, "a?"),
    "bytes": ({"question": "é?".encode(), "answer": b"b"}, "é?"),
}


@pytest.mark.parametrize(("record", "prompt"), READ.values(), ids=READ)
def test_all_that_the_model_was_given_is_in_the_prompt(record, prompt):
    assert pair(record)[0] == prompt


def test_completions_are_those_of_the_questions():
    read = {name: pair(record)[1] for name, (record, _) in READ.items()}
    assert read["later turns"] == read["TRL with history"] == "652 km."
    assert (read["MMLU"], read["ARC"], read["SQuAD"], read["a number"]) == ("B", "2", "b", "42")


CALL = [{"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]
REFUSED = {
    "a call": ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": CALL}]}, "has_tools"),
    "a call without text": ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": CALL}]}, "has_tools"),
    "a tool's turn": ({"messages": said(("user", "a?"), ("tool", "1"), ("assistant", "b"))}, "has_tools"),
    "ShareGPT's call": (
        {
            "conversations": said(
                ("human", "a?"), ("function_call", "{}"), ("gpt", "b"), role="from", text="value"
            )
        },
        "has_tools",
    ),
    "Anthropic's": ({"messages": said(("user", "a?"), ("assistant", [{"type": "tool_use"}]))}, "has_tools"),
    "answers itself": ({"messages": [*CHAT[:2], CHAT[3]]}, "turns_do_not_alternate"),
    "system between": (
        {"messages": said(("user", "a?"), ("assistant", "b"), ("system", "Stop."), ("assistant", "c"))},
        None,
    ),
    "an odd role": ({"messages": said(("user", "a?"), ("critic", "b"))}, "unknown_role"),
    "no role": ({"messages": [{"content": "a?"}, {"content": "b"}]}, "unknown_role"),
    "no answer": ({"messages": CHAT[:1]}, "no_completion"),
    "an image": ({"messages": said(("user", [{"type": "image_url"}]), ("assistant", "b"))}, "wrong_type"),
    "text that is no JSON": ({"messages": "User: a?"}, "wrong_type"),
    "a place beyond the choices": ({"question": "a?", "choices": ["b"], "answer": 3}, "wrong_type"),
    "context alone": ({"question": "", "context": "b", "answer": "c"}, "no_prompt"),
    "NaN": ({"question": "a?", "answer": math.nan}, "no_completion"),
    "several texts": ({"question": "a?", "answer": ["b", "c"]}, "wrong_type"),
    "a truth value": ({"question": "a?", "answer": True}, "wrong_type"),
    "bytes of another encoding": ({"question": "a?", "answer": b"\xff\xfe"}, "not_utf8"),
}


@pytest.mark.parametrize(("record", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused(record, reason):
    if reason is None:  # a later system turn stands in the history
        assert "System: Stop." in pair(record)[0]
        return
    with pytest.raises(Refused) as refusal:
        pair(record)
    assert refusal.value.reason == reason


def test_the_setting_decides_which_exchange_is_the_row():
    record = {"id": "r", "messages": CHAT}
    assert pair(record, "first") == ("Name a river.", "The Po.")
    assert pair(record, "last") == (HISTORY, "652 km.")
    with pytest.raises(Refused, match="multi_turn"):
        pair(record, "reject")
    assert pair({"messages": CHAT[:2]}, "reject") == ("Name a river.", "The Po.")
    rows = [read_item(part, {}, "s", 1000, "all") for part in split_turns(record, {})]
    assert [(row.id, row.prompt, row.completion) for row in rows] == [
        ("r", "Name a river.", "The Po."),
        ("r#2", HISTORY, "652 km."),
    ]


def test_columns_that_went_into_nothing_are_named():
    record = {
        "prompt": "a?",
        "completion": "b",
        "category": "x",
        "notes": "",
        "id": 1,
        "source": "s",
        "score": 3,
    }
    assert read_item(record, {}, "s", 1000).unread == ("category", "score")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (Decimal("7"), "7"),
        (b"a1", "a1"),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1, 12), "2024-05-01T12:00:00"),
    ],
)
def test_ids_of_odd_types_are_read(given, read):
    assert read_item({"id": given, "prompt": "a", "completion": "b"}, {}, "s", 100).id == read


@pytest.mark.parametrize("given", [None, "", math.nan])
def test_no_id_is_that_of_the_content(given):
    row = read_item({"id": given, "prompt": "a", "completion": "b"}, {}, "s", 100)
    assert not row.given_id and row.id == row.content


@pytest.mark.parametrize("given", [True, {"$oid": "1"}, [1], b"\xff", math.inf])
def test_other_ids_are_refused(given):
    with pytest.raises(Refused, match="bad_id"):
        read_item({"id": given, "prompt": "a", "completion": "b"}, {}, "s", 100)
