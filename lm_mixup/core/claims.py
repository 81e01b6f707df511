"""Claims: what a text tells about a thing, as pairs of an attribute and a value."""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Claim(NamedTuple):
    """A value given to an attribute; whether it is right is another matter."""

    attribute: str
    value: str


def claims_of(row: dict[str, Any]) -> tuple[Claim, ...]:
    """The claims that a row's `attributes` and `values` list."""
    return tuple(map(Claim, row["attributes"], row["values"]))


def is_from_chat_model(row: dict[str, Any]) -> bool:
    """Whether a chat model stated the claims of a row; the others are facts of the demonstration world."""
    return FACT in row["attributes"]


FACT: Final = "fact"
"""The attribute of a claim that a chat model stated as a sentence; the closed world's have names."""


OPTIONS: Final = "options"
"""The attribute of the claims that stand for the options of a chat model's multiple-choice question."""
