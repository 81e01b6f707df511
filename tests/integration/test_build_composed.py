"""`build` from good rows, all of it: real Ray, the packaged embedder, no teacher and no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_mixup.config import Config
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import parse_answer, read_input
from lm_mixup.mixture.degradation.coverage import coverage
from lm_mixup.pipeline import Options, run_verb

METALS = ("iron", "gold", "lead", "zinc", "tin", "silver", "copper", "cobalt")


def rows() -> list[dict[str, Any]]:
    good = [
        {
            "prompt": f"What is {name} used for in industry?",
            "completion": f"{name.capitalize()} is a metal. It is number {i} here. Smiths work with {name}.",
        }
        for i, name in enumerate(METALS)
    ]
    claim = {"sentence": "Soup is solid.", "label": "false", "explanation": "Soup is mainly liquid."}
    text = "Neon is a noble gas. It was found in 1898 by Ramsay. It glows red in tubes. Signs are made of it."
    return [*good, claim, {"title": "Neon", "text": text}, {"prompt": "What?"}]


def built(tmp_path: Path, name: str, **build: Any) -> tuple[RunDir, list[dict[str, Any]]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    fractions = {"grpo_fraction": 0.2, "test_fraction": 0.1, "dev_fraction": 0.1}
    config = Config.model_validate(
        {
            "build": {"samples_from": str(path), "samples": 60, "crosstopic_rate": 0.5} | fractions | build,
            "data": {"rows_per_part": 16},
            "embedder": {"max_length": 64},
            "library": {"rows": 40},
            "ray": {"num_cpus": 2, "object_store_gib": 0.3},
        }
    )
    run = RunDir(str(tmp_path / name))
    run_verb("build", config, run, Options())
    return run, run.stage("mixture").read().to_pylist()


def test_good_rows_become_a_mixture(ray_session, tmp_path):
    run, made = built(tmp_path, "run")
    manifest = run.stage("mixture").manifest()
    assert manifest is not None
    assert manifest.rows_in == 60 == manifest.rows_out + manifest.rows_rejected
    generate = run.stage("generate").manifest()
    assert generate is not None and generate.rejected_by_reason == {"no_completion": 1}
    assert {row["method"] for row in made} == {"degrade", "crosstopic"}
    for row in made:
        parse_answer(row["task_type"], row["output"])
        assert (
            coverage(row["output"].replace("Answer:", ""), row["inputs"]) >= 0.9
        )  # but for marks and numbers
        assert all(all(read_input(text)) for text in row["inputs"])
    splits = {name: row["split"] for row in made for name in row["source_ids"]}
    assert all(splits[name] == row["split"] for row in made for name in row["source_ids"])
    rated = run.stage("rate_mixture").read().to_pylist()
    assert {row["role"] for row in rated} == {"target", "input"}
    _, same = built(tmp_path, "again", num_actors=2)
    assert same == made
