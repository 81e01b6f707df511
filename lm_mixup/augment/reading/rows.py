"""From one raw item of a pool to one instruction row, or to the reason why not.

Every function here is pure and takes anything: whatever the bytes hold, the answer is a row or a rejection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from lm_mixup.core.schemas import content_id, is_clean
from lm_mixup.core.task_types import TASK_TYPES, detect_task_type

Reason = Literal[
    "blank_line",
    "bad_json",
    "not_utf8",
    "not_an_object",
    "no_prompt",
    "no_completion",
    "wrong_type",
    "bad_character",
    "bad_id",
    "too_long",
    "duplicate",
    "duplicate_id",
    "contaminated",
    "near_duplicate",
    "too_short",
    "marks_in_text",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

RAW_CHARS: Final = 2000
_MAX_ID_CHARS: Final = 256

# Tried in order; the first pair of which the row has both decides, or else the first whose prompt it has.
_PAIRS: Final = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
)
_CHATS: Final = ("messages", "conversations", "conversation")
_USER: Final = ("user", "human", "prompter")
_ASSISTANT: Final = ("assistant", "gpt", "model", "bot")


@dataclass(frozen=True)
class PoolRow:
    """A usable row: `records.INSTRUCTION`, the id of its content, and whether the pool gave it an id."""

    id: str
    content: str
    given_id: bool
    source: str
    task_type: str
    prompt: str
    completion: str


class Refused(Exception):
    """Why an item is no row."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


def read_item(raw: Any, columns: Mapping[str, str], source: str, max_chars: int) -> PoolRow:
    """Reads one item of a pool.

    Args:
        raw: A JSONL line as bytes, or a value out of a JSON array or a Parquet file.
        columns: Our column → the pool's, where they are not to be recognised.
        source: The source of rows that do not name theirs.
        max_chars: Longest prompt or completion.

    Raises:
        Refused: The item is no usable row.
    """
    if isinstance(raw, bytes) and len(raw) >= line_limit(max_chars):
        raise Refused("too_long")
    record = parse_line(raw) if isinstance(raw, bytes) else raw
    if not isinstance(record, Mapping):
        raise Refused("not_an_object")
    prompt, completion = _pair(record, columns)
    if len(prompt) > max_chars or len(completion) > max_chars:
        raise Refused("too_long")
    content = content_id(prompt, completion)
    given = _given_id(record.get(columns.get("id", "id")))
    named = record.get(columns.get("source", "source"))
    task_type = record.get(columns.get("task_type", "task_type"))
    return PoolRow(
        id=given or content,
        content=content,
        given_id=given is not None,
        source=named if isinstance(named, str) and named.strip() and is_clean(named) else source,
        task_type=task_type if task_type in TASK_TYPES else detect_task_type(prompt, completion),
        prompt=prompt,
        completion=completion,
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


def _pair(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str]:
    """Prompt and completion, in whichever of the known layouts they are."""
    if "prompt" in columns or "completion" in columns:
        prompt_name, completion_name = (
            columns.get("prompt", "prompt"),
            columns.get("completion", "completion"),
        )
    else:
        for chat in _CHATS:
            if record.get(chat) is not None:
                return _first_exchange(record[chat])
        prompt_name, completion_name = _recognise(record)
    prompt = _text(record.get(prompt_name), "no_prompt")
    more = record.get("input") if prompt_name == "instruction" else None
    if more is not None and _is_text(more) and more.strip():
        prompt = f"{prompt}\n\n{_text(more, 'no_prompt')}"
    return prompt, _text(record.get(completion_name), "no_completion")


def _recognise(record: Mapping[str, Any]) -> tuple[str, str]:
    there = [pair for pair in _PAIRS if record.get(pair[0]) is not None]
    if not there:
        raise Refused("no_prompt")
    return next((pair for pair in there if record.get(pair[1]) is not None), there[0])


def _first_exchange(turns: Any) -> tuple[str, str]:
    """The first user turn and the first assistant turn behind it."""
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Refused("wrong_type")
    prompt: str | None = None
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if prompt is None and role in _USER:
            prompt = _text(_joined(content), "no_prompt")
        elif prompt is not None and role in _ASSISTANT:
            return prompt, _text(_joined(content), "no_completion")
    raise Refused("no_prompt" if prompt is None else "no_completion")


def _joined(content: Any) -> Any:
    """Content written as a list of text parts, as one text."""
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(str(text) for text in texts)
    return content


def _text(value: Any, if_empty: Reason) -> str:
    """A text that can be stored and is not blank."""
    if value is None:
        raise Refused(if_empty)
    if isinstance(value, bytes):
        raise Refused("not_utf8")
    if not _is_text(value):
        raise Refused("wrong_type")
    if not value.strip():
        raise Refused(if_empty)
    if not is_clean(value):
        raise Refused("bad_character")
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _given_id(value: Any) -> str | None:
    """The pool's own id as text, or None where it gives none."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
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
