"""Stage `library`: rated samples; a completion is scored by its neighbours among them."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lm_mixup.config import EmbedderConfig, LibraryConfig, RewardsConfig
from lm_mixup.core.draws import fair_shares
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir, fingerprint
from lm_mixup.core.schemas import content_id
from lm_mixup.core.score_classes import NUM_CLASSES
from lm_mixup.core.task_types import TASK_TYPES, FormatError, TaskType, judged_text
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.rewards.quality import TaskLibrary, held_out, make_library, quality_reward

_COLUMNS = ["id", "task_type", "answer", "score", "split", "entity"]
_ROWS_PER_PART = 512


@dataclass(frozen=True)
class RatedRow:
    """A rated sample. `answer` is the embedded text, as `task_types.judged_text` writes it.

    `entity` is its subject: a sample and its degraded variants share it.
    """

    id: str
    task_type: TaskType
    answer: str
    score: int
    entity: str


@dataclass(frozen=True)
class LibraryInfo:
    """The contents of `library.json`.

    Attributes:
        embedder: Name of the embedder.
        embedder_fingerprint: Of its configuration; completions must be embedded in the same way.
        dimension: Of the embeddings.
        counts: Samples by task type and score.
        held_out: By task type, how well the library scores samples of held-out entities (`quality.held_out`).
        digests: BLAKE2b of each task type's file.
    """

    embedder: str
    embedder_fingerprint: str
    dimension: int
    counts: dict[TaskType, dict[str, int]]
    held_out: dict[TaskType, dict[str, float]]
    digests: dict[TaskType, str]


def library(
    rated: StageDir,
    low: StageDir | None,
    out: StageDir,
    config: LibraryConfig,
    rewards: RewardsConfig,
    embedder: EmbedderConfig,
    seed: int,
) -> Outcome:
    """Embeds rated samples and estimates the score-transition matrix and prior of each task type.

    Only rated rows of split `sft` are used, so that no GRPO prompt or test row is scored by its own source.
    Writes `data/*.parquet` (id, task_type, answer, score, entity, embedding), one
    `<task_type>.safetensors` each (embeddings float32 [N, d], scores int64 [N], transition float64 [K, K],
    prior float64 [K]) and `library.json`.

    Args:
        rated: Rated samples: `generate`, or `rate_mixture`, which holds low ones too.
        low: Rated low-quality samples: `degrade`.
        out: The stage directory.
        config: The maximum number of rows.
        rewards: Neighbours and smoothing of the estimate.
        embedder: Embeds the answers.
        seed: Decides which rows are kept if there are more.

    Returns:
        The outcome; `left_out` states why the other rows are not in the library.

    Raises:
        InputError: No row can be used.
    """
    sources = [rated] if low is None else [rated, low]
    tables = itertools.chain.from_iterable(stage.iter_parts(columns=_COLUMNS) for stage in sources)
    rows = itertools.chain.from_iterable(table.to_pylist() for table in tables)
    chosen, left_out = choose_rows(rows, config.rows, seed)
    if not chosen:
        raise InputError(
            f"library: no rated row of split sft in {', '.join(s.name for s in sources)} ({dict(left_out)}); "
            "raise build.samples, or check why rows are unrated"
        )
    parts = [chosen[start : start + _ROWS_PER_PART] for start in range(0, len(chosen), _ROWS_PER_PART)]
    map_parts(
        out,
        [[asdict(row) for row in part] for part in parts],
        _make_embed,
        {"embedder": embedder},
        num_actors=embedder.num_actors,
        num_cpus=embedder.num_cpus,
        num_gpus=embedder.num_gpus,
    )
    info = _write(out, rewards, embedder)
    _warn_one_sided(info)
    metrics = {"counts": info.counts, "held_out": info.held_out, "embedder": info.embedder}
    return Outcome(
        metrics=metrics,
        rows_in=len(chosen) + sum(left_out.values()),
        rows_used=len(chosen),
        left_out=dict(sorted(left_out.items())),
        files=[
            *out.parts(),
            *(f"{out.name}/{name}.safetensors" for name in info.counts),
            f"{out.name}/library.json",
        ],
    )


def choose_rows(
    rows: Iterable[Mapping[str, Any]], limit: int, seed: int
) -> tuple[list[RatedRow], Counter[str]]:
    """Chooses at most `limit` rated rows, balanced over task types and, within each, over scores.

    The choice depends on the seed and the rows' text, not on their order. What a task type or a score lacks
    is given to the others. Memory: about 2 · `limit` rows of each task type and score.

    Args:
        rows: Mappings of `id, task_type, answer, score, split, entity`.
        limit: Maximum number of rows.
        seed: Changes the choice.

    Returns:
        The rows, sorted by task type and score; and the number of rows left out by reason: `other_split`,
        `unrated`, `unreadable_answer`, `duplicate`, `beyond_limit`.
    """
    cells: dict[TaskType, dict[int, dict[str, RatedRow]]] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        if row["split"] != "sft" or row["score"] is None:
            left_out["unrated" if row["split"] == "sft" else "other_split"] += 1
            continue
        try:
            answer = judged_text(row["task_type"], row["answer"])
        except FormatError:
            left_out["unreadable_answer"] += 1
            continue
        cell = cells.setdefault(row["task_type"], {}).setdefault(row["score"], {})
        key = content_id(str(seed), answer)
        if key in cell:
            left_out["duplicate"] += 1
            continue
        cell[key] = RatedRow(row["id"], row["task_type"], answer, row["score"], row["entity"] or row["id"])
        if len(cell) > 2 * limit:
            left_out["beyond_limit"] += len(cell) - limit
            for beyond in sorted(cell)[limit:]:
                del cell[beyond]
    chosen: list[RatedRow] = []
    held = {task_type: sum(len(cell) for cell in scores.values()) for task_type, scores in cells.items()}
    for task_type, share in sorted(fair_shares(limit, held).items()):
        sizes = {score: len(cell) for score, cell in cells[task_type].items()}
        for score, count in sorted(fair_shares(share, sizes).items()):
            cell = cells[task_type][score]
            chosen += [cell[key] for key in sorted(cell)[:count]]
    left_out["beyond_limit"] += sum(held.values()) - len(chosen)
    return chosen, +left_out


def _make_embed(embedder: EmbedderConfig) -> Callable[[list[dict[str, Any]]], PartResult]:
    from lm_mixup.models.embedder import Embedder

    model = Embedder(embedder)

    def embed(rows: list[dict[str, Any]]) -> PartResult:
        vectors = model.embed_whole([row["answer"] for row in rows])
        table = pa.Table.from_pylist(rows).append_column(
            "embedding", pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), model.dimension)
        )
        metadata = {"embedder": model.name}
        return PartResult(table.replace_schema_metadata(metadata), rows_in=len(rows))

    return embed


def _write(out: StageDir, rewards: RewardsConfig, embedder: EmbedderConfig) -> LibraryInfo:
    """Writes one file per task type from the parts, and `library.json`."""
    from safetensors.numpy import save

    rows = out.read()
    task_types, scores = np.array(rows["task_type"].to_pylist()), rows["score"].to_numpy().astype(np.int64)
    column = rows["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(column), -1)
    _, groups = np.unique(rows["entity"].to_pylist(), return_inverse=True)
    counts: dict[TaskType, dict[str, int]] = {}
    judged: dict[TaskType, dict[str, float]] = {}
    digests: dict[TaskType, str] = {}
    for task_type in TASK_TYPES:
        here = task_types == task_type
        if not here.any():
            continue
        made = make_library(
            vectors[here], scores[here], groups[here], rewards.prior_neighbors, rewards.smoothing
        )
        content = save({name: np.ascontiguousarray(value) for name, value in vars(made).items()})
        out.run.write_bytes(f"{out.name}/{task_type}.safetensors", content)
        counts[task_type] = {str(score): int(n) for score, n in enumerate(np.bincount(made.scores)) if n}
        judged[task_type] = held_out(made, groups[here], rewards.neighbors)
        digests[task_type] = _digest(content)
    metadata = rows.schema.metadata or {}
    name, dimension = metadata[b"embedder"].decode(), vectors.shape[1]
    info = LibraryInfo(name, _identity(embedder), dimension, counts, judged, digests)
    out.run.write_json(f"{out.name}/library.json", asdict(info))
    return info


def _warn_one_sided(info: LibraryInfo) -> None:
    """Warns of task types whose samples all have the same reward: they cannot rank completions."""
    for task_type, counts in info.counts.items():
        earned = quality_reward(np.eye(NUM_CLASSES)[[int(score) for score in counts]])
        if len(set(earned)) == 1:
            say(f"  library: every {task_type} sample has quality reward {earned[0]}: scores {counts}")


def check_library(stage: StageDir, embedder: EmbedderConfig) -> LibraryInfo:
    """Reads `library.json` and checks that this embedder made the library.

    Raises:
        InputError: There is no library, or another embedder made it.
    """
    where = f"{stage.run.uri}/{stage.name}"
    value = stage.run.read_json(f"{stage.name}/library.json")
    if value is None:
        raise InputError(f"rewards: no library at {where}; run the stage `library` first")
    info = LibraryInfo(**value)
    if info.embedder_fingerprint != _identity(embedder):
        raise InputError(
            f"rewards: the library at {where} was made by {info.embedder} with other embedder settings than "
            f"{embedder.path}'s; run the stage `library` again, or restore the embedder section"
        )
    return info


def load_library(
    stage: StageDir, embedder: EmbedderConfig, task_types: Sequence[TaskType] | None = None
) -> dict[TaskType, TaskLibrary]:
    """The libraries of the given task types, or of all.

    Raises:
        InputError: As in `check_library`; or a task type has no samples, or its file was changed.
    """
    from safetensors.numpy import load

    info = check_library(stage, embedder)
    asked: Iterable[TaskType] = info.counts if task_types is None else dict.fromkeys(task_types)
    require_task_types(info, asked)
    loaded: dict[TaskType, TaskLibrary] = {}
    for task_type in asked:
        relative = f"{stage.name}/{task_type}.safetensors"
        content = stage.run.read_bytes(relative) if stage.run.exists(relative) else b""
        if _digest(content) != info.digests[task_type]:
            raise InputError(
                f"rewards: {stage.run.uri}/{relative} was changed since it was written; "
                "run the stage `library` again"
            )
        loaded[task_type] = TaskLibrary(**load(content))
    return loaded


def require_task_types(info: LibraryInfo, task_types: Iterable[TaskType]) -> None:
    """Refuses task types without samples in the library.

    Raises:
        InputError: It names them.
    """
    missing = [task_type for task_type in dict.fromkeys(task_types) if task_type not in info.counts]
    if missing:
        raise InputError(
            f"rewards: the library has no rated samples of task type {', '.join(missing)} (it has "
            f"{', '.join(info.counts)}); add them to build.task_mix or raise build.samples"
        )


def _identity(embedder: EmbedderConfig) -> str:
    return fingerprint(embedder.identity())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
