"""Other wording, typing errors and fillers are no faults; what they may hide is one."""

from __future__ import annotations

import pytest

from lm_mixup.rewards.faithfulness import Source, measure
from lm_mixup.rewards.faithfulness.facts import read
from lm_mixup.rewards.faithfulness.polarity import negations
from lm_mixup.rewards.faithfulness.sources import read_source

UTAH = (
    Source("do you know the population of the state of Utah?", "It is 3.27 million."),
    Source("what is the statehood year of the state of Utah", "1896"),
)
UTAH_ASKED = "What are the population and statehood year of the state of Utah?"


def kinds(found) -> set[str]:
    return {span.kind for span in found.unsupported if span.kind != "word"}


def test_nouns_that_are_often_capitalised_are_wording():
    told = "The state of Utah is home to about 3.27 million people and joined the Union in 1896."
    assert measure(UTAH_ASKED, told, UTAH, "qa").score == 1
    assert "name" in kinds(measure(UTAH_ASKED, told.replace("the Union", "the Commonwealth"), UTAH, "qa"))


def test_facts_that_are_held_make_up_for_the_wording_around_them():
    sources = (
        Source("give internet domain and area of Malaysia please", "its .my and 330,000 km2 lol"),
        Source("about Malaysia, tell the calling code", "+60"),
    )
    asked = "What are the calling code, internet domain and area of Malaysia?"
    told = "Malaysia has the calling code +60. It ends its web addresses in .my and covers about 330,000 km2."
    assert measure(asked, told, sources, "qa").score == 1
    invented = "Tourists enjoy its famous museums, rainy forests and spicy noodles in Malaysia."
    assert "statement" in kinds(measure(asked, f"{told} {invented}", sources, "qa"))


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        ("Mt. The ANSWER is Mt.", "Mt"),
        ("Some country, I guess.", ""),
        ("It is a country.", "country"),
    ],
)
def test_fillers_with_typing_errors_tell_nothing(completion: str, told: str):
    reading = read_source(Source("what is the symbol of meitnerium", completion)).told
    named = {f.key for f in reading.facts if f.certain} | {w.key for w in reading.words}
    assert named == set(told.casefold().split())


def test_a_filler_with_a_typing_error_beside_a_verdict_is_not_told():
    claim = "True or false? Oman lies in Asia."
    assert "tjink" not in read_source(Source(claim, "True i tjink")).told.keys
    assert "liquid" in read_source(Source(claim, "False. Soup is mainly liquid.")).told.keys


def test_a_verdict_with_a_typing_error_in_the_question_is_a_verdict():
    source = read_source(Source("Corvus has the size rank 52. Say whether that is true ro false.", "False"))
    assert source.is_claim and source.verdict is False and "52" in source.claim.keys


def test_short_words_in_capitals_are_codes_where_they_stand_as_such():
    def named(text: str) -> set[str]:
        return {fact.key for fact in read(text).facts if fact.kind == "name" and fact.certain}

    assert named("It has the postal code OR.") == {"or"}
    assert named("it is written No") == {"no"}
    assert named("Mt.") == {"mt"}
    assert named("Iy is 9.") == set()
    assert not negations("nobelium has the symbol No") and not negations("its domain is .no")
    assert negations("It has no moon")


def test_an_option_that_is_called_no_is_no_verdict():
    asked = "quiz, symbol of nobelium\nA) Pb\nB) No\nC) Rn\nD) Cf"
    source = read_source(Source(asked, "B) No."))
    assert source.picked == "No" and not source.is_claim
    assert read_source(Source("Oman is in Asia?\nA) yes\nB) no", "B) no")).verdict is False


TWO_MOONS = (
    Source("True or false? The moon Titan is solid at its surface.", "True"),
    Source("True or false? The moon Rhea is solid at its surface and was found in 1672.", "True"),
)


def test_the_same_said_of_two_subjects_is_no_repetition():
    told = (
        "The moon Titan is solid at its surface. The moon Rhea is solid at its surface and was found in 1672."
    )
    assert measure("", told, TWO_MOONS, "para").repetition == 0
    again = "The moon Titan is solid at its surface. The moon Titan is solid at its surface and so is Rhea."
    assert measure("", again, TWO_MOONS, "para").repetition > 0.1


