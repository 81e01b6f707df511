"""Claims: what a text states about an entity, as pairs of attribute and value."""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Claim(NamedTuple):
    """A value stated for an attribute, true or false."""

    attribute: str
    value: str


def claims_of(row: dict[str, Any]) -> tuple[Claim, ...]:
    """The claims in the columns `attributes` and `values` of a row."""
    return tuple(map(Claim, row["attributes"], row["values"]))


def is_from_chat_model(row: dict[str, Any]) -> bool:
    """Whether a chat model stated the claims of a row; the others are facts of the demonstration world."""
    return FACT in row["attributes"]


FACT: Final = "fact"
"""The attribute of a claim that a chat model stated as a sentence; the closed world's have names."""


OPTIONS: Final = "options"
"""The attribute of the claims that stand for the options of a chat model's multiple-choice question."""
