"""Where the good rows of a pool end: at a score, or at a share of the rated rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.config.section import share_of
from lm_mixup.core.run_dir import StageDir
from lm_mixup.core.schemas import content_id

_NUMBERS = ("curated_score", "expected")


def columns_for(cut: int | str) -> list[str]:
    """What `find_cut` and `is_above` read of curated rows."""
    return ["id", "curated_score"] + (["expected"] if share_of(cut) is not None else [])


@dataclass(frozen=True, order=True)
class ScoreCut:
    """The least row above a cut: by score, then by the rating before it was rounded, then by hash of the id.

    Judges give few different scores, so a share ends amid rows of one score; the hash decides among equals.
    """

    score: float
    expected: float = -math.inf
    place: int = 0


def find_cut(curated: StageDir, cut: int | str) -> tuple[ScoreCut, int, int]:
    """The cut, how many rows it leaves above, and how many rows are rated.

    Memory: 16 bytes for each rated row, where the cut is a share.

    Args:
        curated: The rows of the pool, with `curated_score`.
        cut: A score, or a share such as "top 10%": at least one row, if any is rated.
    """
    share = share_of(cut)
    parts = [part.filter(pc.is_valid(part["curated_score"])) for part in curated.iter_parts(columns_for(cut))]
    scores, expected = (np.concatenate([_numbers(part, name) for part in parts]) for name in _NUMBERS)
    if share is None:
        return ScoreCut(float(cut)), int((scores >= float(cut)).sum()), len(scores)
    if not len(scores):
        return ScoreCut(math.inf), 0, 0
    places = np.array([_place(row_id) for part in parts for row_id in part["id"].to_pylist()])
    count = max(1, round(share * len(scores)))
    last = np.lexsort((places, expected, scores))[len(scores) - count]
    return ScoreCut(float(scores[last]), float(expected[last]), int(places[last])), count, len(scores)


def is_above(rows: pa.Table, cut: ScoreCut) -> pa.Array:
    """Which rated rows are at the cut or above it; false for those without a score.

    Args:
        rows: `columns_for` the cut.
        cut: From `find_cut`.
    """
    scores, expected = (_numbers(rows, name) for name in _NUMBERS)
    level = scores == cut.score
    above = (scores > cut.score) | (level & (expected > cut.expected))
    for index in np.flatnonzero(level & (expected == cut.expected)):
        above[index] = not cut.place or _place(rows["id"][int(index)].as_py()) >= cut.place
    return pa.array(above)


def row_is_above(score: float, expected: float | None, row_id: str, cut: ScoreCut) -> bool:
    """`is_above` for one row."""
    known = -math.inf if expected is None else float(np.float32(expected))
    return ScoreCut(float(score), known, _place(row_id)) >= cut


def _numbers(rows: pa.Table, name: str) -> np.ndarray:
    """A column as float64 [N]: NaN for a score that is missing, −inf for a rating that is not known."""
    if name not in rows.schema.names:
        return np.full(rows.num_rows, -math.inf)
    missing = math.nan if name == "curated_score" else -math.inf
    numbers: np.ndarray = pc.fill_null(rows[name].cast(pa.float64()), missing).to_numpy()
    return numbers


def _place(row_id: str) -> int:
    return int(content_id("score_cut", row_id)[:8], 16)
