"""The learner benchmark at a size of a few tokens: it runs, and its two sides compute the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


def test_both_sides_have_the_same_gradients(import_benchmark, monkeypatch, tmp_path: Path, capsys):
    out = tmp_path / "learner.json"
    sizes = "--shape nano --prompt 40 --completion 9 --spread 0.5 --groups 2 --generations 3 --repeats 1"
    monkeypatch.setattr(sys, "argv", ["learner.py", *sizes.split(), "--device", "cpu", "--json", str(out)])
    import_benchmark("learner").main()
    result = json.loads(out.read_text(encoding="utf-8"))
    ours, peer = result["ours"], result["peer"]
    assert ours["n=3 gradient_difference"] < 1e-5
    assert ours["n=3 tokens"] + 2 * 2 * 40 <= peer["n=3 tokens"]  # two prompts less a group
    assert ours["n=3 share_of_bound"] == pytest.approx(result["ratio"] / ours["n=3 bound"], abs=2e-3)
    assert "ratio" in capsys.readouterr().out
