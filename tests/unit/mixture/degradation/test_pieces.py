"""Texts in pieces, and the words of a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.mixture.degradation.coverage import coverage, similar, terms
from lm_mixup.mixture.degradation.pieces import join_pieces, sentences, split_pieces


def texts(text: str) -> list[str]:
    return [piece.text for piece in split_pieces(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.50 dollars. He left at 5 p.m. The end.", [
            "Dr. Smith paid 3.50 dollars.", "He left at 5 p.m.", "The end.",
        ]),
        ("J. K. Rowling wrote it. Read it!", ["J. K. Rowling wrote it.", "Read it!"]),
        ("铁是金属。它会生锈！对吗？", ["铁是金属。", "它会生锈！", "对吗？"]),
        ("लोहा धातु है। यह जंग खाता है।", ["लोहा धातु है।", "यह जंग खाता है।"]),
        ("One line", ["One line"]),
    ],
)  # fmt: skip
def test_sentences_by_hand(text: str, expected: list[str]):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Three tips:\n1. Eat well.\n2) Sleep. A lot.\n- Run.", ["Eat well.", "Sleep. A lot.", "Run."]),
        ("Apples, pears, plums and figs.", ["Apples", "pears", "plums", "figs"]),
        ("Apples, pears, plums, figs, or dates", ["Apples", "pears", "plums", "figs", "dates"]),
        ("Gin drinks, gimlets, negronis are strong, beers are not", [
            "Gin drinks, gimlets, negronis are strong, beers are not"
        ]),
        ("Well, yes, it has been known as a metal for a very long time, I think", [
            "Well, yes, it has been known as a metal for a very long time, I think"
        ]),
        ("B) neon", ["B) neon"]),  # one item alone is no list
        ("```\na = 1\n\nb = 2\n```", ["```\na = 1\n\nb = 2\n```"]),
        ("Only a head:", ["Only a head:"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_pieces_by_hand(text: str, expected: list[str]):
    assert texts(text) == expected


def test_a_head_goes_with_the_item_behind_it():
    pieces = split_pieces("Try these:\n1. Eat.\n2. Sleep.\n\nGood luck. Bye.")
    assert [piece.head for piece in pieces] == ["Try these:", "", "", ""]
    assert join_pieces(pieces) == "Try these:\n1. Eat.\n2. Sleep.\n\nGood luck. Bye."
    assert join_pieces(pieces[1:]) == "1. Sleep.\n\nGood luck. Bye."
    assert join_pieces(pieces, bullets=True) == "Try these:\n- Eat.\n- Sleep.\n\nGood luck. Bye."


line = st.text(st.characters(categories=["L", "N"]), min_size=2, max_size=9).map(
    lambda word: f"{word} is here."
)
marks = st.sampled_from(["", "", "- ", "* ", "1. ", "2) ", "Then: "])


@given(st.lists(st.tuples(marks, line), min_size=1, max_size=6), st.sampled_from([" ", "\n", "\n\n"]))
def test_pieces_hold_all_that_the_text_holds(lines: list[tuple[str, str]], gap: str):
    text = gap.join(f"{mark}{content}" for mark, content in lines)
    pieces = split_pieces(text)
    written = join_pieces(pieces)
    assert coverage(text, [written]) == 1
    assert coverage(written, [text]) == 1
    assert join_pieces(split_pieces(written)) == written


@given(st.text(max_size=80))
def test_any_text_has_pieces(text: str):
    assert all(piece.text for piece in split_pieces(text))


def test_terms_are_of_any_script():
    assert terms("The iron weighs 1,200 kg in 1990.") == {"iron", "weighs", "1,200", "kg", "1990"}
    assert terms("लोहा धातु है") == {"लोहा", "धातु", "है"}
    assert terms("铁会生锈") == {"铁", "会", "生", "锈"}
    assert terms("１２ soft\u00adhyphen") == {"12", "softhyphen"}
    assert terms("1. Eat.\n2) Sleep 3 hours.") == {"eat", "sleep", "3", "hours"}


def test_coverage_by_hand():
    assert coverage("Iron melts at 1538 degrees.", ["iron melts", "at 1538 degrees"]) == 1
    assert coverage("Iron melts at 1538 degrees.", ["iron melts"]) == 0.5
    assert coverage("of the", []) == 1
    assert coverage("Iron", []) == 0
    assert similar("Name a red animal.", "name an animal that is RED") == 1.0


def test_numbers_that_do_not_count_are_told():
    text = "13: Odd\n200: Even\n5. Odd\n12. Even"
    assert join_pieces(split_pieces(text)) == text
    assert texts(text) == text.split("\n")
    assert texts("(A) iron\nB) neon") == ["(A) iron", "B) neon"]
    again = "First:\n1. a b\n2. c d\nSecond:\n1. e f\n2. g h"
    assert join_pieces(split_pieces(again)) == again
