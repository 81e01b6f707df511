"""Chat completion by any OpenAI-compatible server: limits, retries, and classification of failures.

Transient failures are retried with exponential waits: no connection, a timeout, 408, 409, 429, 5xx, a body
that cannot be read. An error of one request fails that request only. An error of all requests (key, model,
quota of the account, server gone) stops the run with a message of one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lm_mixup.chat.rate_limits import Ticket, caller, cost_of
from lm_mixup.chat.reply_body import NotACompletion, read_body
from lm_mixup.chat.request_fields import Fields
from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.chat.types import MOST_INVALID, ChatFailure, Reply, Request
from lm_mixup.config import ChatConfig, CustomReward
from lm_mixup.core.errors import InputError
from lm_mixup.core.redact import hide, redact, url_secrets

T = TypeVar("T")
_OPENAI = "https://api.openai.com/v1"
_DUMMY = 8  # characters; a key that is shorter (`x`, `none`) is no secret, and may be part of any word
_LOOKED_UP = 20  # times that a reply of another actor is looked for, half a second apart


class _Transient(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, limited_s: float | None = None) -> None:
        super().__init__(reason)
        self.limited_s = limited_s  # after a rate limit: what this request waits, beside what all are held


class Server:
    """The transport to an OpenAI-compatible server.

    Args:
        section: Name of the config's section, for error messages.
        limits: `Limits`, or the Ray actor that shares them.
    """

    def __init__(self, config: ChatConfig, section: str, log: ReplyLog, limits: Any) -> None:
        self._config, self._section, self._log = config, section, log
        self._call = caller(limits)
        self._key = key_of(config, section)
        self._secrets = (self._key or "", *url_secrets(config.base_url))
        self._url = config.base_url or _OPENAI  # by itself the client would read OPENAI_BASE_URL
        url = redact(self._url, *self._secrets)
        fields = {"max_tokens": config.max_tokens, "temperature": 0.0} | config.request
        asked = {name: value for name, value in fields.items() if value is not None}
        dropped = sorted(name for name, value in config.request.items() if value is None)
        self._fields = Fields(asked, config.request)
        self.identity = json.dumps(["openai", url, config.model, asked, dropped], sort_keys=True)
        self._where = f"{section}.base_url {url}"
        self.answered = False
        self._stop: InputError | None = None
        self._stopping = asyncio.Event()

    def complete(
        self, requests: Sequence[Request], schema: dict[str, Any], problem: Callable[[Request, str], str]
    ) -> list[Reply | ChatFailure]:
        """Sends requests, several at a time; see `Transport`.

        Raises:
            InputError: The server refuses every request, does not answer any more, replies what nobody asked
                for, or the budget is spent. Requests under way are let finish first; their replies are kept.
        """
        self._problem = problem
        return _run(self._complete(requests, schema))

    async def _complete(
        self, requests: Sequence[Request], schema: dict[str, Any]
    ) -> list[Reply | ChatFailure]:
        results: list[Reply | ChatFailure | None] = [None] * len(requests)
        numbered = iter(list(enumerate(requests)))
        self._stop, self._stopping = None, asyncio.Event()
        async with self._client() as client:
            lanes = min(self._config.concurrency, len(requests))
            await asyncio.gather(*(self._worker(client, numbered, schema, results) for _ in range(lanes)))
        if self._stop is not None:
            raise self._stop
        return [result for result in results if result is not None]

    def _client(self) -> Any:
        import openai

        key, timeout = self._key or "unused", self._config.timeout_s
        # A server that redirects would have us ask another one, inside our network too, and hand it rows.
        plain = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        return openai.AsyncOpenAI(
            base_url=self._url, api_key=key, timeout=timeout, max_retries=0, http_client=plain
        )

    async def _worker(
        self,
        client: Any,
        numbered: Iterator[tuple[int, Request]],
        schema: dict[str, Any],
        results: list[Reply | ChatFailure | None],
    ) -> None:
        """One of the requests under way at a time: takes the next, until there are none or all must stop."""
        for index, request in numbered:
            try:
                results[index] = await self._one(client, request, schema)
            except InputError as error:
                self._stop = self._stop or error
                self._stopping.set()
            if self._stop is not None:
                return

    async def _one(self, client: Any, request: Request, schema: dict[str, Any]) -> Reply | ChatFailure:
        import tenacity

        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=30)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            # A rate limit may hold back all requests, this one as well: `Limits` says for how long.
            limited_s = error.limited_s if isinstance(error, _Transient) else None
            return backoff(state) if limited_s is None else limited_s

        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(_Transient),
                wait=wait,
                sleep=self._pause,
                stop=tenacity.stop_after_attempt(1 + self._config.max_retries),
                before_sleep=lambda _: self._log.count(retries=1),
                reraise=True,
            ):
                with attempt:
                    return await self._attempt(client, request, schema)
        except _Transient as error:
            await self._call("gave_up", str(error))
            return ChatFailure(f"request_failed: {error}")
        raise AssertionError("unreachable: tenacity re-raises")

    async def _attempt(self, client: Any, request: Request, schema: dict[str, Any]) -> Reply | ChatFailure:
        """One attempt: waits for its turn, sends, and keeps the reply."""
        claim = f"{request.key}/{request.attempt}"
        seen = await self._enter(claim, request)
        if seen is not None:
            self.answered = True
            return seen
        kept = False
        try:
            reply = await self._send(client, request, schema)
            if isinstance(reply, Reply):
                tokens = (reply.prompt_tokens, reply.completion_tokens)
                cost = cost_of(self._config, *tokens) if self._config.price_per_million else None
                await asyncio.to_thread(self._log.add, request.key, reply.text, *tokens, cost)
                kept = self.answered = True
                await self._call("leave", claim, *tokens)
                fault = self._problem(request, reply.text)
                if fault and request.attempt:  # second replies come in a row where first ones were invalid
                    return reply
                await self._call("judged", fault and f"({fault}), the last one {reply.text[:100]!r}")
            return reply
        finally:
            if not kept:
                self._log.count(failures=1)
                await self._call("drop", claim)

    async def _enter(self, claim: str, request: Request) -> Reply | None:
        """Returns when the request may go; or the reply, where another actor has got it meanwhile."""
        size = sum(len(message["content"].encode("utf-8", "replace")) for message in request.messages)
        looked_up = 0
        while True:
            if self._stop is not None:
                raise self._stop
            ticket: Ticket = await self._call("enter", claim, size)
            if ticket.answer == "go":
                await self._pause(ticket.wait_s)
                while self._stop is None and (held := await self._call("still_held", claim)) > 0:
                    await self._pause(held)
                if self._stop is not None:
                    await self._call("drop", claim)
                    raise self._stop
                return None
            if ticket.answer == "seen":
                await asyncio.to_thread(self._log.refresh)
                texts = self._log.recall(request.key)
                if len(texts) > request.attempt:
                    return Reply(texts[request.attempt], 0, 0)
                looked_up += 1
                if looked_up == _LOOKED_UP:  # its file cannot be read here
                    await self._call("drop", claim)
                await self._pause(0.5)
            elif ticket.answer == "later":
                await self._pause(ticket.wait_s)
            else:
                raise self._stopped_by(ticket)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but no longer than until all must stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _stopped_by(self, ticket: Ticket) -> InputError:
        if ticket.answer == "spent":
            option = "--max-cost" if self._section == "rate" else f"--set {self._section}.max_cost=…"
            return InputError(
                f"{self._section}.max_cost {self._config.max_cost:g} is reached ({ticket.spent:.6g} spent, "
                "the next request would go beyond); all that was paid for is kept: the same command with a "
                f"higher limit ({option}) goes on"
            )
        if ticket.answer == "invalid":
            return InputError(
                f"{self._where}: the last {MOST_INVALID} replies of {self._config.model!r} are not what "
                f"was asked for {ticket.reason}; no more are paid for. Choose a model that can, or raise "
                f"{self._section}.max_tokens if replies are cut off"
            )
        return InputError(
            f"{self._where}: every request fails, the last one with {ticket.reason!r}. What was answered is "
            "kept: fix the cause, and the same command resumes"
        )

    async def _send(self, client: Any, request: Request, schema: dict[str, Any]) -> Reply | ChatFailure:
        import openai

        fields = self._fields.of_request(schema)
        try:
            async with asyncio.timeout(self._config.timeout_s):  # of the whole reply, however slowly it drips
                raw = await client.chat.completions.with_raw_response.create(
                    model=self._config.model, messages=request.messages, extra_body=fields
                )
                return self._read(raw.http_response.text, request)
        except TimeoutError:
            raise _Transient(f"no reply within {self._config.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            if self._fields.without_unknown(error.status_code, str(error), fields):
                self._log.count(retries=1)
                return await self._send(client, request, schema)
            return await self._refused(error)
        except (openai.OpenAIError, OSError, ValueError) as error:
            raise _Transient(self._line(error)) from None

    async def _refused(self, error: Any) -> ChatFailure:
        """Sorts a refusal: raises what may pass and what stops the run, returns what fails the request."""
        status = error.status_code
        if status == 429 and "insufficient_quota" not in str(error):
            limited_s = await self._call("hold", retry_after(error.response.headers))
            raise _Transient(self._line(error), limited_s) from None
        asked = retry_after(error.response.headers) if status >= 500 else None
        if asked:
            raise _Transient(self._line(error), await self._call("hold", asked)) from None
        if status in (408, 409) or status >= 500:
            raise _Transient(self._line(error)) from None
        if status in (401, 402, 404, 429) or (status == 403 and not self.answered):
            raise InputError(
                f"{self._where}: the server refuses model {self._config.model!r} (HTTP {status}, "
                f"{type(error).__name__}); check {self._section}.model, {self._section}.api_key_env and the "
                "account"
            ) from None
        line = self._line(error)
        # A row of a server that has answered under these settings is refused for its own sake; only 403 may
        # still mean the key. Any number of rows may be: another run asks for them again, one after the other.
        if status == 403 or not self.answered:
            await self._call("gave_up", line)
        return ChatFailure(f"request_failed: {line}")

    def _read(self, body: str, request: Request) -> Reply:
        """The reply in a body. No choice, or one without text, is an empty reply: it may be paid for."""
        try:
            text, tokens = read_body(body)
        except NotACompletion as error:
            raise _Transient(" ".join(redact(str(error), *self._secrets).split())) from None
        if not any(tokens):  # the server does not count: four bytes a token
            sent = sum(len(message["content"]) for message in request.messages)
            tokens = (sent // 4 + 1, len(text) // 4 + 1)
        # A reply is the model's text: nothing in it but a key that the server echoes may be changed.
        return Reply(hide(text, *(s for s in self._secrets if len(s) >= _DUMMY)), *tokens)

    def _line(self, error: Exception) -> str:
        """An error in one line, without keys: with what lies behind "Connection error.", and the proxy."""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = str(error)
        if cause is not error and str(cause) and str(cause) not in text:
            text = f"{text} {cause}"
        proxies = [] if hasattr(error, "status_code") else _proxies(self._url)
        via = f" (through the proxy {proxies[0]})" if proxies else ""
        hidden = [*self._secrets, *(secret for proxy in proxies for secret in url_secrets(proxy))]
        text = " ".join(redact(text, *hidden).split())
        return f"{type(error).__name__}: {text:.200}{redact(via, *hidden)}"


def _proxies(url: str) -> list[str]:
    """The proxy that the environment names for a URL, if any."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return []
    known = getproxies()
    return [known[name] for name in (parts.scheme, "all") if name in known][:1]


def key_of(config: ChatConfig | CustomReward, section: str) -> str | None:
    """The key in the environment variable that the config names; None where it names none.

    Raises:
        InputError: The variable is not set, or is empty.
    """
    if not config.api_key_env:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise InputError(f"{section}.api_key_env: ${config.api_key_env} is empty; put the API key into it")
    return key


def retry_after(headers: Any) -> float | None:
    """What a server asks us to wait, in seconds: `retry-after-ms`, or `Retry-After` as seconds or a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, TypeError):
            pass
    return None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, also where a loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run, work).result()
