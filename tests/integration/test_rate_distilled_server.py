"""Distilled rows before a chat judge that is shown their inputs: what it finds unsupported is refused."""

from __future__ import annotations

import json
from pathlib import Path

from chat_server import GOOD, Seen, serving
from stage_rows import put_part

from lm_mixup.augment.rate_distilled import rate_distilled
from lm_mixup.config import EmbedderConfig, RateDistilledConfig
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import RunDir

INPUTS = ["When did the bridge open?\nThe bridge opened in 1889.", "What is it made of?\nIt is made of iron."]
TRUE, FALSE = (
    "The bridge opened in 1889 and is made of iron.",
    "The bridge opened in 1890 and is made of iron.",
)


def judged(seen: Seen) -> str:
    """The reply of a judge that knows one fault: a year that the sources do not have."""
    wrong = "1890" in seen.row["response"] and not any("1890" in text for text in seen.row["sources"])
    found = (
        {"unsupported": ["in 1890"], "faithfulness": 3} if wrong else {"unsupported": [], "faithfulness": 10}
    )
    return json.dumps(json.loads(GOOD) | found | {"overall": 3 if wrong else 8})


def distilled(completion: str, inputs: list[str]) -> dict:
    prompt = "When did the bridge open, and what is it made of?"
    texts = {"prompt": prompt, "completion": completion, "cot": "", "raw": completion, "inputs": inputs}
    key = schemas.content_id(completion, *inputs)
    return {"cluster_id": key, "task_type": "qa", "parent_ids": ["a", "b"], **texts}


def test_what_the_inputs_do_not_support_is_refused_by_the_judge(ray_session, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    distill, out = run.stage("distill"), run.stage("rate_distilled")
    other = [text.replace("1889", "1890") for text in INPUTS]
    rows = [distilled(TRUE, INPUTS), distilled(FALSE, INPUTS), distilled(FALSE, other)]
    put_part(distill, 0, schemas.table(rows, schemas.DISTILLED))
    ungated = RateDistilledConfig(min_faithfulness=0, min_coverage=0)  # the measure would refuse it unrated
    with serving(judged) as server:
        embedder = EmbedderConfig(num_cpus=0.5)
        rate_distilled(distill, None, out, server.config(num_cpus=0.5), embedder, 2, 4, ungated)
        assert sorted(seen.row["sources"] == INPUTS for seen in server.seen) == [False, True, True]
    kept, refused = out.read().to_pylist(), out.read(kind="rejected").to_pylist()
    assert [(row["completion"], row["inputs"]) for row in kept] == [(TRUE, INPUTS), (FALSE, other)]
    assert [row["faithfulness_rating"] for row in kept] == [10, 10]
    assert [row["unsupported_quotes"] for row in kept] == [[], []]
    (row,) = refused
    assert (row["completion"], row["reason"], row["score"]) == (FALSE, "score_below_4", 0)
    assert (row["faithfulness_rating"], row["unsupported_quotes"]) == (3, ["in 1890"])
