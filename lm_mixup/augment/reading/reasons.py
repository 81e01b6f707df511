"""Why an item of a pool is no row."""

from __future__ import annotations

from typing import Final, Literal, get_args

Reason = Literal[
    "blank_line",
    "bad_json",
    "not_utf8",
    "not_an_object",
    "no_prompt",
    "no_completion",
    "wrong_type",
    "has_tools",
    "multi_turn",
    "turns_do_not_alternate",
    "unknown_role",
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


class Refused(Exception):
    """Why an item is no row."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
