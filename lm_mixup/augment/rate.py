"""Rates rows with the judge. A row whose rating failed stays, with nulls and the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pyarrow as pa

from lm_mixup.chat.judge import (
    Judge,
    Rating,
    RatingFailure,
    SharedJudge,
    Sources,
    rating_columns,
    share_judge,
    source_columns,
)
from lm_mixup.config import RateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import RATING, SOURCE_RATING, compress_score
from lm_mixup.distributed.map_parts import PartResult, map_parts


def rate(source: StageDir, out: StageDir, config: RateConfig) -> Outcome:
    """Rates every row of a stage.

    Input columns: prompt, completion. Output columns: all of the source's, and `schemas.RATING`. Metrics:
    `rated`, `unrated` and its reasons, `unrated_<code>`, the rated rows by score, `score_0` to `score_5`, and
    what a chat model took (`client.usage`).

    Args:
        source: The rows.
        out: Where the parts are written.
        config: The judge.

    Raises:
        InputError: The judge lacks a setting, or rated not a single row.
    """
    shared = share_judge(config, out)
    map_parts(out, source.parts(), make_work, {"source": source, "shared": shared}, **shared.placement())
    check_rated(out)
    return Outcome(metrics=shared.metrics())


def check_rated(out: StageDir) -> None:
    """Refuses ratings of which every one failed: no later stage could use a row.

    The parts are given up, so that the same command rates them once the cause is mended.

    Raises:
        InputError: Not a single row is rated.
    """
    receipts = out.receipts().values()
    rows = sum(receipt.rows_out for receipt in receipts)
    if not rows or any(receipt.metrics.get("rated") for receipt in receipts):
        return
    errors: Counter[str] = Counter()
    for table in out.iter_parts(["error"]):
        errors.update(table["error"].to_pylist())
    out.run.remove(f"{out.name}/receipts")
    (error, count) = errors.most_common(1)[0]
    raise InputError(
        f"{out.name}: not one of {rows:,} rows could be rated; of {count:,} the reason is {error}"
    )


def make_work(source: StageDir, shared: SharedJudge) -> Callable[[str], PartResult]:
    """Makes the judge; the function rates one part."""
    judge = shared.make()
    return lambda part: rate_table(source.read_part(part), judge)


def rate_table(rows: pa.Table, judge: Judge, sources: Sequence[Sources] | None = None) -> PartResult:
    """The rows with their ratings: as many as came in, in the same order.

    Args:
        rows: With prompt and completion.
        judge: Rates them.
        sources: Of distilled rows, the texts that each was made from; adds `schemas.SOURCE_RATING`.
    """
    pairs = list(zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True))
    verdicts = judge.rate(pairs) if sources is None else judge.rate(pairs, sources)
    columns = rating_columns(judge.name, verdicts)
    fields = list(RATING)
    if sources is not None:
        columns |= source_columns(verdicts)
        fields += list(SOURCE_RATING)
    for field in fields:
        column = pa.array(columns[field.name], field.type)
        there = rows.schema.get_field_index(field.name)
        rows = rows.append_column(field, column) if there < 0 else rows.set_column(there, field, column)
    scores = Counter(compress_score(v.overall) for v in verdicts if isinstance(v, Rating))
    metrics = {f"score_{score}": scores[score] for score in range(6)}
    failed = Counter(v.partition(":")[0] for v in verdicts if isinstance(v, RatingFailure))
    metrics |= {f"unrated_{code}": count for code, count in failed.items()}
    rated = scores.total()
    return PartResult(
        rows, rows_in=rows.num_rows, metrics={"rated": rated, "unrated": rows.num_rows - rated, **metrics}
    )
