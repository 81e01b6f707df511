"""The pace against servers that grant a rate, refuse at random, or stop: simulated, with a clock in hand."""

import heapq
import random

import pytest

from lm_mixup.chat import rate_limits
from lm_mixup.chat.rate_limits import Limits
from lm_mixup.config import ChatConfig


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


def simulate(monkeypatch, serve, seconds, lanes=32, latency=0.1):
    """Lanes that ask again and again; `serve(now)` is None or what a refusal asks to wait.

    Returns:
        The times of granted and of refused requests, from 0.
    """
    clock = Clock()
    monkeypatch.setattr(rate_limits, "time", clock)
    limits = Limits(ChatConfig())
    begin = clock.now
    events = [(clock.now, lane, "enter", f"{lane}-0") for lane in range(lanes)]
    heapq.heapify(events)
    granted, refused, asked = [], [], 0
    while events and events[0][0] < begin + seconds:
        clock.now, lane, what, key = heapq.heappop(events)
        if what == "enter":
            heapq.heappush(events, (clock.now + limits.enter(key, 1).wait_s, lane, "send", key))
        elif what == "send" and (held := limits.still_held(key)) > 0:
            heapq.heappush(events, (clock.now + held, lane, "send", key))
        elif what == "send":
            heapq.heappush(events, (clock.now + latency, lane, serve(clock.now - begin), key))
        elif what is None:
            limits.leave(key, 1, 1)
            granted.append(clock.now - begin)
            asked += 1
            heapq.heappush(events, (clock.now, lane, "enter", f"{lane}-{asked}"))
        else:
            refused.append(clock.now - begin)
            wait = limits.hold(what)
            limits.drop(key)
            heapq.heappush(events, (clock.now + wait, lane, "enter", key))
    return granted, refused


@pytest.mark.parametrize("per_second", [5, 40, 150])
def test_the_rate_of_a_token_bucket_is_found(monkeypatch, per_second):
    bucket = {"tokens": per_second / 2, "at": 0.0}

    def serve(now):
        filled = bucket["tokens"] + (now - bucket["at"]) * per_second
        bucket.update(tokens=min(per_second / 2, filled), at=now)
        if bucket["tokens"] < 1:
            return 1.0
        bucket["tokens"] -= 1
        return None

    granted, refused = simulate(monkeypatch, serve, 120)
    assert sum(at > 20 for at in granted) >= 0.8 * 100 * per_second
    assert sum(at > 20 for at in refused) <= 0.15 * len(granted)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2])
def test_refusals_at_random_do_not_slow_the_run(monkeypatch, share):
    draws = random.Random(3)
    granted, _ = simulate(monkeypatch, lambda _: 1.0 if draws.random() < share else None, 120)
    # Each request that is refused waits a second by itself, so lanes are lost to waiting.
    unlimited = 32 / (0.1 + share * 1.1)
    assert sum(at > 20 for at in granted) >= 0.5 * 100 * unlimited


def test_a_server_that_stops_for_a_minute_is_used_at_once_after(monkeypatch):
    granted, refused = simulate(monkeypatch, lambda now: max(90 - now, 0.1) if 30 < now < 90 else None, 100)
    before = sum(20 < at < 30 for at in granted)
    assert not [at for at in granted if 31 < at < 90]
    assert sum(at > 90 for at in granted) >= 0.1 * before
    assert len(refused) < 200
