"""Requests and replies of a chat model, and the escaping of untrusted text in prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = dict[str, str]

MOST_INVALID = 100
"""Replies in succession that are not what was asked for, after which no more are paid for."""


# What chat templates may read as control tokens, and lone surrogates, which UTF-8 cannot encode.
_ESCAPED = re.compile(r"<(?=[|｜/<!a-zA-Z_])|\[(?=/?[A-Z_]+\])|[\ud800-\udfff]")


class ChatFailure(str):
    """Why there is no answer: a short code, a colon, a description."""


@dataclass(frozen=True)
class Request:
    """One question to the model.

    Attributes:
        key: Digest of everything that determines the reply, except the attempt.
        attempt: Number of invalid replies before.
        messages: In the order of the conversation.
    """

    key: str
    attempt: int
    messages: list[Message]


@dataclass(frozen=True)
class Reply:
    """What the model wrote, and its tokens."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def as_data(values: Mapping[str, str | Sequence[str]]) -> str:
    """Texts as one JSON object that a prompt can hold and no text can break out of.

    Quotes and line ends are escaped as JSON does; what a chat template may take for a control token
    (`<|im_end|>`, `</s>`, `[INST]`) is written with a JSON escape for its first character. `json.loads` gives
    back each text unchanged.
    """
    return escaped(json.dumps(values, ensure_ascii=False))


def escaped(text: str) -> str:
    """A text in which what a chat template may take for a control token begins with a JSON escape."""
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
