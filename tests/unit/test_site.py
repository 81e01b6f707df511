"""The documentation site builds without a warning, its reference is complete, and its examples run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from sample_run import write_run

from lm_mixup.config import Config
from lm_mixup.config.load import section_of
from lm_mixup.config.reference import reference

ROOT = Path(__file__).resolve().parents[2]


def _blocks(kind):
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return dict(re.findall(rf'```{kind} title="([\w.]+)"\n(.*?)```', text, re.DOTALL))


PROGRAMS = _blocks("python")


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert pages >= {"index.html", "configuration.html", "method.html", "glossary.html"}
    assert "cluster.min_similarity" in (tmp_path / "site" / "configuration.html").read_text()
    assert "<math" in (tmp_path / "site" / "method.html").read_text()


def test_every_guide_is_in_the_navigation():
    listed = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_key():
    text = reference()

    def keys(model, prefix=""):
        for name, info in model.model_fields.items():
            inner = section_of(info.annotation)
            if inner is not None and inner is info.annotation:
                yield from keys(inner, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    assert [key for key in keys(Config) if f"| `{key}` |" not in text] == []
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}


def test_examples_of_extending_are_short():
    assert {
        name: len(code.splitlines()) for name, code in PROGRAMS.items() if len(code.splitlines()) > 30
    } == {}


def test_the_reward_scores(tmp_path, monkeypatch):
    from lm_mixup.config.load import load_config
    from lm_mixup.rewards.batch import RewardBatch
    from lm_mixup.rewards.custom import CustomRewards

    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_reward.py").write_text(PROGRAMS["my_reward.py"])
    (tmp_path / "c.yaml").write_text(settings)
    assert yaml.safe_load(settings)["rewards"]["custom"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    batch = RewardBatch(["qa"] * 2, ["a\n- b", "a"], ["r"] * 2, [0, 0], [["b"]] * 2)
    rewards = CustomRewards(load_config("c.yaml").rewards.custom)
    assert rewards.score(batch)["no_lists"].tolist() == [0.5, 1.0]


def test_the_judge_rates():
    from lm_mixup.chat.judge import make_judge
    from lm_mixup.config import RateConfig

    names: dict = {"__name__": "my_judge"}
    exec(PROGRAMS["my_judge.py"], names)
    server = ThreadingHTTPServer(("127.0.0.1", 0), names["Judge"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        judge = make_judge(RateConfig(backend="openai", base_url=url, model="by-length"))
        short, long = judge.rate([("What is iron?", "A metal."), ("What is iron?", "word " * 200)])
    finally:
        server.shutdown()
        server.server_close()
    assert short.overall < long.overall == 10


def test_the_selection_writes_faithful_rows(tmp_path):
    run = write_run(tmp_path / "run", train=False)
    (tmp_path / "my_selection.py").write_text(PROGRAMS["my_selection.py"])
    out = tmp_path / "chosen.jsonl"
    command = [sys.executable, str(tmp_path / "my_selection.py"), run.uri, str(out)]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == run.stage("rate_distilled").manifest().rows_out
    assert rows[0].keys() == {"prompt", "completion"}
