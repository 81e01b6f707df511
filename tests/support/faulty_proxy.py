"""A proxy in front of a real chat server that does something else to a row before it forwards it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence

from chat_server import Answer, Seen


class FaultyProxy:
    """The answers of a `chat_server.ChatServer`: a new row meets the next fault, later the real server.

    Args:
        url: Of the real server's API.
        faults: One a row, for the rows that come first.
    """

    def __init__(self, url: str, faults: Sequence[Answer]) -> None:
        self.forwarded: Counter[str] = Counter()
        self.met: dict[str, Answer] = {}
        self._url, self._faults = f"{url}/chat/completions", iter(faults)
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Answer:
        row = seen.row["response"]
        with self._lock:
            if row not in self.met and not self.forwarded[row]:
                fault = next(self._faults, None)
                if fault is not None:
                    self.met[row] = fault
                    return fault
            self.forwarded[row] += 1
        return self._forward(seen)

    def _forward(self, seen: Seen) -> Answer:
        body = json.dumps(seen.body).encode()
        request = urllib.request.Request(self._url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return Answer(raw=reply.read())
        except urllib.error.HTTPError as error:
            return Answer(raw=error.read(), status=error.code)
