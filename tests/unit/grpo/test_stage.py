"""The prompts of the stage: encoded, rejected if too long, with their inputs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from lm_mixup.config import EmbedderConfig, GrpoConfig, ModelConfig, RewardsConfig
from lm_mixup.core import task_types
from lm_mixup.core.errors import InputError, StageEmpty
from lm_mixup.core.run_dir import RunDir, fingerprint
from lm_mixup.demo.nano import create_nano
from lm_mixup.distributed.map_parts import PartResult, receipt_of
from lm_mixup.grpo.stage import _check_learned, _make_encode, _read_prompts, grpo
from lm_mixup.models.policy import encode_prompt, load_tokenizer
from lm_mixup.rewards.library import LibraryInfo

INPUTS = ["What is gold?\nA metal.", "Its number?\n79"]


def row(name: str, split: str, inputs: list[str]) -> dict:
    instruction, output = task_types.INSTRUCTIONS["qa"], "Q: What is gold?\nA: A metal."
    fields = {
        "instruction": instruction,
        "inputs": inputs,
        "output": output,
        "entity": "gold",
        "partner_entity": None,
    }
    return {"id": name, "task_type": "qa", "split": split} | fields


def test_prompts_keep_their_inputs(tmp_path: Path):
    rows = [
        row("b", "grpo", INPUTS[::-1]),
        row("a", "grpo", INPUTS),
        row("c", "dev", INPUTS),
        row("d", "sft", INPUTS),
        row("e", "grpo", INPUTS * 40),
    ]
    run = RunDir(tmp_path)
    result = PartResult(pa.Table.from_pylist(rows), rows_in=len(rows))
    run.stage("mixture").write_part(0, result.rows, None, receipt_of(0, result))
    model = create_nano(tmp_path / "sft" / "model", [INPUTS[0]] * 8, 0, vocab_size=300)
    (part,) = run.stage("mixture").parts()
    encoded = _make_encode(str(model), ModelConfig(), 512)((run.stage("mixture"), part))
    assert encoded.rows_in == encoded.rows.num_rows + encoded.rejected.num_rows == 4
    (refused,) = encoded.rejected.to_pylist()
    assert (refused["id"], refused["reason"], refused["inputs"]) == ("e", "prompt_too_long", INPUTS * 40)
    out = run.stage("grpo")
    out.write_part(0, encoded.rows, encoded.rejected, receipt_of(0, encoded))
    prompts, held_out, left_over = _read_prompts(out, 5)
    assert left_over == 0
    assert _read_prompts(out, 0)[1:] == ([], 1)
    assert [(p.id, p.inputs) for p in prompts] == [("a", tuple(INPUTS)), ("b", tuple(INPUTS[::-1]))]
    assert [(p.id, p.inputs) for p in held_out] == [("c", tuple(INPUTS))]
    tokenizer = load_tokenizer(model, ModelConfig())
    assert prompts[0].token_ids == encode_prompt(tokenizer, task_types.INSTRUCTIONS["qa"], INPUTS)
    assert (prompts[0].reference, prompts[0].entities) == ("Q: What is gold?\nA: A metal.", ("gold",))

    # A library that cannot judge them is refused before any engine starts.
    embedder = EmbedderConfig()
    info = LibraryInfo("minilm", fingerprint(embedder.identity()), 384, {"tfq": {"5": 1}}, {}, {"tfq": "x"})
    run.write_json("library/library.json", asdict(info))
    settings = (GrpoConfig(), ModelConfig(), RewardsConfig(), embedder)
    with pytest.raises(InputError, match="no rated samples of task type qa"):
        grpo(run.stage("mixture"), run.stage("library"), run.stage("sft"), out, *settings, seed=0)


def test_a_training_without_one_update_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = RunDir(tmp_path).stage("grpo")

    def trained(*losses: float | None) -> None:
        lines = (json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1))
        out.run.write_bytes("grpo/metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
        _check_learned(out)

    with pytest.raises(StageEmpty, match=r"^grpo: not one of 3 steps .*grpo/model is that of sft"):
        trained(None, None, None)
    trained(None, 0.0, None)
    assert "grpo: 2 of 3 steps had no group with different rewards" in capsys.readouterr().err
    trained(0.1, 0.0)
    assert capsys.readouterr().err == ""
