"""The limits that all requests to a chat model share: pace, cool-down, budget, requests in flight.

One `Limits` serves all actors of a stage: a Ray actor in a run, otherwise an object of the process. Each
attempt of a request enters, receives a ticket that says when it may start, and leaves. No call blocks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lm_mixup.chat.pace import Pace
from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.chat.types import MOST_INVALID
from lm_mixup.config import ChatConfig
from lm_mixup.core.run_dir import RunDir

Caller = Callable[..., Awaitable[Any]]

MAX_HOLD_S = 600.0  # longest cool-down that a server may ask for
_GIVEN_UP = 100  # requests given up on in succession after which the server counts as down
_POLL_S = 0.2
_LEASE_S = 60.0  # from its start and beyond the timeout: after that, who asks counts as dead
_TOKENS_PER_BYTE = 0.3  # of a prompt, until replies report token counts


@dataclass(frozen=True)
class Ticket:
    """The answer to a request that enters.

    Attributes:
        answer: `go` after `wait_s`; ask again `later`; its reply was `seen` since, look it up; the budget is
            `spent`; the server is `down`; its replies are all `invalid`.
        wait_s: Seconds until it may go or ask again.
        spent: Money spent so far.
        reason: What the last of the requests that were given up failed with, or the last invalid reply.
    """

    answer: Literal["go", "later", "seen", "spent", "down", "invalid"]
    wait_s: float = 0.0
    spent: float = 0.0
    reason: str = ""


@dataclass
class _InFlight:
    start: float
    expires: float
    tokens: float
    cost: float
    prompt_bytes: int


class Limits:
    """Pace, cool-down, budget and claims.

    Requests and tokens are spaced evenly over the minute, without bursts. Tokens of a request are estimated
    when it enters and put right when it leaves. A request that another actor has under way is not sent twice.

    Args:
        run: The run directory, whose replies count towards `max_cost`; None counts from zero.
        folder: Of the replies in it.
    """

    def __init__(self, config: ChatConfig, run: RunDir | None = None, folder: str = "replies") -> None:
        self._config, self._longest = config, longest_reply(config)
        self._request_gap = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        self._token_gap = 60 / config.tokens_per_minute if config.tokens_per_minute else 0.0
        self._next_request = self._next_token = self._held_until = self._calm_until = 0.0
        self._pace = Pace()
        self._lease = config.timeout_s + _LEASE_S
        self._limited = self._given_up = self._invalid = 0  # in succession
        self._reason = ""
        self._claims: dict[str, _InFlight] = {}
        self._seen: set[str] = set()
        self._read_bytes, self._read_tokens = 0, 0.0
        self._spent = spent(config, ReplyLog(run, folder).totals()) if run else 0.0

    def enter(self, key: str, prompt_bytes: int) -> Ticket:
        """Asks to send a request.

        Args:
            key: Of the request and its attempt.
            prompt_bytes: Its length, for the estimate of its tokens.
        """
        now = time.monotonic()
        self._claims = {k: c for k, c in self._claims.items() if c.expires > now}
        if key in self._seen:
            return Ticket("seen")
        if key in self._claims:
            return Ticket("later", _POLL_S)
        if self._given_up >= _GIVEN_UP:
            return Ticket("down", reason=self._reason)
        if self._invalid >= MOST_INVALID:
            return Ticket("invalid", reason=self._reason)
        per_byte = self._read_tokens / self._read_bytes if self._read_bytes else _TOKENS_PER_BYTE
        tokens = prompt_bytes * per_byte
        cost = cost_of(self._config, tokens, self._longest)
        if self._config.max_cost is not None:
            pending = sum(claim.cost for claim in self._claims.values())
            if self._spent + pending + cost > self._config.max_cost:
                # Only once nothing is under way: what is paid for must arrive.
                return Ticket("later", _POLL_S) if self._claims else Ticket("spent", spent=self._spent)
        tokens += self._longest
        start = self._place(tokens)
        self._claims[key] = _InFlight(start, start + self._lease, tokens, cost, prompt_bytes)
        return Ticket("go", start - now)

    def _place(self, tokens: float) -> float:
        """When the next request with so many tokens may start; its place is taken."""
        start = max(time.monotonic(), self._held_until, self._next_request, self._next_token)
        self._next_request = start + max(self._request_gap, self._pace.gap)
        self._next_token = start + tokens * self._token_gap
        return start

    def still_held(self, key: str) -> float:
        """Seconds that a request which was told to go has yet to wait.

        Asked by those who waited, as a cool-down may have begun in between. Whoever falls into it takes a new
        place behind the others: were all let go at its end, they would go at once.
        """
        claim = self._claims.get(key)
        if claim is None:  # the actor of the limits has died since and come back without it
            return max(0.0, self._held_until - time.monotonic())
        if claim.start < self._held_until:
            claim.start = self._place(claim.tokens)
            claim.expires = claim.start + self._lease
        return max(0.0, claim.start - time.monotonic())

    def hold(self, seconds: float | None) -> float:
        """The server's rate limit was hit: no request starts for so long.

        Unless others are served all the while: then this request alone waits.

        Args:
            seconds: What the server asks for; None if it does not say, or no time at all: then it grows from
                half a second on.

        Returns:
            Seconds that the request has to wait by itself; 0 where all are held.
        """
        now = time.monotonic()
        self._pace.refused(now)
        if self._pace.mostly_granted:
            return min(seconds, MAX_HOLD_S) if seconds else random.uniform(0.5, 1.5)
        if now >= self._calm_until:  # the first of those that were under way together
            self._limited += 1
            self._calm_until = now + 1.0
        if not seconds:
            seconds = min(60.0, 0.25 * 2**self._limited) * random.uniform(1.0, 1.5)
        self._held_until = max(self._held_until, now + min(seconds, MAX_HOLD_S))
        return 0.0

    def leave(self, key: str, prompt_tokens: int, completion_tokens: int) -> None:
        """A reply has come and is kept."""
        self._limited = self._given_up = 0
        self._pace.granted(time.monotonic())
        self._seen.add(key)
        self._spent += cost_of(self._config, prompt_tokens, completion_tokens)
        claim = self._claims.pop(key, None)
        if claim is not None:
            self._next_token += (prompt_tokens + completion_tokens - claim.tokens) * self._token_gap
            self._read_bytes += claim.prompt_bytes
            self._read_tokens += prompt_tokens

    def drop(self, key: str) -> None:
        """An attempt has failed, or what was seen cannot be found: the key is free again."""
        self._claims.pop(key, None)
        self._seen.discard(key)

    def gave_up(self, reason: str) -> None:
        """A request was given up: it failed in passing time and again, or as all may fail."""
        self._given_up += 1
        self._reason = reason

    def judged(self, fault: str) -> None:
        """A reply was read.

        Args:
            fault: What is wrong about it and how it begins; empty if it is what was asked for.
        """
        self._invalid = self._invalid + 1 if fault else 0
        self._reason = fault or self._reason


def cost_of(config: ChatConfig, prompt_tokens: float, completion_tokens: float) -> float:
    """The price of so many tokens; zero where there are no prices."""
    price = config.price_per_million
    if price is None:
        return 0.0
    return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6


def longest_reply(config: ChatConfig) -> int:
    """Most tokens of a reply: what is really sent, where `request` says so."""
    sent = (config.request.get(name) for name in ("max_completion_tokens", "max_tokens"))
    return next((tokens for tokens in sent if isinstance(tokens, int)), config.max_tokens)


def spent(config: ChatConfig, totals: Mapping[str, float]) -> float:
    """What replies cost: each at the prices of its day, and at today's where there were none.

    Args:
        totals: Of `ReplyLog.totals`.
    """
    kinds = ("prompt_tokens", "completion_tokens")
    unpriced = [totals.get(name, 0) - totals.get(f"priced_{name}", 0) for name in kinds]
    return totals.get("cost", 0.0) + cost_of(config, *unpriced)


def share_limits(config: ChatConfig, run: RunDir, folder: str) -> Any:
    """A Ray actor that holds the `Limits` of all actors; it ends with the last reference to it.

    Its budget is read from the replies in the run directory, so it may die and start again.
    """
    import ray

    options = {"num_cpus": 0, "max_restarts": 3, "max_task_retries": 3}
    return ray.remote(Limits).options(**options).remote(config, run, folder)


def caller(limits: Any) -> Caller:
    """`await call("method", *args)`: the same for limits in this process and for those in a Ray actor."""

    async def call(name: str, *args: Any) -> Any:
        method = getattr(limits, name)
        return method(*args) if isinstance(limits, Limits) else await method.remote(*args)

    return call
