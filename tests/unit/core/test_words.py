"""One tokeniser for every script: no word breaks at a mark, invisible characters change nothing."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.core.words import (
    _TOKEN_ALONE,
    _TOKEN_OR_SYMBOL,
    comparable,
    sentences,
    tokens,
    words,
    words_and_symbols,
)

SCRIPTS = {
    "Latin": ("Don't co-operate, naïve Ωmega", ["don't", "co", "operate", "naïve", "ωmega"]),
    "Greek": ("Ο Σίσυφος είναι", ["ο", "σίσυφοσ", "είναι"]),
    "Cyrillic": ("Привет, мир!", ["привет", "мир"]),
    "Arabic, vocalised": ("مُحَمَّد كَتَبَ", ["مُحَمَّد", "كَتَبَ"]),
    "Hebrew, pointed": ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
    "Devanagari": ("नमस्ते दुनिया। हिन्दी", ["नमस्ते", "दुनिया", "हिन्दी"]),
    "Bengali": ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
    "Tamil": ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
    "Korean": ("한국어 문장", ["한국어", "문장"]),
    "Ethiopic": ("አማርኛ። ሰላም", ["አማርኛ", "ሰላም"]),
    "Armenian": ("Բարեւ աշխարհ", ["բարեւ", "աշխարհ"]),
    "Georgian": ("გამარჯობა მსოფლიო", ["გამარჯობა", "მსოფლიო"]),
    "Han": ("中文没有。", ["中", "文", "没", "有"]),
    "Japanese": ("日本のテスト", ["日", "本", "の", "テ", "ス", "ト"]),
    "Thai": ("ไม่มี", ["ไ", "ม่", "มี"]),
    "Lao": ("ບໍ່ມີ", ["ບໍ່", "ມີ"]),
    "Burmese": ("မြန်မာ။", ["မြ", "န်", "မာ"]),
    "mixed": ("AI模型 GPT-4", ["ai", "模", "型", "gpt", "4"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_a_script(script: str):
    text, expected = SCRIPTS[script]
    assert words(text) == [comparable(word) for word in expected]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("invisible", ["\u200b", "\u00ad", "\u2060"])
def test_invisible_characters_inside_words_change_nothing(script: str, invisible: str):
    text, _ = SCRIPTS[script]
    inside = "".join(
        character + invisible if _in_word(character) and _in_word(following) else character
        for character, following in zip(text, f"{text[1:]} ", strict=True)
    )
    assert inside != text
    assert words(inside) == words(text)


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


@pytest.mark.parametrize("script", SCRIPTS)
def test_decomposed_text_has_the_same_words(script: str):
    text, _ = SCRIPTS[script]
    assert words(unicodedata.normalize("NFD", text)) == words(text)


def test_khmer_keeps_its_subscripts_with_their_letters():
    assert "".join(words("ភាសាខ្មែរ")) == "ភាសាខ្មែរ"
    assert all(not unicodedata.category(word[0]).startswith("M") for word in words("ភាសាខ្មែរ"))


def test_width_and_ligatures_are_folded():
    assert words("ＡＢＣ １２ ﬁne km²") == ["abc", "12", "fine", "km2"]


@settings(deadline=None)
@given(st.text(max_size=200))
def test_tokens_lie_in_the_text_in_order_and_never_overlap(text: str):
    listed = list(tokens(text))
    assert all(a.end <= b.start for a, b in pairwise(listed))
    assert all(
        0 <= t.start < t.end <= len(text) and comparable(text[t.start : t.end]) == t.key for t in listed
    )


@settings(deadline=None)
@given(st.text(max_size=200))
def test_comparing_twice_is_comparing_once(text: str):
    assert comparable(comparable(text)) == comparable(text)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_sentences_hold_all_but_space(text: str):
    places = sentences(text)
    assert all(a < b for a, b in places)
    assert "".join(text[a:b] for a, b in places).split() == text.split() or "".join(
        "".join(text[a:b] for a, b in places).split()
    ) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met J. K. Rowling. They spoke.", ["Dr. Smith met J. K. Rowling.", "They spoke."]),
        ("It melts at 161 K. It boils.", ["It melts at 161 K.", "It boils."]),
        ("1. First\n2. Second thing. More", ["1. First", "2. Second thing.", "More"]),
        ("第一句。第二句！第三", ["第一句。", "第二句！", "第三"]),
        ("यह एक है। दूसरा है।", ["यह एक है।", "दूसरा है।"]),
        ('He said "No." Then left.', ['He said "No."', "Then left."]),
        ("3.5 is a number", ["3.5 is a number"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]):
    assert [text[a:b] for a, b in sentences(text)] == expected


@settings(max_examples=400)
@given(st.text(st.characters(max_codepoint=127), max_size=40) | st.text("a1.,' -3rd9'x#", max_size=24))
def test_ascii_has_the_tokens_that_any_script_would_give_it(text: str):
    bare = comparable(text)
    assert words(text) == _TOKEN_ALONE.findall(bare) == [token.key for token in tokens(text)]
    symbols = _TOKEN_OR_SYMBOL.findall(bare) or [c for c in bare if not c.isspace()]
    assert words_and_symbols(text) == symbols
