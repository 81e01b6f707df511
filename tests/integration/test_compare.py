"""Two real models answer in vLLM and a chat server judges: both orders, paid once, resumed without asking."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from chat_server import Answer, Seen, serving

from lm_mixup.core.run_dir import RunDir
from lm_mixup.models.resolve import model_folder

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"
QUESTIONS = ["What is the capital of Peru?", "Name three rivers.", "word " * 300, "Who wrote Hamlet?"]
LIMIT_S = 240


def prefers_longer(seen: Seen) -> Answer:
    first, second = seen.row["first"], seen.row["second"]
    better = "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"
    return Answer(json.dumps({"better": better}))


def run_compare(run: Path, settings: dict[str, str]) -> str:
    command = [sys.executable, "-m", "lm_mixup.cli", "evaluate", str(TINY), "--run-dir", str(run)]
    command += [
        "--only",
        "compare",
        *(word for item in settings.items() for word in ("--set", "=".join(item))),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command,
        env=environment | {"JUDGE_KEY": "sk-of-nobody", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_models_are_judged_in_both_orders_and_nothing_is_asked_twice(tmp_path: Path):
    prompts, other = tmp_path / "prompts.jsonl", tmp_path / "other"
    rows = [{"prompt": question, "completion": "unknown"} for question in QUESTIONS]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(model_folder("nano"), other)
    config = json.loads((other / "config.json").read_text())
    config["rope_theta"] = 5.0  # another model: it answers otherwise
    config.pop("rope_parameters", None)
    (other / "config.json").write_text(json.dumps(config))
    with serving(prefers_longer) as server:
        settings = {
            "compare.prompts": str(prompts),
            "compare.models": f"[nano, {other}]",
            "compare.max_prompt_length": "120",
            "compare.max_completion_length": "24",
            "rate.backend": "openai",
            "rate.base_url": server.url,
            "rate.model": "m",
            "rate.api_key_env": "JUDGE_KEY",
        }
        said = run_compare(tmp_path / "run", settings)
        stage = RunDir(tmp_path / "run").stage("compare")
        found = {row["prompt"].strip(): row for row in stage.read().to_pylist()}
        assert len(found) == 4 and found[("word " * 300).strip()]["error"] == "prompt_too_long"
        judged = [row for row in found.values() if row["error"] is None]
        asked = [row for row in judged if row["answer_a"].strip() != row["answer_b"].strip()]
        assert len(judged) == 3 and asked and len(server.seen) == 2 * len(asked)
        for row in judged:
            gap = len(row["answer_a"]) - len(row["answer_b"])
            assert row["consistent"] and row["preference"] == (0.5 if gap == 0 else float(gap > 0))
        results = json.loads((stage.local / "results.json").read_text())
        assert results["judged"] == 3 and 0 <= results["low"] <= results["win_rate"] <= results["high"] <= 1
        assert "at equal length" in said and "sk-of-nobody" not in said
        calls = len(server.seen)
        shutil.rmtree(stage.local / "receipts")  # as after a kill: judged again, from the kept replies
        (stage.local / "manifest.json").unlink()
        run_compare(tmp_path / "run", settings)
        assert len(server.seen) == calls and stage.read().num_rows == 4
