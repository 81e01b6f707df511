"""The packaged nano model: what its card says of entities and wordings that it never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_mixup.augment.distill import is_demonstration
from lm_mixup.config import ModelConfig
from lm_mixup.models.policy import load_policy, load_tokenizer
from lm_mixup.models.resolve import model_folder

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_small_and_says_what_it_is():
    folder = Path(model_folder("nano"))
    assert (folder / "model.safetensors").stat().st_size <= 10_000_000
    parameters = sum(p.numel() for p in load_policy("nano", ModelConfig()).parameters())
    assert 2_000_000 <= parameters <= 5_000_000
    assert is_demonstration(str(folder)) and (folder / "README.md").is_file()
    assert load_tokenizer("nano", ModelConfig()).chat_template


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("nano")
    run = str(folder / "run")
    build = [sys.executable, "-m", "lm_mixup.cli", "build", str(ROOT / "configs/quickstart.yaml")]
    subprocess.run([*build, "--run-dir", run, "--set", "build.samples=1500"], check=True, timeout=900)
    out = folder / "figures.json"
    bench = [sys.executable, str(ROOT / "benchmarks/closed_world.py"), run, "--limit", "80"]
    subprocess.run([*bench, "--json", str(out)], check=True, timeout=900)
    return json.loads(out.read_text())["nano"]


def test_it_keeps_the_formats_and_copies_what_its_inputs_say(figures):
    # Its card says 94%, 78% and 0.34 of another test split; these are 80 rows.
    assert figures["all"]["format"] >= 0.82
    assert figures["all"]["recall"] >= 0.58
    assert figures["all"]["other"] <= 0.7
