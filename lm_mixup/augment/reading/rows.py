"""From one raw item of a pool to one instruction row, or to the reason why not.

Every function here is pure and takes anything: whatever the bytes hold, the answer is a row or a rejection.
"""

from __future__ import annotations

import datetime
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from lm_mixup.augment.reading.pairs import Turns, read_pair
from lm_mixup.augment.reading.reasons import REASONS, Reason, Refused
from lm_mixup.core.schemas import content_id, is_clean
from lm_mixup.core.task_types import TASK_TYPES, detect_task_type

__all__ = [
    "RAW_CHARS",
    "REASONS",
    "PoolRow",
    "Reason",
    "Refused",
    "line_limit",
    "parse_line",
    "raw_text",
    "read_item",
]

RAW_CHARS: Final = 2000
_MAX_ID_CHARS: Final = 256
_NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class PoolRow:
    """A usable row: `schemas.INSTRUCTION`, the id of its content, and whether the pool gave it an id.

    Attributes:
        unread: Columns with a value that went into nothing.
    """

    id: str
    content: str
    given_id: bool
    source: str
    task_type: str
    prompt: str
    completion: str
    unread: tuple[str, ...] = ()


def read_item(
    raw: Any, columns: Mapping[str, str], source: str, max_chars: int, turns: Turns = "last"
) -> PoolRow:
    """Reads one item of a pool.

    Args:
        raw: A JSONL line as bytes, or a value out of a JSON array or a Parquet file.
        columns: Our column → the pool's, where they are not to be recognised.
        source: The source of rows that do not name theirs.
        max_chars: Longest prompt or completion.
        turns: Which exchange of a conversation is the row.

    Raises:
        Refused: The item is no usable row.
    """
    if isinstance(raw, bytes) and len(raw) >= line_limit(max_chars):
        raise Refused("too_long")
    record = parse_line(raw) if isinstance(raw, bytes) else raw
    if not isinstance(record, Mapping):
        raise Refused("not_an_object")
    pair = read_pair(record, columns, turns)
    prompt, completion = pair.prompt, pair.completion
    if len(prompt) > max_chars or len(completion) > max_chars:
        raise Refused("too_long")
    content = content_id(prompt, completion)
    given = _given_id(record.get(columns.get("id", "id")))
    named = record.get(columns.get("source", "source"))
    task_type = record.get(columns.get("task_type", "task_type"))
    used = pair.used | {columns.get(name, name) for name in ("id", "source", "task_type")}
    return PoolRow(
        id=given or content,
        content=content,
        given_id=given is not None,
        source=named if isinstance(named, str) and named.strip() and is_clean(named) else source,
        task_type=task_type if task_type in TASK_TYPES else detect_task_type(prompt, completion),
        prompt=prompt,
        completion=completion,
        unread=tuple(
            str(name) for name, value in record.items() if name not in used and value not in _NOTHING
        ),
    )


def line_limit(max_chars: int) -> int:
    """Bytes past which a JSONL line is not read: room for two texts in escapes, and for other columns."""
    return 16 * max_chars + (1 << 20)


def parse_line(line: bytes) -> Any:
    """The value in a JSONL line.

    Raises:
        Refused: There is none.
    """
    if not line.strip():
        raise Refused("blank_line")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("not_utf8") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also integers of thousands of digits, and nesting without end
        raise Refused("bad_json") from None


def _given_id(value: Any) -> str | None:
    """The pool's own id as text, or None where it gives none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():  # an integer column with gaps, read by pandas
        value = int(value)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("bad_id") from None
    if isinstance(value, (datetime.date, datetime.time)):
        value = value.isoformat()
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal, uuid.UUID)):
        raise Refused("bad_id")
    if isinstance(value, float) and math.isinf(value):
        raise Refused("bad_id")
    try:
        text = str(value)
    except ValueError:  # an integer of thousands of digits
        raise Refused("bad_id") from None
    if len(text) > _MAX_ID_CHARS or not text.strip() or not is_clean(text):
        raise Refused("bad_id")
    return text


def raw_text(raw: Any) -> str:
    """An item as text for the list of rejects: cut to 2,000 characters, always storable as UTF-8."""
    if isinstance(raw, bytes):
        text = raw[: 4 * RAW_CHARS].decode("utf-8", "replace")
    else:
        try:
            text = json.dumps(raw, ensure_ascii=False, default=repr)
        except (ValueError, RecursionError):
            text = f"<{type(raw).__name__} that cannot be shown>"
    text = text[:RAW_CHARS].replace("\0", "\\0")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
