"""What every section of the configuration is made of."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

T = TypeVar("T")


def resources(default: T, **kwargs: Any) -> T:
    """A field that changes speed or place but never the rows that come out."""
    field: T = Field(default, json_schema_extra={"resources": True}, **kwargs)
    return field


def _variable(name: str) -> str:
    # Capitals alone: most keys have lower-case letters, and a key put here by mistake must not get further.
    if not re.fullmatch("([A-Z_][A-Z0-9_]*)?", name):
        raise ValueError(
            "must be the NAME of an environment variable (capitals, digits, underscores) that holds the key, "
            "never the key itself"
        )
    return name


KeyVariable = Annotated[str, AfterValidator(_variable)]


def _without_query(url: str) -> str:
    # Where it holds a key, that would end up in run.json and in errors; in a base URL, in front of the path.
    if "?" in url:
        raise ValueError("must not have a query (?…); a key goes into the variable of api_key_env")
    return url


UrlWithoutQuery = Annotated[str, AfterValidator(_without_query)]


_TOP = re.compile(r"top\s+(\d+(?:\.\d+)?)\s*%", re.IGNORECASE)


def share_of(cut: int | str) -> float | None:
    """The share of a cut such as "top 10%", in (0, 1]; None for a score."""
    found = _TOP.fullmatch(cut.strip()) if isinstance(cut, str) else None
    return float(found[1]) / 100 if found else None


def _score_cut(cut: int | str) -> int | str:
    if isinstance(cut, int):
        if not 0 <= cut <= 5:
            raise ValueError("a score is from 0 to 5")
        return cut
    share = share_of(cut)
    if share is None or not 0 < share <= 1:
        raise ValueError('is a score from 0 to 5, or a share of the rated rows such as "top 10%"')
    return cut


ScoreCutSetting = Annotated[int | str, AfterValidator(_score_cut)]
"""A score from 0 to 5, or the best share of the rated rows, "top 10%"."""


class Section(BaseModel):
    """Base of every section: unknown keys refused, values frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def identity(self) -> dict[str, Any]:
        """The JSON-able values that decide the output: everything but the `resources` fields."""
        chosen: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if not (isinstance(extra, dict) and extra.get("resources")):
                chosen[name] = _identity_of(getattr(self, name))
        return chosen


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, dict):
        return {key: _identity_of(inner) for key, inner in value.items()}
    return value
