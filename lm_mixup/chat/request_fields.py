"""The fields of a chat request beside model and messages: less where a server does not know them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)

# A refusal of the request's form, not of what stands in it.
_UNKNOWN = re.compile(
    r"unsupported|not support|n't support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|extra"
    r"|forbidden|not implemented|invalid (?:parameter|field|value)|deprecated|not available|only the default"
    r"|must be one of|not a valid|input should be",
    re.IGNORECASE,
)
_FORMAT = re.compile(
    r"response_?format|json_?schema|json schema|json_object|structured output|guided|grammar", re.IGNORECASE
)
_STATUSES = (400, 404, 415, 422, 500, 501)


class Fields:
    """What a request is sent with: less, once the server has said what it does not know.

    The reply is read with the same care whatever was left out, so nothing but its form can suffer.

    Args:
        asked: Fields by name.
        settings: Those that the config names: they are the user's, and are never changed.
    """

    def __init__(self, asked: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._fields = dict(asked)
        self._fixed = frozenset(settings)
        self._renamed = False
        self._forms = [] if "response_format" in settings else ["json_schema", "json_object", "none"]

    def of_request(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of one request, whose reply is to follow a JSON schema."""
        fields = dict(self._fields)
        form = self._forms[0] if self._forms else "none"
        if form == "json_schema":
            asked = {"name": "reply", "strict": True, "schema": schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": asked}
        elif form == "json_object":
            fields["response_format"] = {"type": "json_object"}
        return fields

    def without_unknown(self, status: int, message: str, sent: Mapping[str, Any]) -> bool:
        """Leaves out what the server says that it does not know; whether the request is worth repeating.

        Args:
            status: HTTP status of the refusal.
            message: Of the refusal.
            sent: The fields of the refused request: another may have changed them meanwhile.
        """
        if status not in _STATUSES or not _UNKNOWN.search(message):
            return False
        if self._differs(sent):
            return True
        text = message.lower()
        if _FORMAT.search(text) and self._next_form():
            return True
        for old, new in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
            # "Unsupported parameter: 'max_tokens' … Use 'max_completion_tokens' instead" names both.
            if old in text and old in self._fields and not self._renamed and not self._fixed & {old, new}:
                self._fields[new] = self._fields.pop(old)
                self._renamed = True
                self._said(f"{old} is sent as {new}")
                return True
        if "temperature" in self._fields and "temperature" not in self._fixed and self._odd(text):
            del self._fields["temperature"]
            self._said("temperature is not sent")
            return True
        return False

    def _differs(self, sent: Mapping[str, Any]) -> bool:
        now = self.of_request({})
        if set(now) != set(sent):
            return True
        form, was = now.get("response_format"), sent.get("response_format")
        return bool(form and was and isinstance(was, Mapping) and form["type"] != was.get("type"))

    def _odd(self, text: str) -> bool:
        """Whether a refusal names the temperature, or else a field that is no longer sent."""
        gone = [name for name in ("max_tokens", "max_completion_tokens") if name not in self._fields]
        return "temperature" in text or any(re.search(rf"\b{name}\b", text) for name in gone)

    def _next_form(self) -> bool:
        if len(self._forms) < 2:
            return False
        self._forms.pop(0)
        form = {"json_object": "JSON without a schema is asked for", "none": "response_format is not sent"}
        self._said(form[self._forms[0]])
        return True

    def _said(self, what: str) -> None:
        _log.warning("the server does not know a field of the request: %s", what)
