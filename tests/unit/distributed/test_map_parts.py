"""Parts whose worker dies, and parts that were written where the driver does not look."""

from __future__ import annotations

import pyarrow as pa
import pytest
from ray.exceptions import ActorUnavailableError

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Receipt, RunDir, StageDir
from lm_mixup.distributed import map_parts
from lm_mixup.distributed.map_parts import PartResult, _require_receipts, receipt_of


def test_parts_that_a_node_wrote_elsewhere_never_pass_as_done(tmp_path):
    stage: StageDir = RunDir(tmp_path / "run").stage("rate")
    with pytest.raises(InputError, match=r"rate: node 10\.0\.0\.7 wrote 2 parts to .* not there"):
        _require_receipts(stage, {0: "10.0.0.7", 1: "10.0.0.7"}, patience_s=0.05)
    stage.write_part(0, pa.table({"n": [1]}), None, Receipt(0, 1, 1, 0))
    _require_receipts(stage, {0: "10.0.0.7"}, patience_s=0.05)


def make_work():
    raise AssertionError("the stand-in calls no work")


class Cluster:
    """Stands in for Ray: each run does some parts and then fails, or does all; nodes go as told."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, runs: list[int | None], nodes: list[set[str]]
    ) -> None:
        self.asked: list[list[int]] = []
        self._runs, self._nodes = iter(runs), iter(nodes)
        monkeypatch.setattr(map_parts, "_run_parts", self.run)
        monkeypatch.setattr(map_parts, "_node_ids", lambda: next(self._nodes))
        monkeypatch.setattr(map_parts, "_NODE_LOST_S", 0.0)

    def run(self, stage: StageDir, pending, make_work, make_kwargs, **_):
        self.asked.append([index for index, _ in pending])
        done = next(self._runs)
        for index, item in pending[:done]:
            result = PartResult(pa.table({"n": [item]}), rows_in=1)
            stage.write_part(index, result.rows, None, receipt_of(index, result))
            yield "1 row"
        if done is not None:
            raise ActorUnavailableError("refused", b"a" * 16)


def test_parts_that_a_lost_node_left_run_again_on_the_others(monkeypatch, tmp_path):
    stage = RunDir(tmp_path).stage("s")
    cluster = Cluster(monkeypatch, [2, 0, None], [{"a", "b", "c"}, {"a", "b"}, {"a", "b"}, {"a"}, {"a"}])
    map_parts.map_parts(stage, [10, 11, 12, 13], make_work, {})
    assert cluster.asked == [[0, 1, 2, 3], [2, 3], [2, 3]]
    assert stage.read()["n"].to_pylist() == [10, 11, 12, 13]


def test_a_worker_that_dies_while_all_nodes_live_is_an_error(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, [1], [{"a", "b"}, {"a", "b", "new"}])
    with pytest.raises(RuntimeError, match=r"s: a worker died 3 times of one part, 1;"):
        map_parts.map_parts(RunDir(tmp_path).stage("s"), [10, 11], make_work, {})
    assert len(cluster.asked) == 1


def test_nodes_that_go_without_a_part_done_are_an_error(monkeypatch, tmp_path):
    going = [{"a", "b", "c", "d"}, {"a", "b", "c"}, {"a", "b", "c"}, {"a", "b"}, {"a", "b"}]
    cluster = Cluster(monkeypatch, [0, 0, 0], going)
    with pytest.raises(RuntimeError, match=r"a worker died 3 times"):
        map_parts.map_parts(RunDir(tmp_path).stage("s"), [10], make_work, {})
    assert len(cluster.asked) == 3
