"""Whether an answer is its prompt's own: the measure, and what the offline judge makes of useless answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.chat.judge import OfflineJudge, RatingFailure, make_judge
from lm_mixup.chat.offline_judge import features
from lm_mixup.chat.relevance import Relevance, irrelevance, without_copied
from lm_mixup.config import RateConfig

ROWS = [
    (
        "Why is the sky blue?",
        "The air scatters sunlight, and short waves more than long ones. So blue light reaches us from every"
        " part of the sky.",
    ),
    (
        "Give three tips for staying healthy.",
        "1. Eat fruit and vegetables every day.\n2. Exercise for half an hour, for example by walking.\n"
        "3. Sleep seven to eight hours a night.",
    ),
    (
        "How do bees make honey?",
        "Bees collect nectar from flowers and carry it to the hive. There they pass it on from mouth to mouth"
        " until most of the water is gone, and seal it in wax cells.",
    ),
    (
        "What caused the First World War?",
        "The assassination of Archduke Franz Ferdinand in June 1914 set it off. Behind it stood alliances, an"
        " arms race and rivalry between empires.",
    ),
    (
        "Explain how a refrigerator works.",
        "A compressor presses a refrigerant until it is hot and liquid. It gives off that heat outside,"
        " evaporates inside and so draws heat out of the food.",
    ),
    (
        "Describe the process of photosynthesis.",
        "Plants take up carbon dioxide and water and turn them, with the energy of sunlight, into sugar and"
        " oxygen. This happens in the chloroplasts of their leaves.",
    ),
    (
        "What is the difference between a virus and a bacterium?",
        "A bacterium is a living cell that feeds and divides by itself. A virus is far smaller and can"
        " multiply only inside the cells of a host, therefore antibiotics do not help against it.",
    ),
    (
        "How can I save money on groceries?",
        "Plan the meals of a week, write a shopping list and keep to it. Buy what is in season, compare the"
        " prices, and freeze what you cannot eat in time.",
    ),
]
CONSTANTS = [
    "It depends on many factors. It is important to consider all of them carefully, because each case is"
    " different and there is no single right answer.",
    "The capital of Kenya is Nairobi. Kenya has about 53 million people and pays in the Kenyan shilling.",
    "Yes.",
]
REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I cannot answer this question.",
]


@pytest.fixture(scope="module")
def judge():
    return OfflineJudge(Relevance())


def expected(judge, rows):
    return [rating.expected for rating in judge.rate(rows)]


def others(rows, step):
    return [(row[0], rows[(place + step) % len(rows)][1]) for place, row in enumerate(rows)]


HACKS = {
    "another prompt's answer": [others(ROWS, step) for step in range(1, len(ROWS))],
    "the prompt over again": [[(prompt, prompt) for prompt, _ in ROWS]],
    "the prompt, then another's answer": [
        [(prompt, f"{prompt} {answer}") for prompt, answer in others(ROWS, step)] for step in (1, 3)
    ],
    "a constant": [[(prompt, text) for prompt, _ in ROWS] for text in CONSTANTS],
    "a refusal": [[(prompt, text) for prompt, _ in ROWS] for text in REFUSALS],
    "a loop": [[(prompt, " ".join([answer] * times)) for prompt, answer in ROWS] for times in (2, 3, 6)],
    "a loop of words": [[(prompt, "blue " * 60) for prompt, _ in ROWS]],
    "half of it": [[(prompt, answer[: len(answer) // 2]) for prompt, answer in ROWS]],
}


# Neighbouring subjects (bees and leaves, groceries and health) come as near as a cosine of 0.28 and may pass.
MAY_PASS = {"another prompt's answer": 0.1, "the prompt, then another's answer": 0.1}


@pytest.mark.parametrize("name", HACKS)
def test_the_right_answer_is_ahead_of(name, judge):
    right, rated, beaten = expected(judge, ROWS), 0, []
    for rows in HACKS[name]:
        rated += len(rows)
        ratings = expected(judge, rows)
        beaten += [row for row, own, other in zip(rows, right, ratings, strict=True) if own <= other]
    assert len(beaten) <= MAY_PASS.get(name, 0.0) * rated, beaten


def test_without_relevance_another_prompts_answer_passes():
    # What the measure is for: on the surface the two are equally good.
    surface = OfflineJudge()
    right = expected(surface, ROWS)
    wins = [
        own > other
        for s in range(1, 8)
        for own, other in zip(right, expected(surface, others(ROWS, s)), strict=True)
    ]
    assert 0.3 < sum(wins) / len(wins) < 0.7


def test_an_empty_answer_is_a_failure_and_not_the_worst_rating(judge):
    assert judge.rate([("What?", " \n")]) == [RatingFailure("empty_completion")]
    assert judge.rate([]) == []


def test_a_rating_does_not_depend_on_the_rows_beside_it(judge):
    together = judge.rate([*ROWS, ("What?", ""), *ROWS])
    assert together[: len(ROWS)] == together[-len(ROWS) :] == [judge.rate([row])[0] for row in ROWS]


@given(st.floats(-1, 1), st.floats(0, 0.5), st.integers(0, 50), st.integers(0, 500), st.integers(0, 300))
def test_irrelevance_falls_with_cosine_and_shared_words_and_rises_with_what_is_said(
    cosine, more, shared, length, asked
):
    base = irrelevance(cosine, shared, length, asked)
    assert 0 < base < 1
    assert irrelevance(min(1.0, cosine + more), shared, length, asked) <= base
    assert irrelevance(cosine, shared + 1, length, asked) <= base
    assert irrelevance(cosine, shared, length + 10, asked) >= base
    assert irrelevance(cosine, shared, length, asked + 10) >= base


def test_what_is_copied_from_the_prompt_is_not_compared():
    prompt = "List the three largest rivers of Europe. Say where each ends."
    answer = "The Volga, the Danube and the Ural."
    assert without_copied(prompt, f"{prompt} {answer}") == answer
    assert without_copied(prompt, f"{answer}\nSay where each ends.") == answer
    for whole in (answer, f" {answer}\n\nThey are long. ", prompt, "", "Rivers of Europe."):
        assert without_copied(prompt, whole) == whole  # nothing copied, or nothing else left
    assert without_copied("Why?", "Why? Because.") == "Why? Because."


def test_a_loop_and_a_mirrored_prompt_by_hand():
    def of(text, prompt="What is a prime number, tell me."):
        return features(prompt, text)

    assert of("one two one two")["looped"] == pytest.approx(0.5)
    assert of("one two three one two three one")["looped"] == pytest.approx(1 - 3 / 7)
    assert of("one two three four")["looped"] == of("one two one")["looped"] == of("")["looped"] == 0
    assert of("What is a prime number, tell me!")["mirrored"] == pytest.approx(1)
    assert of("A prime number has two divisors.")["mirrored"] == 0
    assert of("Why?", "Why?")["mirrored"] == 1


CLOSED = "Which metal has the symbol W?\nA) Tungsten\nB) Rhenium\nC) Osmium\nD) Tantalum"


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (CLOSED, "A) Tungsten"),
        (CLOSED, "Osmium."),
        ("True or false? Tin is a gas.", "False"),
    ],
)
def test_a_verdict_is_relevant_whatever_its_cosine(prompt, answer):
    assert features(prompt, answer, -0.5)["irrelevant"] == 0


@pytest.mark.parametrize("prompt", [CLOSED, "True or false? Tin is a gas."])
def test_what_is_no_verdict_is_judged_as_any_answer(prompt):
    values = features(prompt, "A glacier moves slowly downhill and carries stones with it.", 0.0)
    assert values["irrelevant"] > 0.8
    assert (
        values["length"]
        < features(prompt, "True" if "True" in prompt else "A) Tungsten", 0.0)["length"] + 0.5
    )


def test_scripts_without_spaces_and_accents_are_read(judge):
    rows = [
        ("水的沸点是多少?", "在标准大气压下,水的沸点是一百摄氏度。"),
        ("¿Cuál es la capital de España?", "La capital de España es Madrid, en el centro de la península."),
        (
            "Wie entsteht Regen?",
            "Wasser verdunstet, steigt auf, kühlt ab und fällt als Regen zurück zur Erde.",
        ),
    ]
    for row in rows:
        cosine = Relevance.cosines(judge._relevance, [row])[0]
        assert features(*row, cosine)["irrelevant"] < 0.3
    right = expected(judge, rows)
    for step in (1, 2):
        assert all(own > other for own, other in zip(right, expected(judge, others(rows, step)), strict=True))


def test_who_rated_says_whether_relevance_was_looked_at():
    assert make_judge(RateConfig(relevance=False)).name == "offline-3-surface"
    assert OfflineJudge().rate(ROWS[:1]) == make_judge(RateConfig(relevance=False)).rate(ROWS[:1])
    assert RateConfig(relevance=False).unused() == []
    assert RateConfig(backend="openai", model="m", relevance=False).unused() == ["relevance"]


def test_tells_right_answers_from_other_rows_on_rows_it_was_not_fitted_to(shared_data, judge):
    path = shared_data / "alpaca_rated_20k.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[::40]]
    pairs = [(row["prompt"], row["completion"]) for row in rows]
    right = expected(judge, pairs)
    for step in (7, 131):
        wins = [own > other for own, other in zip(right, expected(judge, others(pairs, step)), strict=True)]
        assert sum(wins) / len(wins) >= 0.95
