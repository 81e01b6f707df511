"""A server that redirects is not followed: rows go to the address of the config alone."""

from __future__ import annotations

import http.server
import threading

import pytest

from lm_mixup.chat.judge import make_judge
from lm_mixup.config import RateConfig


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_fails_the_row_and_asks_no_other_address(status):
    asked: list[str] = []

    class Redirects(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Location", "/inner")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        (verdict,) = make_judge(RateConfig(backend="openai", base_url=url, model="m")).rate([("a?", "b")])
        server.shutdown()
    assert asked == ["/v1/chat/completions"]
    assert str(status) in str(verdict)
