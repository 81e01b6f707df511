"""Stage `perplexity`: the perplexity of every completion given its prompt, for `select.method: perplexity`.

The stage runs only for that method and costs one forward pass over every row of the pool. Its folder in the
run directory, `perplexity/`, has parts, receipts and a manifest like that of any stage: an interrupted run
resumes, and a change of the budget or of `select.perplexity.take` does not repeat it.

A part's figures depend on that part alone, not on the workers. Where the pool is cut otherwise, rows share a
forward pass with others, and figures agree to rounding (about 1e-6 in float32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lm_mixup.config import ModelConfig, PerplexityConfig, ScoringConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lm_mixup.models.engine import Engine

OUTPUT = pa.schema([("content", pa.string()), ("perplexity", pa.float64()), ("tokens", pa.int32())])
REJECTED = pa.schema([("content", pa.string()), ("tokens", pa.int32()), ("reason", pa.string())])
_ROWS_PER_CALL = 128  # vLLM holds an object a token until it returns

Item = tuple[str, str]  # the side, and a part of it


def perplexity(
    distilled: StageDir, curated: StageDir, out: StageDir, config: PerplexityConfig, model: ModelConfig
) -> Outcome:
    """Measures exp(mean −log π) over the tokens of every completion, given the prompt in the chat template.

    Input columns: prompt, completion. Output columns: content (`schemas.content_id` of the two), perplexity,
    tokens (of the completion). Rejected, with their tokens: `too_long`, rows that `max_length` or the model
    has no room for, and `empty`. The first parts are those of `distilled`, in order, the others those of
    `curated`.

    Args:
        model: The run's policy, which measures unless the config names another.

    Raises:
        InputError: There is no such model, or it has no weights.
    """
    chosen = measuring_model(config.model, model)
    sides = {"distilled": distilled, "original": curated}
    items: list[Item] = [(side, part) for side, stage in sides.items() for part in stage.parts()]
    map_parts(
        out, items, make_work, {"sides": sides, "config": config, "model": chosen}, **placement_of(config)
    )
    return Outcome(metrics={"model": chosen.path})


def measuring_model(
    path: str | None, model: ModelConfig, key: str = "select.perplexity.model"
) -> ModelConfig:
    """The model that scores: the one that a section names at `key`, or else the run's policy.

    Raises:
        InputError: There is no such model, or it has no weights.
    """
    from lm_mixup.models.resolve import UNTRAINED_NANO, check_model_path

    chosen, named = model, "model.path"
    if path is not None:
        chosen = ModelConfig(path=path, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
        named = key
    if chosen.path == UNTRAINED_NANO:
        raise InputError(
            f"{named} {chosen.path}: has no weights to score rows with; set {key} to a model folder, a Hub "
            "name or `nano`"
        )
    check_model_path(chosen.path, named)
    return chosen


def placement_of(config: ScoringConfig) -> dict[str, Any]:
    """Number and resources of the actors that score, as `map_parts` takes them."""
    from lm_mixup.distributed.ray_cluster import has_gpu
    from lm_mixup.models.engine import engine_environment

    return {
        "num_actors": config.num_actors,
        "num_cpus": config.num_cpus,
        "num_gpus": config.tensor_parallel_size if has_gpu() else 0.0,
        "runtime_env": {"env_vars": engine_environment(max(1, int(config.num_cpus)))},
    }


def open_engine(config: ScoringConfig, model: ModelConfig) -> tuple[PreTrainedTokenizerBase, Engine, int]:
    """The tokenizer, an engine that scores, and the most tokens of a prompt and what follows it."""
    from lm_mixup.models.engine import Engine
    from lm_mixup.models.policy import load_tokenizer

    room = min(config.max_length, _longest(model) - 1)
    engine = Engine.from_config(
        model.path,
        model,
        max_model_len=room + 1,  # vLLM always draws a token
        kv_cache_gib=config.kv_cache_gib,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
    )
    return load_tokenizer(model.path, model), engine, room


def make_work(
    sides: dict[str, StageDir], config: PerplexityConfig, model: ModelConfig
) -> Callable[[Item], PartResult]:
    """Loads the model into an engine; the function measures one part."""
    tokenizer, engine, room = open_engine(config, model)

    def work(item: Item) -> PartResult:
        side, part = item
        return measure(sides[side].read_part(part, ["prompt", "completion"]), tokenizer, engine, room)

    return work


def log_likelihoods(engine: Engine, pairs: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
    """The log-probability of every token of each answer given its prompt, float64 [T] an answer."""
    found: list[np.ndarray] = []
    for start in range(0, len(pairs), _ROWS_PER_CALL):
        batch = pairs[start : start + _ROWS_PER_CALL]
        scores = engine.score_batch([prompt + answer for prompt, answer in batch])
        found += [
            score[-len(answer) :].astype(np.float64) for (_, answer), score in zip(batch, scores, strict=True)
        ]
    return found


def _longest(model: ModelConfig) -> int:
    """Positions of the model."""
    from transformers import AutoConfig

    from lm_mixup.models.resolve import model_folder

    loaded = AutoConfig.from_pretrained(
        model_folder(model.path), revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    return int(getattr(loaded.get_text_config(), "max_position_embeddings", 1 << 30))


def measure(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, engine: Engine, room: int) -> PartResult:
    """The perplexities of one part's rows.

    Args:
        rows: {prompt, completion}.
        room: Most tokens of a prompt and its completion.
    """
    from lm_mixup.models.policy import encode_pair

    waiting: list[tuple[str, list[int], list[int]]] = []
    rejected: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        content = schemas.content_id(row["prompt"] or "", row["completion"] or "")
        prompt, answer = encode_pair(tokenizer, row["prompt"] or "", row["completion"] or "")
        tokens = len(prompt) + len(answer)
        if not answer or tokens > room:
            reason = "too_long" if answer else "empty"
            rejected.append({"content": content, "tokens": tokens, "reason": reason})
        else:
            waiting.append((content, prompt, answer))
    measured: list[dict[str, Any]] = []
    total = 0.0
    scores = log_likelihoods(engine, [(prompt, answer) for _, prompt, answer in waiting])
    for (content, _, answer), score in zip(waiting, scores, strict=True):
        total -= float(score.sum())
        value = float(np.exp(-score.mean()))
        measured.append({"content": content, "perplexity": value, "tokens": len(answer)})
    return PartResult(
        schemas.table(measured, OUTPUT),
        schemas.table(rejected, REJECTED) if rejected else None,
        rows_in=rows.num_rows,
        metrics={"tokens": sum(row["tokens"] for row in measured), "nll": total},
    )
