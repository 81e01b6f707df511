"""Reads the text of a chat completion out of a response body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_THOUGHTS = ("reasoning_content", "reasoning")  # as vLLM, SGLang and DeepSeek name it; as OpenRouter does


class NotACompletion(ValueError):
    """What a body is instead, in one line."""


def read_body(body: str) -> tuple[str, tuple[int, int]]:
    """The model's text, and the tokens of prompt and reply (0 where the server does not count).

    Also of a server that streams though it was not asked to. Text that came as parts is joined. Where there
    is no text but thoughts, they are the text, within `<think>` tags.

    Raises:
        NotACompletion: The body is something else: a web page, an error, half a body.
    """
    if body.lstrip().startswith(("data:", "event:", ":")):
        return _of_stream(body)
    try:
        value = json.loads(body)
    except ValueError:
        page = body.lstrip()[:1] == "<"
        kind = "is a web page and not a chat completion (wrong URL or a gateway)" if page else None
        raise NotACompletion(_line(body, kind)) from None
    return _of_value(value, body)


def _of_value(value: Any, body: str) -> tuple[str, tuple[int, int]]:
    try:
        if value.get("error") and not value.get("choices"):
            raise NotACompletion(_line(body, "is an error"))
        choices = value["choices"]
        message = choices[0]["message"] if choices else {}
        text = _text(message)
        used = value.get("usage") or {}
        prompt, completion = (int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, NotACompletion):
            raise
        raise NotACompletion(_line(body)) from None
    return text, (prompt, completion)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    if content is None or content == "":
        thoughts = next((message[name] for name in _THOUGHTS if message.get(name)), "")
        return f"<think>{thoughts}</think>" if isinstance(thoughts, str) and thoughts else ""
    if not isinstance(content, str):
        raise TypeError("content is no text")
    return content


def _of_stream(body: str) -> tuple[str, tuple[int, int]]:
    """The text of an event stream; one that does not come to its end is no completion."""
    merged: dict[str, list[str]] = {}
    tokens, ended = (0, 0), False
    for line in body.splitlines():
        name, _, data = line.partition(":")
        data = data.strip()
        if name != "data" or not data:
            continue
        if data == "[DONE]":
            ended = True
            break
        try:
            event = json.loads(data)
            if event.get("error"):
                raise NotACompletion(_line(data, "is an error"))
            for choice in (event.get("choices") or [])[:1]:
                ended |= bool(choice.get("finish_reason"))
                for key, piece in (choice.get("delta") or choice.get("message") or {}).items():
                    if isinstance(piece, str):
                        merged.setdefault(key, []).append(piece)
            used = event.get("usage") or {}
            if used:
                tokens = (int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0))
        except (ValueError, TypeError, AttributeError) as error:
            if isinstance(error, NotACompletion):
                raise
            raise NotACompletion(_line(body, "is a damaged event stream")) from None
    if not ended:
        raise NotACompletion(_line(body, "is an event stream without an end"))
    return _text({key: "".join(pieces) for key, pieces in merged.items()}), tokens


def _line(body: str, kind: str | None = None) -> str:
    return f"the body {kind or 'is not a chat completion'}: {' '.join(body[:200].split())[:100]!r}"
