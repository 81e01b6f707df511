"""What useless output would earn: every part of the measure against the faults that it is there for."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.core.task_types import TaskType
from lm_mixup.rewards.faithfulness import Faithfulness, Source, measure
from lm_mixup.rewards.faithfulness.facts import number_key, read
from lm_mixup.rewards.faithfulness.polarity import negations

FRANCE = (
    Source("capital of France?", "Paris."),
    Source("tell me the population of France", "its 67 million lol"),
    Source("what is the area of France", "It covers about 644,000 km2."),
)
QUESTION = "What are the capital, population and area of France?"
GOOD = "France has the capital Paris, a population of 67 million and an area of about 644,000 km2."
TWO = (
    Source("population and capital of Chad", "15.5 million and N'Djamena"),
    Source("population and capital of Mali", "19.1 million and Bamako"),
)


def qa(answer: str, question: str = QUESTION, sources: tuple[Source, ...] = FRANCE) -> Faithfulness:
    return measure(question, answer, sources, "qa")


def kinds(found: Faithfulness) -> set[str]:
    return {span.kind for span in found.unsupported if span.kind != "word"}


def test_a_faithful_answer_is_perfect():
    found = qa(GOOD)
    assert (found.score, found.coverage, found.binding, found.repetition, found.answering) == (1, 1, 1, 0, 1)
    assert kinds(found) == set()


@pytest.mark.parametrize(
    ("fault", "answer", "kind"),
    [
        ("digit", GOOD.replace("67", "68"), "number"),
        ("unit", GOOD.replace("km2", "km"), "unit"),
        ("scale", GOOD.replace("67 million", "67 billion"), "number"),
        ("name", GOOD.replace("Paris", "Lyon"), "name"),
        ("negation", GOOD.replace("has the", "does not have the"), "polarity"),
        (
            "invented sentence",
            f"{GOOD} Tourists enjoy famous museums, cheese and sunny beaches.",
            "statement",
        ),
        ("twice", f"{GOOD} It covers 644,000 km2.", "repeated"),
        ("value of itself", GOOD.replace("Paris", "France"), "binding"),
    ],
)
def test_a_fault_halves_the_fidelity_and_is_named(fault: str, answer: str, kind: str):
    found = qa(answer)
    assert found.fidelity <= 0.6 and kind in kinds(found), (fault, found)
    whole = f"{QUESTION}\n{answer}"
    assert all(whole[span.start : span.end] == span.text for span in found.unsupported)


@pytest.mark.parametrize(
    "answer",
    [
        "It is an important topic with many aspects that is worth knowing.",
        "France is France.",
        "Germany has the capital Berlin.",
        "",
        "the the the the",
        f"{GOOD} {' '.join(['garbage blue table runs lamp quickly'] * 100)}",
        "\n".join(f"[{n}] {s.prompt} {s.completion}" for n, s in enumerate(FRANCE, 1)),
    ],
    ids=["constant", "itself", "another's", "nothing", "function words", "garbage tail", "echo"],
)
def test_useless_answers_earn_next_to_nothing(answer: str):
    assert qa(answer).score < 0.3


def test_text_said_three_times_earns_less_than_once():
    assert qa(f"{GOOD} {GOOD} {GOOD}").score < 0.2
    assert qa("Paris. Paris. Paris.").repetition >= 0.6


def test_coverage_counts_each_thing_once_and_falls_with_each_that_is_dropped():
    assert [
        round(qa(answer).coverage, 2)
        for answer in (
            GOOD,
            "France has the capital Paris and 67 million people.",
            "The capital of France is Paris.",
        )
    ] == [1.0, 0.67, 0.33]
    doubled = (*FRANCE, FRANCE[0], Source("France: capital", "Paris. The answer is Paris."))
    assert qa(GOOD, sources=doubled).coverage == 1
    assert qa("The capital of France is Paris.").score < 0.2


def test_vague_inputs_need_no_covering():
    vague = (*FRANCE, Source("France?", "Good question."), Source("any idea about France", "It depends."))
    assert qa(GOOD, sources=vague).score == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_the_inputs_does_not_matter(order: tuple[int, ...]):
    for answer in (GOOD, GOOD.replace("67", "68"), "The capital of France is Paris."):
        assert qa(answer, sources=tuple(FRANCE[at] for at in order)) == qa(answer)


def test_values_swapped_between_entities_cost():
    question = "What are the population and capital of Chad, and the population and capital of Mali?"
    right = "Chad has a population of 15.5 million and the capital N'Djamena. Mali has a population of 19.1 million and the capital Bamako."  # noqa: E501
    assert qa(right, question, TWO).score == 1
    numbers = right.replace("15.5", "x").replace("19.1", "15.5").replace("x", "19.1")
    names = right.replace("Chad has", "x has").replace("Mali has", "Chad has").replace("x has", "Mali has")
    for wrong in (numbers, names):
        found = qa(wrong, question, TWO)
        assert found.fidelity <= 0.3 and "binding" in kinds(found)


def test_values_swapped_within_an_entity_cost():
    sources = (
        Source("describe the element boron", "It stands in group 13."),
        Source("element boron", "it belongs to period 2"),
    )
    right = measure("", "The element boron stands in group 13 and belongs to period 2.", sources, "para")
    wrong = measure("", "The element boron stands in group 2 and belongs to period 13.", sources, "para")
    assert right.fidelity == 1 and wrong.fidelity <= 0.5


def test_lower_case_subjects_are_told_apart():
    sources = (
        Source("describe the element nitrogen", "It stands in group 15"),
        Source("short essay on the element niobium", "has the symbol Nb"),
    )
    found = measure("", "The element nitrogen, which stands in group 15, is written Nb.", sources, "para")
    assert found.fidelity <= 0.5 and "binding" in kinds(found)


BROWSERS = (
    Source("Name three common web browsers", "Google Chrome, Mozilla Firefox, and Microsoft Edge."),
    Source("Name three languages used in web development", "HTML, CSS, and JavaScript."),
)


def test_an_answer_has_to_answer_its_question():
    both = "Google Chrome, Mozilla Firefox, and Microsoft Edge. HTML, CSS, and JavaScript."
    unasked = qa(both, "Name three common web browsers", BROWSERS)
    assert unasked.answering < 0.7 and "unasked" in kinds(unasked)
    other = qa("HTML, CSS, and JavaScript.", "Name three common web browsers", BROWSERS)
    assert other.answering == 0 and other.fidelity <= 0.1
    asked = qa(both, "Name three common web browsers and three languages used in web development", BROWSERS)
    assert asked.score == 1
    half = qa(
        BROWSERS[0].completion,
        "Name three common web browsers and three languages used in web development",
        BROWSERS,
    )
    assert half.answering <= 0.5 and half.coverage <= 0.7


def test_another_parents_comparison_is_no_analogy():
    sources = (
        Source(
            "Make an analogy of a pet dog", "A pet dog is like a loyal friend who never leaves your side."
        ),
        Source(
            "Compare dogs and cats", "Dogs are social and need walks, whereas cats are independent and quiet."
        ),
    )
    assert qa(sources[0].completion, sources[0].prompt, sources).fidelity == 1
    assert qa(sources[1].completion, sources[0].prompt, sources).fidelity <= 0.1


EURO = (
    Source("Vatican City: currency\nA) euro\nB) dinar\nC) dollar\nD) rand", "A) euro"),
    Source("Vatican City is part of Europe?\nA) yes\nB) no\nC) maybe\nD) both", "A) yes."),
)
MCQ = (
    "Vatican City is part of Europe. Which currency does Vatican City have?\n"
    "A) dinar\nB) euro\nC) rand\nD) dollar"
)


def test_the_letter_has_to_point_to_the_option_that_the_inputs_pick():
    assert measure(MCQ, "B) euro", EURO, "mcq").score == 1
    for wrong in ("A) dinar", "C) rand", "D) dollar"):
        found = measure(MCQ, wrong, EURO, "mcq")
        assert found.score <= 0.1 and "answer" in kinds(found)


def test_a_miscopied_pick_among_the_inputs_options_is_wrong():
    asked = "What is the currency of Vanuatu?\nA) Georgian lari\nB) Yemeni rial\nC) Vanuatu vatu\nD) euro"
    sources = (Source(asked, "C) Vanuatu vatu"), Source("Vanuatu is governed from Port Vila?", "yes"))
    assert measure(asked, "C) Vanuatu vatu", sources, "mcq").fidelity == 1
    cut = asked.replace("Vanuatu vatu", "Vanuatu")
    assert measure(cut, "C) Vanuatu", sources, "mcq").fidelity <= 0.1


def test_a_phrase_told_twice_in_a_sentence_is_a_repetition():
    sources = (Source("Benin", "It is part of Africa."), Source("Benin", "it ends its web addresses in .bj"))
    asked = "What do you know of Benin?"
    once = measure(asked, "Benin is part of Africa and has the internet domain .bj.", sources, "para")
    assert once.repetition == 0 and once.fidelity == 1
    for twice in (
        "Benin is part of Africa, is part of Africa and has the internet domain .bj.",
        "Benin, with a place in Africa, a place in Africa and the domain .bj, is a country.",
    ):
        found = measure(asked, twice, sources, "para")
        assert found.repetition >= 0.25 and found.fidelity < 0.5


def test_options_may_be_invented_but_not_the_chosen_one():
    new = MCQ.replace("dinar", "forint").replace("rand", "peso")
    assert measure(new, "B) euro", EURO, "mcq").score == 1
    plain = (Source("currency of Vatican City", "euro"), Source("Vatican City", "part of Europe"))
    assert measure(MCQ, "B) euro", plain, "mcq").fidelity == 1
    assert measure(MCQ, "A) dinar", plain, "mcq").fidelity <= 0.1


CLAIMS = (
    Source("True or false? Ghana lies in Africa.", "True."),
    Source("quiz, true or false, Ghana has the calling code +30.", "umm False"),
)


@pytest.mark.parametrize(
    ("statement", "verdict", "right"),
    [
        ("Ghana lies in Africa and has the calling code +30.", "False", True),
        ("Ghana lies in Africa and has the calling code +30.", "True", False),
        ("Ghana lies in Africa.", "True", True),
        ("Ghana lies in Africa.", "False", False),
    ],
)
def test_a_verdict_follows_the_inputs_verdicts(statement: str, verdict: str, right: bool):
    found = measure(f"True or false? {statement}", verdict, CLAIMS, "tfq")
    assert (found.fidelity == 1) if right else (found.fidelity <= 0.1)


@pytest.mark.parametrize("verdict", ["True", "False"])
def test_the_subject_of_all_claims_is_not_what_is_denied(verdict: str):
    """A name in the denied claim alone makes the statement false, the name of what all are about does not."""
    sources = (
        Source("True or false? The constellation Puppis takes the genitive Puppis.", "True, so True."),
        Source("quiz, true or false, The constellation Puppis has the abbreviation Ser.", "False, so False."),
        Source("True or false? The constellation Puppis has the English name Stern.", "True"),
    )
    told = "The constellation Puppis, with the genitive Puppis, has the English name Stern"
    without = measure(f"True or false? {told}.", verdict, sources, "tfq").fidelity
    within = measure(f"True or false? {told} and the abbreviation Ser.", verdict, sources, "tfq").fidelity
    assert (without > 0.9, within > 0.9) == (verdict == "True", verdict == "False")


@pytest.mark.parametrize(
    "word", ["Lithuanianianianianian", "aaaaaaaaa", "перепереперепере", "ไทยไทยไทยไทยไทย", "x . . . . . ."]
)
def test_a_word_that_stutters_earns_nothing_unless_an_input_has_it(word: str):
    plain = (
        Source("official language of Tajikistan?\nA) French\nB) Tajik\nC) Lithuanian\nD) Thai", "B) Tajik"),
    )
    asked = f"Which official language is right for Tajikistan?\nA) French\nB) Tajik\nC) {word}\nD) Thai"
    assert measure(asked, "B) Tajik", plain, "mcq").score == 0
    quoted = (Source(f"{plain[0].prompt} or {word}", "B) Tajik"),)
    assert measure(asked, "B) Tajik", quoted, "mcq").repetition == 0
    assert measure(asked.replace(word, "Lithuanian"), "B) Tajik", plain, "mcq").repetition == 0


def test_a_true_statement_has_to_stand_in_the_inputs():
    assert measure("True or false? Ghana lies in Asia.", "True", CLAIMS, "tfq").fidelity <= 0.5


def test_numbered_parts_are_measured_against_their_own_inputs():
    sources = (
        Source("so true or false? Soup is a solid", "False. Soup is mainly liquid."),
        Source("Which planet is red?\nA) Mars\nB) Venus\nC) Earth\nD) Pluto", "A) Mars"),
        Source("Calculate 5 + 4", "5 + 4 = 9"),
    )
    options = "A) Mars\nB) Venus\nC) Earth\nD) Pluto"
    question = f"1. True or false? Soup is a solid.\n2. Which planet is red?\n{options}\n3. Calculate 5 + 4"
    answer = "1. False. Soup is mainly liquid.\n2. A) Mars\n3. 5 + 4 = 9"
    assert qa(answer, question, sources).score > 0.95
    for old, new in (("False", "True"), ("A) Mars", "B) Venus"), ("= 9", "= 8")):
        assert qa(answer.replace(old, new), question, sources).score <= 0.5, new


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1,200 people", "1200 people"),
        ("twelve eggs", "12 eggs"),
        ("the 2nd of May 2020", "2020-05-02"),
        ("March 5, 2020", "5 March 2020"),
        ("twenty-one", "21"),
        ("two hundred and", "200 and"),
        ("5.5 million", "5,500,000"),
        ("٣٤٥ كم", "345 كم"),
        ("５０ km", "50 km"),
        ("1,23,456 rupees", "123456 rupees"),
        ("30 percent", "30%"),
    ],
)
def test_numbers_are_exact_after_normalisation(left: str, right: str):
    def numbers(text: str) -> set[str]:
        return {fact.key for fact in read(text).facts if fact.kind in ("number", "unit")}

    assert numbers(left) == numbers(right) != set()


@pytest.mark.parametrize(("left", "right"), [("-5", "5"), ("1.5", "15"), ("12", "twenty"), ("0.10", "0.01")])
def test_other_numbers_are_other_numbers(left: str, right: str):
    assert {f.key for f in read(left).facts} != {f.key for f in read(right).facts}


def test_what_can_be_computed_is_not_accepted():
    sources = (
        Source("apples in the red box", "There are 3 apples."),
        Source("apples in the blue box", "There are 4 apples."),
    )
    found = measure(
        "How many apples are in the red box and the blue box?", "There are 7 apples.", sources, "qa"
    )
    assert found.fidelity <= 0.5


OTHER_SCRIPTS = {
    "Chinese": (
        "法国的首都是巴黎，人口六千七百万。",
        "今天天气很好，我们去公园散步。",
        "法国的首都不是巴黎。",
    ),
    "Thai": ("เมืองหลวงของฝรั่งเศสคือปารีส", "ทุเรียนเป็นผลไม้ยอดนิยมของคนไทย", "เมืองหลวงของฝรั่งเศสไม่ใช่ปารีส"),
    "Russian": (
        "Столица Франции — Париж, население 67 миллионов.",
        "Столица Франции — Лион, население 67 миллионов.",
        "Столица Франции не Париж.",
    ),
    "Arabic": ("عاصمة فرنسا باريس وعدد سكانها 67", "الطقس جميل في الصيف والربيع", "عاصمة فرنسا ليست باريس"),
    "Hindi": (
        "फ्रांस की राजधानी पेरिस है।",
        "आम भारत का राष्ट्रीय फल और बहुत मीठा होता है।",
        "फ्रांस की राजधानी पेरिस नहीं है।",
    ),
}


@pytest.mark.parametrize("language", OTHER_SCRIPTS)
def test_other_scripts(language: str):
    told, other, denied = OTHER_SCRIPTS[language]
    sources = (Source("", told), Source("", told))
    assert measure("", told, sources, "para").score == 1
    assert measure("", other, sources, "para").score < 0.8
    assert measure("", denied, sources, "para").fidelity <= 0.5
    assert len(negations(denied)) == 1 and not negations(told)


@pytest.mark.parametrize("task_type", ["qa", "mcq", "tfq", "cs", "para"])
@settings(deadline=None, max_examples=30)
@given(
    st.text(max_size=80),
    st.text(max_size=120),
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=80)), min_size=1, max_size=3),
)
def test_any_text_gives_numbers_from_0_to_1_and_spans_of_the_text(
    task_type: TaskType, prompt: str, completion: str, pairs: list[tuple[str, str]]
):
    found = measure(prompt, completion, [Source(*pair) for pair in pairs], task_type)
    numbers = (
        found.score,
        found.fidelity,
        found.support,
        found.coverage,
        found.binding,
        found.repetition,
        found.answering,
    )
    assert all(0 <= number <= 1 for number in numbers)
    assert found.score <= found.fidelity
    assert all(0 <= span.start <= span.end for span in found.unsupported)


def test_no_sources_are_an_error():
    with pytest.raises(ValueError, match="one or more sources"):
        measure("a", "b", [], "qa")


@pytest.mark.parametrize(
    ("text", "key"), [("1,200.50", "1200.5"), ("١٬٢٠٠", "1200"), ("3,5", "3.5"), ("1.2.3", None)]
)
def test_number_keys(text: str, key: str | None):
    assert number_key(text) == key
