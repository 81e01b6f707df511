"""Servers that wrap a rating, do not know a field of the request, or answer something else altogether."""

import json

import pyarrow as pa
import pytest
from chat_server import GOOD, Answer, serving

from lm_mixup.augment.rate import check_rated, rate_table
from lm_mixup.chat import rate_limits
from lm_mixup.chat.judge import Rating, RatingFailure, make_judge
from lm_mixup.chat.reply_body import NotACompletion, read_body
from lm_mixup.config import RateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, RunDir, summarise
from lm_mixup.distributed.map_parts import receipt_of
from lm_mixup.report.terminal import losses

RATED = Rating(3, 4, 5, 8)


def body(message, **more):
    return json.dumps({"choices": [{"message": message}], **more})


def stream(*deltas, end="data: [DONE]\n\n"):
    return "".join(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas) + end


BODIES = {
    "thoughts beside": body({"content": GOOD, "reasoning_content": "A 1."}),
    "in the thoughts alone": body({"content": None, "reasoning_content": f"It is fine. {GOOD}"}),
    "in OpenRouter's thoughts": body({"content": "", "reasoning": f"Fine.\n{GOOD}"}),
    "parts": body({"content": [{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]}),
    "event stream": stream({"role": "assistant"}, {"content": GOOD[:20]}, {"content": GOOD[20:]}),
    "event stream with remarks": ": keep-alive\n\nevent: message\n" + stream({"content": GOOD}),
}


@pytest.mark.parametrize("raw", BODIES.values(), ids=BODIES)
def test_a_rating_in_an_odd_body_is_read(raw):
    with serving(lambda _: Answer(raw=raw.encode())) as server:
        assert server.judge().rate([("p", "c")]) == [RATED]
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "raw",
    [
        "<html><body>Gateway login</body></html>",
        '{"error": {"message": "Provider returned error", "code": 502}}',
        '{"choices": [',
        "[]",
        "null",
        body({"content": 8}),
        stream({"content": GOOD}, end=""),
        "data: {\n\n",
        'data: {"error": {"message": "overloaded"}}\n\n',
    ],
)
def test_another_body_is_told_in_one_line(raw):
    with pytest.raises(NotACompletion) as told:
        read_body(raw)
    assert "\n" not in str(told.value) and len(str(told.value)) < 250


def unknown(field, *others):
    """A server that refuses a field by name, and others under the same message."""

    def answer(seen):
        if any(name in seen.body for name in (field, *others)):
            return Answer(f"Unsupported parameter: '{field}' is not supported with this model.", 400)
        return GOOD

    return answer


def only_json_object(seen):
    if seen.body.get("response_format", {}).get("type") == "json_schema":
        return Answer("Invalid value: 'json_schema'. Supported values are: 'text' and 'json_object'.", 422)
    return GOOD


def pydantic_server(seen):
    extra = set(seen.body) - {"model", "messages", "max_tokens"}
    return Answer(f"body.{min(extra)}: Extra inputs are not permitted", 422) if extra else GOOD


def openai_reasoning(seen):
    if "max_tokens" in seen.body:
        return Answer("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 400)
    if seen.body.get("temperature", 1) != 1:
        return Answer("Unsupported value: 'temperature' does not support 0.0; only the default (1).", 400)
    return GOOD


LESS = {
    "response_format": unknown("response_format"),
    "json_schema": only_json_object,
    "max_tokens": unknown("max_tokens"),
    "temperature": unknown("temperature"),
    "one named and two meant": unknown("max_tokens", "temperature"),
    "nothing beyond the least": pydantic_server,
    "a reasoning model": openai_reasoning,
}


@pytest.mark.parametrize("answer", LESS.values(), ids=LESS)
def test_what_the_server_does_not_know_is_left_out(answer):
    with serving(answer) as server:
        assert server.judge(concurrency=4).rate([("p", str(n)) for n in range(20)]) == [RATED] * 20
    assert len(server.seen) <= 20 + 4 * 4  # at most what was under way when it was told


def test_a_setting_of_the_user_is_not_changed():
    with serving(unknown("temperature")) as server:
        (verdict,) = server.judge(request={"temperature": 0.5}).rate([("p", "c")])
    assert "temperature" in verdict and isinstance(verdict, RatingFailure) and len(server.seen) == 1


def test_a_row_that_is_too_long_changes_nothing():
    refusal = "This model's maximum context length is 4096 tokens; reduce the prompt or max_tokens (256)."
    with serving(lambda seen: Answer(refusal, 400) if seen.row["response"] == "x" else GOOD) as server:
        long, good = server.judge(concurrency=1).rate([("p", "x"), ("p", "y")])
    assert "4096" in long and good == RATED
    assert server.seen[1].body["max_tokens"] == 256 and "response_format" in server.seen[1].body


def test_a_model_that_never_rates_is_stopped_after_a_hundred_replies():
    with (
        serving(lambda _: "I cannot rate, but [8] is nice.") as server,
        pytest.raises(InputError, match=r"last 100 replies .*\[8\] is nice") as told,
    ):
        server.judge(concurrency=8).rate([("p", str(n)) for n in range(400)])
    assert "\n" not in str(told.value)
    assert 100 <= len(server.seen) <= 108


def test_replies_that_fail_now_and_then_stop_nothing(monkeypatch):
    monkeypatch.setattr(rate_limits, "MOST_INVALID", 5)
    with serving(lambda seen: GOOD if int(seen.row["response"]) % 4 == 0 else "no") as server:
        verdicts = server.judge(concurrency=1).rate([("p", str(n)) for n in range(20)])
    assert [isinstance(v, Rating) for v in verdicts] == [n % 4 == 0 for n in range(20)]


def test_a_dead_proxy_is_named(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://user:pass-word-123@127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://user:pass-word-123@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "")
    config = RateConfig(backend="openai", base_url="http://judge.example/v1", model="m", max_retries=0)
    (verdict,) = make_judge(config).rate([("p", "c")])
    assert "proxy" in verdict and "127.0.0.1:9" in verdict and "pass-word-123" not in verdict


def test_a_stage_of_which_no_row_is_rated_fails_and_can_be_run_again(tmp_path):
    stage = RunDir(tmp_path).stage("rate")
    rows = pa.table({"prompt": ["a", "b"], "completion": ["x", "y"]})
    with serving(lambda _: Answer(raw=b"<html>login</html>")) as server:
        result = rate_table(rows, server.judge(max_retries=0))
    stage.write_part(0, result.rows, None, receipt_of(0, result))
    with pytest.raises(InputError, match=r"rate: not one of 2 rows could be rated; of 2 .*a web page"):
        check_rated(stage)
    assert not stage.receipts()


def test_the_terminal_says_how_many_rows_are_not_rated(tmp_path):
    stage = RunDir(tmp_path).stage("rate")
    rows = pa.table({"prompt": ["a", "b", "c"], "completion": ["x", "y", " "]})
    with serving(lambda seen: GOOD if seen.row["response"] == "x" else "no") as server:
        result = rate_table(rows, server.judge())
    stage.write_part(0, result.rows, None, receipt_of(0, result))
    check_rated(stage)
    manifest = summarise(stage, "f", {}, 1.0, Outcome())
    assert manifest.metrics["unrated"] == 2
    (line,) = losses({"rate": manifest})
    assert line.startswith("rate: 2 of 3 rows not rated (")
    assert "empty_completion 1" in line and "invalid_reply 1" in line
