"""The benchmark of `augment`: what it grows, and that it sees a row that is lost."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from lm_mixup.core.run_dir import Manifest

BENCHMARKS = str(Path(__file__).resolve().parents[3] / "benchmarks")


@pytest.fixture
def augment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import augment

    return augment


def test_a_grown_pool_repeats_no_row(augment, tmp_path):
    pool = tmp_path / "pool.jsonl"
    rows = [{"id": f"r{i}", "prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(20)]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = [json.loads(line) for line in augment.grown(pool, 4)]
    assert found[:20] == rows
    assert len({row["id"] for row in found}) == len({row["prompt"] for row in found}) == 80
    assert list(augment.grown(pool, 4)) == list(augment.grown(pool, 4))


def test_an_edited_text_differs_in_about_a_twentieth_of_its_words(augment):
    text = " ".join(f"w{i}" for i in range(4000))
    words = augment.edited(text, Random(0)).split(" ")
    gone = 4000 - len(set(words))
    assert 70 <= gone <= 130
    assert 70 <= len(words) - len(set(words)) <= 130
    assert augment.edited("", Random(0)) == ""


@pytest.mark.parametrize(("used", "lost"), [(None, 2), (9, 0), (8, 1)])
def test_a_lost_row_is_seen(augment, used, lost):
    manifest = Manifest("s", "f", {}, 10, 6, 2, 0.0, rows_used=used, left_out={"residual": 1})
    assert augment.unaccounted(manifest) == lost
