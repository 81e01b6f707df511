"""Reads the YAML configuration; every fault is one line that names the key and the nearest valid one.

A config is a file, or one of the recipes that come with the package, by its name (`quickstart`).
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lm_mixup.config import Config
from lm_mixup.config.read_yaml import read_yaml
from lm_mixup.core.errors import InputError
from lm_mixup.core.redact import redact

_MAY_HOLD_KEYS = ("api_key_env", "base_url")  # by mistake
# In a checkout the recipes lie beside the package; a wheel installs them under the environment's prefix.
_RECIPE_FOLDERS = (
    Path(__file__).resolve().parents[2] / "configs",
    Path(sys.prefix) / "share" / "lm_mixup" / "configs",
)


def recipes() -> dict[str, Path]:
    """The packaged recipes, by name."""
    folder = next((folder for folder in _RECIPE_FOLDERS if folder.is_dir()), _RECIPE_FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(given: str | Path) -> Path:
    """The file that a command's CONFIG means: a path, or the name of a packaged recipe.

    Raises:
        InputError: There is neither a file nor a recipe of that name.
    """
    path = Path(given).expanduser()
    if path.is_file() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = recipes()
    if str(given) in known:
        return known[str(given)]
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"recipes are {', '.join(known)}"
    raise InputError(f"config {given}: neither a file nor a packaged recipe; {hint}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML config and applies `key.path=value` overrides.

    Args:
        path: The YAML file, or the name of a packaged recipe.
        overrides: Each `a.b=value`. Where the key takes text, the value is the text as it stands (with `#` or
            `[v2]`, or `2024` or `on`), and `null` is nothing where the key may be unset; for other keys the
            value is written as YAML (`3`, `true`, `[a, b]`).

    Returns:
        The validated, frozen configuration.

    Raises:
        InputError: The file is missing, is not a mapping, or holds a key or value that is not valid; the
            message names the key and the nearest valid one.
    """
    path = find_config(path)
    try:
        with path.open("rb") as file:  # of a file, unlike a text, YAML's errors quote no line
            raw = read_yaml(file)
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
        raise InputError(f"config {path}: {explain_errors(error)}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {redact(override)!r}: write it as key.path=value")
    *parents, leaf = key.strip().split(".")
    value: Any = text
    annotation = _annotation_at([*parents, leaf])
    if not _takes_text(annotation):
        try:
            value = read_yaml(text)
        except yaml.YAMLError:
            raise InputError(f"--set {key}=…: the value is not valid YAML") from None
    elif text == "null" and type(None) in typing.get_args(annotation):
        value = None
    node = raw
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise InputError(f"--set {key}=…: {name} is a value, not a section")
        node = child
    node[leaf] = value


def _annotation_at(location: Sequence[str]) -> Any:
    """The type of the key at `location`; None where there is no such key."""
    section: type[BaseModel] | None = Config
    annotation: Any = None
    for name in location:
        info = section.model_fields.get(name) if section is not None else None
        if info is None:
            return None
        annotation = info.annotation
        section = section_of(annotation)
    return annotation


def _takes_text(annotation: Any) -> bool:
    """Whether a text is a value of a type: `str`, a choice of words, or a union that holds one of them."""
    if annotation is str:
        return True
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return all(isinstance(argument, str) for argument in arguments)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(map(_takes_text, arguments))
    if typing.get_origin(annotation) is typing.Annotated:
        return _takes_text(arguments[0])
    return False


def explain_errors(error: ValidationError) -> str:
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
        inner = section_of(info.annotation) if info else None
        if inner is None:
            continue
        section = inner
    return list(section.model_fields)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            found = section_of(argument)
            if found is not None:
                return found
    return None


def explain_key(config: Config, key: str) -> str:
    """A key's type, its value in a config, its default and what it means; of a section, all its keys.

    Raises:
        InputError: There is no such key.
    """
    *parents, leaf = location = key.split(".")
    section, value = Config, config
    for name in parents:
        inner = section_of(section.model_fields[name].annotation) if name in section.model_fields else None
        if inner is None:
            raise InputError(f"config --explain {key}: {name} is not a section")
        section, value = inner, getattr(value, name)  # type: ignore[assignment]
    if leaf not in section.model_fields:
        near = difflib.get_close_matches(leaf, section.model_fields, n=1, cutoff=0.5)
        raise InputError(
            f"config --explain {key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
        )
    info = section.model_fields[leaf]
    inner = section_of(info.annotation)
    if inner is not None and typing.get_origin(info.annotation) is not dict:
        lines = [f"{key}: {(inner.__doc__ or '').strip().splitlines()[0]}"]
        return "\n".join(
            lines
            + [f"  {key}.{name}: {field.description or ''}" for name, field in inner.model_fields.items()]
        )
    shown = getattr(info.annotation, "__name__", None) or str(info.annotation).replace("typing.", "")
    return "\n".join(
        [
            f"{'.'.join(location)}: {info.description or ''}",
            f"  type: {shown}",
            f"  value: {getattr(value, leaf, None)!r}",
            f"  default: {info.get_default(call_default_factory=True)!r}",
        ]
    )


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ between two configs, dotted, with both values."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {prefix.rstrip("."): value}
        return {key: v for name, inner in value.items() for key, v in flat(inner, f"{prefix}{name}.").items()}

    ours, theirs = flat(one.model_dump(mode="json")), flat(other.model_dump(mode="json"))
    keys = dict.fromkeys([*ours, *theirs])
    return {k: (ours.get(k), theirs.get(k)) for k in keys if ours.get(k) != theirs.get(k)}


def set_in_yaml(text: str, values: Mapping[str, str]) -> str:
    """A recipe's YAML with text values set, its comments kept. Keys are `section.key`.

    Args:
        text: YAML whose sections begin at the first column.
        values: Dotted key to text.
    """
    for key, value in values.items():
        section, _, name = key.partition(".")
        line = f"  {name}: {json.dumps(value, ensure_ascii=False)}"
        block = re.search(rf"^{section}:[^\n]*\n((?:[ \t#][^\n]*\n|\n)*)", text, re.MULTILINE)
        if block is None:
            text = f"{text.rstrip()}\n\n{section}:\n{line}\n"
            continue
        old = re.search(rf"^  {name}:[^\n]*\n", block[1], re.MULTILINE)
        start, stop = (0, 0) if old is None else old.span()
        body = f"{block[1][:start]}{line}\n{block[1][stop:]}"
        text = text[: block.start(1)] + body + text[block.end(1) :]
    return text
