"""Stage `ingest`: every item of the pool becomes an instruction row or is rejected with a reason.

Two passes. The first (one Ray task per group of units) separates usable items from rejected ones and hashes
them, so that duplicates are found over the whole pool in any order of execution: of equal rows, the first in
the order of the pool is kept whose id no earlier row has (`exact.find_duplicates`). The second pass writes
the parts, `rows_per_part` items each. Near-duplicates and rows of evaluation sets are found between the two,
where the config asks for it (`fuzzy_pass.find_matches`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lm_mixup.augment.dedup.exact import (
    Finder,
    Places,
    by_unit,
    encode_places,
    find_duplicates,
    keys_of,
    repeated_places,
    split_by_bucket,
)
from lm_mixup.augment.dedup.fuzzy_pass import Match, find_matches
from lm_mixup.augment.reading.files import Unit, list_units
from lm_mixup.augment.reading.reader import WORLD, Reader
from lm_mixup.augment.reading.rows import PoolRow, raw_text
from lm_mixup.config import DataConfig, IngestConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import track
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import INSTRUCTION, table
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.distributed.ray_tasks import in_blocks

REJECTED = pa.schema([(name, pa.string()) for name in ("reason", "where", "id", "match", "raw")])
_NAME_CHARS, _NAMES_KEPT = 60, 20  # of columns that are not read: a pool may have one for each row
_BYTES_PER_BUCKET = 1 << 31


@dataclass(frozen=True)
class Block:
    """The items [first, first + count) of a unit: one part.

    Attributes:
        unit: Where they are.
        first: The first item's number in the unit.
        count: Items.
        line: The first item's number in the file, from 1: its line, in JSONL.
        duplicates: Numbers in the block of items whose content an earlier one has that is kept.
        duplicate_ids: Numbers in the block of items whose id an earlier one has that is kept.
        matches: Items rejected because of another, numbered in the block.
    """

    unit: Unit
    first: int
    count: int
    line: int
    duplicates: tuple[int, ...] = ()
    duplicate_ids: tuple[int, ...] = ()
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What the first pass knows of a unit: its items, and why some are not usable."""

    items: int
    usable: int
    gave_ids: bool
    reasons: dict[str, int]


def ingest(out: StageDir, pool: str, config: IngestConfig, data: DataConfig, seed: int) -> Outcome:
    """Ingests a pool of JSONL (plain, gzip or zstd), JSON arrays or Parquet.

    Output columns: `schemas.INSTRUCTION`. Rejected columns: reason, where (file:line), id, match
    (the id of the evaluation item or of the kept row, where that is why), raw (cut).

    Memory of a task: one unit (`split_mib` of JSONL, a row group, or one file that cannot be cut), and 48
    bytes a row of the units that it goes through, a 512th of a large pool; in the search for duplicates 24
    bytes for each row of a bucket, of which there is one for every 2 GiB of pool.

    Args:
        pool: File, folder, glob or fsspec URI; `world` for the demo pool.
        seed: Seed of the demo pool.

    Raises:
        InputError: The pool is missing, damaged, or has no usable row.
    """
    reader = Reader(config, seed)
    if pool == WORLD:
        units, found = [Unit(WORLD, "json", 0, 0, WORLD)], dict[str, int]()
    else:
        units, found = list_units(pool, int(config.split_mib * (1 << 20)))
    buckets = 1 + found.get("bytes", 0) // _BYTES_PER_BUCKET
    scans, duplicates, duplicate_ids = _scan_pool(units, reader, buckets)
    if not sum(scan.usable for scan in scans):
        raise InputError(f"augment.pool {pool}: {_nothing_usable(scans)}")
    items = [scan.items for scan in scans]
    blocks = cut_blocks(units, items, data.rows_per_part, duplicates, duplicate_ids)
    if config.near_duplicates or config.decontaminate:
        left_out = _sorted([duplicates, duplicate_ids])
        usable = sum(scan.usable for scan in scans)
        matches, figures = find_matches(units, reader, config, left_out, usable)
        found |= figures
        if usable == len(left_out) + sum(map(len, matches.values())):
            raise InputError(
                f"augment.pool {pool}: evaluation sets hold every row; check ingest.decontaminate"
            )
        blocks = with_matches(blocks, {units[number]: found for number, found in matches.items()})
    map_parts(
        out,
        blocks,
        make_work,
        {"reader": reader},
        num_actors=config.num_actors,
    )
    return Outcome(metrics=dict(found))


