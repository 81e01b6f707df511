"""Prompt and completion of a pool's record, in whichever of the known layouts they are.

A prompt is all that its author gave the model: the instruction, and what stands in columns beside it (a
system's text, earlier turns, an input, a context, choices). What cannot be represented is refused.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lm_mixup.augment.reading.conversations import Turn, Turns, as_turns, exchange, exchanges, prompt_of
from lm_mixup.augment.reading.reasons import Refused
from lm_mixup.augment.reading.texts import has_text, text_of

# Tried in order; the first pair of which the row has both decides, or else the first whose prompt it has.
_PAIRS: Final = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("question", "answer"),
    ("question", "answers"),
    ("question", "response"),
    ("question", "answerKey"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
)
_CHATS: Final = ("messages", "conversations", "conversation")
_SYSTEM: Final = ("system", "system_prompt", "system_message")
_BESIDE: Final = ("input", "context")
_CHOICES: Final = ("choices", "options")


@dataclass(frozen=True)
class Pair:
    """Prompt and completion, and the columns that they were made of."""

    prompt: str
    completion: str
    used: frozenset[str]


def read_pair(record: Mapping[str, Any], columns: Mapping[str, str], turns: Turns) -> Pair:
    """Prompt and completion of a record.

    Args:
        columns: Our column → the pool's, where they are not to be recognised.
        turns: Which exchange of a conversation is the row.

    Raises:
        Refused: There is none.
    """
    if "prompt" in columns or "completion" in columns:
        names = columns.get("prompt", "prompt"), columns.get("completion", "completion")
    else:
        chat = next((name for name in _CHATS if has_text(record.get(name))), None)
        if chat is not None:
            return _of_chat(record, chat, turns)
        names = _recognise(record)
    if has_text(record.get("tool_calls")):
        raise Refused("has_tools")
    if _is_chat(record.get(names[0])):
        return _of_typed_chat(record, names, turns)
    return _of_columns(record, names, turns)


def _of_chat(record: Mapping[str, Any], name: str, turns: Turns) -> Pair:
    prompt, completion = exchange([*_system_turn(record), *as_turns(record[name])], turns)
    return Pair(prompt, completion, frozenset((name, *_SYSTEM)))


def _of_typed_chat(record: Mapping[str, Any], names: tuple[str, str], turns: Turns) -> Pair:
    """The prompt is a conversation, as TRL has it; the completion its last turn, or a text."""
    asked, answer = record[names[0]], record.get(names[1])
    answered = as_turns(answer) if _is_chat(answer) else [Turn("assistant", text_of(answer, "no_completion"))]
    prompt, completion = exchange([*_system_turn(record), *as_turns(asked), *answered], turns)
    return Pair(prompt, completion, frozenset((*names, *_SYSTEM)))


def _system_turn(record: Mapping[str, Any]) -> list[Turn]:
    texts = [text_of(record[name], "no_prompt") for name in _SYSTEM if has_text(record.get(name))]
    return [Turn("system", "\n\n".join(texts))] if texts else []


def _of_columns(record: Mapping[str, Any], names: tuple[str, str], turns: Turns) -> Pair:
    beside = [name for name in _BESIDE if name not in names and has_text(record.get(name))]
    main = [names[0]] if has_text(record.get(names[0])) else []
    if not main and "input" not in beside:
        raise Refused("no_prompt")
    parts = [text_of(record[name], "no_prompt") for name in (*main, *beside)]
    listed = next((name for name in _CHOICES if name not in names and has_text(record.get(name))), None)
    choices = _choices(record[listed]) if listed else []
    if choices:
        parts.append("\n".join(f"{label}) {text}" for label, text in choices))
    history = _history(record.get("history")) if has_text(record.get("history")) else []
    if history and turns == "reject":
        raise Refused("multi_turn")
    prompt = prompt_of([*_system_turn(record), *history, Turn("user", "\n\n".join(parts))])
    completion = _answer(record.get(names[1]), choices)
    return Pair(
        prompt, completion, frozenset((*names, *_BESIDE, *_SYSTEM, "history", *([listed] if listed else [])))
    )


def _answer(value: Any, choices: list[tuple[str, str]]) -> str:
    if isinstance(value, Mapping) and "text" in value:  # SQuAD: {"text": [...], "answer_start": [...]}
        texts = value["text"]
        value = texts[0] if isinstance(texts, (list, tuple)) and texts else texts or None
    if choices and isinstance(value, int) and not isinstance(value, bool):  # MMLU: a place among the choices
        if not 0 <= value < len(choices):
            raise Refused("wrong_type")
        return choices[value][0]
    return text_of(value, "no_completion")


def _choices(value: Any) -> list[tuple[str, str]]:
    """Labels and texts: of a list of texts, of an object by label, or of ARC's object of two lists."""
    labels: Any = string.ascii_uppercase
    if isinstance(value, Mapping) and "text" in value and "label" in value:
        labels, value = value["label"], value["text"]
    elif isinstance(value, Mapping):
        labels, value = list(value), list(value.values())
    if not isinstance(value, (list, tuple)) or not len(value) <= len(labels):
        raise Refused("wrong_type")
    return [
        (text_of(label, "wrong_type"), text_of(text, "wrong_type"))
        for label, text in zip(labels, value, strict=False)
    ]


def _history(value: Any) -> list[Turn]:
    """Earlier turns: question and answer in pairs, or a conversation."""
    if isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value
    ):
        roles = ("user", "assistant")
        return [
            Turn(role, text_of(text, "wrong_type"))
            for pair in value
            for role, text in zip(roles, pair, strict=True)
        ]
    return as_turns(value)


def _recognise(record: Mapping[str, Any]) -> tuple[str, str]:
    there = [pair for pair in _PAIRS if record.get(pair[0]) is not None]
    if not there:
        raise Refused("no_prompt")
    return next((pair for pair in there if record.get(pair[1]) is not None), there[0])


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, Mapping) for turn in value)
    )


def split_turns(record: Any, columns: Mapping[str, str]) -> list[Any]:
    """A record for each exchange of its conversation; itself where it has none or one.

    The given id goes to the first; the others bear `#2`, `#3` behind it.
    """
    if not isinstance(record, Mapping) or "prompt" in columns or "completion" in columns:
        return [record]
    chat = next((name for name in _CHATS if has_text(record.get(name))), None)
    if chat is None:
        return [record]
    parts = exchanges(record[chat])
    if len(parts) == 1:
        return [record]
    name = columns.get("id", "id")
    made = []
    for number, part in enumerate(parts, 1):
        row = {**record, chat: part}
        if number > 1 and isinstance(record.get(name), (str, int)) and record[name] != "":
            row[name] = f"{record[name]}#{number}"
        made.append(row)
    return made
