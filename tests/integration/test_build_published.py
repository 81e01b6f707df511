"""`build` and the library of `train` from a published MIXTURE: no passages, no teacher, no ratings."""

from __future__ import annotations

import json

from lm_mixup.config import Config
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.task_types import TASK_TYPES
from lm_mixup.demo.facts import load_entities
from lm_mixup.demo.offline_teacher import write_sample
from lm_mixup.pipeline import Options, run_verb


def write_published(root, rows=12):
    """Targets of the closed world, with two poor inputs each, laid out as the published files."""
    from random import Random

    rng, entities = Random(0), load_entities()
    for part, first in (("sft", 0), ("grpo", 200), ("test", 300)):
        for kind in TASK_TYPES:
            listed = []
            for number in range(rows):
                draft = write_sample(entities[first + number], kind, entities, rng)
                poor = draft.answer.replace(".", "")
                listed.append(
                    {
                        "id": number,
                        "input": f"[1] {poor}\n[2] {poor.lower() if kind == 'para' else poor}",
                        "output": draft.answer,
                        "cot": draft.cot,
                        "task_type": f"{kind}_mixup",
                    }
                )
            name = f"data_grpo/train_{kind}.json" if part == "grpo" else f"data_sft/{kind}/{part}.json"
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(listed))


def test_a_published_mixture_is_built_and_rated(ray_session, tmp_path):
    write_published(tmp_path / "MIXTURE")
    config = Config.model_validate(
        {
            "build": {"mixture": str(tmp_path / "MIXTURE")},
            "library": {"rows": 80},
            "embedder": {"max_length": 64},
            "data": {"rows_per_part": 50},
            "ray": {"num_cpus": 2, "object_store_gib": 0.3},
        }
    )
    run = RunDir(tmp_path / "run")
    made = run_verb("build", config, run, Options())
    assert list(made) == ["mixture", "rate_mixture"]
    mixture, rated = made["mixture"].manifest, made["rate_mixture"].manifest
    assert mixture.rows_in == 180 == mixture.rows_out + mixture.rows_rejected
    assert mixture.metrics["inputs/numbered"] == mixture.rows_out
    assert rated.rows_used == 40 and rated.rows_in == rated.rows_used + sum(rated.left_out.values())
    library = run_verb("train", config, run, Options(only="library"))["library"].manifest
    assert library.inputs.keys() == {"rate_mixture"}
    assert set(library.metrics["counts"]) == set(TASK_TYPES)
    assert run_verb("build", config, run, Options())["mixture"].skipped
