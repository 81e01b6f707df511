"""Stage `rate_mixture`: ratings for a published MIXTURE, which comes without any.

The quality reward judges a completion by rated samples. Of a MIXTURE that the run wrote itself these are the
samples and variants of `generate` and `degrade`; of a published one, a draw of its targets and inputs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from lm_mixup.chat.judge import Judge, SharedJudge, rating_columns, share_judge
from lm_mixup.config import RateConfig
from lm_mixup.core.draws import fair_shares
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import INSTRUCTION, RATING, content_id, extend, table
from lm_mixup.core.task_types import TASK_TYPES, TaskType, parse_answer, to_pair
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.published_text import Unreadable, canonical
from lm_mixup.mixture.schemas import parted

Row = dict[str, Any]
_COLUMNS: Final = ["id", "task_type", "split", "inputs", "output"]
_ROWS_PER_PART: Final = 512
_PARAGRAPH_PROMPT: Final = "Write a paragraph."

SCHEMA = extend(
    INSTRUCTION, RATING, pa.schema([(name, pa.string()) for name in ("answer", "entity", "split", "role")])
)


def rate_mixture(mixture: StageDir, out: StageDir, rate: RateConfig, rows: int, seed: int) -> Outcome:
    """Rates a draw of MIXTURE's targets and, of the same rows, one input each.

    Only rows of split `sft` are drawn, evenly over task types. An input is rated if it reads as an answer of
    its task type, because only such a text can stand in the library.

    Args:
        mixture: The MIXTURE rows.
        out: Where the rated texts go: `SCHEMA`; `role` is `target` or `input`. Unrated ones are rejects.
        rate: The judge.
        rows: Most texts: half of them targets.
        seed: Of the draw.

    Returns:
        How many MIXTURE rows were drawn, and why the others were not.

    Raises:
        InputError: There is no row of split sft.
    """
    drawn, left_out = draw(_rows(mixture), max(1, rows // 2), seed)
    if not drawn:
        raise InputError(f"rate_mixture: {mixture.run.uri}/mixture has no row of split sft")
    texts, unreadable = texts_of(drawn, seed)
    items = [texts[start : start + _ROWS_PER_PART] for start in range(0, len(texts), _ROWS_PER_PART)]
    shared = share_judge(rate, out)
    map_parts(out, items, _make_work, {"judge": shared}, **shared.placement())
    return Outcome(
        metrics=shared.metrics() | {"rows_without_readable_input": unreadable},
        rows_in=len(drawn) + sum(left_out.values()),
        rows_used=len(drawn),
        left_out=dict(sorted(left_out.items())),
    )


def _rows(mixture: StageDir) -> Iterator[Row]:
    for part in mixture.iter_parts(_COLUMNS):
        yield from part.to_pylist()


def draw(rows: Iterable[Mapping[str, Any]], limit: int, seed: int) -> tuple[list[Row], Counter[str]]:
    """At most `limit` rows of split sft, even over task types, by the least hash of (seed, id).

    Holds at most `limit` rows of each task type at a time.

    Returns:
        The rows, and the number of others by reason: `other_split`, `not_drawn`.
    """
    heaps: dict[TaskType, list[tuple[int, str, Row]]] = {}
    held: Counter[TaskType] = Counter()
    left_out: Counter[str] = Counter()
    for row in rows:
        if row["split"] != "sft":
            left_out["other_split"] += 1
            continue
        heap = heaps.setdefault(row["task_type"], [])
        held[row["task_type"]] += 1
        entry = (-int(content_id(str(seed), row["id"]), 16), row["id"], dict(row))
        if len(heap) < limit:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    drawn: list[Row] = []
    shares = fair_shares(limit, held)
    for task_type in TASK_TYPES:
        ranked = sorted(heaps.get(task_type, []), reverse=True)
        drawn += [row for _, _, row in ranked[: shares.get(task_type, 0)]]
    left_out["not_drawn"] = held.total() - len(drawn)
    return drawn, +left_out


def texts_of(rows: Sequence[Row], seed: int) -> tuple[list[Row], int]:
    """The target of each row and one readable input, to be rated; and how many rows have no such input."""
    texts: list[Row] = []
    unreadable = 0
    for row in rows:
        texts.append(_text_row(row, "target", row["output"]))
        readable = [answer for text in row["inputs"] if (answer := _readable(row["task_type"], text))]
        if readable:
            texts.append(_text_row(row, "input", min(readable, key=lambda text: content_id(str(seed), text))))
        else:
            unreadable += 1
    return texts, unreadable


def _readable(task_type: TaskType, text: str) -> str:
    """An input as an answer of its task type; empty if it does not read as one."""
    try:
        return canonical(task_type, text)
    except Unreadable:
        return ""


def _text_row(row: Row, role: str, answer: str) -> Row:
    prompt, completion = to_pair(parse_answer(row["task_type"], answer), _PARAGRAPH_PROMPT)
    return {
        "id": content_id(row["id"], role),
        "source": "mixture",
        "task_type": row["task_type"],
        "prompt": prompt,
        "completion": completion,
        "answer": answer,
        "entity": row["id"],
        "split": row["split"],
        "role": role,
    }


def _make_work(judge: SharedJudge) -> Work:
    made = judge.make()
    return lambda texts: rate_part(texts, made)


def rate_part(texts: Sequence[Row], judge: Judge) -> PartResult:
    """Rates the texts of one part; those that cannot be rated are rejects, with nulls and the error."""
    verdicts = judge.rate([(row["prompt"], row["completion"]) for row in texts])
    columns = table(texts, SCHEMA).to_pydict() | rating_columns(judge.name, verdicts)
    reasons = ["unrated" if score is None else "" for score in columns["score"]]
    return parted(pa.table(columns, schema=SCHEMA), reasons)
