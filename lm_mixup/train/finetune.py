"""Fine-tuning on a finished training set: JSONL rows of prompt and completion in, a model out.

The same training as SFT of the distiller (`sft.py`), with any instruction model and any rows, to measure the
value of a training set.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa

from lm_mixup.config import DataConfig, FinetuneConfig, ModelConfig, TrackingConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, is_clean
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
    data: DataConfig,
    seed: int,
    tracking: TrackingConfig | None = None,
) -> Outcome:
    """Fine-tunes a model on this run's training set, `select/train.jsonl`, as `finetune` does."""
    rows = f"{select.run.uri}/{select.name}/train.jsonl"
    return finetune(out, rows, config, model, data, seed, tracking)


def finetune(
    out: StageDir,
    rows: str,
    config: FinetuneConfig,
    model: ModelConfig,
    data: DataConfig,
    seed: int,
    tracking: TrackingConfig | None = None,
) -> Outcome:
    """Fine-tunes a model on a training set.

    Writes what `sft` writes: token rows as parts, `metrics.jsonl`, `checkpoints/` and `model/`.

    Args:
        out: The stage directory.
        rows: Path or URI of a JSONL file with `prompt`, `completion` and, optionally, `id`.
        config: The `finetune` section.
        model: The model to fine-tune, unless the section names one.
        data: The `data` section: lines per part.
        seed: Of the held-out rows, the data order and the adapters.
        tracking: The `tracking` section; its defaults if None.

    Raises:
        InputError: There is no such model or file, no row fits, or the cluster has no room.
        ray.train.TrainingFailedError: The workers failed more often than `max_failures`.
    """
    model = trained_model(config, model)
    check_base(model)
    base = portable_path(model.path)
    map_parts(
        out,
        [(rows, *cut) for cut in line_ranges(rows, data.rows_per_part)],
        _make_encoder,
        {"base": base, "model": model, "config": config, "seed": seed},
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


def line_ranges(path: str, lines: int) -> list[tuple[int, int]]:
    """Splits a file into byte ranges of `lines` lines each; the last one holds the rest.

    Raises:
        InputError: There is no such file.
    """
    cuts, end = [0], 0
    try:
        with fsspec.open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                end += len(line)
                if number % lines == 0:
                    cuts.append(end)
    except FileNotFoundError:
        raise InputError(f"finetune.train: there is no file {path}") from None
    if end != cuts[-1]:
        cuts.append(end)
    return list(itertools.pairwise(cuts))


def _make_encoder(
    base: str, model: ModelConfig, config: FinetuneConfig, seed: int
) -> Callable[[tuple[str, int, int]], PartResult]:
    tokenizer = load_tokenizer(base, model)

    def encode(item: tuple[str, int, int]) -> PartResult:
        path, start, stop = item
        with fsspec.open(path, "rb") as file:
            file.seek(start)
            lines = file.read(stop - start).splitlines()
        return encode_lines(lines, tokenizer, config, seed)

    return encode


def encode_lines(
    lines: Sequence[bytes], tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig, seed: int
) -> PartResult:
    """Encodes rows of prompt and completion; none is truncated, none is dropped without a reason.

    Args:
        lines: JSON objects, UTF-8; blank lines are not rows.
        tokenizer: The model's.
        config: The length limit and the held-out share.
        seed: Whether a row is held out depends on it and the row alone.

    Returns:
        `TOKENS` rows of split `sft` or `dev`, ending with the end-of-sequence token; and rejected rows with
        reason `not_json`, `no_prompt`, `no_completion`, `bad_character` or `too_long`.
    """
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row in _rows(lines):
        if "reason" in row:
            rejected.append(row)
            continue
        prompt, answer = encode_pair(tokenizer, row["prompt"], row["completion"])
        ids = [*prompt, *answer, int(tokenizer.eos_token_id)]
        if len(ids) > config.max_length:
            rejected.append({"id": row["id"], "reason": "too_long", "tokens": len(ids)})
            continue
        held_out = int(content_id(str(seed), row["id"]), 16) < config.eval_fraction * 2**128
        split = EVAL_SPLIT if held_out else TRAIN_SPLIT
        kept.append({"id": row["id"], "split": split, "input_ids": ids, "prompt_length": len(prompt)})
    return PartResult(
        rows=schemas.table(kept, TOKENS),
        rejected=pa.Table.from_pylist(rejected, schema=REJECTED) if rejected else None,
        rows_in=len(kept) + len(rejected),
    )


def _rows(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """Each line as a row with `id`, and either `prompt` and `completion` or the `reason` why not."""
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # the latter: nested too deeply
            row = None
        if not isinstance(row, dict):
            yield {"id": _id_of(line), "reason": "not_json"}
            continue
        texts = {key: row.get(key) for key in ("prompt", "completion")}
        missing = [k for k, text in texts.items() if not (isinstance(text, str) and text.strip())]
        name = str(row.get("id") or content_id(*map(str, texts.values())))
        if not all(is_clean(str(text)) for text in (name, *texts.values())):
            yield {"id": _id_of(line), "reason": "bad_character"}
        elif missing:
            yield {"id": name, "reason": f"no_{missing[0]}"}
        else:
            yield {"id": name, **texts}


def _id_of(line: bytes) -> str:
    return content_id(line.decode("utf-8", "replace"))
