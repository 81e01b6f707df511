from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.config import EmbedderConfig
from lm_mixup.core.draws import fair_shares
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import answer_of, write_output
from lm_mixup.rewards.library import check_library, choose_rows


def row(number, task_type="qa", score=5, split="sft", answer=None):
    answer = answer or (
        f"Q: What is {number}?\nA: It is {number}." if task_type == "qa" else f"Text {number}."
    )
    return {
        "id": f"r{number}",
        "task_type": task_type,
        "answer": answer,
        "score": score,
        "split": split,
        "entity": f"e{number}",
    }


def many(count=400):
    return [row(n, "qa" if n % 4 else "para", score=min(n % 7, 5)) for n in range(count)]


def test_only_rated_rows_of_split_sft_are_taken_and_the_rest_is_accounted_for():
    rows = [
        row(0),
        row(1, score=None),
        row(2, split="grpo"),
        row(3, split="test", score=None),
        row(4, answer="no marks"),
        row(5, answer=row(0)["answer"]),
        row(6, score=0),
    ]
    chosen, left_out = choose_rows(rows, 100, seed=0)
    assert {r.id for r in chosen} == {"r0", "r6"}
    assert left_out == {"unrated": 1, "other_split": 2, "unreadable_answer": 1, "duplicate": 1}
    assert len(chosen) + sum(left_out.values()) == len(rows)


def test_the_text_is_the_one_the_reward_judges():
    spaced = row(0, answer="Q:  What is iron?  \nA:A metal. ")
    (chosen,), _ = choose_rows([spaced], 10, seed=0)
    assert (
        chosen.answer
        == answer_of("qa", write_output("x", spaced["answer"]))
        == "Q: What is iron?\nA: A metal."
    )


def test_rows_are_even_over_task_types_and_scores():
    chosen, left_out = choose_rows(many(), 60, seed=0)
    assert Counter(r.task_type for r in chosen) == {"qa": 30, "para": 30}
    assert Counter(r.score for r in chosen if r.task_type == "qa") == dict.fromkeys(range(6), 5)
    assert left_out == {"beyond_limit": 340}


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
    rows = many()
    first, _ = choose_rows(rows, 50, seed=0)
    assert first == choose_rows(reversed(rows), 50, seed=0)[0]
    assert first != choose_rows(rows, 50, seed=1)[0]


def test_the_bound_on_held_rows_does_not_change_the_choice():
    rows = [row(n, score=n % 2) for n in range(500)]  # far more than 2 × limit in each cell
    chosen, left_out = choose_rows(rows, 20, seed=3)
    assert len(chosen) == 20
    assert left_out == {"beyond_limit": 480}
    smallest = {r.id for r in choose_rows([r for r in rows if r["score"] == 0], 10, seed=3)[0]}
    assert {r.id for r in chosen if r.score == 0} == smallest


@settings(deadline=None)
@given(st.integers(0, 200), st.dictionaries(st.integers(0, 9), st.integers(0, 60), min_size=1))
def test_fair_shares_take_all_there_is_up_to_the_total(total, sizes):
    shares = fair_shares(total, sizes)
    assert sum(shares.values()) == min(total, sum(sizes.values()))
    assert all(0 <= shares[key] <= sizes[key] for key in sizes)
    short = [shares[key] for key in sizes if shares[key] < sizes[key]]
    assert not short or max(shares.values()) - min(short) <= 1


def test_fair_shares_by_hand():
    assert fair_shares(10, {"a": 1, "b": 100, "c": 100}) == {"a": 1, "b": 4, "c": 5}


def test_a_missing_library_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no library at .*; run the stage `library` first"):
        check_library(RunDir(tmp_path).stage("library"), EmbedderConfig())
