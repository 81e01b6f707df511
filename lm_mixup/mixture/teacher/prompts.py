"""What a teacher model is asked: a task from a template, and texts from outside as data in another turn.

The templates are given nothing but our own words and numbers, so whatever stands in a passage, the task is
the same; passages go through `as_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from lm_mixup.chat.types import Message, as_data


def conversation(template: str, values: Mapping[str, Any], data: Mapping[str, str]) -> list[Message]:
    """The messages of one request.

    Args:
        template: Name of a file in `templates`, without its ending.
        values: What the template is filled with; a name that it lacks is an error.
        data: Texts from outside.
    """
    task = _environment().get_template(f"{template}.j2").render(values)
    return [
        {"role": "system", "content": task.strip()},
        {"role": "user", "content": as_data(dict(data))},
    ]


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lm_mixup.mixture.teacher")
    # No HTML, and no text from outside: nothing to escape.
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
