"""The answers that the one-GPU driver counts."""

from __future__ import annotations

from typing import Any

import pytest


def test_answers_are_counted_by_what_is_wrong_with_them(import_benchmark: Any) -> None:
    greedy = import_benchmark("greedy")

    good = greedy.Answer("a", "qa", "<think></think>\n<answer>Q: x</answer>", True, 10, "", "Q: x")
    cut = greedy.Answer("b", "qa", "<think>", False, 20, "cut", None)
    late = greedy.Answer("c", None, None, False, 0, "no_time", None)
    assert greedy.summary([good, cut, late]) == {
        "rows": 3,
        "written": 2,
        "in_format": 1,
        "faults": {"cut": 1, "no_time": 1},
        "mean_tokens": 15.0,
    }


def test_batches_hold_every_row_once_and_stay_within_the_tokens(
    import_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = import_benchmark("greedy")
    monkeypatch.setattr(greedy, "_TOKENS", 1000)
    writer = greedy.Writer.__new__(greedy.Writer)
    writer._max_new_tokens = 100
    lengths = [300, 20, 2000, 150, 400, 10]
    batches = writer._batches([[1] * length for length in lengths])
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * (max(lengths[row] for row in batch) + 100)
        assert padded <= 1000 or len(batch) == 1
