"""The data of an SFT worker: labels and the order of an epoch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.config import SftConfig
from lm_mixup.core import schemas
from lm_mixup.train.sft_worker import epoch_order
from lm_mixup.train.tokenize import TOKENS


def test_rows_are_trained_on_in_the_order_of_their_ids_at_a_few_bytes_a_token():
    from lm_mixup.train.sft_worker import IGNORED, eval_rows, train_rows

    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"{key:04d}",
            "split": "dev" if key % 10 == 0 else "sft",
            "input_ids": rng.integers(0, 9, size=int(rng.integers(1, 400))).tolist(),
            "prompt_length": int(rng.integers(0, 2)),
        }
        for key in rng.permutation(1000)
    ]
    parts = [schemas.table(rows[start : start + 300], TOKENS) for start in (0, 300, 600, 900)]
    table = pa.concat_tables([TOKENS.empty_table(), *parts]).slice(7)
    tracemalloc.start()
    chosen = train_rows(table, SftConfig())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = sum(chosen["length"])
    assert peak < 32 * tokens and chosen.data.nbytes < 10 * tokens
    expected = sorted((row for row in rows[7:] if row["split"] == "sft"), key=lambda row: row["id"])
    assert chosen["input_ids"][:] == [row["input_ids"] for row in expected]
    for labels, row in zip(chosen["labels"], expected, strict=True):
        cut = row["prompt_length"]
        assert labels == [IGNORED] * cut + row["input_ids"][cut:]
    first = sorted((row for row in rows[7:] if row["split"] == "dev"), key=lambda row: row["id"])[:5]
    assert eval_rows(table, 5)["input_ids"][:] == [row["input_ids"] for row in first]
    assert eval_rows(TOKENS.empty_table(), 5) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 17), st.integers(0, 3))
def test_an_epoch_is_whole_batches_without_repeats(lengths, batch_size, epoch):
    order = epoch_order(np.array(lengths), batch_size, seed=5, epoch=epoch)
    assert len(order) % batch_size == 0
    if len(lengths) >= batch_size:
        assert len(order) == len(lengths) // batch_size * batch_size
        assert len(set(order.tolist())) == len(order)
    else:
        assert set(order.tolist()) == set(range(len(lengths)))
    assert (order == epoch_order(np.array(lengths), batch_size, seed=5, epoch=epoch)).all()


def test_epochs_and_seeds_differ_and_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(10, 500, size=640)
    order = epoch_order(lengths, 16, seed=1, epoch=0)
    assert (order != epoch_order(lengths, 16, seed=1, epoch=1)).any()
    assert (order != epoch_order(lengths, 16, seed=2, epoch=0)).any()
    padded = sum(batch.max() * len(batch) for batch in lengths[order].reshape(-1, 16))
    shuffled = lengths[np.random.default_rng(0).permutation(640)].reshape(-1, 16)
    assert padded / lengths.sum() < 1.15
    assert sum(b.max() * len(b) for b in shuffled) / lengths.sum() > 1.5
    means = lengths[order].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5  # not long batches first
