"""Optional second pass over the pool: rows that evaluation sets contain, and near-duplicates.

The pass runs after exact deduplication. Of the remaining rows, those of evaluation sets are rejected first,
then the near-duplicates among the rest, so a rejected row never causes the rejection of another one. The
result does not depend on the number of tasks or on how the pool is cut into units. What is held where: see
`minhash` and `decontaminate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lm_mixup.augment.dedup.decontaminate import EvalIndex, read_eval_index
from lm_mixup.augment.dedup.exact import Places, by_unit, decode_places, encode_places
from lm_mixup.augment.dedup.minhash import (
    KEY_BYTES,
    Pairs,
    Sketch,
    bands_of,
    candidates,
    resolve_duplicates,
    sketch,
    unique_pairs,
    verify,
)
from lm_mixup.augment.reading.files import Unit
from lm_mixup.augment.reading.rows import PoolRow, Reason
from lm_mixup.config import IngestConfig, NearDuplicatesConfig
from lm_mixup.core.progress import say, track
from lm_mixup.distributed.ray_tasks import in_blocks

_BUCKET_BYTES = 1 << 28


@dataclass(frozen=True)
class Match:
    """A row that is rejected because of another.

    Attributes:
        row: Its number in its unit.
        reason: `contaminated` or `near_duplicate`.
        of: The id of the evaluation item, or of the row that is kept.
    """

    row: int
    reason: Reason
    of: str


class RowReader(Protocol):
    """Reads the items of a unit, and an item as a row; `reading.reader.Reader`."""

    def items(self, unit: Unit) -> list[Any]: ...  # noqa: D102
    def row(self, raw: Any, unit: Unit) -> PoolRow | Reason: ...  # noqa: D102


def match_unit(
    number: int,
    unit: Unit,
    reader: RowReader,
    left_out: npt.NDArray[np.int64],
    evals: EvalIndex | None,
    near: NearDuplicatesConfig | None,
    buckets: int,
) -> list[Any]:
    """One unit's part of the work.

    Args:
        left_out: Numbers of rows that are rejected already.
        evals: What the evaluation sets hold, if rows are compared with them.
        near: How rows are compared with each other, if they are.
        buckets: Into how many tables the keys are dealt.

    Returns:
        The `Match`es with evaluation sets; the `Sketch` of the rest; then, a bucket each, [n, 2] keys and
        places.
    """
    rejected = set(left_out.tolist())
    matches: list[Match] = []
    kept: list[tuple[int, PoolRow]] = []
    for index, raw in enumerate(reader.items(unit)):
        row = reader.row(raw, unit)
        if not isinstance(row, PoolRow) or index in rejected:
            continue
        found = evals.match(row) if evals else None
        if found is not None:
            matches.append(Match(index, "contaminated", found))
        else:
            kept.append((index, row))
    if near is None:
        return [matches, None, *[None] * buckets]
    held, table = sketch(number, kept, near)
    bucket = (table[:, 0] % np.uint64(buckets)).astype(np.int64)
    return [matches, held, *(table[bucket == index] for index in range(buckets))]


def match_units(
    first: int,
    units: Sequence[Unit],
    reader: RowReader,
    left_out: Sequence[npt.NDArray[np.int64]],
    evals: EvalIndex | None,
    near: NearDuplicatesConfig | None,
    buckets: int,
) -> list[Any]:
    """`match_unit` of consecutive units: the matches and the sketches of each, then the tables, joined."""
    matches, sketches, *tables = zip(
        *(
            match_unit(number, unit, reader, rejected, evals, near, buckets)
            for number, (unit, rejected) in enumerate(zip(units, left_out, strict=True), first)
        ),
        strict=True,
    )
    return [list(matches), *sketches, *(np.concatenate(one) if near else None for one in tables)]


def find_matches(
    units: Sequence[Unit],
    reader: RowReader,
    config: IngestConfig,
    left_out: Places,
    usable: int,
) -> tuple[dict[int, list[Match]], dict[str, int]]:
    """The rows that `ingest.decontaminate` and `ingest.near_duplicates` reject, by unit, and figures.

    Args:
        left_out: Places of the rows rejected already though they can be read.

    Raises:
        InputError: An evaluation set is missing or damaged.
    """
    import ray

    near = config.near_duplicates
    evals = read_eval_index(config.decontaminate) if config.decontaminate else None
    keys = (1 + bands_of(near)[0]) if near else 0
    buckets = 1 + usable * keys * KEY_BYTES // _BUCKET_BYTES
    task = ray.remote(match_units)
    shared = ray.put(reader), ray.put(evals)
    rejected = by_unit(left_out)
    nothing = np.zeros(0, np.int64)
    groups = in_blocks(range(len(units)), 1)
    results: list[Any] = [
        task.options(num_returns=1 + len(group) + buckets).remote(
            group[0],
            [units[number] for number in group],
            shared[0],
            [rejected.get(number, nothing) for number in group],
            shared[1],
            near,
            buckets,
        )
        for group in groups
    ]
    matches: dict[int, list[Match]] = {}
    with track("ingest: comparing", total=len(units)) as advance:
        for group, result in zip(groups, results, strict=True):
            listed: list[list[Match]] = ray.get(result[0])
            matches |= {number: some for number, some in zip(group, listed, strict=True) if some}
            advance(len(group))
    figures = _eval_figures(evals)
    if near:
        sketches = [sketch for result in results for sketch in result[1:-buckets]]
        tables = [[result[bucket - buckets] for result in results] for bucket in range(buckets)]
        pairs, figures["near_duplicate_candidates"] = _similar(sketches, tables, near)
        for number, found in _near_matches(pairs, sketches).items():
            matches.setdefault(number, []).extend(found)
    return matches, figures


def _eval_figures(evals: EvalIndex | None) -> dict[str, int]:
    if evals is None:
        return {}
    if evals.skipped:
        say(
            f": {evals.skipped} of {len(evals.ids)} evaluation items are too short",
            lead="note",
            style="bold yellow",
        )
    return {"eval_items": len(evals.ids), "eval_items_too_short": evals.skipped}


def _similar(
    sketches: Sequence[Any], tables: Sequence[Sequence[Any]], near: NearDuplicatesConfig
) -> tuple[Pairs, int]:
    """The similar pairs of the pool, and how many pairs were compared."""
    import ray

    find = ray.remote(_candidates_of)
    pairs = unique_pairs(ray.get([find.remote(*table) for table in tables]))
    compare = ray.remote(_verified)
    units, starts = np.unique(decode_places(pairs[:, 1])[0], return_index=True)
    pieces = np.split(pairs, starts[1:]) if len(units) else []
    # The references go in a list, so that a task fetches the sets of one other unit at a time.
    running = [
        compare.remote(piece, sketches[unit], _references(piece, sketches), near)
        for unit, piece in zip(units.tolist(), pieces, strict=True)
    ]
    return unique_pairs(ray.get(running)), len(pairs)


def _candidates_of(*tables: Pairs) -> Pairs:
    return candidates(tables)


def _references(pairs: Pairs, sketches: Sequence[Any]) -> dict[int, Any]:
    return {unit: sketches[unit] for unit in np.unique(decode_places(pairs[:, 0])[0]).tolist()}


def _verified(pairs: Pairs, later: Sketch, sketches: Mapping[int, Any], near: NearDuplicatesConfig) -> Pairs:
    import ray

    return verify(pairs, later, lambda unit: ray.get(sketches[unit]), near)


def _near_matches(pairs: Pairs, sketches: Sequence[Any]) -> dict[int, list[Match]]:
    """The rows rejected, by unit, each with the id of the row that is kept for it."""
    import ray

    rejected, kept = resolve_duplicates(pairs)
    look_up = ray.remote(_ids_of)
    numbers = by_unit(np.unique(kept))
    answers = ray.get([look_up.remote(sketches[unit], rows) for unit, rows in numbers.items()])
    ids: dict[int, str] = {}
    for (unit, rows), names in zip(numbers.items(), answers, strict=True):
        ids.update(zip(encode_places(unit, rows).tolist(), names, strict=True))
    return matches_of(rejected, kept, ids.__getitem__)


def _ids_of(held: Sketch, rows: npt.NDArray[np.int64]) -> list[str]:
    return [held.id_of(row) for row in rows.tolist()]


def matches_of(rejected: Places, kept: Places, id_at: Callable[[int], str]) -> dict[int, list[Match]]:
    """Near-duplicates as matches, by unit."""
    matches: dict[int, list[Match]] = {}
    units, rows = decode_places(rejected)
    for unit, row, of in zip(units.tolist(), rows.tolist(), kept.tolist(), strict=True):
        matches.setdefault(unit, []).append(Match(row, "near_duplicate", id_at(of)))
    return matches
