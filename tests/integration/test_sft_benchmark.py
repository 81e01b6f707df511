"""The SFT benchmark at a size of a few rows: both sides train on the same tokens, the figures are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_mixup.core import schemas, task_types
from lm_mixup.core.run_dir import Outcome, RunDir, summarise
from lm_mixup.demo.nano import create_nano
from lm_mixup.distributed.map_parts import PartResult, receipt_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def sft(import_benchmark):
    return import_benchmark("sft")


def write_mixture(run: RunDir) -> list[str]:
    rows = [
        {
            "id": str(index),
            "task_type": "qa",
            "instruction": task_types.INSTRUCTIONS["qa"],
            "inputs": ["What is gold?\nA metal." * (1 + index % 5), f"Its number?\n{index}"],
            "cot": "Both are about gold.",
            "output": f"Q: What is gold?\nA: A metal, number {index}.",
            "split": "sft",
        }
        for index in range(24)
    ]
    stage, result = run.stage("mixture"), PartResult(schemas.table(rows, schemas.MIXTURE), rows_in=len(rows))
    stage.write_part(0, result.rows, None, receipt_of(0, result))
    stage.finish(summarise(stage, "x", {}, 0.0, Outcome()))
    return [row["output"] for row in rows]


def test_both_sides_train_on_the_same_rows(tmp_path: Path):
    texts = write_mixture(RunDir(tmp_path / "run"))
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 1, "intermediate_size": 64}
    model, out = create_nano(tmp_path / "model", texts, 0, **sizes), tmp_path / "sft.json"
    options = (
        f"--run-dir {tmp_path / 'run'} --model {model} --batch 4 --micro 2 --workers 1 --steps 5 --warm-up 1"
    )
    command = [sys.executable, str(BENCHMARKS / "sft.py"), *options.split(), "--sides", "ours", "trl"]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text(encoding="utf-8"))
    ours, peer = result["ours"], result["peer"]
    # six steps of four are the whole epoch on both sides; the first step is warm-up
    assert ours["tokens_per_step"] == pytest.approx(peer["tokens_per_step"], rel=0.3)
    assert result["ratio"] == pytest.approx(ours["tokens_per_second"] / peer["tokens_per_second"], abs=2e-3)
    for side in (ours, peer):
        assert side["last_loss"] < side["first_loss"]
    assert "ratio" in done.stdout


def test_figures_by_hand(sft):
    lines = [
        {"loss": 3.0, "num_tokens": 100, "tokens_per_second": 1.0},
        {"loss": 2.0, "num_tokens": 300, "tokens_per_second": 100.0},
        {"loss": 2.0, "num_tokens": 600, "tokens_per_second": 100.0},
        {"loss": 1.0, "num_tokens": 700, "tokens_per_second": 10.0},
    ]
    got = sft.figures(lines, warm_up=1)
    assert got["tokens_per_second"] == 100.0
    assert got["tokens_per_second_overall"] == pytest.approx(600 / (2 + 3 + 10), abs=0.1)
    assert (got["seconds_per_step"], got["tokens_per_step"]) == (3.0, 200.0)
    assert (got["first_loss"], got["last_loss"]) == (3.0, 1.0)


def test_a_run_without_rows_is_said_so(tmp_path: Path):
    command = [sys.executable, str(BENCHMARKS / "sft.py"), "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no finished mixture stage" in done.stderr
