"""Values of a pool as text, where it is certain which text they are."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from lm_mixup.augment.reading.reasons import Reason, Refused
from lm_mixup.core.schemas import is_clean


def text_of(value: Any, if_empty: Reason) -> str:
    """A text that can be stored and is not blank.

    Numbers are written out (an answer may be 42), bytes read as UTF-8, a list of one text taken for it. NaN
    is what pandas writes for nothing.

    Raises:
        Refused: With `if_empty` where there is nothing, else with what is wrong.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, (float, Decimal)) and math.isnan(value)):
        raise Refused(if_empty)
    if isinstance(value, (float, Decimal)) and math.isinf(value):
        raise Refused("wrong_type")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("not_utf8") from None
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if is_number and if_empty != "no_prompt":  # a question that is a number is rather a wrong column
        try:
            value = str(value)
        except ValueError:  # an integer of thousands of digits
            raise Refused("wrong_type") from None
    if not isinstance(value, str):
        raise Refused("wrong_type")
    if not value.strip():
        raise Refused(if_empty)
    if not is_clean(value):
        raise Refused("bad_character")
    return value


def has_text(value: Any) -> bool:
    """Whether there is anything: not null, NaN, blank or empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return (
        bool(value.strip()) if isinstance(value, str) else not (hasattr(value, "__len__") and len(value) == 0)
    )
