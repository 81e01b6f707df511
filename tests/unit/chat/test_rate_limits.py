"""Shared limits: pace, cool-down, budget and claims, with a clock in hand."""

import pytest

from lm_mixup.chat import rate_limits
from lm_mixup.chat.rate_limits import Limits
from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.config import ChatConfig
from lm_mixup.core.run_dir import RunDir

PRICE = {"input": 1000.0, "output": 2000.0}  # a thousandth a prompt token, two a completion token


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(rate_limits, "time", made)
    return made


def make(**settings):
    return Limits(ChatConfig.model_validate(settings))


def test_requests_are_spaced_evenly_and_idle_time_earns_no_burst(clock):
    shared = make(requests_per_minute=60)
    assert [shared.enter(str(n), 1).wait_s for n in range(3)] == [0, 1, 2]
    clock.now += 100
    assert [shared.enter(f"x{n}", 1).wait_s for n in range(2)] == [0, 1]


def test_tokens_are_estimated_and_then_put_right(clock):
    shared = make(tokens_per_minute=6000, max_tokens=100)  # 0.01 s a token
    assert shared.enter("a", 1000).wait_s == 0  # taken for 300 + 100 tokens
    shared.leave("a", 500, 50)
    assert shared.enter("b", 1000).wait_s == pytest.approx(5.5)
    assert shared.enter("c", 1).wait_s == pytest.approx(5.5 + 6.0)  # b: 500 as learned, and 100


def test_a_cool_down_holds_all_and_grows_where_the_server_does_not_say(clock):
    shared = make()
    shared.enter("a", 1)
    shared.hold(7.0)
    assert shared.enter("b", 1).wait_s == pytest.approx(7.0)
    assert shared.still_held("-") == pytest.approx(7.0)
    shared.hold(3.0)  # a shorter one does not shorten it
    assert shared.still_held("-") == pytest.approx(7.0)
    waits = []
    for _ in range(9):
        clock.now += 1000
        assert shared.still_held("-") == 0
        shared.hold(None if len(waits) % 2 else 0.0)  # "at once" is no answer either
        waits.append(shared.still_held("-"))
    assert 0.5 <= waits[0] <= 1.5 and waits[:6] == sorted(waits[:6])
    assert max(waits) <= 90
    clock.now += 1000
    shared.hold(1e9)
    assert shared.still_held("-") == rate_limits.MAX_HOLD_S


def test_the_pace_is_kept_after_a_cool_down_that_caught_waiting_requests(clock):
    shared = make(requests_per_minute=60)
    assert [shared.enter(key, 1).wait_s for key in "abc"] == [0, 1, 2]
    shared.hold(7.0)  # a was limited; b and c wait for their turns
    clock.now += 2
    assert [shared.still_held(key) for key in "bc"] == pytest.approx([5, 6])
    assert shared.enter("d", 1).wait_s == pytest.approx(7)
    clock.now += 5
    assert [shared.still_held(key) for key in "bc"] == pytest.approx([0, 1])
    shared.hold(3.0)  # b is under way; c and d are caught
    clock.now += 1
    assert [shared.still_held(key) for key in "cd"] == pytest.approx([2, 3])


def test_limits_met_together_count_once(clock):
    one, many = make(), make()
    one.hold(None)
    for _ in range(16):
        many.hold(None)
    assert many.still_held("-") <= 1.5 and one.still_held("-") <= 1.5


def test_a_row_under_way_is_not_asked_for_by_another(clock):
    shared = make()
    assert shared.enter("a", 1).answer == "go"
    assert shared.enter("a", 1).answer == "later"
    shared.drop("a")  # the attempt failed
    assert shared.enter("a", 1).answer == "go"
    shared.leave("a", 1, 1)
    assert shared.enter("a", 1).answer == "seen"


def test_a_row_whose_actor_died_is_free_soon_and_one_held_back_is_not(clock):
    shared = make(timeout_s=120)
    assert shared.enter("a", 1).answer == shared.enter("b", 1).answer == "go"
    shared.hold(500.0)
    assert shared.still_held("b") == pytest.approx(500)  # whoever asked for a is dead
    clock.now += 181
    assert shared.enter("a", 1).answer == "go" and shared.enter("b", 1).answer == "later"
    clock.now += 320
    assert shared.still_held("b") == 0 and shared.enter("b", 1).answer == "later"
    clock.now += 180
    assert shared.enter("b", 1).answer == "go"


def test_the_budget_is_not_overrun_and_ends_only_when_nothing_is_under_way(clock):
    shared = make(price_per_million=PRICE, max_cost=1.0, max_tokens=100)  # a request: 0.1 + 0.2
    assert [shared.enter(key, 333).answer for key in "abcd"] == ["go", "go", "go", "later"]
    shared.leave("a", 100, 10)  # 0.12 spent, and two under way at 0.3
    assert shared.enter("d", 333).answer == "later"  # would come to 1.02
    shared.leave("b", 100, 10)
    assert shared.enter("d", 333).answer == "go"
    shared.leave("c", 100, 100)
    assert shared.enter("e", 333).answer == "later"  # 0.54, with d 0.84
    shared.leave("d", 100, 100)
    ticket = shared.enter("e", 333)
    assert ticket.answer == "spent" and ticket.spent == pytest.approx(0.84)


@pytest.mark.parametrize(
    "request_",
    [
        {"max_tokens": None, "max_completion_tokens": 2000},
        {"max_tokens": 2000},
        {"max_completion_tokens": 2000},
    ],
)
def test_budget_and_pace_reckon_with_the_length_that_is_really_sent(clock, request_):
    shared = make(
        price_per_million=PRICE, max_cost=5.0, max_tokens=100, tokens_per_minute=6000, request=request_
    )
    assert shared.enter("a", 1000).answer == "go"  # 0.3 + 4.0
    assert shared.enter("b", 1000).answer == "later"
    shared.drop("a")
    ticket = shared.enter("b", 1000)
    assert ticket.answer == "go" and ticket.wait_s == pytest.approx(23.0)  # 0.01 s a token of a


def test_what_was_paid_before_counts(clock, tmp_path):
    run = RunDir(tmp_path)
    ReplyLog(run, "replies/rate", "generate").add("0" * 32, "x", 400, 300)  # 1.0
    config = ChatConfig.model_validate({"price_per_million": PRICE, "max_cost": 1.1})
    assert Limits(config, run, "replies/rate").enter("a", 333).answer == "spent"
    more = config.model_copy(update={"max_cost": 2.0})
    assert Limits(more, run, "replies/rate").enter("a", 333).answer == "go"


def test_a_server_that_answers_nobody_counts_as_down(clock):
    shared = make()
    for _ in range(100):
        assert shared.enter("a", 1).answer == "go"
        shared.drop("a")
        shared.gave_up("no connection")
    ticket = shared.enter("a", 1)
    assert ticket.answer == "down" and ticket.reason == "no connection"
