"""A reward endpoint on this machine that answers as told, for the tests of custom rewards."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


class Endpoint:
    """A server whose answers are `(status, body, headers)` of the request and how many came before it."""

    def __init__(self, answer: Callable[[dict, int], tuple[int, Any, dict[str, str]]]) -> None:
        outer = self
        self.seen: list[SimpleNamespace] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept between calls

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.seen.append(SimpleNamespace(body=body, headers=dict(self.headers), at=time.monotonic()))
                status, value, headers = answer(body, len(outer.seen) - 1)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in (headers | {"content-length": str(len(data))}).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/score"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@contextmanager
def serving(*answers: Any) -> Iterator[Endpoint]:
    """Gives the answers in turn, the last one again and again."""

    def answer(body: dict, before: int) -> tuple[int, Any, dict[str, str]]:
        chosen = answers[min(before, len(answers) - 1)]
        chosen = chosen(body) if callable(chosen) else chosen
        return chosen if isinstance(chosen, tuple) else (200, chosen, {})

    endpoint = Endpoint(answer)
    try:
        yield endpoint
    finally:
        endpoint.http.shutdown()
        endpoint.http.server_close()


def lengths(body: dict) -> dict:
    """An answer: the length of each completion."""
    return {"rewards": [len(text) for text in body["completions"]]}
