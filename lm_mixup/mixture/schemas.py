"""What the samples of `generate` look like, whoever wrote them, and how they are parted from the refused."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lm_mixup.core.schemas import INSTRUCTION, RATING, extend
from lm_mixup.distributed.map_parts import PartResult

_STRINGS = pa.list_(pa.string())
CLAIMS = pa.schema([("attributes", _STRINGS), ("values", _STRINGS)])
SCHEMA = extend(
    INSTRUCTION,
    RATING,
    pa.schema([(name, pa.string()) for name in ("answer", "cot", "passage_id", "entity", "topic", "split")]),
    CLAIMS,
)


def refusal(score: int | None, min_score: int) -> str:
    """Why a sample of this score is not kept; empty if it is."""
    if score is None:
        return "unrated"
    return f"score_below_{min_score}" if score < min_score else ""


def too_good(score: int | None, min_score: int) -> str:
    """Why a variant of this score is not kept; empty if it is."""
    if score is None:
        return "unrated"
    return f"score_not_below_{min_score}" if score >= min_score else ""


def parted(rows: pa.Table, reasons: Sequence[str]) -> PartResult:
    """Rows without a reason are kept, the others are rejected with theirs."""
    kept = pa.array([not reason for reason in reasons], pa.bool_())
    with_reason = rows.append_column("reason", pa.array(reasons, pa.string()))
    rejected = pa.array([bool(reason) for reason in reasons], pa.bool_())
    return PartResult(rows.filter(kept), with_reason.filter(rejected), rows_in=rows.num_rows)
