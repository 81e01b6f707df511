"""Fine-tuning on a finished training set: rows of prompt and completion in, a model out.

The same training as SFT of the distiller (`sft.py`), with any instruction model and any rows, to measure the
value of a training set. Files are read as `ingest` reads a pool: every layout that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lm_mixup.augment.reading.files import Unit, list_units
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.augment.reading.rows import PoolRow, raw_text
from lm_mixup.config import FinetuneConfig, IngestConfig, ModelConfig, TrackingConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.models.policy import encode_pair, load_tokenizer
from lm_mixup.models.resolve import UNTRAINED_NANO, check_model_path, portable_path
from lm_mixup.train.checkpoint import SftJob
from lm_mixup.train.sft import fit
from lm_mixup.train.tokenize import EVAL_SPLIT, REJECTED, TOKENS, TRAIN_SPLIT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def finetune_selected(
    select: StageDir,
    out: StageDir,
    config: FinetuneConfig,
    model: ModelConfig,
    seed: int,
    tracking: TrackingConfig | None = None,
) -> Outcome:
    """Fine-tunes a model on this run's training set, `select/train.jsonl`, as `finetune` does."""
    rows = f"{select.run.uri}/{select.name}/train.jsonl"
    return finetune(out, rows, {}, "last", config, model, seed, tracking)


def finetune(
    out: StageDir,
    rows: str,
    columns: dict[str, str],
    turns: Literal["first", "last", "all", "reject"],
    config: FinetuneConfig,
    model: ModelConfig,
    seed: int,
    tracking: TrackingConfig | None = None,
) -> Outcome:
    """Fine-tunes a model on a training set.

    Writes what `sft` writes: token rows as parts, `metrics.jsonl`, `checkpoints/` and `model/`.

    Args:
        out: The stage directory.
        rows: A file, folder, glob, URI or Hub name, in a layout that `ingest` reads.
        columns: Our column → the file's, as in `ingest.columns`.
        turns: Which answer of a conversation is trained on, as in `ingest.turns`.
        config: The `finetune` section.
        model: The model to fine-tune, unless the section names one.
        seed: Of the held-out rows, the data order and the adapters.
        tracking: The `tracking` section; its defaults if None.

    Raises:
        InputError: There is no such model or file, no row fits, or the cluster has no room.
        ray.train.TrainingFailedError: The workers failed more often than `max_failures`.
    """
    model = trained_model(config, model)
    check_base(model)
    base = portable_path(model.path)
    reading = IngestConfig(columns=columns, turns=turns)
    units, _ = list_units(rows, int(reading.split_mib * (1 << 20)), "finetune.train")
    map_parts(
        out,
        units,
        _make_encoder,
        {"base": base, "model": model, "config": config, "reader": Reader(reading, seed), "seed": seed},
        num_actors=config.num_workers,
        label="encode",
    )
    return fit(SftJob(out=out, config=config, model=model, base=base, seed=seed), tracking)


def trained_model(config: FinetuneConfig, model: ModelConfig) -> ModelConfig:
    """The model that is fine-tuned, with the chat template that the section gives it."""
    chosen = config.model or model
    given = config.chat_template
    return chosen if given is None else chosen.model_copy(update={"chat_template": given})


def check_base(model: ModelConfig) -> None:
    """Refuses a model that cannot be fine-tuned, before anything is started.

    Raises:
        InputError: There is no such model, or it has no weights.
    """
    check_model_path(model.path)
    if model.path == UNTRAINED_NANO:
        raise InputError(f"finetune: {model.path} has no weights; set finetune.model.path")


def _make_encoder(
    base: str, model: ModelConfig, config: FinetuneConfig, reader: Reader, seed: int
) -> Callable[[Unit], PartResult]:
    tokenizer = load_tokenizer(base, model)

    def encode(unit: Unit) -> PartResult:
        return encode_items(reader.items(unit), unit, reader, tokenizer, config, seed)

    return encode


def encode_items(
    items: Sequence[Any],
    unit: Unit,
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    config: FinetuneConfig,
    seed: int,
) -> PartResult:
    """Encodes rows of prompt and completion; none is truncated, none is dropped without a reason.

    Args:
        items: As `reader` reads them from `unit`.
        tokenizer: The model's.
        config: The length limit and the held-out share.
        seed: Whether a row is held out depends on it and the row alone.

    Returns:
        `TOKENS` rows of split `sft` or `dev`, ending with the end-of-sequence token; and rejected rows with
        the reason that `ingest` would give, or `too_long`.
    """
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for item in items:
        row = reader.row(item, unit)
        if not isinstance(row, PoolRow):
            rejected.append({"id": content_id(raw_text(item)), "reason": str(row)})
            continue
        prompt, answer = encode_pair(tokenizer, row.prompt, row.completion)
        ids = [*prompt, *answer, int(tokenizer.eos_token_id)]
        if len(ids) > config.max_length:
            rejected.append({"id": row.id, "reason": "too_long", "tokens": len(ids)})
            continue
        held_out = int(content_id(str(seed), row.id), 16) < config.eval_fraction * 2**128
        split = EVAL_SPLIT if held_out else TRAIN_SPLIT
        kept.append({"id": row.id, "split": split, "input_ids": ids, "prompt_length": len(prompt)})
    return PartResult(
        rows=schemas.table(kept, TOKENS),
        rejected=pa.Table.from_pylist(rejected, schema=REJECTED) if rejected else None,
        rows_in=len(kept) + len(rejected),
    )
