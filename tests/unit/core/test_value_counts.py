"""How rows are counted by split and value: by hand, and added up over any parts."""

from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.core.schemas import MIXTURE, table
from lm_mixup.core.value_counts import count_values, splits_in, tables_of, without_value_counts

COLUMNS = ("split", "task_type", "method", "inputs", "cot", "noisy")
ROWS = [
    dict(zip(COLUMNS, values, strict=True))
    for values in (
        ("sft", "qa", "degrade", ["a", "b"], "", True),
        ("sft", "qa", "crosstopic", ["a"] * 10, "x", False),
        ("test", "mcq", "degrade", ["a", "b"], None, False),
        ("grpo", "qa", "degrade", ["a", "b", "c"], "y", True),
    )
]


def test_by_hand():
    figures = count_values(table(ROWS, MIXTURE))
    assert splits_in(figures) == {"sft": 2, "grpo": 1, "test": 1}
    assert list(splits_in(figures)) == ["sft", "grpo", "test"]
    tables = tables_of(figures)
    assert list(tables) == ["task type", "method", "inputs", "noisy", "reasoning"]
    assert tables == {
        "task type": [("mcq", [0, 0, 1]), ("qa", [2, 1, 0])],
        "method": [("crosstopic", [1, 0, 0]), ("degrade", [1, 1, 1])],
        "inputs": [("2", [1, 0, 1]), ("3", [0, 1, 0]), ("10", [1, 0, 0])],  # by size, not by letter
        "noisy": [("no", [1, 0, 1]), ("yes", [1, 1, 0])],
        "reasoning": [("no", [1, 0, 1]), ("yes", [1, 1, 0])],
    }  # no row states a score: no table of scores


def test_rows_without_splits_are_all_train():
    figures = count_values(pa.table({"origin": ["distilled", "original", "distilled"]}))
    assert splits_in(figures) == {"train": 3}
    assert tables_of(figures) == {"origin": [("distilled", [2]), ("original", [1])]}


def test_a_value_may_hold_anything():
    figures = count_values(pa.table({"split": ["sft"] * 3, "method": ["a/b", "rows/sft", None]}))
    assert tables_of(figures) == {"method": [("a/b", [1]), ("not stated", [1]), ("rows/sft", [1])]}


def test_no_rows_no_figures():
    figures = count_values(table([], MIXTURE))
    assert not figures and splits_in(figures) == {} and tables_of(figures) == {}


def test_other_figures_are_left_alone():
    figures = {"inputs": 7, "samples_used": 2, **count_values(table(ROWS, MIXTURE))}
    assert splits_in(figures) == splits_in(count_values(table(ROWS, MIXTURE)))
    assert without_value_counts(figures) == {"inputs": 7, "samples_used": 2}


@given(st.lists(st.sampled_from(ROWS), max_size=30), st.integers(0, 30))
def test_parts_add_up(rows, cut):
    parts = [count_values(table(some, MIXTURE)) for some in (rows[:cut], rows[cut:])]
    whole = count_values(table(rows, MIXTURE))
    assert sum(parts, Counter()) == whole
    for lines in tables_of(whole).values():  # every row is in every table once
        assert sum(sum(counts) for _, counts in lines) == len(rows)
