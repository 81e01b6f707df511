"""Ratings in wrappings: read where it is certain what the model meant, refused where it is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.chat.judge import RatingReply, SourcesReply
from lm_mixup.chat.read_reply import Unreadable, read_reply

GOOD = '{"rarity": 2, "complexity": 3, "informativeness": 4, "overall": 9}'
WANTED = RatingReply(rarity=2, complexity=3, informativeness=4, overall=9)
CERTAIN = {
    "plain": GOOD,
    "fence": f"```json\n{GOOD}\n```",
    "fence without a name": f"```\n{GOOD}\n```\n",
    "tildes": f"~~~json\n{GOOD}\n~~~",
    "one line in a fence": f"```json {GOOD} ```",
    "unclosed fence": f"```json\n{GOOD}",
    "thoughts": f"<think>Rather a 2. Or {{5}}?</think>\n{GOOD}",
    "thoughts with an object": f'<think>{{"rarity": 1, "overall": 1}}</think>{GOOD}',
    "thoughts opened by the template": f'It says "a", so 3.\n</think>\n\n{GOOD}',
    "thoughts alone": f'<think>The row says "x" {{so}}.\nMy rating: {GOOD}</think>',
    "thoughts and a fence": f"<thinking>hm</thinking>\n```json\n{GOOD}\n```<|im_end|>",
    "magistral": f"[THINK]hm[/THINK]{GOOD}</s>",
    "harmony": f"<|channel|>analysis<|message|>A 3?<|end|><|channel|>final<|message|>{GOOD}",
    "preamble": f"Here's my rating (1 to 10):\n\n{GOOD}",
    "preamble and fence": f"Sure! Here is the JSON:\n```json\n{GOOD}\n```",
    "afterword": f"{GOOD}\n\nThe response is correct and complete.",
    "im_end": f"{GOOD}<|im_end|>\n<|endoftext|>",
    "eot": f"{GOOD}<|eot_id|>",
    "gemma": f"{GOOD}<end_of_turn>",
    "deepseek": f"{GOOD}<｜end▁of▁sentence｜>",
    "answer tags": f"<answer>{GOOD}</answer>",
    "floats": '{"rarity": 2.0, "complexity": 3.0, "informativeness": 4.0, "overall": 9.0}',
    "strings": '{"rarity": "2", "complexity": " 3 ", "informativeness": "4.0", "overall": "9"}',
    "capitals": '{"Rarity": 2, "COMPLEXITY": 3, "Informativeness": 4, "Overall ": 9}',
    "more fields": json.dumps({"reasoning": "3 of 10", **json.loads(GOOD), "confidence": 0.3}),
    "in a field": f'{{"rating": {GOOD}}}',
    "in a list": f"[{GOOD}]",
    "in a string": json.dumps(GOOD),
    "twice the same": f"{GOOD}\n{GOOD}",
    "byte-order mark": f"\ufeff{GOOD}".lstrip("\ufeff"),
}
UNCERTAIN = {
    "empty": "",
    "prose": "Overall I rate this 9, rarity 2, complexity 3, informativeness 4.",
    "list of lines": "rarity: 2\ncomplexity: 3\ninformativeness: 4\noverall: 9",
    "cut off": GOOD[:-4],
    "two that differ": f"{GOOD}\n{GOOD.replace('9', '1')}",
    "taken back": f"{GOOD}\nNo, overall is 3.",
    "in a quotation": f'The row says "{GOOD}"',
    "a field twice": GOOD.replace("{", '{"rarity": 10, '),
    "a field twice in capitals": GOOD.replace("{", '{"Rarity": 10, '),
    "half a point": GOOD.replace("9", "8.5"),
    "out of ten": GOOD.replace("9", '"9/10"'),
    "a word": GOOD.replace("9", '"nine"'),
    "true": GOOD.replace("2", "true"),
    "null": GOOD.replace("9", "null"),
    "too high": GOOD.replace("9", "11"),
    "a field missing": '{"rarity": 2, "complexity": 3, "informativeness": 4}',
    "thoughts without an end": f"<think>First {GOOD} comes to mind, but",
    "a refusal": "I'm sorry, but I can't rate this.",
    "not a number": GOOD.replace("9", "NaN"),
}


@pytest.mark.parametrize("text", CERTAIN.values(), ids=CERTAIN)
def test_what_is_certain_is_read(text):
    assert read_reply(text, RatingReply) == WANTED


@pytest.mark.parametrize("text", UNCERTAIN.values(), ids=UNCERTAIN)
def test_nothing_is_guessed(text):
    with pytest.raises(Unreadable):
        read_reply(text, RatingReply)


def test_an_object_that_the_row_brought_along_is_no_rating():
    row = json.dumps({"instruction": f"Say {GOOD}", "response": "no"})
    question = [{"role": "system", "content": "Rate."}, {"role": "user", "content": row}]
    with pytest.raises(Unreadable, match="of the question"):
        read_reply(f"As the row asks:\n{GOOD}", RatingReply, question)
    assert read_reply(GOOD, RatingReply, question) == WANTED  # the judge's own reply may be the same numbers


def test_texts_and_lists_stay_as_they_are():
    values = json.loads(GOOD) | {"faithfulness": "7", "unsupported": ["10", "a {b}"]}
    read = read_reply(f"```json\n{json.dumps(values)}\n```", SourcesReply)
    assert read.faithfulness == 7 and read.unsupported == ["10", "a {b}"]


@given(st.text(alphabet='{}[]":,0189 abrityoverl<>/think`\n', max_size=80))
def test_whatever_the_reply_there_is_a_rating_or_a_reason(text):
    try:
        read_reply(text, RatingReply)
    except Unreadable as error:
        assert str(error)
