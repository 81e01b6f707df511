"""Short tasks about a sentence whose right answer is known by rule, as instruction pools are full of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import regex

from lm_mixup.core.noise import add_noise

_YEAR: Final = re.compile(r"(?<![\d,.])(1[0-9]{3}|20[0-2][0-9])(?![\d,.]*\d)")
_WORD: Final = regex.compile(r"[^\W\d_]{4,}")
_LENGTHS: Final = (30, 180)  # characters of a sentence that a task is about

Task = tuple[str, str]


def text_task(sentences: Sequence[str], rng: Random) -> Task | None:
    """A task about one of the sentences of a text and its answer; None if no sentence is fit for one.

    Args:
        sentences: Of the text, in order.
        rng: Makes all choices.
    """
    fit = [i for i, sentence in enumerate(sentences) if _LENGTHS[0] <= len(sentence) <= _LENGTHS[1]]
    if not fit:
        return None
    at = rng.choice(fit)
    following = sentences[at + 1] if at + 1 < len(sentences) else ""
    made = [task for make in _TASKS if (task := make(sentences[at], following, rng))]
    return rng.choice(made)


def _about(asks: Sequence[str], text: str, answer: str, rng: Random) -> Task:
    return f"{rng.choice(asks)}\n\n{text}", answer


def _count_words(sentence: str, following: str, rng: Random) -> Task | None:
    count = len(sentence.split())
    asks = ("Count the words in this sentence.", "How many words does the following sentence have?")
    return _about(asks, sentence, rng.choice((str(count), f"The sentence has {count} words.")), rng)


def _capitals(sentence: str, following: str, rng: Random) -> Task | None:
    asks = ("Write this sentence in capital letters.", "Convert the text to upper case.")
    return _about(asks, sentence, sentence.upper(), rng)


def _year(sentence: str, following: str, rng: Random) -> Task | None:
    years = _YEAR.findall(sentence)
    if len(years) != 1:
        return None
    asks = ("Which year is named in this sentence?", "Find the year in the text.", "Extract the date.")
    return _about(asks, sentence, rng.choice((years[0], f"The year is {years[0]}.")), rng)


def _gap(sentence: str, following: str, rng: Random) -> Task | None:
    words = [word for word in _WORD.findall(sentence) if sentence.count(word) == 1]
    if not words:
        return None
    word = rng.choice(words)
    asks = ("Fill in the blank.", "Complete the sentence with the missing word.", "Which word is missing?")
    return _about(asks, sentence.replace(word, "____"), word, rng)


def _sort(sentence: str, following: str, rng: Random) -> Task | None:
    words = sorted({word.lower() for word in _WORD.findall(sentence)})
    if len(words) < 4:
        return None
    chosen = rng.sample(words, rng.randint(3, min(6, len(words))))
    asks = (
        "Put these words in alphabetical order:",
        "Sort the list alphabetically:",
        "Arrange in A-Z order:",
    )
    return f"{rng.choice(asks)} {', '.join(chosen)}", ", ".join(sorted(chosen))


def _spelling(sentence: str, following: str, rng: Random) -> Task | None:
    wrong = add_noise(sentence, (), rng, 0.15)
    asks = (
        "Correct the spelling of this sentence.",
        "Fix the errors in the text.",
        "Proofread the sentence.",
    )
    return _about(asks, wrong, sentence, rng) if wrong != sentence else None


def _go_on(sentence: str, following: str, rng: Random) -> Task | None:
    if not following or len(following) > 2 * _LENGTHS[1]:
        return None
    asks = ("Continue the text.", "Write the next sentence.", "What comes after this sentence?")
    return _about(asks, sentence, following, rng)


def _longest(sentence: str, following: str, rng: Random) -> Task | None:
    words = _WORD.findall(sentence)
    longest = max(words, key=len, default="")
    if [len(word) for word in words].count(len(longest)) != 1:
        return None
    asks = ("What is the longest word in this sentence?", "Identify the longest word.")
    return _about(asks, sentence, rng.choice((longest, f'The longest word is "{longest}".')), rng)


_TASKS: Final[tuple[Callable[[str, str, Random], Task | None], ...]] = (
    _count_words,
    _capitals,
    _year,
    _gap,
    _sort,
    _spelling,
    _go_on,
    _longest,
)
