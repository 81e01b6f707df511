"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


def resources(default: T, **kwargs: Any) -> T:
    """A field that changes speed or place but never the rows that come out."""
    field: T = Field(default, json_schema_extra={"resources": True}, **kwargs)
    return field


class Section(BaseModel):
    """Base of every section: unknown keys refused, values frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
