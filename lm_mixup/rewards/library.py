"""Stage `library`: the rated samples whose neighbours judge a completion."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from lm_mixup.core.task_types import TASK_TYPES, FormatError, TaskType, judged_text
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.rewards.quality import NUM_CLASSES, TaskLibrary, held_out, make_library, quality_reward

_COLUMNS = ["id", "task_type", "answer", "score", "split", "entity"]
_ROWS_PER_PART = 512


@dataclass(frozen=True)
class RatedRow:
    """A rated sample. `answer` is the text that is embedded: `task_types.judged_text` wrote it.

    `entity` is what it speaks of: a sample and its degraded variants share it.
    """

    id: str
    task_type: TaskType
    answer: str
    score: int
    entity: str


@dataclass(frozen=True)
class LibraryInfo:
    """What `library.json` says.

    Attributes:
        embedder: Name of the embedder.
        embedder_fingerprint: Of its configuration; a completion must be embedded in the same way.
        dimension: Of the embeddings.
        counts: Samples by task type and score.
        held_out: By task type, how well the library judges samples of entities it is not shown
            (`quality.held_out`).
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
    """Embeds rated samples and estimates how scores neighbour each other, by task type.

    Only rows of split `sft` are taken, so no GRPO prompt or test row is judged by its own source, and only
    rated ones. Writes `data/*.parquet` (id, task_type, answer, score, entity, embedding), one
    `<task_type>.safetensors` each (embeddings float32 [N, d], scores int64 [N], transition float64 [K, K],
    prior float64 [K]) and `library.json`.

    Args:
        rated: Rated samples: `generate`, or `rate_mixture`, which holds low ones too.
        low: Rated low-quality samples: `degrade`.
        out: Where the library goes.
        config: How many rows are kept.
        rewards: Neighbours and smoothing of the estimate.
        embedder: What embeds the answers.
        seed: Which rows are kept when there are more.

    Returns:
        The outcome; `left_out` says why the other rows are not in the library.

    Raises:
        InputError: Not a single row can be used.
    """
    sources = [rated] if low is None else [rated, low]
    chosen, left_out = choose(_rows(*sources), config.rows, seed)
    if not chosen:
        raise InputError(
            f"library: no rated row of split sft in {', '.join(s.name for s in sources)} ({dict(left_out)}); "
            "raise build.samples or look at why rows are unrated"
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


def _rows(*stages: StageDir) -> Iterator[Mapping[str, Any]]:
    for stage in stages:
        for table in stage.iter_parts(columns=_COLUMNS):
            yield from table.to_pylist()


def choose(rows: Iterable[Mapping[str, Any]], limit: int, seed: int) -> tuple[list[RatedRow], Counter[str]]:
    """Picks at most `limit` rated rows, even over task types and, within each, over scores.

    Which rows of a score stay depends on the seed and their text, not on their order. What a task type or a
    score lacks is given to the others. Holds at most `limit` rows of each task type and score at a time.

    Args:
        rows: Mappings of `id, task_type, answer, score, split, entity`.
        limit: Most rows.
        seed: Changes the pick.

    Returns:
        The rows, sorted by task type, score and pick; and the number of others by reason: `other_split`,
        `unrated`, `unreadable_answer`, `duplicate`, `beyond_limit`.
    """
    cells: dict[TaskType, dict[int, dict[str, RatedRow]]] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        refusal = _refusal(row)
        if refusal:
            left_out[refusal] += 1
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
            _keep_first(cell, limit)
    chosen: list[RatedRow] = []
    held = {task_type: sum(len(cell) for cell in scores.values()) for task_type, scores in cells.items()}
    for task_type, share in sorted(fair_shares(limit, held).items()):
        sizes = {score: len(cell) for score, cell in cells[task_type].items()}
        for score, count in sorted(fair_shares(share, sizes).items()):
            cell = cells[task_type][score]
            chosen += [cell[key] for key in sorted(cell)[:count]]
    left_out["beyond_limit"] += sum(held.values()) - len(chosen)
    return chosen, +left_out


def _refusal(row: Mapping[str, Any]) -> str | None:
    if row["split"] != "sft":
        return "other_split"
    return "unrated" if row["score"] is None else None


def _keep_first(cell: dict[str, RatedRow], limit: int) -> None:
    for key in sorted(cell)[limit:]:
        del cell[key]


def _make_embed(embedder: EmbedderConfig) -> Callable[[list[dict[str, Any]]], PartResult]:
    from lm_mixup.models.embedder import Embedder

    model = Embedder(embedder)

    def embed(rows: list[dict[str, Any]]) -> PartResult:
        vectors = model.embed([row["answer"] for row in rows])
        table = pa.Table.from_pylist(rows).append_column(
            "embedding", pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), model.dimension)
        )
        metadata = {"embedder": model.name}
        return PartResult(table.replace_schema_metadata(metadata), rows_in=len(rows))

    return embed


def _write(out: StageDir, rewards: RewardsConfig, embedder: EmbedderConfig) -> LibraryInfo:
    """Gathers the parts into one file a task type, and describes them."""
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
    """A task type whose samples all earn the same cannot tell completions apart."""
    for task_type, counts in info.counts.items():
        earned = quality_reward(np.eye(NUM_CLASSES)[[int(score) for score in counts]])
        if len(set(earned)) == 1:
            say(f"  library: every {task_type} sample stands for quality reward {earned[0]}: scores {counts}")


def check_library(stage: StageDir, embedder: EmbedderConfig) -> LibraryInfo:
    """Reads what a library is, without its tensors, and whether this embedder made it.

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
    """The libraries of the task types asked for, or of all there are.

    Raises:
        InputError: As in `check_library`; or a task type has no samples, or its file is not the one written.
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
                f"rewards: {stage.run.uri}/{relative} is not what the stage wrote; run `library` again"
            )
        loaded[task_type] = TaskLibrary(**load(content))
    return loaded


def require_task_types(info: LibraryInfo, task_types: Iterable[TaskType]) -> None:
    """Refuses task types of which the library has no sample.

    Raises:
        InputError: It names them.
    """
    lacking = [task_type for task_type in dict.fromkeys(task_types) if task_type not in info.counts]
    if lacking:
        raise InputError(
            f"rewards: the library has no rated samples of task type {', '.join(lacking)} (it has "
            f"{', '.join(info.counts)}); add them to build.task_mix or raise build.samples"
        )


def _identity(embedder: EmbedderConfig) -> str:
    return fingerprint(embedder.identity())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
