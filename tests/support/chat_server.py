"""An OpenAI-compatible chat server on this machine that misbehaves on request, for the tests of the judge."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lm_mixup.chat.judge import Judge, make_judge
from lm_mixup.config import RateConfig

GOOD = '{"rarity": 3, "complexity": 4, "informativeness": 5, "overall": 8}'
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    Attributes:
        content: The model's text; of another status than 200 the error message.
        status: HTTP status.
        headers: More response headers.
        delay_s: Wait before the response.
        drip_s: Wait before each byte of the body.
        raw: The body itself, in place of a completion.
        cut: Whether the connection ends in the middle of the body.
    """

    content: str = GOOD
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0
    raw: bytes | None = None
    cut: bool = False


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    port: int  # the client's

    @property
    def row(self) -> dict[str, str]:
        """The row that was to be rated."""
        return json.loads(self.body["messages"][1]["content"])


class ChatServer:
    """The server; `answer(seen)` says what it does, `seen` holds what came in."""

    def __init__(self, answer: Callable[[Seen], Answer | str]) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(body, headers, time.monotonic(), self.client_address[1])
                with outer.lock:
                    outer.seen.append(seen)
                answer = outer.answer(seen)
                with suppress(OSError):  # the client may have left
                    self.send(answer if isinstance(answer, Answer) else Answer(answer))

            def send(self, answer: Answer) -> None:
                time.sleep(answer.delay_s)
                data = completion(answer) if answer.raw is None else answer.raw
                self.send_response(answer.status)
                for name, value in ({"content-type": "application/json"} | answer.headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if answer.cut:
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                elif answer.drip_s:
                    for byte in data:
                        self.wfile.write(bytes([byte]))
                        time.sleep(answer.drip_s)
                else:
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            request_queue_size = 256

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def rows(self) -> list[str]:
        """The responses of the rows that were asked about, in order."""
        with self.lock:
            return [seen.row["response"] for seen in self.seen]

    def config(self, **settings: Any) -> RateConfig:
        """A judge's config for this server."""
        return RateConfig.model_validate(
            {"backend": "openai", "base_url": self.url, "model": "m", "max_retries": 2, **settings}
        )

    def judge(self, **settings: Any) -> Judge:
        """A judge with nothing behind it but this server."""
        return make_judge(self.config(**settings))


def completion(answer: Answer) -> bytes:
    """The body of a chat completion, or of an error."""
    if answer.status != 200:
        return json.dumps({"error": {"message": answer.content}}).encode()
    message = {"role": "assistant", "content": answer.content}
    value = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        },
    }
    return json.dumps(value).encode()


@contextmanager
def serving(answer: Callable[[Seen], Answer | str]) -> Iterator[ChatServer]:
    """A server for the length of a block."""
    server = ChatServer(answer)
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
