"""What may be selected is held in as little memory as the module says."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pyarrow as pa
from small_selection import CURATED, original, write

from lm_mixup.augment.selection.candidates import candidates
from lm_mixup.config import SelectConfig
from lm_mixup.core.run_dir import RunDir

ROWS, ROWS_PER_PART = 6_000, 100


def test_the_rows_of_one_part_at_a_time_are_python_objects(tmp_path):
    rows = [original(i % 40, id=f"o{i:032d}", prompt=f"question {i}?") for i in range(ROWS)]
    stage = write(RunDir(tmp_path).stage("curate"), rows, CURATED, ROWS_PER_PART)
    left_out: Counter[str] = Counter()
    tracemalloc.start()
    found = candidates(
        stage,
        "original",
        SelectConfig(method="knn_diversity"),
        left_out,
        lambda number, rows: [0.5] * len(rows),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.num_rows == ROWS
    assert found.nbytes + peak < 300 * ROWS
    # Sorting joins the chunks of a column: with 32-bit offsets that would end at 2 GiB of ids.
    assert {found.schema.field(name).type for name in ("id", "content", "stratum")} == {pa.large_string()}
