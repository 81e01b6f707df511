"""Masks keys and passwords in files, logs and error messages."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")  # up to the last @: a password may hold one


def redact(text: str, *secrets: str) -> str:
    """The text with credentials inside URLs, and the given secrets, replaced by `***`."""
    return _CREDENTIALS.sub("***@", hide(text, *secrets))


def hide(text: str, *secrets: str) -> str:
    """The text with the given secrets, and nothing else, replaced by `***`."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def url_secrets(url: str | None) -> tuple[str, ...]:
    """The password in a URL, as written and decoded; none if it has none."""
    try:
        password = urlsplit(url or "").password or ""
    except ValueError:
        return ()
    return tuple({password, unquote(password)} - {""})
