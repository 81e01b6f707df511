"""What was paid for is not paid for again: after `kill -9`, in another stage, by judges at work together."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_server import COMPLETION_TOKENS, GOOD, PROMPT_TOKENS, Answer, serving

from lm_mixup.chat.client import usage
from lm_mixup.chat.judge import REPLIES, Rating, RatingFailure, make_judge
from lm_mixup.chat.rate_limits import Limits
from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir

RATED = Rating(3, 4, 5, 8)
ROWS = [("p", f"row {number}") for number in range(60)]
PROGRAM = """
import json, sys
from lm_mixup.chat.judge import make_judge
from lm_mixup.config import RateConfig
from lm_mixup.core.run_dir import RunDir
config, run, rows = json.loads(sys.argv[1])
judge = make_judge(RateConfig.model_validate(config), RunDir(run).stage("rate"))
judge.rate([tuple(row) for row in rows])
"""


def used(run, config, stage="rate"):
    return usage(ReplyLog(run, REPLIES), config, stage)


def test_a_judge_killed_at_half_asks_only_for_the_rest(tmp_path):
    half = threading.Event()

    def answer(_):
        if len(server.seen) > len(ROWS) // 2:
            half.set()
            return Answer(delay_s=60)
        return GOOD

    with serving(answer) as server:
        config = server.config(concurrency=4)
        arguments = json.dumps([config.model_dump(mode="json"), str(tmp_path), ROWS])
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, arguments])
        assert half.wait(120)
        time.sleep(0.5)  # the replies before are on their way into the file
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        answered = {seen.row["response"] for seen in server.seen[: len(ROWS) // 2]}
        server.seen.clear()
        server.answer = lambda _: GOOD
        (path,) = tmp_path.glob(f"{REPLIES}/*.jsonl")
        with path.open("ab") as file:
            file.write(b'{"stage":"rate","key":"0123')  # as if the kill had cut a write
        judge = make_judge(config, RunDir(tmp_path).stage("rate"))
        assert judge.rate(ROWS) == [RATED] * len(ROWS)
        asked = Counter(server.rows())
    assert set(asked) == {completion for _, completion in ROWS} - answered
    assert set(asked.values()) == {1}
    figures = used(RunDir(tmp_path), config)
    assert figures["prompt_tokens"] == PROMPT_TOKENS * len(ROWS)
    assert figures["completion_tokens"] == COMPLETION_TOKENS * len(ROWS)
    assert figures["cache_hits"] == len(answered)


def test_a_row_that_comes_back_in_another_stage_is_free(tmp_path):
    run = RunDir(tmp_path)
    price = {"price_per_million": {"input": 10, "output": 100}}
    with serving(lambda _: GOOD) as server:
        config = server.config(**price)
        make_judge(config, run.stage("generate")).rate(ROWS[:10])
        assert make_judge(config, run.stage("rate")).rate(ROWS[:12]) == [RATED] * 12
        assert len(server.seen) == 12
        other = config.model_copy(update={"model": "another"})
        make_judge(other, run.stage("rate_distilled")).rate(ROWS[:3])
        assert len(server.seen) == 15  # what another model says has to be asked
    assert used(run, config, "generate")["requests"] == 10
    figures = used(run, config)
    assert figures["requests"] == 2 and figures["cache_hits"] == 10
    assert figures["cost"] == pytest.approx(2 * (PROMPT_TOKENS * 10 + COMPLETION_TOKENS * 100) / 1e6)


def test_replies_cost_what_they_cost_on_their_day(tmp_path):
    stage = RunDir(tmp_path).stage("rate")
    with serving(lambda _: GOOD) as server:
        first = server.config(model="no prices yet")
        make_judge(first, stage).rate(ROWS[:10])
        assert "cost" not in used(stage.run, first)
        dear = server.config(model="dear", price_per_million={"input": 1000, "output": 2000})
        make_judge(dear, stage).rate(ROWS[:10])  # at 0.14
        assert used(stage.run, dear)["cost"] == pytest.approx(2 * 1.4)  # the others at today's prices
        cheap = server.config(model="cheap", price_per_million={"input": 1, "output": 2}, max_cost=1.402)
        with pytest.raises(InputError, match=r"max_cost 1\.402 is reached \(1\.4014 spent"):
            make_judge(cheap, stage).rate(ROWS[:10])  # 1.4 and for the first 0.0014; each of these 0.00014
        more = cheap.model_copy(update={"max_cost": 2.0})
        assert make_judge(more, stage).rate(ROWS[:10]) == [RATED] * 10
    assert used(stage.run, more)["cost"] == pytest.approx(1.4 + 2 * 0.0014)
    ReplyLog(stage.run, REPLIES, "rate").add("0" * 32, "free", 10**6, 10**6, cost=0.0)
    assert used(stage.run, more)["cost"] == pytest.approx(1.4 + 2 * 0.0014)


def test_judges_at_work_together_ask_once(tmp_path):
    run = RunDir(tmp_path)
    with serving(lambda _: Answer(delay_s=0.02)) as server:
        config = server.config(concurrency=8)
        shared = Limits(config)
        judges = [make_judge(config, run.stage("rate"), shared) for _ in range(3)]
        orders = [ROWS[:20], ROWS[19::-1], ROWS[5:20] + ROWS[:5]]
        with ThreadPoolExecutor(3) as pool:
            verdicts = list(pool.map(lambda judge, rows: judge.rate(rows), judges, orders))
        assert verdicts == [[RATED] * 20] * 3
        assert len(server.seen) == 20


def test_replies_that_are_not_valid_are_not_paid_for_again(tmp_path):
    with serving(lambda _: "8/10") as server:
        stage = RunDir(tmp_path).stage("rate")
        (first,) = make_judge(server.config(), stage).rate(ROWS[:1])
        (again,) = make_judge(server.config(), stage).rate(ROWS[:1])
        assert first == again and isinstance(first, RatingFailure)
        assert len(server.seen) == 2


def test_failures_in_passing_are_asked_again_by_the_next_run(tmp_path):
    stage = RunDir(tmp_path).stage("rate")
    with serving(lambda _: Answer("broken", 500)) as server:
        config = server.config(max_retries=1)
        (failed,) = make_judge(config, stage).rate(ROWS[:1])
        assert failed.startswith("request_failed")
        server.answer = lambda _: GOOD
        assert make_judge(config, stage).rate(ROWS[:1]) == [RATED]
    figures = used(stage.run, config)
    assert (figures["requests"], figures["retries"], figures["prompt_tokens"]) == (3, 1, PROMPT_TOKENS)


def test_the_budget_stops_in_one_line_and_a_higher_one_goes_on(tmp_path):
    stage = RunDir(tmp_path).stage("rate")
    each = (PROMPT_TOKENS + 2 * COMPLETION_TOKENS) / 1000  # 0.14 a row
    with serving(lambda _: Answer(delay_s=0.01)) as server:
        price = {"input": 1000, "output": 2000}
        config = server.config(price_per_million=price, max_cost=3.0, max_tokens=20, concurrency=4)
        with pytest.raises(InputError, match=r"rate\.max_cost 3 is reached .*--max-cost") as stopped:
            make_judge(config, stage).rate(ROWS)
        assert "\n" not in str(stopped.value)
        paid = len(server.seen)
        assert 3.0 - 3 * each < paid * each <= 3.0 + each
        assert used(stage.run, config)["cost"] == pytest.approx(paid * each)
        with pytest.raises(InputError, match="max_cost"):  # what was spent before counts
            make_judge(config, stage).rate(ROWS)
        assert len(server.seen) == paid
        higher = config.model_copy(update={"max_cost": 100.0})
        assert make_judge(higher, stage).rate(ROWS) == [RATED] * len(ROWS)
        assert Counter(server.rows()) == Counter(completion for _, completion in ROWS)
