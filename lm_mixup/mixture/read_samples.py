"""Stage `generate` with `build.samples_from`: good rows that others wrote are the samples."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from random import Random
from typing import Any, Final

import pyarrow as pa

from lm_mixup import demo
from lm_mixup.augment.reading.files import list_units, read_unit
from lm_mixup.augment.reading.rows import Refused, line_limit, parse_line, raw_text
from lm_mixup.augment.selection.score_cut import find_cut, is_above
from lm_mixup.config import BuildConfig, DataConfig, IngestConfig, SamplesFrom
from lm_mixup.config.section import share_of
from lm_mixup.core.draws import split_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, extend, table
from lm_mixup.core.task_types import TASK_TYPES
from lm_mixup.demo import WORLD
from lm_mixup.distributed.map_parts import PartResult, receipt_of
from lm_mixup.mixture.degradation.good_rows import read_good
from lm_mixup.mixture.schemas import SCHEMA as SAMPLES

SCHEMA = extend(SAMPLES, pa.schema([("entry", pa.string()), ("license", pa.string())]))
REJECTED = pa.schema([(name, pa.string()) for name in ("reason", "where", "id", "raw")])
_UNIT_BYTES: Final = 4 << 20
_UNRATED: Final = "not rated: given as a good row"
POOL: Final = "pool"
_LICENCES: Final = ("license", "licence")
MAX_SCORE: Final = 5

Row = dict[str, Any]


def read_pool_samples(
    curated: StageDir,
    out: StageDir,
    config: BuildConfig,
    ingest: IngestConfig,
    data: DataConfig,
    seed: int,
) -> Outcome:
    """`read_samples` where the rated rows of the pool are among the sources."""
    return read_samples(out, config, ingest, data, seed, curated)


def read_samples(
    out: StageDir,
    config: BuildConfig,
    ingest: IngestConfig,
    data: DataConfig,
    seed: int,
    curated: StageDir | None = None,
) -> Outcome:
    """Reads the good rows that MIXTURE's targets are made of, each with its split.

    Rows of one entity (a passage's title, a claim's subject, else the row itself) are in one split. Rows of a
    text that was there before are rejected as `duplicate`. Of an entry with `max_rows`, those with the least
    hash of (seed, id) stay. Of the pool, rows under `min_score` are left out; the run says how many stay.

    The driver holds the chosen rows of one entry at a time, and two digests of each row read.

    Args:
        out: Where the rows go: `SCHEMA`. What is no good row goes to the rejects, with its reason.
        config: `samples_from` and the fractions of the splits.
        ingest: Names of columns.
        data: Rows of a part.
        seed: Of the draw, where there is one.
        curated: The rated rows of the pool, for the path `pool`.

    Returns:
        How many rows were read, and why the others were left out.

    Raises:
        InputError: A file is missing, or no row can be used.
    """
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    done = out.receipts()
    part, total = 0, 0
    for name, entry in config.entries().items():
        chosen, rejected, read = _read_entry(name, entry, config, ingest, seed, curated, seen, left_out)
        say(f"  generate: {name}: {len(chosen)} good rows of {read}")
        total += len(chosen)
        for start in range(0, max(len(chosen), 1), data.rows_per_part):
            rows = chosen[start : start + data.rows_per_part]
            refused = rejected if start == 0 else []
            if part not in done:
                result = PartResult(
                    table(rows, SCHEMA), table(refused, REJECTED), rows_in=len(rows) + len(refused)
                )
                out.write_part(part, result.rows, result.rejected, receipt_of(part, result))
            part += 1
    if not total:
        raise InputError("build.samples_from: no row can be used; see generate/rejected")
    receipts = out.receipts().values()
    return Outcome(
        rows_in=sum(receipt.rows_in for receipt in receipts) + left_out.total(),
        rows_used=total,
        left_out=dict(sorted(left_out.items())),
    )


def check_samples(config: BuildConfig) -> None:
    """Refuses files that are not there.

    Raises:
        InputError: It names the first.
    """
    for name, entry in config.entries().items():
        if entry.path not in (WORLD, POOL):
            list_units(entry.path, 1 << 30, f"build.samples_from.{name}.path")


def _read_entry(
    name: str,
    entry: SamplesFrom,
    config: BuildConfig,
    ingest: IngestConfig,
    seed: int,
    curated: StageDir | None,
    seen: set[str],
    left_out: Counter[str],
) -> tuple[list[Row], list[Row], int]:
    """The chosen rows of an entry in order of reading, its rejects, and how many rows were read."""
    kept: list[tuple[str, int, Row]] = []
    rejected: list[Row] = []
    read = 0
    for where, raw, outcome in _items(entry, config, ingest, seed, curated):
        if isinstance(outcome, str):
            if outcome in ("other_source", "below_min_score"):
                left_out[outcome] += 1
                continue
            read += 1
            rejected.append({"reason": outcome, "where": where, "id": None, "raw": raw_text(raw)})
            continue
        for row in outcome:
            read += 1
            identity = content_id(row["task_type"], row["prompt"], row["completion"])
            named = content_id(name, row["id"])
            if not seen.isdisjoint((identity, named)):
                reason = "duplicate" if identity in seen else "duplicate_id"
                rejected.append({"reason": reason, "where": where, "id": row["id"], "raw": raw_text(raw)})
                continue
            seen.update((identity, named))
            rank = content_id(str(seed), name, row["id"], identity)
            kept.append((rank, len(kept), _sample(row, name, config)))
    kept, low = _scored(kept, entry, left_out)
    rejected += low
    if entry.max_rows is not None and len(kept) > entry.max_rows:
        left_out["over_max_rows"] += len(kept) - entry.max_rows
        kept = heapq.nsmallest(entry.max_rows, kept, key=lambda item: item[:2])
    return [_stored(row) for _, _, row in sorted(kept, key=lambda item: item[1])], rejected, read


def _stored(row: Row) -> Row:
    """The row with its score as ratings have it: a whole number, or none and why."""
    score = row["score"]
    whole = int(score) if score is not None and score == int(score) and 0 <= score <= MAX_SCORE else None
    return row | {"score": whole, "error": None if whole is not None else _UNRATED}


def _scored(
    kept: list[tuple[str, int, Row]], entry: SamplesFrom, left_out: Counter[str]
) -> tuple[list[tuple[str, int, Row]], list[Row]]:
    """The rows of a file that its own scores leave, and those rejected; the pool was cut before."""
    share = share_of(entry.min_score)
    if entry.path in (WORLD, POOL):
        return kept, []
    if share is None:
        floor = float(entry.min_score)
        low = [item for item in kept if item[2]["score"] is not None and item[2]["score"] < floor]
        reason = f"score_below_{entry.min_score}"
    else:
        low, reason = [item for item in kept if item[2]["score"] is None], "unrated"
    ids = {id(item[2]) for item in low}
    rows = [item for item in kept if id(item[2]) not in ids]
    if share is not None and rows:
        count = max(1, round(share * len(rows)))
        left_out["below_min_score"] += len(rows) - count
        rows = sorted(rows, key=lambda item: (-item[2]["score"], item[0]))[:count]
    return rows, [{"reason": reason, "where": None, "id": row["id"], "raw": None} for _, _, row in low]


def _items(
    entry: SamplesFrom, config: BuildConfig, ingest: IngestConfig, seed: int, curated: StageDir | None
) -> Iterator[tuple[str, Any, list[Row] | str]]:
    """Where each item is, the item, and its good rows or why it has none."""
    if entry.path == WORLD:
        for row in _world_rows(config, seed):
            yield WORLD, row, [row]
        return
    if entry.path == POOL:
        assert curated is not None  # noqa: S101
        cut, above, rated = find_cut(curated, entry.min_score)
        say(f"  generate: min_score {entry.min_score} leaves {above} of {rated} rated rows of the pool")
        for part in curated.iter_parts():
            for row, good in zip(part.to_pylist(), is_above(part, cut).to_pylist(), strict=True):
                read = (
                    _good(row, entry, {"score": "curated_score"}, row["source"])
                    if good
                    else "below_min_score"
                )
                yield f"{POOL}:{row['id']}", row["id"], read
        return
    named = ingest.columns | entry.columns
    units, _ = list_units(entry.path, _UNIT_BYTES, "build.samples_from")
    number, file = 0, ""
    for unit in units:
        number = number if unit.uri == file else 0
        file = unit.uri
        for raw in read_unit(unit, line_limit(ingest.max_chars)):
            number += 1
            yield f"{unit.uri}:{number}", raw, _good(raw, entry, named, unit.source)


def _good(raw: Any, entry: SamplesFrom, columns: Mapping[str, str], source: str) -> list[Row] | str:
    try:
        record = parse_line(raw) if isinstance(raw, bytes) else raw
        named = record.get("source") if isinstance(record, Mapping) else None
        of = named if isinstance(named, str) and named.strip() else source
        if entry.sources and not any(fnmatch(of, pattern) for pattern in entry.sources):
            return "other_source"
        rows = read_good(record, columns, source, entry.max_chars, reasoning_calls=entry.reasoning_calls)
    except Refused as refusal:
        return refusal.reason
    score = record.get(columns.get("score", "score")) if isinstance(record, Mapping) else None
    number = float(score) if isinstance(score, (int, float)) and not isinstance(score, bool) else None
    given = [record.get(key) for key in _LICENCES] if isinstance(record, Mapping) else []
    licence = next((value for value in given if isinstance(value, str)), None)
    return [row | {"score": number, "license": licence} for row in rows]


def _world_rows(config: BuildConfig, seed: int) -> Iterator[Row]:
    """One sample of each task type about each entity of the closed world."""
    for passage in demo.passages():
        for task_type in TASK_TYPES:
            rng = Random(f"good/{seed}/{task_type}/{passage['entity']}")
            split = _split(passage["entity"], config)
            row = demo.write_sample(passage | {"split": split}, task_type, rng, config.max_facts)
            known = {"id": content_id(WORLD, task_type, passage["entity"]), "source": WORLD}
            told = {key: row[key] for key in ("task_type", "prompt", "completion", "answer")}
            yield known | told | {"entity": passage["entity"]}


def _split(entity: str, config: BuildConfig) -> str:
    return split_of(
        entity, config.split_seed, config.grpo_fraction, config.test_fraction, config.dev_fraction
    )


def _sample(row: Row, name: str, config: BuildConfig) -> Row:
    split = _split(row["entity"], config)
    identity = f"{name}/{row['id']}"
    return row | {
        "id": identity,
        "score": row.get("score"),
        "split": split,
        "entry": name,
        "passage_id": row["entity"],
        "cot": "",
    }
