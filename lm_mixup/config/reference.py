"""The configuration reference as Markdown, from the models themselves: it cannot go out of date."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lm_mixup.config import Config
from lm_mixup.config.load import section_of


def reference() -> str:
    """A table of keys for every section, in the order of the config."""
    own = {name: info for name, info in Config.model_fields.items() if section_of(info.annotation) is None}
    lines = ["## The whole", "", *_table("", own), ""]
    for name, info in Config.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            lines += _section(name, section)
    return "\n".join(lines)


def _section(key: str, section: type[BaseModel]) -> Iterator[str]:
    yield from (f"## `{key}`", "", _text((section.__doc__ or "").strip()), "")
    inner = {name: section_of(info.annotation) for name, info in section.model_fields.items()}
    plain = {
        name: info
        for name, info in section.model_fields.items()
        if inner[name] is None or inner[name] is not info.annotation  # a text, or a mapping of sections
    }
    if plain:
        yield from (*_table(f"{key}.", plain), "")
    for name, found in inner.items():
        if found is not None:
            info = section.model_fields[name]
            place = f"{key}.{name}" + (".NAME" if typing.get_origin(info.annotation) is dict else "")
            yield from _section(place, found)


def _table(prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, info in fields.items():
        extra = info.json_schema_extra
        speed = isinstance(extra, dict) and extra.get("resources")
        meaning = _text(info.description or "") + (" *Speed only: the rows stay the same.*" if speed else "")
        default = (
            "required" if info.is_required() else f"`{_value(info.get_default(call_default_factory=True))}`"
        )
        limits = ", ".join(_limit(constraint) for constraint in info.metadata if _limit(constraint))
        kind = _type(info.annotation) + (f", {limits}" if limits else "")
        yield f"| `{prefix}{name}` | {kind} | {default.replace('|', chr(92) + '|')} | {meaning} |"


def _limit(constraint: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " ".join(
        f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name)
    )


def _type(annotation: Any) -> str:
    """A type in words: choices, text, number, list of text and so on."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin in (list, tuple, set, frozenset):
        inner = dict.fromkeys(_type(argument) for argument in arguments if argument is not Ellipsis)
        return f"list of {' or '.join(inner)}"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(text: str) -> str:
    """A description on one line of a table."""
    return re.sub(r"\s+", " ", text.split("\n\n")[0]).replace("|", "\\|").replace("<", "&lt;")
