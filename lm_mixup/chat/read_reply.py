"""Reads the object out of a model's reply, where there is no doubt which object it is.

Models wrap what they were asked for: in a code fence, behind thoughts or a preamble, before a control
token, with numbers as `8.0` or `"8"`, with fields nobody asked for. All that is read. Nothing is guessed: a
number in prose is no rating, and neither is one of several objects that differ, a field given twice, or an
object that the reply quotes from the row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lm_mixup.chat.types import Message

Answer = TypeVar("Answer", bound=BaseModel)

_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|constrain\|>\s*\w+\s*)?<\|message\|>")
_THOUGHTS = re.compile(
    r"<(think|thinking|thought|reasoning)>(.*?)(?:</\1>|\Z)|\[THINK\](.*?)(?:\[/THINK\]|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_THOUGHTS_END = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]", re.IGNORECASE)
# What a chat template writes around a turn, and the tags that some models put around their answer.
_CONTROL = re.compile(
    r"<[|｜][^<>|｜]{1,40}[|｜]>|</?s>|<(?:end_of_turn|eos)>|\[/?INST\]|</?(?:answer|json)>"
)
_FENCE = re.compile(r"```+[ \t]*\w*|~~~+[ \t]*\w*")
_AFTERWORD = re.compile(r'[^{}\[\]"0-9]*')


class Unreadable(ValueError):
    """Why no object can be read: words of ours alone, as they go into our next turn."""


def read_reply(text: str, answer: type[Answer], messages: Sequence[Message] = ()) -> Answer:
    """The object in a reply.

    Args:
        text: The reply.
        answer: What it must be. Its integers may be written as `8.0` or `"8"`, its fields in capitals; other
            fields are passed over.
        messages: The question; an object that stands in it is not an answer if the reply says more than it.

    Raises:
        Unreadable: There is none, or it is not certain which it is.
    """
    whole = _parsed(text.strip())
    if isinstance(whole, Mapping):  # its texts may hold what else would be taken for a wrapping
        return _validated(whole, answer)
    thoughts, said = _without_thoughts(text)
    bare = _FENCE.sub("\n", _CONTROL.sub("\n", said)).strip()
    if bare:
        return _validated(_only_object(bare, messages, quotes=False), answer)
    if thoughts:  # the server takes all for thoughts: their end is the reply
        return _validated(
            _only_object(_FENCE.sub("\n", _CONTROL.sub("\n", thoughts)), messages, quotes=True), answer
        )
    raise Unreadable("the reply is empty")


def _without_thoughts(text: str) -> tuple[str, str]:
    """The thoughts of a reply, and what it says beside them."""
    finals = list(_CHANNEL.finditer(text))
    if finals:
        return "", text[finals[-1].end() :]
    thoughts = "\n".join(found[2] or found[3] or "" for found in _THOUGHTS.finditer(text)).strip()
    said = _THOUGHTS.sub("\n", text)
    # A chat template may open the thoughts itself: then the reply holds only their end.
    ends = list(_THOUGHTS_END.finditer(said))
    if ends:
        thoughts, said = thoughts or said[: ends[-1].start()].strip(), said[ends[-1].end() :]
    return thoughts, said


def _only_object(text: str, messages: Sequence[Message], quotes: bool) -> Mapping[str, Any]:
    """The object that a text is, or the only one that it holds, at its end or its beginning.

    Args:
        quotes: Whether words before the object may hold quotation marks and braces.
    """
    stripped = text.strip()
    value = _parsed(stripped)
    if isinstance(value, str):  # JSON inside a JSON string
        value = _parsed(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        return value
    found = list(_objects(stripped))
    if not found:
        raise Unreadable("there is no JSON object in it")
    start, end, value = found[-1]
    if any(other != value for _, _, other in found):
        raise Unreadable("it holds several JSON objects that differ")
    before, after = stripped[: found[0][0]], stripped[end:].strip()
    if not quotes and re.search(r'["{}]', before):
        raise Unreadable("the JSON object stands in a quotation")
    if after and (before.strip() or quotes or not _AFTERWORD.fullmatch(after)):
        raise Unreadable("more follows the JSON object")
    if _is_quoted(stripped[start:end], messages):
        raise Unreadable("the JSON object is one of the question")
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except Unreadable:
        raise
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise Unreadable("a field is given twice")
    return value


def _objects(text: str) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """The outermost JSON objects in a text, with their places."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    place = text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except Unreadable:
            raise
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if value:
                yield place, end, value
        place = text.find("{", end)


def _is_quoted(text: str, messages: Sequence[Message]) -> bool:
    """Whether a question holds an object, in whichever escapes and spaces."""
    wanted = re.sub(r"[\s\\]", "", text)
    asked = (message["content"] for message in messages if message["role"] == "user")
    return any(wanted in re.sub(r"[\s\\]", "", content) for content in asked)


def _validated(value: Mapping[str, Any], answer: type[Answer]) -> Answer:
    fields = answer.model_fields
    while len(value) == 1 and not _named(value, fields):  # {"rating": {…}}
        (inner,) = value.values()
        if not isinstance(inner, Mapping):
            break
        value = inner
    try:
        return answer.model_validate(_named(value, fields))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise Unreadable(f"{where}: {fault['msg']}" if where else str(fault["msg"])) from None


def _named(value: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were asked for, integers as such."""
    named: dict[str, Any] = {}
    for name, given in value.items():
        plain = name if name in fields else name.strip().lower()
        if plain not in fields:
            continue
        if plain in named:
            raise Unreadable("a field is given twice")
        named[plain] = _integer(given) if fields[plain].annotation is int else given
    return named


def _integer(value: Any) -> Any:
    """`8.0`, `"8"` and `"8.0"` as 8; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,3}(?:\.0+)?\s*", value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