def _nothing_usable(scans: Sequence[Scan]) -> str:
    reasons: Counter[str] = Counter()
    for scan in scans:
        reasons.update(scan.reasons)
    if not reasons:
        return "is empty; give a pool with at least one row"
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    return f"has no usable row ({counted}); name its columns in ingest.columns, e.g. {{prompt: question}}"


def scan_unit(number: int, unit: Unit, reader: Reader, buckets: int) -> list[Any]:
    """First pass over a unit.

    Returns:
        The `Scan`; then, a bucket each, [n, 3] rows of content key (2) and place; then the same for id keys.
    """
    rows = [reader.row(raw, unit) for raw in reader.items(unit)]
    usable = [(index, row) for index, row in enumerate(rows) if isinstance(row, PoolRow)]
    places = encode_places(number, np.array([index for index, _ in usable], dtype=np.int64))
    contents = split_by_bucket(keys_of([bytes.fromhex(row.content) for _, row in usable]), places, buckets)
    ids = split_by_bucket(keys_of([_digest(row.id) for _, row in usable]), places, buckets)
    rejected = Counter(str(row) for row in rows if not isinstance(row, PoolRow))
    gave_ids = any(row.given_id for _, row in usable)
    return [Scan(len(rows), len(usable), gave_ids, dict(rejected)), *contents, *ids]