def test_a_question_may_ask_the_same_of_two_subjects_in_small_letters():
    sources = (
        Source("the element niobium density and boiling point?", "8.57 g/cm3 and 5014 K"),
        Source("whats the density for the element tantalum", "its 16.4 g/cm3 lol"),
    )
    once = "What are the density and boiling point of the element niobium, and the density of the element tantalum?"  # noqa: E501
    told = "The element niobium has a density of 8.57 g/cm3 and boils at 5014 K. The element tantalum has a density of 16.4 g/cm3."  # noqa: E501
    assert measure(once, told, sources, "qa").repetition == 0
    twice = once.replace("boiling point", "density")
    assert measure(twice, told, sources, "qa").repetition > 0.2


def test_a_misspelt_question_is_recognised():
    sources = (
        Source("the constellation Eridanus arwa?", "1138 sq deg."),
        Source("quiz, genitive of tthe constellation Eridanus", "Eridani ok"),
        Source("give abbreviation of the constellation Eridanus please", "Eri"),
    )
    asked = "What are the area, genitive and abbreviation of the constellation Eridanus?"
    told = "The constellation Eridanus covers 1138 sq deg of the sky, with the genitive Eridani and the abbreviation Eri."  # noqa: E501
    assert measure(asked, told, sources, "qa").answering == 1
    assert measure(asked.replace("area", "star"), told, sources, "qa").answering < 0.8


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("was first seen in 2003 and stands in group 15", "was first seen in 15 and stands in group 2003"),
        ("covers 680 km2 and is called by phone with +31", "covers 31 km2 and is called by phone with +680"),
    ],
)
def test_a_value_behind_the_name_of_another_value_is_misbound(right: str, wrong: str):
    sources = (
        Source("discovery year, area of Ruhm", "2003, 680 km2"),
        Source("i need the group and calling code of Ruhm", "15 and +31"),
    )
    good, bad = (measure("", f"Ruhm {said}.", sources, "para") for said in (right, wrong))
    assert good.fidelity == 1 and bad.fidelity <= 0.5 and "binding" in kinds(bad)


def test_a_value_in_the_place_of_a_subject_is_misbound():
    sources = (
        Source("do you know the discovery year of the moon Phobos?", "1877."),
        Source("do you know the planet of the moon Dione?", "It is Saturn."),
        Source("discovery year of the moon Dione?", "1684."),
    )
    told = "The moon Phobos has been known since 1877. The moon Dione orbits Saturn and was found in 1684."
    assert measure("", told, sources, "para").fidelity == 1
    swapped = told.replace("Phobos", "x").replace("Saturn", "Phobos").replace("x", "Saturn")
    found = measure("", swapped, sources, "para")
    assert found.fidelity <= 0.5 and "binding" in kinds(found)


def test_a_sentence_is_not_covered_by_its_words_in_other_sentences():
    told = (
        "People is a plural noun that acts as the subject.",
        "Usually is an adverb that describes a frequency.",
        "Clothes is a plural noun that acts as the object of the verb.",
        "The verb describes an action that the subject performs.",
    )
    sources = (Source("parse it", " ".join(told[:2])), Source("parse it", " ".join(told[2:])))
    assert measure("", " ".join(told), sources, "para").coverage == 1
    assert measure("", " ".join(told[:3]), sources, "para").coverage < 0.9


def test_a_list_of_numbers_keeps_its_order_and_its_items():
    asked = "Sort the list 5, 1, 10 and give the sum of 1, 5, 10, 15"
    sources = (
        Source("Sort the list 5, 1, 10", "1, 5, 10"),
        Source("give the sum of 1, 5, 10, 15", "The sum of the numbers [1, 5, 10, 15] is 31."),
    )
    told = "1, 5, 10. The sum of the numbers [1, 5, 10, 15] is 31."
    assert measure(asked, told, sources, "qa").binding == 1
    for wrong in ("[10, 5, 1, 15]", "[1, 5, 15]"):
        found = measure(asked, told.replace("[1, 5, 10, 15]", wrong), sources, "qa")
        assert "binding" in kinds(found) and found.fidelity <= 0.5


def test_a_value_behind_the_value_of_another_is_misbound():
    told = "K2 stands at 8,611 meters (28,251 ft). Kangchenjunga stands at 8,586 meters (28,169 ft)."
    sources = (Source("Name two mountains.", told), Source("Name two mountains.", told))
    assert measure("Name two mountains.", told, sources, "qa").fidelity == 1
    swapped = told.replace("251", "x").replace("169", "251").replace("x", "169")
    assert measure("Name two mountains.", swapped, sources, "qa").fidelity <= 0.5


