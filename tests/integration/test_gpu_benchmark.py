"""The GPU benchmark at a tiny size, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
