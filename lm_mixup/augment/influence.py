"""Stage `influence`: how far a step on a row would help a target set, for `select.method: less`.

LESS (arXiv 2402.04333) ranks rows by the cosine between their gradient and that of target rows: to first
order, what a step on the row takes off the target's loss. Gradients are those of LoRA's B matrices, sketched
to a few thousand numbers, so that they can be compared without being kept.

Differences from the paper: gradients are taken at the model as it is, without warm-up checkpoints and their
learning rates, and plain instead of through Adam's moments; the projection is a count sketch, which costs one
addition a parameter. One row at a time goes forward and backward: about the work of fine-tuning on every
candidate for one epoch. The stage runs only for that method; its folder has parts, receipts and a manifest.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lm_mixup.augment.perplexity import REJECTED, Item, measuring_model
from lm_mixup.augment.reading.files import list_units
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.augment.reading.rows import PoolRow
from lm_mixup.config import IngestConfig, LessConfig, LoraConfig, ModelConfig
from lm_mixup.core import schemas
from lm_mixup.core.draws import hash_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

KEY = "select.less.model"
OUTPUT = pa.schema([("content", pa.string()), ("influence", pa.float32()), ("tokens", pa.int32())])

Pair = tuple[str, str, str]  # source, prompt, completion


def influence(
    distilled: StageDir, curated: StageDir, out: StageDir, config: LessConfig, model: ModelConfig, seed: int
) -> Outcome:
    """Scores every row by its influence on the target set.

    Input columns: prompt, completion. Output columns: content (`schemas.content_id` of the two), influence
    (the largest cosine to the mean gradient of one of the target's sources, in [−1, 1]), tokens. Rejected,
    with their tokens: `too_long` and `empty`. The first parts are those of `distilled`, in order, the others
    those of `curated`.

    Args:
        model: The run's policy, whose gradients are taken unless the config names another model.
        seed: Of the sample of target rows, the adapters' A and the sketch.

    Raises:
        InputError: There is no such model, or the target has no usable row.
    """
    chosen = measuring_model(config.model, model, KEY)
    target = target_rows(config, seed)
    sides = {"distilled": distilled, "original": curated}
    items: list[Item] = [(side, part) for side, stage in sides.items() for part in stage.parts()]
    given = {"sides": sides, "target": target, "config": config, "model": chosen, "seed": seed}
    map_parts(out, items, make_work, given, **_placement(config))
    return Outcome(metrics={"model": chosen.path, "target_rows": len(target)})


def _placement(config: LessConfig) -> dict[str, Any]:
    from lm_mixup.distributed.ray_cluster import has_gpu

    threads = str(max(1, int(config.num_cpus)))
    return {
        "num_actors": config.num_actors,
        "num_cpus": config.num_cpus,
        "num_gpus": config.num_gpus if has_gpu() else 0.0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}},
    }


def target_rows(config: LessConfig, seed: int) -> list[Pair]:
    """At most `target_rows` rows of the target set, those of least hash, in a layout that `ingest` reads.

    Raises:
        InputError: There is no target, or no usable row in it.
    """
    if config.target is None:
        raise InputError("select.less.target: name a file of rows like those the model is to do well on")
    reader = Reader(IngestConfig(), seed)
    units, _ = list_units(config.target, 1 << 23, "select.less.target")
    rows = [reader.row(item, unit) for unit in units for item in reader.items(unit)]
    usable = [row for row in rows if isinstance(row, PoolRow)]
    if not usable:
        raise InputError(f"select.less.target {config.target}: has no usable row")
    usable.sort(key=lambda row: (hash_of(seed, row.content), row.content))
    return [(row.source, row.prompt, row.completion) for row in usable[: config.target_rows]]


class Gradients:
    """Unit vectors that stand for the gradients of rows: the sketched gradient of the loss per token.

    Args:
        model: What the gradients are taken of; adapters are added to it.
        config: Rank, size of the sketch and longest row.
        seed: Two with the same seed give comparable vectors.
    """

    def __init__(self, model: ModelConfig, config: LessConfig, seed: int) -> None:
        import torch

        from lm_mixup.models.policy import load_policy, load_tokenizer
        from lm_mixup.train.lora import with_adapter

        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model.path, model, KEY)
        torch.manual_seed(seed)  # A is drawn at random, B begins at 0: only B has a gradient
        lora = LoraConfig(r=config.rank, alpha=config.rank, dropout=0.0)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._policy: Any = with_adapter(load_policy(model.path, model), lora).to(self._device).train()
        self._trained: dict[str, torch.Tensor] = {}
        for name, parameter in self._policy.named_parameters():
            parameter.requires_grad_(".lora_B." in name)
            if parameter.requires_grad:
                self._trained[name] = parameter
        self._sketch = {
            name: _sketch(name, parameter.numel(), config.dimension, seed, self._device)
            for name, parameter in self._trained.items()
        }
        self._dimension, self.room = config.dimension, config.max_length

    def encode(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Tokens of a row: the user's turn, and the answer with the end-of-sequence token."""
        from lm_mixup.models.policy import encode_pair

        asked, answer = encode_pair(self.tokenizer, prompt, completion)
        end = self.tokenizer.eos_token_id
        return asked, [*answer, int(end)] if answer and isinstance(end, int) else answer

    def of(self, asked: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """The vector of one row, float32 [dimension], of length 1; zeros where there is no gradient."""
        import torch

        ids = torch.tensor([[*asked, *answer]], device=self._device)
        labels = torch.tensor([[*[-100] * len(asked), *answer]], device=self._device)
        loss = self._policy(input_ids=ids, labels=labels, use_cache=False).loss
        gradients = torch.autograd.grad(loss, list(self._trained.values()))
        total = torch.zeros(self._dimension, dtype=torch.float32, device=self._device)
        for name, gradient in zip(self._trained, gradients, strict=True):
            buckets, signs = self._sketch[name]
            total.index_add_(0, buckets, gradient.detach().float().flatten() * signs)
        return unit(total.cpu().numpy())


def _sketch(
    name: str, size: int, dimension: int, seed: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each number of a parameter the place and the sign with which it is added (count sketch).

    Inner products of sketches are those of the gradients in expectation (Charikar, Chen and Farach-Colton
    2002). Drawn on the CPU, so that every machine draws the same.
    """
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    buckets = torch.randint(dimension, (size,), generator=generator)
    signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1.0
    return buckets.to(device), signs.to(device)


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector at length 1; zeros stay."""
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def means_by_source(vectors: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """The mean of each source's vectors at length 1, float32 [sources, d]."""
    groups: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for source, vector in vectors:
        groups[source].append(vector)
    return np.stack([unit(np.mean(groups[source], axis=0)) for source in sorted(groups)])


def make_work(
    sides: Mapping[str, StageDir], target: Sequence[Pair], config: LessConfig, model: ModelConfig, seed: int
) -> Callable[[Item], PartResult]:
    """Loads the model and takes the target's gradients; the function scores one part."""
    gradients = Gradients(model, config, seed)
    found = []
    for source, prompt, completion in target:
        asked, answer = gradients.encode(prompt, completion)
        if answer and len(asked) + len(answer) <= gradients.room:
            found.append((source, gradients.of(asked, answer)))
    if not found:
        raise InputError(
            f"select.less.target {config.target}: no row fits in select.less.max_length={config.max_length}"
        )
    wanted = means_by_source(found)

    def work(item: Item) -> PartResult:
        side, part = item
        return score(sides[side].read_part(part, ["prompt", "completion"]), gradients, wanted)

    return work


def score(rows: pa.Table, gradients: Gradients, wanted: np.ndarray) -> PartResult:
    """The influence of one part's rows.

    Args:
        rows: {prompt, completion}.
        gradients: Of the model.
        wanted: float32 [sources, d], directions of the target.
    """
    scored: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        prompt, completion = row["prompt"] or "", row["completion"] or ""
        content = schemas.content_id(prompt, completion)
        asked, answer = gradients.encode(prompt, completion)
        tokens = len(asked) + len(answer)
        if not answer or tokens > gradients.room:
            reason = "too_long" if answer else "empty"
            rejected.append({"content": content, "tokens": tokens, "reason": reason})
            continue
        cosines = wanted @ gradients.of(asked, answer)
        scored.append({"content": content, "influence": float(cosines.max()), "tokens": tokens})
    return PartResult(
        schemas.table(scored, OUTPUT),
        schemas.table(rejected, REJECTED) if rejected else None,
        rows_in=rows.num_rows,
    )
