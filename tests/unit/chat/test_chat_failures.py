"""The chat judge when requests fail or are held back: what passes, what fails one row, what stops the run."""

import email.utils
import threading
import time

import pytest
from chat_server import GOOD, Answer, serving

from lm_mixup.chat import rate_limits
from lm_mixup.chat.judge import Rating, RatingFailure, make_judge
from lm_mixup.chat.openai_server import retry_after
from lm_mixup.config import RateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir

RATED = Rating(3, 4, 5, 8)
PASSING = {
    "429 in seconds": Answer("busy", 429, {"retry-after": "0.3"}),
    "429 bare": Answer("busy", 429),
    "500": Answer("broken", 500),
    "503": Answer("busy", 503),
    "408": Answer("slow", 408),
    "hangs": Answer(delay_s=3),
    "drips": Answer(drip_s=0.05),
    "cut": Answer(cut=True),
    "html": Answer(raw=b"<html>gateway</html>", headers={"content-type": "text/html"}),
    "not json": Answer(raw=b'{"choices": ['),
    "another json": Answer(raw=b'["no"]'),
    "not utf-8": Answer(raw=b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_repeated(fault):
    answers = iter([fault])
    with serving(lambda _: next(answers, GOOD)) as server:
        assert server.judge(timeout_s=1).rate([("p", "c")]) == [RATED]
    assert len(server.seen) == 2


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_fails_that_row_alone_with_a_reason(fault):
    with serving(lambda seen: fault if seen.row["response"] == "bad" else GOOD) as server:
        bad, good = server.judge(timeout_s=1, max_retries=1).rate([("p", "bad"), ("p", "fine")])
    assert isinstance(bad, RatingFailure) and bad.startswith("request_failed: ") and len(bad) > 25
    assert good == RATED
    assert server.rows().count("bad") == 2


def test_a_row_that_the_server_rejects_fails_at_once_with_its_reason():
    with serving(lambda _: Answer("too many tokens", 400)) as server:
        (verdict,) = server.judge().rate([("p", "c")])
    assert isinstance(verdict, RatingFailure) and "too many tokens" in verdict
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refused_key_or_model_stops_the_run(status):
    with serving(lambda _: Answer("no", status)) as server, pytest.raises(InputError, match="refuses model"):
        server.judge(concurrency=1).rate([("p", str(n)) for n in range(20)])
    assert len(server.seen) == 1


def test_a_run_that_stops_sends_nothing_more_and_waits_for_no_turn():
    started = time.monotonic()
    with serving(lambda _: Answer("no", 401)) as server, pytest.raises(InputError, match="refuses model"):
        server.judge(requests_per_minute=20, concurrency=4).rate([("p", str(n)) for n in range(9)])
    assert len(server.seen) == 1 and time.monotonic() - started < 2.5


def test_a_run_that_stops_waits_for_no_cool_down():
    def answer(seen):
        busy = Answer("busy", 429, {"retry-after": "6"})
        return busy if seen.row["response"] == "first" else Answer("no", 401, delay_s=0.5)

    started = time.monotonic()
    with serving(answer) as server, pytest.raises(InputError, match="refuses model"):
        server.judge(concurrency=2, max_retries=30).rate([("p", "first"), ("p", "second")])
    assert server.rows().count("second") == 1 and time.monotonic() - started < 3


def test_a_spent_quota_stops_the_run():
    fault = Answer("insufficient_quota: pay", 429)
    with serving(lambda _: fault) as server, pytest.raises(InputError, match="and the account"):
        server.judge().rate([("p", "c")])


def test_a_forbidden_row_among_answered_ones_fails_alone():
    def answer(seen):
        return Answer("flagged", 403) if seen.row["response"] == "rude" else GOOD

    with serving(answer) as server:
        verdicts = server.judge(concurrency=1).rate([("p", "fine"), ("p", "rude"), ("p", "good")])
    assert verdicts[0] == verdicts[2] == RATED and "flagged" in verdicts[1]


def test_a_setting_that_the_server_refuses_stops_the_run():
    refusal = Answer("Unsupported parameter: max_tokens", 400)
    with serving(lambda _: refusal) as server, pytest.raises(InputError, match="Unsupported parameter"):
        server.judge().rate([("p", str(n)) for n in range(300)])
    assert 100 <= len(server.seen) < 150  # a field left out, up to 16 requests under way are sent again


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_rows_that_are_refused_time_and_again_do_not_keep_a_run_from_its_end(status, tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "_GIVEN_UP", 8)
    stage = RunDir(tmp_path).stage("rate")
    bad = 5 if status == 403 else 20
    rows = [("p", "fine"), *(("p", f"bad {n}") for n in range(bad)), ("p", "good")]

    def answer(seen):
        return Answer("flagged", status) if seen.row["response"].startswith("bad") else GOOD

    with serving(answer) as server:
        for _ in range(2):  # the second time all but the refused ones are known
            verdicts = make_judge(server.config(concurrency=1), stage).rate(rows)
            assert verdicts[0] == verdicts[-1] == RATED
            assert all("flagged" in verdict for verdict in verdicts[1:-1])


def test_a_key_that_is_revoked_midway_stops_the_run(monkeypatch):
    monkeypatch.setattr(rate_limits, "_GIVEN_UP", 8)
    with serving(lambda seen: GOOD if len(server.seen) == 1 else Answer("revoked", 403)) as server:
        judge = server.judge(concurrency=1)
        with pytest.raises(InputError, match=r"every request fails, the last one with .*revoked"):
            judge.rate([("p", str(n)) for n in range(20)])
        assert len(server.seen) == 9


def test_a_server_that_is_gone_stops_the_run_in_time():
    judge = make_judge(
        RateConfig(backend="openai", base_url="http://127.0.0.1:9/v1", model="m", max_retries=0)
    )
    few = judge.rate([("p", str(n)) for n in range(50)])
    assert all(isinstance(v, RatingFailure) and "APIConnectionError" in v for v in few)
    with pytest.raises(InputError, match="every request fails, the last one with 'APIConnectionError"):
        judge.rate([("q", str(n)) for n in range(200)])


def test_requests_per_minute_are_kept():
    with serving(lambda _: GOOD) as server:
        started = time.monotonic()
        server.judge(requests_per_minute=600).rate([("p", str(n)) for n in range(6)])
    # Five gaps of 0.1 s; a busy machine only makes it later.
    assert max(seen.at for seen in server.seen) - started >= 0.49


def test_tokens_per_minute_are_kept():
    # 120 tokens a reply are 0.12 s of a 60,000-token minute each, whatever was estimated before.
    with serving(lambda _: GOOD) as server:
        server.judge(tokens_per_minute=60_000, concurrency=1).rate([("p", str(n)) for n in range(9)])
    times = sorted(seen.at for seen in server.seen)
    assert 8 * 0.12 * 0.9 <= times[-1] - times[0] <= 8 * 0.12 * 2.5


def test_a_rate_limit_holds_back_all_requests():
    limited = threading.Event()

    def answer(seen):
        if not limited.is_set():
            limited.set()
            return Answer("busy", 429, {"retry-after": "1"})
        return Answer(delay_s=0.05)

    with serving(answer) as server:
        assert server.judge(concurrency=4).rate([("p", str(n)) for n in range(12)]) == [RATED] * 12
    first = min(seen.at for seen in server.seen)
    after = [seen.at - first for seen in server.seen]
    assert sum(at < 0.5 for at in after) <= 8  # what was under way already, and what they made room for
    assert not [at for at in after if 0.5 < at < 0.95]


PATIENCE = {
    "503 in seconds": Answer("busy", 503, {"retry-after": "1.2"}),
    "429 at once": Answer("busy", 429, {"retry-after": "0"}),
    "429 in the past": Answer("busy", 429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
}


@pytest.mark.parametrize("fault", PATIENCE.values(), ids=PATIENCE)
def test_a_server_that_is_busy_for_a_while_loses_no_row(fault):
    busy_until = []

    def answer(seen):
        busy_until.append(seen.at + 1.2)
        return fault if seen.at < busy_until[0] else GOOD

    with serving(answer) as server:
        assert server.judge(max_retries=3).rate([("p", str(n)) for n in range(4)]) == [RATED] * 4


def test_the_pace_is_kept_after_a_rate_limit():
    """A second between requests: the refusal is read before the next is due, on a busy machine too."""
    answers = iter([Answer("busy", 429, {"retry-after": "2"})])
    with serving(lambda _: next(answers, GOOD)) as server:
        judge = server.judge(requests_per_minute=60, concurrency=6)
        assert judge.rate([("p", str(n)) for n in range(3)]) == [RATED] * 3
    times = sorted(seen.at for seen in server.seen)
    assert len(times) == 4
    assert times[1] - times[0] >= 1.9 and times[-1] - times[1] >= 1.9  # two gaps of a second


def test_a_tight_server_is_learned_and_no_row_is_lost():
    allowed = {"next": 0.0}

    def answer(seen):
        if seen.at < allowed["next"]:
            return Answer("busy", 429, {"retry-after": "0.1"})
        allowed["next"] = seen.at + 0.1
        return GOOD

    with serving(answer) as server:
        rows = [("p", str(n)) for n in range(25)]
        assert server.judge(max_retries=30).rate(rows) == [RATED] * 25
    assert len(server.seen) < 150  # without the brake each row would be refused by all those before it: 325


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, expected):
    assert retry_after(headers) == expected


def test_retry_after_as_a_date():
    in_30 = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert retry_after({"retry-after": in_30}) == pytest.approx(30, abs=1.5)
    past = email.utils.formatdate(time.time() - 30, usegmt=True)
    assert retry_after({"retry-after": past}) == 0
