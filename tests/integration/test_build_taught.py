"""`build` from own passages, teacher and judge behind one server; then again without a request."""

from __future__ import annotations

import json

import pytest
from chat_server import serving
from teacher_server import teach, teacher_config

from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import parse_answer
from lm_mixup.mixture.teacher.fact_coverage import tells
from lm_mixup.pipeline import Options, run_verb

SAMPLES = 24


def settings_for(source, url):
    server = teacher_config(url, num_actors=1, num_cpus=0.5, price_per_million={"input": 1, "output": 1})
    return Config.model_validate(
        {
            "build": {"passages": str(source), "samples": SAMPLES, "max_inputs": 4, "passage_words": 60}
            | {"crosstopic_rate": 0.5, "crosstopic_min_similarity": 0.3, "noise_rate": 0},
            "teacher": server.model_dump(),
            "rate": server.model_dump() | {"max_tokens": 256, "model": "judge"},
            "data": {"rows_per_part": 8},
            "ray": {"num_cpus": 2, "object_store_gib": 0.3},
        }
    )


def test_own_passages_to_mixture(ray_session, tmp_path, capsys):
    source = tmp_path / "own.jsonl"
    texts = [
        " ".join(
            f"In {1800 + 10 * n + k} the village Number {n} built mill {k} by the river." for k in range(9)
        )
        for n in range(6)
    ]
    source.write_text(
        "\n".join(json.dumps({"title": f"Village {n}", "text": t}) for n, t in enumerate(texts))
    )
    run = RunDir(tmp_path / "run")
    with serving(teach) as server:
        config = settings_for(source, server.url)
        made = run_verb("build", config, run, Options())
        asked = len(server.seen)
        again = run_verb("build", config, run, Options(only="generate", fresh=True))
        assert len(server.seen) == asked
    said = " ".join("".join(capsys.readouterr()).split())
    assert "plan: 24 samples from 12 passages" in said and "cost about" in said
    for name in ("generate", "degrade"):
        manifest = made[name].manifest
        assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected
        assert manifest.metrics["teacher"] == "t" and manifest.metrics["rater"] == "judge"
        assert manifest.metrics["teacher_requests"] > 0 and manifest.metrics["teacher_cost"] > 0
    assert made["generate"].manifest.rows_in == SAMPLES
    rows = run.stage("mixture").read().to_pylist()
    assert len(rows) >= 12 and again["generate"].manifest.rows_out == made["generate"].manifest.rows_out
    for row in rows:
        parse_answer(row["task_type"], row["output"])
        assert 2 <= len(row["inputs"]) <= 4
    check_merged(run, made, rows)
    offline = Config.model_validate({"build": {"passages": str(source)}})
    with pytest.raises(InputError, match=r"offline teacher .* teacher\.backend"):
        run_verb("build", offline, RunDir(tmp_path / "no"), Options())


def check_merged(run, made, rows):
    """Pairs are of one split and task type and two passages; their samples make no other row."""
    pairs, merged = run.stage("pair_samples").read().to_pylist(), run.stage("crosstopic").read().to_pylist()
    manifest = made["crosstopic"].manifest
    assert manifest.rows_in == len(pairs) == manifest.rows_out + manifest.rows_rejected
    assert merged and manifest.metrics["teacher_requests"] > 0
    samples = {row["id"]: row for row in run.stage("generate").read().to_pylist()}
    for pair in pairs:
        one, two = samples[pair["id"]], samples[pair["partner_id"]]
        assert all(one[key] == two[key] == pair[key] for key in ("split", "task_type"))
        assert one["passage_id"] != two["passage_id"] and pair["similarity"] >= 0.3
    away = {row[name] for row in merged for name in ("target_id", "partner_id")}
    assert len(away) == 2 * len(merged)
    alone = {row["target_id"] for row in rows if row["method"] == "degrade"}
    both = [row for row in rows if row["method"] == "crosstopic"]
    assert not alone & away and len(both) == len(merged)
    for row in both:
        texts = " ".join(row["inputs"])
        facts = [*samples[row["target_id"]]["values"], *samples[row["partner_id"]]["values"]]
        told = [fact for fact in facts if fact.endswith(".")]  # the rest are options
        assert told and all(tells(row["output"], fact) and tells(texts, fact) for fact in told)
    total = made["mixture"].manifest
    assert total.rows_in == total.rows_used + sum(total.left_out.values())
