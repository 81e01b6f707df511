"""A judge server that lies in twenty ways: a row is rated by what is certain, or says why it is not."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

from chat_server import GOOD, Answer, Seen, completion, serving

from lm_mixup.chat.judge import Rating, RatingFailure, make_judge
from lm_mixup.core.run_dir import RunDir

RATED = Rating(3, 4, 5, 8)
NO_CHOICES = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []})
READABLE = {
    "plain": Answer(),
    "fence": Answer(f"```json\n{GOOD}\n```"),
    "thinks": Answer(f"<think>overall 2?</think>{GOOD}"),
    "preamble": Answer(f"Here is the rating:\n{GOOD}"),
    "control token": Answer(f"{GOOD}<|im_end|>"),
    "floats": Answer('{"rarity": 3.0, "complexity": 4.0, "informativeness": 5.0, "overall": 8.0}'),
    "texts": Answer('{"rarity": "3", "complexity": "4", "informativeness": "5", "overall": "8"}'),
    "extra field": Answer(GOOD[:-1] + ', "why": "good"}'),
}
UNREADABLE = {
    "prose": Answer("I would say 8 of 10."),
    "out of range": Answer(GOOD.replace("8", "80")),
    "half": Answer(GOOD[:20]),
    "null": Answer(GOOD.replace("8", "null")),
    "list": Answer("[3, 4, 5, 8]"),
    "empty": Answer(""),
    "missing": Answer('{"rarity": 3, "complexity": 4, "informativeness": 5}'),
    "boolean": Answer(GOOD.replace("8", "true")),
    "html": Answer(raw=b"<html><body>busy</body></html>", headers={"content-type": "text/html"}),
    "no choices": Answer(raw=NO_CHOICES.encode()),
    "not json": Answer(raw=completion(Answer())[:-9]),
    "refused": Answer("no such row", status=422),
}
LIES = READABLE | UNREADABLE


def test_each_row_is_rated_or_says_why_not_and_what_was_paid_is_paid_once(tmp_path):
    rows = [("p", f"row {number}") for number in range(200)]
    rng = Random(0)
    lie_of = {completion_: rng.choice(list(LIES)) for _, completion_ in rows}

    def answer(seen: Seen) -> Answer:
        return LIES[lie_of[seen.row["response"]]]

    assert len(LIES) == 20
    with serving(answer) as server:
        config = server.config(concurrency=16)
        stage = RunDir(tmp_path).stage("rate")
        first = make_judge(config, stage).rate(rows)
        paid = Counter(server.rows())
        again = make_judge(config, stage).rate(rows)
        asked_again = {row for row, count in Counter(server.rows()).items() if count > paid[row]}
    for (_, text), result in zip(rows, first, strict=True):
        lie = lie_of[text]
        if lie in READABLE:
            assert result == RATED, lie
            assert paid[text] == 1, lie
            assert text not in asked_again, lie
        else:
            assert isinstance(result, RatingFailure), lie
            assert 1 <= paid[text] <= 3, lie  # asked again once, or as often as max_retries allows
    assert [isinstance(result, Rating) for result in again] == [isinstance(r, Rating) for r in first]
