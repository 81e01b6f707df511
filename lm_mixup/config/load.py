"""Reads the YAML configuration; every fault is one line that names the key and the nearest valid one."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.core.redact import redact

_MAY_HOLD_KEYS = ("api_key_env", "base_url")  # by mistake


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML config and applies `key.path=value` overrides.

    Args:
        path: The YAML file.
        overrides: Each `a.b=value`, the value written as YAML (so `3`, `true`, `"3%"`, `[a, b]`).

    Returns:
        The validated, frozen configuration.

    Raises:
        InputError: The file is missing, is not a mapping, or holds a key or value that is not valid; the
            message names the key and the nearest valid one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:  # of a file, unlike a text, YAML's errors quote no line
            raw = yaml.safe_load(file)
    except OSError as error:
        raise InputError(
            f"config {path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from None
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise InputError(f"config {path}: not valid YAML ({where})") from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise InputError(f"config {path}: must be a mapping of sections, not a {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"config {path}: {_explain(error)}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {redact(override)!r}: write it as key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {key}=…: the value is not valid YAML") from None
    node = raw
    *parents, leaf = key.strip().split(".")
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise InputError(f"--set {key}=…: {name} is a value, not a section")
        node = child
    node[leaf] = value


def _explain(error: ValidationError) -> str:
    """All faults on one line, unknown keys with the nearest valid name."""
    return "; ".join(_explain_one(fault) for fault in error.errors())


def _explain_one(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "config"
    if fault["type"] != "extra_forbidden":
        problem, given = fault["msg"].removeprefix("Value error, "), fault.get("input")
        if isinstance(given, dict | list) or not {*_MAY_HOLD_KEYS}.isdisjoint(location):
            return f"{where}: {problem}"
        return f"{where}: {problem} (got {redact(repr(given)):.80})"
    valid = _keys_at(location[:-1])
    near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"valid keys are {', '.join(sorted(valid))}"
    return f"{where}: unknown key; {hint}"


def _keys_at(location: Sequence[str]) -> list[str]:
    """The valid keys of the section at `location`."""
    section: type[BaseModel] = Config
    for name in location:
        info = section.model_fields.get(name)
        inner = _section_of(info.annotation) if info else None
        if inner is None:
            continue
        section = inner
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            found = _section_of(argument)
            if found is not None:
                return found
    return None
