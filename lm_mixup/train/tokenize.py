"""MIXTURE rows as token ids: prompt and target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lm_mixup.config import ModelConfig
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import StageDir
from lm_mixup.core.task_types import write_output, write_prompt
from lm_mixup.demo import create_nano
from lm_mixup.distributed.map_parts import PartResult, Work
from lm_mixup.models.policy import encode_prompt, encode_target, load_tokenizer
from lm_mixup.models.resolve import UNTRAINED_NANO, portable_path
from lm_mixup.train.remote_checkpoint import has_model, upload_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_SPLIT, EVAL_SPLIT = "sft", "dev"
COLUMNS = ["id", "split", "instruction", "inputs", "cot", "output"]

# The first `prompt_length` tokens of `input_ids` are the prompt and carry no loss; the rest is the target.
TOKENS = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt_length", pa.int32()),
    ]
)
REJECTED = pa.schema([("id", pa.string()), ("reason", pa.string()), ("tokens", pa.int32())])


def make_encoder(mixture: StageDir, base: str, model: ModelConfig, max_length: int) -> Work:
    """Returns the function that reads and encodes one MIXTURE part."""
    tokenizer = load_tokenizer(base, model)

    def encode(relative: str) -> PartResult:
        return encode_rows(mixture.read_part(relative, COLUMNS), tokenizer, max_length)

    return encode


def encode_rows(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PartResult:
    """Encodes the rows of the training and evaluation splits; rows over `max_length` are rejected.

    They are not truncated: that would teach the model to stop in the middle, or never.

    Args:
        table: MIXTURE rows with the columns `COLUMNS`.
        tokenizer: The policy's.
        max_length: Most tokens of prompt and target.

    Returns:
        `TOKENS` rows, and rejected rows with reason `too_long`. Rows of other splits are not counted.
    """
    kept, rejected = [], []
    for row in table.to_pylist():
        if row["split"] not in (TRAIN_SPLIT, EVAL_SPLIT):
            continue
        prompt = encode_prompt(tokenizer, row["instruction"], row["inputs"])
        ids = prompt + encode_target(tokenizer, row["cot"] or "", row["output"])
        if len(ids) > max_length:
            rejected.append({"id": row["id"], "reason": "too_long", "tokens": len(ids)})
        else:
            kept.append(
                {"id": row["id"], "split": row["split"], "input_ids": ids, "prompt_length": len(prompt)}
            )
    return PartResult(
        rows=schemas.table(kept, TOKENS),
        rejected=schemas.table(rejected, REJECTED) if rejected else None,
        rows_in=len(kept) + len(rejected),
        metrics={"rows_of_other_splits": table.num_rows - len(kept) - len(rejected)},
    )


def base_model(mixture: StageDir, out: StageDir, model: ModelConfig, seed: int) -> str:
    """The model to start from: the configured one, or an untrained nano with a tokenizer for these texts."""
    if model.path != UNTRAINED_NANO:
        return portable_path(model.path)
    folder: Path = out.local / "base"
    if not has_model(out, "base"):
        create_nano(folder, _texts(mixture), seed)
        upload_model(out, "base")
    return out.location("base")


def _texts(mixture: StageDir) -> Iterator[str]:
    """Prompts and outputs of the training split, as the model will see them."""
    for table in mixture.iter_parts(COLUMNS):
        for row in table.to_pylist():
            if row["split"] == TRAIN_SPLIT:
                yield write_prompt(row["instruction"], row["inputs"])
                yield write_output(row["cot"] or "", row["output"])