@pytest.mark.parametrize("wrong", ["5x^2 + 2x + 7 = 0", "7x^7 + 2x + 7 = 0", "2x^2 + 7x + 7 = 0"])
def test_a_formula_keeps_its_numbers(wrong: str):
    asked, formula = "Give an example of a quadratic form", "7x^2 + 2x + 7 = 0"
    sources = (Source(asked, f"One is {formula}."), Source("and its root", "It has no root in 5 steps."))
    assert measure(asked, f"One is {formula}.", sources, "qa").fidelity == 1
    found = measure(asked, f"One is {wrong}.", sources, "qa")
    assert found.fidelity <= 0.5 and kinds(found) & {"binding", "code"}


def test_a_value_told_in_two_wordings_is_told_twice():
    sources = (
        Source("an article about Delaware please", "It has the capital Dover and about 990,000 people."),
        Source("short essay on Delaware", "it is governed from Dover, and lies in the South"),
    )
    once = "Delaware, which has about 990,000 people, has the capital Dover and lies in the South."
    found = measure("", once, sources, "para")
    assert found.repetition == 0 and found.fidelity == 1
    twice = once.replace("Dover", "Dover, is governed from Dover")
    found = measure("", twice, sources, "para")
    assert found.fidelity < 0.6 and "repeated" in kinds(found)


@pytest.mark.parametrize(
    ("value", "cut"), [("Swiss franc", "Swiss"), ("Central African CFA franc", "African CFA franc")]
)
def test_a_name_cut_short_is_misbound(value: str, cut: str):
    asked = "What are the currency and the calling code of Ruhm?"
    for told in (f"its {value} lol", f"It pays with the {value}", f"Ruhm uses the {value} as its currency."):
        sources = (Source("currency of Ruhm?", told), Source("Ruhm: calling code", "+423"))
        for said, fidelity in ((value, 1.0), (cut, 0.5)):
            found = measure(asked, f"Ruhm has the currency {said} and the calling code +423.", sources, "qa")
            assert found.fidelity == fidelity, (told, said, found)


def test_a_surname_in_a_long_text_is_no_cut():
    text = "Marie Curie was a physicist who did research on radioactivity. " * 3
    sources = (Source("Who was Marie Curie?", text), Source("Tell me of Marie Curie", text))
    assert measure("", "Curie was a physicist who did research.", sources, "para").binding == 1


SULFUR = (
    Source("category Chemistry, a statement on the element sulfur", "It is written S. It is written S."),
    Source("say something of the element sulfur", "it counts among the nonmetals lol"),
    Source("i need a line on the element sulfur", "It stands in period 3 and has the atomic number 16."),
)


@pytest.mark.parametrize(
    ("again", "fault"),
    [
        (" and it is one of the nonmetals", "a value in small letters"),
        (", and it belongs to period 3", "a small number with its label"),
        (" with a place in period 16", "a value told rightly and then as another"),
    ],
)
def test_what_is_told_again_in_other_words_is_a_fault(again: str, fault: str):
    told = "The element sulfur is written S, counts among the nonmetals, stands in period 3 and has the atomic number 16"  # noqa: E501
    assert measure("", f"{told}.", SULFUR, "para").fidelity == 1
    assert measure("", f"{told}{again}.", SULFUR, "para").fidelity < 0.6, fault


def test_a_claim_with_a_number_early_in_it_is_told_once():
    sources = (
        Source("True or false? The element cerium weighs 140.116 u per atom.", "True"),
        Source("true/false: The element cerium is a gas.", "False lol"),
    )
    claim = "The element cerium is a gas and has an atomic mass of 140.116 u"
    once = measure(f"True or false? {claim}.", "False", sources, "tfq")
    twice = measure(f"True or false? {claim}, while its mass is 140.116 u.", "False", sources, "tfq")
    assert once.fidelity == 1 and twice.fidelity <= 0.5 and "repeated" in kinds(twice)