def scan_group(first: int, units: Sequence[Unit], reader: Reader, buckets: int) -> list[Any]:
    """`scan_unit` of consecutive units, one in memory at a time, the tables of a bucket joined.

    An `InputError` is returned in the place of the scans: raised, it would be the value of every table too,
    and Ray prints a traceback for each one that nobody fetches.
    """
    try:
        scans, *tables = zip(
            *(scan_unit(number, unit, reader, buckets) for number, unit in enumerate(units, first)),
            strict=True,
        )
    except InputError as error:
        return [error, *[None] * (2 * buckets)]
    return [list(scans), *map(np.concatenate, tables)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _scan_pool(units: Sequence[Unit], reader: Reader, buckets: int) -> tuple[list[Scan], Places, Places]:
    """Scans all units; returns the scans, and the places of repeated contents and of repeated ids."""
    import ray

    scan = ray.remote(scan_group).options(num_returns=1 + 2 * buckets)
    find = ray.remote(_repeats_of)
    shared = ray.put(reader)
    results: list[Any] = [
        scan.remote(numbers[0], [units[number] for number in numbers], shared, buckets)
        for numbers in in_blocks(range(len(units)), 1)
    ]
    scans: list[Scan] = []
    with track("ingest: reading", total=len(units)) as advance:
        for result in results:
            found: list[Scan] | InputError = ray.get(result[0])
            if isinstance(found, InputError):
                raise found
            scans += found
            advance(len(found))
    columns = [[result[1 + column] for result in results] for column in range(2 * buckets)]

    def finder(tables: Sequence[Sequence[Any]]) -> Finder:
        def find_among(left_out: Places) -> Places:
            known = ray.put(left_out)
            return _sorted(ray.get([find.remote(known, *table) for table in tables]))

        return find_among

    same_content = finder(columns[:buckets])
    if not any(scan.gave_ids for scan in scans):  # then ids are contents
        nothing = np.zeros(0, np.uint64)
        return scans, same_content(nothing), nothing
    return scans, *find_duplicates(same_content, finder(columns[buckets:]))


def _repeats_of(left_out: Places, *tables: npt.NDArray[np.uint64]) -> Places:
    return repeated_places(tables, left_out)


def _sorted(places: Sequence[Places]) -> Places:
    return np.sort(np.concatenate(places))


def cut_blocks(
    units: Sequence[Unit], items: Sequence[int], rows_per_part: int, duplicates: Places, duplicate_ids: Places
) -> list[Block]:
    """Blocks of at most `rows_per_part` items, in order; item numbers go on within a file."""
    again, again_id = by_unit(duplicates), by_unit(duplicate_ids)
    none = np.zeros(0, np.int64)
    blocks: list[Block] = []
    line, file = 0, ""
    for number, (unit, count) in enumerate(zip(units, items, strict=True)):
        line = line if unit.uri == file else 0
        file = unit.uri
        for first in range(0, count, rows_per_part):
            size = min(rows_per_part, count - first)
            equal, same_id = (_within(places.get(number, none), first, size) for places in (again, again_id))
            blocks.append(Block(unit, first, size, line + first + 1, equal, same_id))
        line += count
    return blocks


def _within(rows: npt.NDArray[np.int64], first: int, size: int) -> tuple[int, ...]:
    low, high = np.searchsorted(rows, [first, first + size])
    return tuple((rows[low:high] - first).tolist())


def with_matches(blocks: Sequence[Block], matches: Mapping[Unit, Sequence[Match]]) -> list[Block]:
    """The blocks, with their matches out of those of their units."""
    ordered = {unit: sorted(found, key=_row) for unit, found in matches.items()}
    return [_marked(block, ordered[block.unit]) if block.unit in ordered else block for block in blocks]


def _marked(block: Block, found: Sequence[Match]) -> Block:
    low, high = (bisect_left(found, end, key=_row) for end in (block.first, block.first + block.count))
    return replace(block, matches=tuple(replace(m, row=m.row - block.first) for m in found[low:high]))


def _row(match: Match) -> int:
    return match.row


def make_work(reader: Reader) -> Callable[[Block], PartResult]:
    """The function that makes a block a part; it keeps the last unit read, as blocks come in order."""
    items = lru_cache(maxsize=1)(reader.items)

    def work(block: Block) -> PartResult:
        raws = items(block.unit)[block.first : block.first + block.count]
        return read_block(block, raws, reader)

    return work


def read_block(block: Block, raws: Sequence[Any], reader: Reader) -> PartResult:
    """The rows and rejects of a block's raw items."""
    again, again_id = set(block.duplicates), set(block.duplicate_ids)
    matches = {match.row: match for match in block.matches}
    rows: list[dict[str, str]] = []
    rejected: list[dict[str, str | None]] = []
    unread: Counter[str] = Counter()
    for number, raw in enumerate(raws):
        row = reader.row(raw, block.unit)
        reason = row if isinstance(row, str) else None
        if number in again:
            reason = "duplicate"
        elif number in again_id:
            reason = "duplicate_id"
        elif match := matches.get(number):
            reason = match.reason
        if isinstance(row, PoolRow) and reason is None:
            rows.append({name: getattr(row, name) for name in INSTRUCTION.names})
            unread.update(name[:_NAME_CHARS] for name in row.unread)
        else:
            where = f"{block.unit.uri}:{block.line + number}"
            known = row.id if isinstance(row, PoolRow) else None
            of = matches[number].of if number in matches else None
            rejected.append(
                {"reason": reason, "where": where, "id": known, "match": of, "raw": raw_text(raw)}
            )
    types = Counter(f"task_type/{row['task_type']}" for row in rows)
    types.update({f"column_not_read/{name}": count for name, count in unread.most_common(_NAMES_KEPT)})
    return PartResult(
        table(rows, INSTRUCTION), pa.Table.from_pylist(rejected, REJECTED), rows_in=len(raws), metrics=types
    )
