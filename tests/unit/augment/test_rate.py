"""Rating one table: rows keep flowing, failures are nulls with a reason and are counted apart."""

import pyarrow as pa

from lm_mixup.augment.rate import rate_table
from lm_mixup.chat.judge import OfflineJudge, Rating, RatingFailure
from lm_mixup.core.schemas import INSTRUCTION, RATING, SOURCE_RATING, extend, table


class Given:
    """A judge with its verdicts in hand."""

    name = "given"

    def __init__(self, *verdicts):
        self.verdicts = verdicts

    def rate(self, rows, sources=None):
        self.shown = sources
        return list(self.verdicts)


ROWS = table(
    [
        {"id": str(i), "source": "s", "task_type": "qa", "prompt": f"p{i}", "completion": f"c{i}"}
        for i in range(3)
    ],
    INSTRUCTION,
)


def test_a_failed_rating_is_null_and_kept():
    judge = Given(Rating(1, 2, 3, 4), RatingFailure("request_failed: x"), Rating(9, 9, 9, 10))
    result = rate_table(ROWS, judge)
    assert result.rows.schema == extend(INSTRUCTION, RATING)
    assert result.rows["score"].to_pylist() == [0, None, 5]
    assert result.rows["error"].to_pylist() == [None, "request_failed: x", None]
    assert result.rows["id"] == ROWS["id"] and result.rejected is None and result.rows_in == 3
    counts = {f"score_{i}": int(i in (0, 5)) for i in range(6)}
    assert result.metrics == {"rated": 2, "unrated": 1, "unrated_request_failed": 1, **counts}


def test_rating_again_replaces_the_columns():
    once = rate_table(ROWS, Given(*[RatingFailure("late")] * 3)).rows
    twice = rate_table(once, Given(*[Rating(5, 5, 5, 7)] * 3)).rows
    assert twice.schema == extend(INSTRUCTION, RATING)
    assert twice["score"].to_pylist() == [3] * 3 and twice["error"].null_count == 3


def test_an_empty_part_stays_empty():
    result = rate_table(INSTRUCTION.empty_table(), OfflineJudge())
    assert result.rows.num_rows == 0 and result.rows.schema == extend(INSTRUCTION, RATING)
    assert isinstance(result.rows, pa.Table) and result.metrics["rated"] == 0


def test_sources_go_to_the_judge_and_add_its_columns():
    judge = Given(Rating(1, 2, 3, 9, faithfulness=10), RatingFailure("x"), Rating(9, 9, 9, 3, faithfulness=2))
    sources = [["a", "b"], ["c"], []]
    rows = rate_table(ROWS, judge, sources).rows
    assert judge.shown == sources and rows.schema == extend(INSTRUCTION, RATING, SOURCE_RATING)
    assert rows["faithfulness_rating"].to_pylist() == [10, None, 2]
    assert rows["unsupported_quotes"].to_pylist() == [[], None, []]
    assert rate_table(rows, judge, sources).rows.schema == rows.schema  # again replaces the columns
    assert rate_table(ROWS, judge).rows.schema == extend(INSTRUCTION, RATING) and judge.shown is None