def test_a_question_lists_each_thing_once_whatever_ends_the_list():
    sources = (
        Source("what is the atomic number of the element sulfur", "hey so 16"),
        Source("what is the period of the element sulfur", "3"),
    )
    told = "The element sulfur has the atomic number 16 and stands in period 3."
    asked = "What are the period and atomic number of the element sulfur?"
    assert measure(asked, told, sources, "qa").repetition == 0
    twice = asked.replace("the period", "the atomic number, period")
    assert measure(twice, told, sources, "qa").fidelity < 0.6


def test_a_value_that_holds_its_subject_is_cut_short_where_it_is_the_subject():
    sources = (
        Source("for school, summarise Vanuatu", "It uses the Vanuatu vatu as its currency"),
        Source("an article about Vanuatu please", "It is called by phone with +678."),
    )
    told = "Vanuatu, with the currency Vanuatu vatu, is called by phone with +678."
    assert measure("", told, sources, "para").fidelity == 1
    assert measure("", told.replace(" vatu", ""), sources, "para").fidelity <= 0.5
    pays = "Vanuatu is called by phone with +678, pays with the Vanuatu vatu."
    assert measure("", pays, sources, "para").fidelity == 1
    assert measure("", pays.replace(" vatu", ""), sources, "para").fidelity <= 0.5


MELTS = (
    Source("bismuth?", "It melts at 545 K."),
    Source("tell me of bismuth", "a boiling point of 1837 K lol"),
)


@pytest.mark.parametrize(
    ("answer", "binding"),
    [
        ("Bismuth has a boiling point of 545 K, with a boiling point of 1837 K.", 1),
        ("Bismuth has a melting point of 545 K, with a boiling point of 1837 K.", 0),
        ("Bismuth melts at 545 K and boils at 1837 K.", 0),
        ("Bismuth has points of 545 K and 1837 K.", 0),
    ],
)
def test_two_amounts_under_the_name_of_one_are_misbound(answer: str, binding: int):
    found = measure("Tell me about bismuth.", answer, MELTS, "qa")
    assert [span.text for span in found.unsupported if span.kind == "binding"] == ["545"] * binding


def test_amounts_of_one_thing_that_differ_in_a_word_are_two():
    sources = (Source("small cup?", "It costs 5 dollars."), Source("large cup", "a price of 7 dollars"))
    answer = "A price of 5 dollars for the small cup, a price of 7 dollars for the large cup."
    assert measure("What do the cups cost?", answer, sources, "qa").binding == 1


def test_a_source_that_says_a_thing_in_two_wordings_is_no_leave_to_say_it_twice():
    sources = (
        Source("category Chemistry, a statement on the element sulfur", "It is a solid at room temperature"),
        Source(
            "say something of the element lead for the category Chemistry",
            "It is a solid at room temperature. It occurs as a solid at room temperature.",
        ),
        Source("Chemistry is the category, tell of the element sulfur", "It has a melting point of 388 K."),
    )
    once = "The element sulfur is a solid at room temperature and has a melting point of 388 K."
    twice = once.replace(" and", ", occurs as a solid at room temperature and")
    assert measure("", once, sources, "cs").repetition == 0
    found = measure("", twice, sources, "cs")
    assert found.repetition > 0 and found.fidelity < 0.6
    of_both = once.replace(" and", ". The element lead is a solid at room temperature. Sulfur")
    assert measure("", of_both, sources, "cs").repetition == 0


def test_a_line_of_a_list_told_twice_is_a_fault():
    sources = (
        Source("Name three countries that speak French.", "France, Canada, Belgium."),
        Source(
            "Generate 2 titles for an article about French food.",
            "1. A Taste of France: the Cuisine of Paris\n2. The Art of French Cooking: Delicious Recipes",
        ),
    )
    asked = (
        "1. Name three countries that speak French.\n2. Generate 2 titles for an article about French food."
    )
    last = "- The Art of French Cooking: Delicious Recipes"
    told = f"1. France, Canada, Belgium.\n2. - A Taste of France: the Cuisine of Paris\n{last}"
    assert measure(asked, told, sources, "qa").repetition == 0
    again = measure(asked, f"{told}\n{last}", sources, "qa")
    assert again.fidelity <= 0.5 and "repeated" in kinds(again)
    verse = Source("a song?", "Row, row, row your boat\nGently down the stream\nRow, row, row your boat")
    song = measure("a song?", verse.completion, (verse,), "qa")
    assert "repeated" not in kinds(song)
