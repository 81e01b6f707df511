"""The offline judge: its order and range; and the columns of verdicts."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.chat.judge import OfflineJudge, Rating, RatingFailure, rating_columns
from lm_mixup.chat.offline_judge import CUTS, FEATURES, FULL, QUALITIES, features, unrounded
from lm_mixup.core.schemas import RATING, compress_score


def score(prompt, completion):
    return compress_score(OfflineJudge().rate([(prompt, completion)])[0].overall)


DENSE = [
    (
        "What is the atomic number of tungsten, and what are its symbol, mass and melting point?",
        "Tungsten has atomic number 74 and the symbol W. Its atomic mass is 183.84 u, and it melts at 3695 K,"
        " the highest of all metals.",
    ),
    (
        "What is the capital of Kenya, its population and its currency?",
        "The capital of Kenya is Nairobi. Kenya has about 53 million people and pays in the Kenyan shilling.",
    ),
    (
        "Write a statement about chemical elements.",
        "Tungsten (W) is the element with atomic number 74, an atomic mass of 183.84 u and a melting point"
        " of 3695 K.",
    ),
    (
        "True or false? Tungsten, symbol W, has atomic number 74, a mass of 183.84 u and melts at 3695 K.",
        "True",
    ),
    (
        "Which metal has the atomic number 74, the symbol W and a melting point of 3695 K?\n"
        "A) Tungsten\nB) Rhenium\nC) Osmium\nD) Tantalum",
        "A) Tungsten",
    ),
]
THIN = [
    ("What is tungsten?", "It is a metal."),
    ("What is the symbol of tungsten?", "W"),
    ("What is the atomic number of tungsten?", "Tungsten has atomic number 74."),
    ("Kenya?", "Kenya is a country in Africa. It has a capital."),
    ("Describe tungsten.", "It is a very good thing that is used in many things, and it has a symbol."),
    ("True or false? Tungsten is a metal.", "True"),
    ("Write an essay about rivers.", "I'm sorry, but as an AI language model I cannot do that."),
    ("Say it again.", "word word word word word word word word word word word word word word word word"),
]


@pytest.mark.parametrize("row", DENSE)
def test_dense_rows_are_high(row):
    assert score(*row) >= 4


@pytest.mark.parametrize("row", THIN)
def test_thin_rows_are_low(row):
    assert score(*row) < 4


def test_an_answer_without_a_text_is_a_failure_and_not_the_worst_rating():
    assert OfflineJudge().rate([("What?", " \n")]) == [RatingFailure("empty_completion")]


def test_cutting_facts_away_never_helps():
    sentences = ["Tungsten has atomic number 74 and the symbol W.", "Its atomic mass is 183.84 u.",
                 "It melts at 3695 K, the highest of all metals."]  # fmt: skip
    scores = [score("Describe tungsten.", " ".join(sentences[:count])) for count in (1, 2, 3)]
    assert scores == sorted(scores) and scores[0] < 4 <= scores[-1]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.text(min_size=1, max_size=200))
def test_any_text_has_features_in_range_and_one_verdict(prompt, completion):
    values = features(prompt, completion)
    assert tuple(values) == FEATURES and all(0 <= value <= 1 for value in values.values())
    first, second = OfflineJudge().rate([(prompt, completion)] * 2)
    assert first == second
    assert isinstance(first, Rating) == bool(completion.strip())


def test_weights_name_features_and_cuts_rise():
    assert set(QUALITIES) == set(CUTS) == {"rarity", "complexity", "informativeness", "overall"}
    assert set(FULL) < set(QUALITIES)
    for quality, weights in QUALITIES.items():
        assert set(weights) <= set(FEATURES) - {"dense"}
        assert len(CUTS[quality]) == 9 and all(low < high for low, high in pairwise(CUTS[quality]))


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(st.lists(st.floats(-1, 3), min_size=2, max_size=20, unique=True))
def test_the_rating_before_rounding_rises_and_rounds_to_the_rating(values):
    cuts = CUTS["overall"]
    numbers = [unrounded(value, cuts) for value in sorted(values)]
    assert numbers == sorted(numbers) and all(1 < number < 10 for number in numbers)
    for value, number in zip(sorted(values), numbers, strict=True):
        assert abs(number - (1 + sum(value >= cut for cut in cuts))) <= 0.5


def test_the_rating_before_rounding_by_hand():
    cuts = [float(cut) for cut in range(9)]
    asked = [0.0, 0.25, 1.0, 7.5, 8.0]
    assert [unrounded(value, cuts) for value in asked] == pytest.approx([1.5, 1.75, 2.5, 9.0, 9.5])
    assert unrounded(-1.0, cuts) == pytest.approx(1 + 0.5 / 2.718281828)
    assert unrounded(9.0, cuts) == pytest.approx(10 - 0.5 / 2.718281828)


def test_of_equal_ratings_the_row_that_tells_more_is_ahead():
    text = "Rivers carry sediment from mountains down to the plains and build deltas at their mouths."
    more = f"{text} Floods renew the fertile soil."
    short, long = OfflineJudge().rate([("What do rivers do?", one) for one in (text, more)])
    assert short.expected < long.expected


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("Paris lies on the Seine, about 100 miles from the coast.", "paris lies on the seine!!"),
        ("The heart pumps blood through the vessels.", "The heart pumps blood through the"),
        ("Trees store carbon while they grow tall.", "Trees trees trees trees trees trees trees trees."),
        ("A prime has two divisors, itself and one.", "What is a prime number, tell me what it is."),
    ],
)
def test_what_speaks_against_a_row_lowers_it(better, worse):
    prompt = "What is a prime number, tell me what it is."
    high, low = OfflineJudge().rate([(prompt, better), (prompt, worse)])
    assert high.expected > low.expected


def correlation(numbers, rows):
    from scipy.stats import spearmanr

    means = [sum(row["scores"].values()) / len(row["scores"]) for row in rows]
    return spearmanr(numbers, means)[0]


def test_agrees_with_real_judges_on_rows_it_was_not_fitted_to(shared_data):
    rows = read(shared_data / "alpaca_rated_20k.jsonl")[::5]
    ratings = OfflineJudge().rate([(row["prompt"], row["completion"]) for row in rows])
    assert correlation([rating.expected for rating in ratings], rows) >= 0.60  # measured: 0.607
    assert correlation([rating.overall for rating in ratings], rows) >= 0.59  # measured: 0.602
    assert {rating.overall for rating in ratings} == set(range(1, 11))


def test_prefers_the_better_of_two_answers(shared_data):
    pairs = read(shared_data / "pairs_600.jsonl")
    high, low = (OfflineJudge().rate([(p["prompt"], p[side]) for p in pairs]) for side in ("high", "low"))
    both = list(zip(high, low, strict=True))
    assert sum(a.expected > b.expected for a, b in both) / len(both) >= 0.81  # measured: 0.823
    decided = [a.overall > b.overall for a, b in both if a.overall != b.overall]
    assert sum(decided) / len(decided) >= 0.85 and len(decided) >= 450  # measured: 0.873 of 464


def test_thousands_of_rows_a_second(shared_data):
    pool = read(shared_data / "alpaca_rated_20k.jsonl")[:5000]
    rows = [(row["prompt"], row["completion"]) for row in pool]
    start = time.process_time()
    OfflineJudge().rate(rows)
    assert 5000 / (time.process_time() - start) > 500  # 4,000 to 6,000 on an idle core; tests share theirs


def test_columns_of_a_failure_are_null_with_a_reason():
    columns = rating_columns("me", [Rating(1, 2, 3, 9), RatingFailure("request_failed: no")])
    assert list(columns) == RATING.names
    assert (
        columns["score"] == [5, None] and columns["overall"] == [9, None] and columns["rarity"] == [1, None]
    )
    assert columns["expected"] == [9.0, None]  # of a judge that gives whole numbers
    assert columns["error"] == [None, "request_failed: no"] and columns["rater"] == ["me", "me"]


@pytest.mark.parametrize("overall", [0, 11])
def test_ratings_out_of_range_are_errors(overall):
    with pytest.raises(ValueError, match="overall"):
        Rating(1, 1, 1, overall)


def test_a_rating_that_does_not_round_to_overall_is_an_error():
    assert rating_columns("me", [Rating(1, 1, 1, 4, 3.75)])["expected"] == [3.75]
    for wrong in (2.4, float("nan")):
        with pytest.raises(ValueError, match="does not round"):
            Rating(1, 1, 1, 3, wrong)
