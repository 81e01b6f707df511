"""Parts whose worker dies, and parts that were written where the driver does not look."""

from __future__ import annotations

import os

import pyarrow as pa
import pytest

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Receipt, RunDir, StageDir
from lm_mixup.distributed.map_parts import PartResult, _require_receipts, map_parts


def make_doomed(counter: str):
    def work(item: int) -> PartResult:
        if item == 2:
            with open(counter, "a") as file:  # noqa: PTH123
                file.write("x")
            os._exit(1)
        return PartResult(pa.table({"n": [item]}), rows_in=1)

    return work


def test_a_part_that_kills_its_worker_is_tried_three_times_and_named(ray_session, tmp_path):
    stage, counter = RunDir(tmp_path / "run").stage("doomed"), tmp_path / "tries"
    with pytest.raises(RuntimeError, match=r"doomed: a worker died 3 times of one part, 2;"):
        map_parts(stage, [0, 1, 2], make_doomed, {"counter": str(counter)})
    assert counter.read_text() == "xxx"


def test_parts_that_a_node_wrote_elsewhere_never_pass_as_done(tmp_path):
    stage: StageDir = RunDir(tmp_path / "run").stage("rate")
    with pytest.raises(InputError, match=r"rate: node 10\.0\.0\.7 wrote 2 parts to .* not there"):
        _require_receipts(stage, {0: "10.0.0.7", 1: "10.0.0.7"}, patience_s=0.05)
    stage.write_part(0, pa.table({"n": [1]}), None, Receipt(0, 1, 1, 0))
    _require_receipts(stage, {0: "10.0.0.7"}, patience_s=0.05)
