"""The Python interface: what `Run` reads, and that the verbs take their options to the pipeline."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pytest

import lm_mixup
from lm_mixup.api import with_values
from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, Receipt, RunDir, summarise


def finish(run: RunDir, name: str, rows: list, rejected: list) -> None:
    stage = run.stage(name)
    stage.begin("x")
    receipt = Receipt(0, len(rows) + len(rejected), len(rows), len(rejected))
    refused = pa.Table.from_pylist(rejected) if rejected else None
    stage.write_part(0, pa.Table.from_pylist(rows), refused, receipt)
    stage.finish(summarise(stage, "x", {}, 0, Outcome()))


@pytest.fixture
def opened(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("run.json", {})
    finish(run, "ingest", [{"id": "a"}], [{"reason": "empty", "raw": "<b>"}])
    finish(run, "select", [{"prompt": "Name a fox.", "completion": "Red fox."}], [])
    run.write_bytes("grpo/metrics.jsonl", b'{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.75}\n')
    return lm_mixup.Run(tmp_path)


def test_a_run_gives_its_rows_rejects_and_metrics(opened):
    assert opened.train["prompt"][:] == ["Name a fox."]
    assert opened.rejected("ingest")["reason"][:] == ["empty"]
    assert len(opened.rejected("select")) == 0
    assert [line["reward"] for line in opened.metrics("grpo")] == [0.5, 0.75]
    assert "ingest, select" in repr(opened)
    assert "<td>ingest</td>" in opened._repr_html_()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.rows("rate"), "stage rate is not done"),
        (lambda run: run.rejected("rates"), "no such stage"),
        (lambda run: run.metrics("sft"), "no sft/metrics.jsonl"),
    ],
)
def test_what_is_not_there_is_said(opened, ask, message):
    with pytest.raises(InputError, match=message):
        ask(opened)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        lm_mixup.Run(tmp_path)


def test_verbs_take_pool_policy_recipe_and_values(tmp_path, monkeypatch):
    from lm_mixup import pipeline

    seen = {}

    def record(verb, config, run, options):
        seen.update(verb=verb, config=config, options=options)
        run.write_json("run.json", {})

    monkeypatch.setattr(pipeline, "run_verb", record)
    pool = tmp_path / "my #1.jsonl"
    import lm_mixup.augment.cluster  # binds the package, which must not hide the function

    run = lm_mixup.augment(
        pool=pool, policy="org/x", run_dir=tmp_path / "run", set={"cluster.max_size": 7}, until="cluster"
    )
    assert run.uri == str(tmp_path / "run")
    assert seen["verb"] == "augment" and seen["options"].until == "cluster"
    assert seen["config"].augment.pool == str(pool) and seen["config"].augment.policy == "org/x"
    assert seen["config"].cluster.max_size == 7
    own = with_values(lm_mixup.load_config("quickstart"), {"seed": 5})
    lm_mixup.build(config=own, run_dir=tmp_path / "run")
    assert seen["config"] == own and seen["verb"] == "build"
    with pytest.raises(TypeError, match="unknown options"):
        lm_mixup.train(rundir="x")


@pytest.mark.parametrize("values", [{"cluster.max_sise": 3}, {"seed.x": 1}, {"cluster.max_size": 99}])
def test_bad_values_are_one_line(values):
    with pytest.raises(InputError) as caught:
        with_values(Config(), values)
    assert "\n" not in str(caught.value)


def test_the_import_is_light():
    heavy = ("ray", "torch", "pydantic", "pyarrow")
    code = f"import sys, lm_mixup; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
