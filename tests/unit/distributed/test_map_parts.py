"""Parts whose worker dies, and parts that were written where the driver does not look."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Receipt, RunDir, StageDir
from lm_mixup.distributed.map_parts import _require_receipts


def test_parts_that_a_node_wrote_elsewhere_never_pass_as_done(tmp_path):
    stage: StageDir = RunDir(tmp_path / "run").stage("rate")
    with pytest.raises(InputError, match=r"rate: node 10\.0\.0\.7 wrote 2 parts to .* not there"):
        _require_receipts(stage, {0: "10.0.0.7", 1: "10.0.0.7"}, patience_s=0.05)
    stage.write_part(0, pa.table({"n": [1]}), None, Receipt(0, 1, 1, 0))
    _require_receipts(stage, {0: "10.0.0.7"}, patience_s=0.05)
