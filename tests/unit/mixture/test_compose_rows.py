"""The plan of MIXTURE rows from good rows, and its parts, without Ray."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup.config import BuildConfig
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import parse_answer
from lm_mixup.distributed.map_parts import PartResult, receipt_of
from lm_mixup.mixture.compose_rows import Bank, compose_part, in_parts, load_banks, mergeable, plan
from lm_mixup.mixture.degradation.compose import GoodRow

WORDS = (
    "iron",
    "neon",
    "gold",
    "lead",
    "zinc",
    "argon",
    "tin",
    "silver",
    "copper",
    "helium",
    "radon",
    "boron",
)
CONFIG = BuildConfig.model_validate(
    {"samples_from": "rows.jsonl", "samples": 60, "crosstopic_rate": 0.5, "crosstopic_min_similarity": 0.1}
)


def bank(split: str) -> Bank:
    rows = [
        GoodRow(f"{split}-{word}", f"{split} {word}", "qa", f"Where is {word} of {split} found and used?",
                f"It is found in {word} mines. It serves {word} makers. It costs {number} dollars.")
        for number, word in enumerate(WORDS)
    ]  # fmt: skip
    vectors = np.random.default_rng(len(split)).random((len(rows), 8)).astype(np.float32) + 0.2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Bank(rows, vectors, {row.id: place for place, row in enumerate(rows)})


BANKS = {"sft": bank("sft"), "test": bank("test")}
PLAN = [(row.id, 3) for held in BANKS.values() for row in held.rows]


def test_shares_and_counts_of_the_plan():
    ids = [f"r{i}" for i in range(10)]
    entries = ["a"] * 2 + ["b"] * 6 + ["c"] * 2
    drawn = dict(plan(ids, entries, {"a": 0.5, "b": None, "c": None}, 100, 0))
    assert sum(drawn[i] for i in ids[:2]) == 50
    assert sum(drawn[i] for i in ids[2:8]) in (37, 38)
    assert max(drawn[i] for i in ids[2:8]) - min(drawn[i] for i in ids[2:8]) <= 1
    assert drawn == dict(plan(ids[::-1], entries[::-1], {"a": 0.5, "b": None, "c": None}, 100, 0))
    assert sum(n for _, n in plan(ids, entries, {}, 3, 0)) == pytest.approx(3, abs=2)
    assert plan(["x"], ["a"], {"a": 0.2}, 7, 0) == [("x", 7)]  # shares are of each other


def test_parts_keep_a_sample_whole():
    assert in_parts([("a", 2), ("b", 2), ("c", 5), ("d", 1)], 4) == [
        [("a", 2), ("b", 2)],
        [("c", 5)],
        [("d", 1)],
    ]


def test_planned_rows_are_rows_or_rejects():
    result = compose_part(PLAN, BANKS, CONFIG, 0)
    assert result.rows_in == 3 * len(PLAN) == result.rows.num_rows + result.rejected.num_rows
    rows = result.rows.to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    assert 0.3 < Counter(row["method"] for row in rows)["crosstopic"] / len(rows) < 0.7
    for row in rows:
        parse_answer(row["task_type"], row["output"])
        assert 2 <= len(row["inputs"]) == len(row["source_ids"])


def test_a_row_does_not_depend_on_the_part_it_is_made_in():
    whole = compose_part(PLAN, BANKS, CONFIG, 0).rows.to_pylist()
    shuffled = Random(1).sample(PLAN, len(PLAN))
    pieces = [compose_part(shuffled[start : start + 5], BANKS, CONFIG, 0) for start in range(0, len(PLAN), 5)]
    assert {row["id"]: row for row in whole} == {
        row["id"]: row for piece in pieces for row in piece.rows.to_pylist()
    }
    other = compose_part(PLAN, BANKS, CONFIG, 1).rows.to_pylist()
    assert {row["id"] for row in other} != {row["id"] for row in whole}


def test_no_text_of_a_split_is_in_another():
    rows = compose_part(PLAN, BANKS, CONFIG, 0).rows.to_pylist()
    for row in rows:
        other = "test" if row["split"] == "sft" else "sft"
        assert f"of {row['split']} found" in row["output"] and f"of {other} found" not in row["output"]


def test_samples_that_tell_a_held_out_sentence_are_not_used(tmp_path):
    shared = "Jumping rope is a game in which a person must jump over it."
    told = {"sft": f"Many play it. {shared}", "grpo": "Few play it.", "test": shared, "dev": "None play it."}
    run = RunDir(str(tmp_path))
    rows = [
        {"id": split, "entity": split, "task_type": "qa", "prompt": "What?", "completion": text, "answer": "",
         "split": split, "entry": "e"}
        for split, text in told.items()
    ]  # fmt: skip
    vectors = pa.table({"embedding": pa.array([[1.0, 0.0]] * 4, pa.list_(pa.float16(), 2))})
    for name, table in (("generate", pa.Table.from_pylist(rows)), ("embed_samples", vectors)):
        run.stage(name).write_part(0, table, None, receipt_of(0, PartResult(table, rows_in=4)))
    banks = load_banks(run.stage("generate"), run.stage("embed_samples"))
    assert {split: len(held.rows) for split, held in banks.items()} == {
        "sft": 0,
        "grpo": 1,
        "test": 1,
        "dev": 1,
    }
    result = compose_part([("sft", 2), ("test", 1)], banks, CONFIG, 0)
    assert result.rows_in == 3 == result.rows.num_rows + result.rejected.num_rows
    assert Counter(result.rejected["reason"].to_pylist())["text_is_held_out"] == 2


def test_long_rows_are_rejected_with_the_reason():
    short = CONFIG.model_copy(update={"max_row_chars": 200})
    result = compose_part(PLAN, BANKS, short, 0)
    assert Counter(result.rejected["reason"].to_pylist())["too_long"] > 0
    assert all(sum(map(len, row["inputs"])) + len(row["output"]) <= 200 for row in result.rows.to_pylist())


def test_the_same_question_and_the_same_subject_are_not_merged():
    rows = [
        GoodRow("a", "a", "qa", "Name a red animal.", "Fox."),
        GoodRow("b", "b", "qa", "Name an animal that is red.", "Robin."),  # would contradict
        GoodRow("c", "a", "qa", "Where does it live?", "In woods."),  # of one entity
        GoodRow("d", "d", "qa", "Name a predator.", "Lion."),
        GoodRow("e", "e", "qa", "What is tax?", "Money."),  # too far
        GoodRow("f", "f", "qa", "Count to three.", "1, 2, 3"),  # nearly the same vector
    ]
    similarity = np.array([1.0, 0.8, 0.7, 0.5, 0.05, 0.95], np.float32)
    held = Bank(rows, np.zeros((6, 2), np.float32), {row.id: place for place, row in enumerate(rows)})
    assert mergeable(held, 0, np.arange(6), similarity, 0.1) == [3]
