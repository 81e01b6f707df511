"""What the SFT stage refuses and reports."""

from __future__ import annotations

import json

import pytest
from stage_rows import put_part

from lm_mixup.config import FinetuneConfig, ModelConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.train.checkpoint import (
    SftJob,
)
from lm_mixup.train.sft import fit
from lm_mixup.train.tokenize import TOKENS


def job_of(tmp_path, config, splits):
    """A job whose stage holds encoded rows of these splits."""
    out = RunDir(tmp_path).stage("finetune")
    rows = [{"id": str(n), "split": s, "input_ids": [1, 2], "prompt_length": 1} for n, s in enumerate(splits)]
    put_part(out, 0, schemas.table(rows, TOKENS))
    return SftJob(out=out, config=config, model=ModelConfig(), base="nano", seed=0)


@pytest.mark.parametrize("settings_", [{"patience": 2}, {"keep_best": True}])
def test_what_goes_by_held_out_rows_is_refused_where_there_is_none(tmp_path, settings_):
    job = job_of(tmp_path, FinetuneConfig(eval_fraction=0.0, **settings_), ["sft"] * 3)
    with pytest.raises(InputError, match=r"finetune\.patience .*need held-out rows.*raise finetune\.eval_fr"):
        fit(job)


@pytest.mark.parametrize(
    ("settings_", "steps", "eval_loss", "drawn"),
    [({}, 2, 0.7, 8), ({"keep_best": True}, 2, 0.5, 8), ({}, 3, 0.7, 10), ({"packing": True}, 1, 0.7, 10)],
)
def test_the_manifest_speaks_of_the_model_that_was_written(tmp_path, settings_, steps, eval_loss, drawn):
    config = FinetuneConfig(batch_size=4, eval_rows=1, **settings_)
    job = job_of(tmp_path, config, ["sft"] * 10 + ["dev"] * 2)
    losses = [{"step": 1, "eval_loss": 0.5}, {"step": steps, "eval_loss": 0.7}]
    lines = [*losses, {"step": steps, "loss": 1.0, "num_tokens": 9}]
    job.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job.final.mkdir()
    outcome = fit(job)
    assert outcome.metrics["eval_loss"] == eval_loss
    assert outcome.rows_used == drawn + 1
    assert outcome.left_out == {
        "not_drawn": 10 - drawn,
        "dev_rows_not_evaluated": 1,
        "rows_of_other_splits": 0,
    }
