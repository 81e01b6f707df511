"""The offline rater's features: what is read off a row's surface, and how it becomes four ratings.

A row is judged by how much it tells, how specifically, and how cleanly, never by whether it is true: truth
needs a model or a source of facts. Every feature lies in [0, 1], so a weight is the most that it can matter.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final

from lm_mixup.tasks import detect_task_type

FEATURES: Final = (
    "length",  # words, logarithmic, full at 200
    "compact",  # many facts in few words: what a short answer can have in place of length
    "sentences",  # saturating: 3 give 0.63
    "long_words",  # mean word length, from 3.5 to 6.5 letters
    "reasons",  # words that explain or give examples, saturating: 2 give 0.63
    "novelty",  # share of the content's words that the prompt does not hold
    "asked",  # words of the prompt, logarithmic, full at 100
    "listed",  # list items, saturating: 3 give 0.63
    "untidy",  # stray markup, literal escapes, a lower-case opening; saturating: 2 give 0.63
    "vague",  # share of hedges and empty words, full at one in 8
    "repetition",  # share of word triples that were there before
    "truncated",  # a text that stops in mid-sentence
    "refusal",  # declines, or names itself a language model
)

# How the numbers below came about. The weights were fitted once, by ridge regression on 20,000 Alpaca rows to
# the mean 0-5 score of three LLM judges (the raw scores published with DS2, arXiv 2410.10877). Six weights,
# the last line of `overall`, are set by hand and the rest fitted around them: that corpus holds next to no
# dense short answers, refusals, loops or cut-off texts and cannot teach what they are worth, and it credits
# the answer with the length of the question. Spearman correlation with the mean judge on 4,000 held-out rows
# is 0.58 (0.62 with all weights fitted; two of the judges correlate at 0.19 to 0.30). The cuts are the 3, 7,
# 12, 20, 30, 42, 58, 78 and 93% quantiles of the same rows, so all ratings are used.
QUALITIES: Final[Mapping[str, Mapping[str, float]]] = {
    "rarity": {"long_words": 1.0, "compact": 2.0, "novelty": 1.0, "vague": -0.5, "repetition": -0.5},
    "complexity": {
        "length": 1.5, "sentences": 0.5, "reasons": 0.7, "listed": 0.3, "asked": 0.5, "truncated": -0.2,
    },
    "informativeness": {
        "length": 1.5, "compact": 2.0, "novelty": 0.5, "vague": -0.5, "repetition": -1.0, "truncated": -0.2,
        "refusal": -0.5,
    },
    "overall": {
        "length": 1.4, "sentences": 0.13, "long_words": 0.47, "reasons": 0.22, "novelty": 0.23,
        "listed": 0.07, "untidy": -0.37,
        "compact": 2.2, "asked": 0.4, "vague": -0.3, "repetition": -0.8, "truncated": -0.2, "refusal": -0.4,
    },
}  # fmt: skip
CUTS: Final[Mapping[str, tuple[float, ...]]] = {
    "rarity": (0.125, 0.315, 0.5, 0.7, 0.876, 1.0, 1.162, 1.388, 1.698),
    "complexity": (0.647, 0.803, 0.93, 1.041, 1.161, 1.371, 1.762, 2.113, 2.431),
    "informativeness": (0.392, 0.561, 0.675, 0.766, 0.945, 1.172, 1.415, 1.582, 1.765),
    "overall": (0.714, 0.859, 0.961, 1.104, 1.261, 1.492, 1.752, 1.967, 2.169),
}

_WORD = re.compile(r"\w[\w'’-]*")
_CJK = r"\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"
_WORD_CJK = re.compile(rf"[{_CJK}]{{1,2}}|[^\W{_CJK}][\w'’-]*")
_SENTENCE = re.compile(r"\w\W?(?:[.!?][\"')\]]*\s|[。！？]|\n)")
_NAME = re.compile(r"(?<=[\w,;)\"'’-] )[(\"'“]?[A-Z][\w-]*")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s", re.MULTILINE)
_REFUSAL = re.compile(
    r"\W*(?:as an ai\b|as a (?:large )?language model|(?:i'?m|i am) (?:sorry|not (?:sure|able)|unable)|"
    r"sorry\b|i (?:cannot|can'?t|don'?t know)|<?no ?(?:input|output)|not applicable|n/a\b|unable to)",
    re.IGNORECASE,
)
_UNTIDY = re.compile(r"\\[nt]|&[a-z]+;|</?\w+>|�|!!|\?\?|,,|[ \t]{3}")
_CLOSED = ("mcq", "tfq")
_ENDINGS = tuple(".!?。！？\"')]}>`”’:;|")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_REASONS = _words(
    "because since therefore thus hence due such example instance including which whereas although however"
    " while means leads lead causes caused cause result consequently allows allowing"
)
_VAGUE = _words(
    "something somehow some thing things stuff maybe perhaps probably guess kind sort etc very really quite"
    " nice good lot lots many several various certain pretty unknown"
)
_STOPWORDS = _words(
    "a an the of to in on at by for with from and or but is are was were be been it its this that these those"
    " what which who how why when where do does did can could should would will your you i me my we our give"
    " write make describe explain list name tell generate create provide find identify following given"
)


def features(prompt: str, completion: str) -> dict[str, float]:
    """The features of a row, each in [0, 1], in the order of `FEATURES`.

    Multiple-choice and true/false rows carry what they tell in the question, so there the question counts as
    content beside the answer.
    """
    closed = detect_task_type(prompt, completion) in _CLOSED
    content = f"{prompt}\n{completion}" if closed else completion
    words = _tokens(content)
    asked = _tokens(prompt)
    count = len(words)
    distinct = set(words)
    topic = set() if closed else set(asked)
    facts = _facts(content) if closed else _facts(content) - _facts(prompt)
    sentences = len(_SENTENCE.findall(content + "\n")) or 1
    triples = list(zip(words, words[1:], words[2:], strict=False))
    items = 0 if closed else len(_ITEM.findall(content))
    length = min(1.0, math.log1p(count) / math.log(201))
    cut_off = count >= 8 and not closed and not items and not content.rstrip().endswith(_ENDINGS)
    values = (
        length,
        _compact(len(facts), sentences, count) * (1 - length) * math.exp(-items / 3),
        _saturate(sentences, 3),
        min(1.0, max(0.0, (sum(map(len, words)) / max(1, count) - 3.5) / 3)),
        _saturate(sum(map(_REASONS.__contains__, words)), 2),
        len(distinct - topic - _STOPWORDS) / max(1, len(distinct)),
        min(1.0, math.log1p(len(asked)) / math.log(101)),
        _saturate(items, 3),
        _saturate(len(_UNTIDY.findall(completion)) + completion[:1].islower(), 2),
        min(1.0, 8 * sum(map(_VAGUE.__contains__, words)) / max(8, count)),
        1 - len(set(triples)) / len(triples) if triples else 0.0,
        float(cut_off),
        float(_REFUSAL.match(completion) is not None),
    )
    return dict(zip(FEATURES, values, strict=True))


def rate_row(prompt: str, completion: str) -> dict[str, int]:
    """The four ratings of a row, 1 to 10, by quality: 1 plus the cuts that its weighted features reach."""
    values = features(prompt, completion)
    return {
        quality: 1
        + bisect_right(CUTS[quality], sum(weight * values[name] for name, weight in weights.items()))
        for quality, weights in QUALITIES.items()
    }


def _tokens(text: str) -> list[str]:
    """Words in lower case; scripts without spaces count two characters as a word."""
    return (_WORD if text.isascii() else _WORD_CJK).findall(text.lower())


def _facts(text: str) -> set[str]:
    """The numbers and the names in mid-sentence."""
    return {*_NUMBER.findall(text), *_NAME.findall(text)}


def _compact(facts: int, sentences: int, words: int) -> float:
    """Numbers and names, 3 giving 0.63, at 2 or more a sentence; nothing up to 7 words, in full from 17."""
    return _saturate(facts, 3) * min(1.0, facts / sentences / 2) * min(1.0, max(0.0, (words - 7) / 10))


def _saturate(amount: float, scale: float) -> float:
    return 1 - math.exp(-amount / scale)
