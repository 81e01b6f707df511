"""The GPU benchmark at a tiny size, and the answers that the one-GPU driver counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_learner_parts_run_without_a_gpu_and_say_what_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    parts = ["rates", "gradients_fp32", "learner_shared", "attention"]
    command = [sys.executable, "benchmarks/gpu.py", "--quick", "--repeats", "1", "--json", str(out)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--parts", *parts], check=True, cwd=ROOT, env=env, capture_output=True)
    result = json.loads(out.read_text(encoding="utf-8"))
    shared = result["gradients_fp32"]["shared"]
    assert shared["gradient_difference"] < 1e-5
    assert shared["tokens"] < result["gradients_fp32"]["plain"]["tokens"]
    assert result["learner_shared"]["episode_tokens_per_second"] > 0
    assert "attention" not in result
    assert {"attention", "rollout", "weight_transports"} <= result["left_out"].keys()


def test_answers_are_counted_by_what_is_wrong_with_them(import_benchmark: Any) -> None:
    greedy = import_benchmark("greedy")

    good = greedy.Answer("a", "qa", "<think></think>\n<answer>Q: x</answer>", True, 10, "", "Q: x")
    cut = greedy.Answer("b", "qa", "<think>", False, 20, "cut", None)
    late = greedy.Answer("c", None, None, False, 0, "no_time", None)
    assert greedy.summary([good, cut, late]) == {
        "rows": 3,
        "written": 2,
        "in_format": 1,
        "faults": {"cut": 1, "no_time": 1},
        "mean_tokens": 15.0,
    }


def test_batches_hold_every_row_once_and_stay_within_the_tokens(
    import_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = import_benchmark("greedy")
    monkeypatch.setattr(greedy, "_TOKENS", 1000)
    writer = greedy.Writer.__new__(greedy.Writer)
    writer._max_new_tokens = 100
    lengths = [300, 20, 2000, 150, 400, 10]
    batches = writer._batches([[1] * length for length in lengths])
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * (max(lengths[row] for row in batch) + 100)
        assert padded <= 1000 or len(batch) == 1
