"""A small pool and distilled rows, and the select stage over them."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pyarrow as pa
from stage_rows import put_part

from lm_mixup.augment import influence, perplexity
from lm_mixup.augment.embed import embedding_table
from lm_mixup.augment.rate_distilled import kept_of
from lm_mixup.augment.select import select
from lm_mixup.augment.selection.candidates import MEASURED_BY
from lm_mixup.augment.vector_search.neighbor_table import neighbor_table
from lm_mixup.config import SelectConfig, SelectMethod
from lm_mixup.core import schemas
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir

METHODS = get_args(SelectMethod)
CURATED = schemas.extend(schemas.INSTRUCTION, schemas.RATING, schemas.CURATION)
DISTILLED = schemas.extend(
    schemas.DISTILLED, schemas.FAITHFULNESS, schemas.RATING, pa.schema([("long_tail", pa.float32())])
)


def write(stage: StageDir, rows: list[dict], schema: pa.Schema, rows_per_part: int) -> StageDir:
    for part, start in enumerate(range(0, max(len(rows), 1), rows_per_part)):
        piece = schemas.table(rows[start : start + rows_per_part], schema)
        put_part(stage, part, piece)
    return stage


def original(index: int, score: int | None = 5, **changes) -> dict:
    row = {"id": f"o{index:03d}", "source": "s", "task_type": "qa", "curated_score": score, "confidence": 1.0}
    row |= {"overall": None if score is None else score + 4, "complexity": None if score is None else 5}
    return row | {"prompt": f"old question {index}?", "completion": f"old {'word ' * index}answer"} | changes


def distilled(index: int, score: int | None = 4, **changes) -> dict:
    row = {
        "cluster_id": f"c{index}",
        "task_type": "qa",
        "score": score,
        "overall": 9,
        "complexity": 5,
        "parent_ids": [f"p{index}", f"q{index}"],
    }
    texts = {"prompt": f"new question {index}?", "completion": f"new answer {index}"}
    return row | texts | {"long_tail": index / 100} | changes


def circle(degrees) -> np.ndarray:
    angles = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32).reshape(-1, 2)


def perplexity_of(prompt: str, completion: str) -> float:
    """Any figure that a text decides: longer completions surprise more."""
    return 1.0 + len(completion) / 10


def run_select(folder, ours, theirs, rows_per_part=6, degrees=None, **settings):
    """Selects among rows whose embeddings lie on a circle, at `degrees` of their number."""
    here = RunDir(folder)
    degrees = degrees or (lambda number: number**1.5)
    new = write(here.stage("rate_distilled"), ours, DISTILLED, rows_per_part)
    old = write(here.stage("curate"), theirs, CURATED, rows_per_part)
    vectors = circle([degrees(float(row["id"][1:])) for row in theirs])
    embed, near, kept = here.stage("embed"), here.stage("neighbors"), kept_of(new)
    ids = pa.array([row["id"] for row in theirs], pa.string())
    put_part(embed, 0, embedding_table(ids, vectors))
    indices, cosines = knn(vectors, vectors, 4, exclude_self=True)
    for part, start in enumerate(range(0, max(len(theirs), 1), rows_per_part)):
        cut = slice(start, start + rows_per_part)
        put_part(near, part, neighbor_table(ids[cut], ids, indices[cut], cosines[cut]))
    own = circle([200 + degrees(100 * row["long_tail"]) for row in ours])
    put_part(kept, 0, embedding_table([schemas.content_id(r["prompt"], r["completion"]) for r in ours], own))
    column = MEASURED_BY.get(settings.get("method"))
    measured = None if column is None else _measure(here.stage(column), column, new, old)
    out = here.stage("select")
    config = SelectConfig(**{"budget": 10, "neighbors": 2, **settings})
    outcome = select(new, old, embed, near, measured, out, config, 1)
    lines = here.read_bytes("select/train.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines], outcome, out


def _measure(out: StageDir, column: str, *stages: StageDir) -> StageDir:
    """What such a pass leaves: no figure for empty rows and for those of more than 300 characters."""
    tables = [table for stage in stages for table in stage.iter_parts(["prompt", "completion"])]
    for part, table in enumerate(tables):
        texts = [(row["prompt"], row["completion"]) for row in table.to_pylist()]
        rows = [
            {"content": schemas.content_id(*pair), column: perplexity_of(*pair), "tokens": 1}
            for pair in texts
            if pair[1].strip() and len(pair[1]) <= 300
        ]
        put_part(
            out, part, schemas.table(rows, influence.OUTPUT if column == "influence" else perplexity.OUTPUT)
        )
    return out


def adds_up(outcome: Outcome) -> bool:
    return outcome.rows_in == outcome.rows_used + sum(outcome.left_out.values())


def origins(lines) -> tuple[int, int]:
    named = [line["origin"] for line in lines]
    return named.count("distilled"), named.count("original")


def chosen(lines, origin="original") -> set[str]:
    """The numbers of the chosen rows of a side."""
    return {line["prompt"].split()[-1].rstrip("?") for line in lines if line["origin"] == origin}
