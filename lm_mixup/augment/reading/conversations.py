"""Conversations as one prompt and one completion: which exchange counts, and what stands before it.

The prompt is text, so what came before the question stands in it: the system's text first, then the earlier
turns under `User:` and `Assistant:`, then the question. Of one plain exchange the prompt is the question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from lm_mixup.augment.reading.reasons import Refused
from lm_mixup.augment.reading.texts import text_of

Turns = Literal["first", "last", "all", "reject"]

_ROLES: Final = {
    **dict.fromkeys(("user", "human", "prompter", "question", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", "chatbot", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call"),
        "tool",
    ),
}
_NAMES: Final = {"user": "User", "assistant": "Assistant", "system": "System"}
_CALLS: Final = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class Turn:
    """What one side says; `role` is `user`, `assistant` or `system`."""

    role: str
    text: str


def as_turns(value: Any) -> list[Turn]:
    """The turns of a conversation; what one side says in several turns is joined where it is the user.

    Args:
        value: A list of objects with a role and a text, under their common names; or that as JSON text.

    Raises:
        Refused: It is none, has tool calls or an unknown role, or the assistant answers itself.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Refused("wrong_type") from None
    if not isinstance(value, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in value):
        raise Refused("wrong_type")
    turns: list[Turn] = []
    for given in value:
        turn = _turn(given)
        if turns and turns[-1].role == turn.role:
            if turn.role == "assistant":
                raise Refused("turns_do_not_alternate")
            turn = Turn(turn.role, f"{turns.pop().text}\n\n{turn.text}")
        turns.append(turn)
    return turns


def _turn(given: Mapping[str, Any]) -> Turn:
    named = next((given[name] for name in ("role", "from", "speaker") if given.get(name) is not None), None)
    role = _ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role == "tool" or any(given.get(name) for name in _CALLS):
        raise Refused("has_tools")
    if role is None:
        raise Refused("unknown_role")
    content = next(
        (given[name] for name in ("content", "value", "text") if given.get(name) is not None), None
    )
    return Turn(role, text_of(_joined(content), "no_completion" if role == "assistant" else "no_prompt"))


def _joined(content: Any) -> Any:
    """Content written as a list of text parts, as one text."""
    if isinstance(content, (list, tuple)) and content and all(isinstance(part, Mapping) for part in content):
        if any(part.get("type") in ("tool_use", "tool_result", "tool_call") for part in content):
            raise Refused("has_tools")
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(str(text) for text in texts)
    return content


def exchange(turns: Sequence[Turn], which: Turns) -> tuple[str, str]:
    """Prompt and completion of a conversation.

    Args:
        which: `first`: the first answer, and what stands before it; the rest is left out. `last`, `all`: the
            last answer, and the whole conversation before it; a question that nobody answers is left out.
            `reject`: the only answer.

    Raises:
        Refused: There is no question or no answer; there are several and `which` is `reject`.
    """
    if not any(turn.role == "user" for turn in turns):
        raise Refused("no_prompt")
    asked = next(number for number, turn in enumerate(turns) if turn.role == "user")
    answers = [n for n, turn in enumerate(turns) if turn.role == "assistant" and n > asked]
    if not answers:
        raise Refused("no_completion")
    if which == "reject" and (len(answers) > 1 or turns[0].role == "assistant"):
        raise Refused("multi_turn")
    end = answers[0] if which == "first" else answers[-1]
    if turns[end - 1].role == "assistant":
        raise Refused("turns_do_not_alternate")
    return prompt_of(turns[:end]), turns[end].text


def prompt_of(turns: Sequence[Turn]) -> str:
    """What stands before an answer, as one text."""
    system = [turns[0].text] if turns and turns[0].role == "system" else []
    rest = turns[len(system) :]
    if len(rest) == 1:
        return "\n\n".join([*system, rest[0].text])
    return "\n\n".join([*system, *(f"{_NAMES[turn.role]}: {turn.text}" for turn in rest)])


def exchanges(value: Any) -> list[list[Any]]:
    """The conversation up to each of its answers to a question; itself alone if it is not one."""
    turns = value
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            return [value]
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        return [value]
    asked, parts = False, []
    for number, turn in enumerate(turns):
        named = turn.get("role", turn.get("from"))
        role = _ROLES.get(named.strip().lower()) if isinstance(named, str) else None
        asked |= role == "user"
        if role == "assistant" and asked:
            parts.append(list(turns[: number + 1]))
    return parts or [value]
