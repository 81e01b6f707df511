"""The offline rater's features: what is read off a row's surface, and how it becomes four ratings.

A row is judged by how much it tells, how specifically, how cleanly, and whether it answers its own prompt
(`relevance`), never by whether it is true: truth needs a model or a source of facts. Every feature lies in
[0, 1], so a weight is the most that it can matter.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

import regex

from lm_mixup.chat.relevance import irrelevance, without_copied
from lm_mixup.core.task_types import detect_task_type
from lm_mixup.core.words import STOPS, STOPS_WITHOUT_SPACE, begins_small, tokens, visible

FEATURES: Final = (
    "length",  # words, logarithmic, full at 200
    "dense",  # many facts in few words, in running text: what a short answer can have in place of length
    "sentences",  # saturating: 3 give 0.63
    "sentence_length",  # words a sentence, full at 25
    "long_words",  # mean word length, from 3.5 to 6.5 letters
    "vocabulary",  # different words of 8 letters or more, saturating: 8 give 0.63
    "fresh",  # different content words that the prompt does not hold, logarithmic, full at 100
    "reasons",  # words that explain or give examples, saturating: 2 give 0.63
    "novelty",  # share of the content's words that the prompt does not hold
    "asked",  # words of the prompt, logarithmic, full at 100
    "listed",  # list items, saturating: 3 give 0.63
    "echo",  # share of word triples that stand in the prompt
    "mirrored",  # the prompt over again: echo times the share of its triples that recur, from 0.8 on
    "untidy",  # stray markup, literal escapes, a lower-case opening; saturating: 2 give 0.63
    "exclaiming",  # exclamation marks, saturating: 2 give 0.63
    "vague",  # share of hedges and empty words, full at one in 8
    "repetition",  # share of word triples that were there before
    "looped",  # share of the words that were there before, of a text that is one loop from end to end
    "truncated",  # a text that stops in mid-sentence
    "refusal",  # declines, or names itself a language model
    "irrelevant",  # how sure it is that this answers another prompt; 0 where that is not looked at
)

# How the numbers below came about (`benchmarks/offline_judge.py` fits and measures again). The weights of
# `overall` were fitted by ridge regression (penalty 5) on 15,780 of 20,000 Alpaca rows, to the mean 0-5 score
# of three LLM judges (the raw scores published with DS2, arXiv 2410.10877), each held to the sign that its
# feature has by its meaning: a feature that only goes along with good rows of that corpus must not speak
# against better ones. Left out were every fifth row, and every row that has its text in common with the pairs
# which the rater is tested on. Eight weights, the last two lines of `overall`, are set by hand and the rest
# fitted around them: the corpus holds next to no refusals, loops, cut-off texts, mirrored prompts or answers
# of other prompts and cannot teach what they are worth. Relevance is set on top of the fit, without which the
# other features would make up for what it takes from right answers in unlike words. `FULL` is a quantile of
# what is gained without `dense`, 75%, of `overall` 62%, set by hand likewise: the corpus holds next to no
# dense short answers. The cuts are the 3, 7, 12, 20, 30, 42, 58, 78 and 93% quantiles of 4,000 of the rows
# fitted on, so all ratings are used. Its accuracy on held-out rows is in docs/rating.md.
QUALITIES: Final[Mapping[str, Mapping[str, float]]] = {
    "rarity": {"long_words": 1.0, "novelty": 1.0, "vague": -0.5, "repetition": -0.5},
    "complexity": {
        "length": 1.5, "sentences": 0.5, "reasons": 0.7, "listed": 0.3, "asked": 0.5, "truncated": -0.2,
    },
    "informativeness": {
        "length": 1.5, "novelty": 0.5, "vague": -0.5, "repetition": -1.0, "truncated": -0.2, "refusal": -0.5,
        "mirrored": -1.0, "irrelevant": -1.5,
    },
    "overall": {
        "sentences": 0.17, "sentence_length": 0.35, "long_words": 0.19, "vocabulary": 0.53, "fresh": 0.47,
        "reasons": 0.04, "novelty": 0.06, "listed": 0.17, "echo": -0.16, "untidy": -0.14, "exclaiming": -0.36,
        "asked": 0.7, "vague": -0.1, "repetition": -0.1, "looped": -2.0, "truncated": -0.1, "refusal": -0.4,
        "mirrored": -1.5, "irrelevant": -5.0,
    },
}  # fmt: skip
FULL: Final[Mapping[str, float]] = {"rarity": 1.28, "informativeness": 1.54, "overall": 1.52}
DENSE_ENOUGH: Final = 0.4  # from here on, a dense text makes up for all that it lacks
CUTS: Final[Mapping[str, tuple[float, ...]]] = {
    "rarity": (0.111, 0.292, 0.5, 0.69, 0.86, 1.0, 1.144, 1.301, 1.548),
    "complexity": (0.645, 0.782, 0.924, 1.032, 1.149, 1.348, 1.769, 2.123, 2.451),
    "informativeness": (0.311, 0.55, 0.634, 0.731, 0.906, 1.139, 1.391, 1.547, 1.672),
    "overall": (0.465, 0.562, 0.651, 0.762, 0.91, 1.173, 1.462, 1.682, 1.853),
}

_SENTENCE = regex.compile(rf"\w\W?(?:[{STOPS}][\"')\]]*\s|[{STOPS_WITHOUT_SPACE}]|\n)")
_NAME = regex.compile(r"(?<=[\w,;)\"'’-] )[(\"'“]?\p{Lu}[\w-]*(?: \p{Lu}[\w-]*)*")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s", re.MULTILINE)
_REFUSAL = re.compile(
    r"\W*(?:as an ai\b|as a (?:large )?language model|(?:i'?m|i am) (?:sorry|not (?:sure|able)|unable)|"
    r"sorry\b|i (?:cannot|can'?t|don'?t know)|<?no ?(?:input|output)|not applicable|n/a\b|unable to)",
    re.IGNORECASE,
)
_UNTIDY = re.compile(r"\\[nt]|&[a-z]+;|</?\w+>|�|!!|\?\?|,,|[ \t]{3}")
_VERDICT = re.compile(r"\W*(?:(?:[Tt]he )?[Aa]nswer(?: is)?:?\W*)?(?:[A-D](?:[).:]|\W*$)|(?i:true|false)\b)")
_OPTION = re.compile(r"(?:^|\s)\(?[A-D][).:]\s+([^\n]+)")
_CLOSED = ("mcq", "tfq")
_ENDINGS = tuple(f"{STOPS}\"')]}}>`”’»」』：；:;|")
_NO_STOPS = regex.compile(r"[\p{Thai}\p{Lao}]\W*$")  # scripts that end no sentence with a mark


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


def features(prompt: str, completion: str, cosine: float | None = None) -> dict[str, float]:
    """The features of a row, each in [0, 1], in the order of `FEATURES`.

    Multiple-choice and true/false rows carry what they tell in the question, so there the question counts as
    content beside the answer, and a verdict is relevant. What is no verdict is judged as any other answer.

    Args:
        prompt: The instruction.
        completion: The answer.
        cosine: Of the two (`relevance.Relevance`); None leaves relevance out.
    """
    prompt, completion = visible(prompt), visible(completion)
    closed = detect_task_type(prompt, completion) in _CLOSED and _is_verdict(prompt, completion)
    content = f"{prompt}\n{completion}" if closed else completion
    words = _tokens(content)
    asked = _tokens(prompt)
    count = len(words)
    distinct = set(words)
    topic = set() if closed else set(asked)
    facts = _facts(content) if closed else _facts(content) - _facts(prompt)
    sentences = len(_SENTENCE.findall(content + "\n")) or 1
    in_threes = _triples(words)
    fresh = distinct - topic - _STOPWORDS
    items, lines = (0, 0) if closed else (len(_ITEM.findall(content)), content.strip().count("\n"))
    cut_off = count >= 8 and not closed and not items and not _is_ended(content)
    echo, mirrored = (0.0, 0.0) if closed else _echo(words, asked)
    values = (
        min(1.0, math.log1p(count) / math.log(201)),
        _dense(min(len(facts), count / 5), sentences, count) * math.exp(-lines / 2),
        _saturate(sentences, 3),
        min(1.0, count / sentences / 25),
        min(1.0, max(0.0, (sum(map(len, words)) / max(1, count) - 3.5) / 3)),
        _saturate(sum(len(word) >= 8 for word in distinct), 8),
        min(1.0, math.log1p(len(fresh)) / math.log(101)),
        _saturate(sum(map(_REASONS.__contains__, words)), 2),
        len(fresh) / max(1, len(distinct)),
        min(1.0, math.log1p(len(asked)) / math.log(101)),
        _saturate(items, 3),
        echo,
        mirrored,
        _saturate(len(_UNTIDY.findall(completion)) + begins_small(completion[:1]), 2),
        _saturate(completion.count("!"), 2),
        min(1.0, 8 * sum(map(_VAGUE.__contains__, words)) / max(8, count)),
        1 - len(set(in_threes)) / len(in_threes) if in_threes else 0.0,
        _looped(words),
        float(cut_off),
        float(_REFUSAL.match(completion) is not None),
        0.0 if closed or cosine is None else irrelevance(cosine, *shared_counts(prompt, completion)),
    )
    return dict(zip(FEATURES, values, strict=True))


def shared_counts(prompt: str, completion: str) -> tuple[int, int, int]:
    """What both sides have in common: their content words, the answer's words, the prompt's content words.

    Of the answer what is copied from the prompt is left out (`relevance.without_copied`).
    """
    said, subject = _tokens(without_copied(prompt, completion)), set(_tokens(prompt)) - _STOPWORDS
    return len(subject.intersection(said)), len(said), len(subject)


def rate_row(prompt: str, completion: str, cosine: float | None = None) -> tuple[dict[str, int], float]:
    """The four ratings of a row, 1 to 10, by quality, and `overall` before it was rounded.

    A rating is 1 plus the cuts that the row's weighted features reach.
    """
    values = features(prompt, completion, cosine)
    found = {quality: weigh(quality, values) for quality in QUALITIES}
    ratings = {quality: 1 + bisect_right(CUTS[quality], value) for quality, value in found.items()}
    return ratings, unrounded(found["overall"], CUTS["overall"])


def weigh(quality: str, values: Mapping[str, float]) -> float:
    """What the features are worth together."""
    return worth(QUALITIES[quality], FULL.get(quality, 0.0), values)


def worth(weights: Mapping[str, float], full: float, values: Mapping[str, float]) -> float:
    """What features are worth under some weights.

    What speaks for a row is added up; a dense text makes up for what that lacks to about `full`, in the
    measure in which it is dense. What speaks against the row is subtracted after that.
    """
    gained = lost = 0.0
    for name, weight in weights.items():
        if weight > 0:
            gained += weight * values[name]
        else:
            lost += weight * values[name]
    dense = values["dense"]
    lacking = max(0.0, full * (0.97 + 0.06 * dense) - gained)  # one fact more still counts
    return gained + min(1.0, dense / DENSE_ENOUGH) * lacking + lost


def unrounded(value: float, cuts: Sequence[float]) -> float:
    """A rating with its fraction, within (1, 10): rises strictly with the value, and rounds to the rating.

    Args:
        value: A weighted sum.
        cuts: The nine cuts, ascending; the k-th is at k + 0.5, straight lines lie between, and the ends
            approach 1 and 10.
    """
    reached = bisect_right(cuts, value)
    if reached == 0:
        return 1 + 0.5 * math.exp((value - cuts[0]) / (cuts[1] - cuts[0]))
    if reached == len(cuts):
        return 10 - 0.5 * math.exp((cuts[-1] - value) / (cuts[-1] - cuts[-2]))
    low, high = cuts[reached - 1], cuts[reached]
    return reached + 0.5 + (value - low) / (high - low)


def _tokens(text: str) -> list[str]:
    """Words as they are compared; in scripts without spaces two characters in a row count as a word."""
    found: list[str] = []
    open_at = -1  # where the single character ends that the next one may join
    for token in tokens(text):
        if token.kind == "unspaced" and token.start == open_at:
            found[-1] += token.key
            open_at = -1
        else:
            found.append(token.key)
            open_at = token.end if token.kind == "unspaced" else -1
    return found


def _is_ended(text: str) -> bool:
    return text.rstrip().endswith(_ENDINGS) or _NO_STOPS.search(text) is not None


def _is_verdict(prompt: str, completion: str) -> bool:
    """Whether the answer of a closed question names a letter, an option, or true or false."""
    if _VERDICT.match(completion):
        return True
    options = {option.strip().casefold() for option in _OPTION.findall(prompt)}
    return completion.strip().rstrip(".").casefold() in options


def _looped(words: Sequence[str]) -> float:
    """The share of a loop's words that were there before; 0 for a text that is not one loop from end to end.

    The text's least period, by the failure function of Knuth, Morris and Pratt.
    """
    longest = [0] * len(words)
    for place in range(1, len(words)):
        border = longest[place - 1]
        while border and words[place] != words[border]:
            border = longest[border - 1]
        longest[place] = border + (words[place] == words[border])
    period = len(words) - longest[-1] if words else 0
    return 1 - period / len(words) if words and 2 * period <= len(words) else 0.0


def _facts(text: str) -> set[str]:
    """The numbers, and the names in mid-sentence: words with capitals in a row are one."""
    return {*_NUMBER.findall(text), *_NAME.findall(text)}


def _triples(words: Sequence[str]) -> list[tuple[str, str, str]]:
    return list(zip(words, words[1:], words[2:], strict=False))


def _echo(words: Sequence[str], asked: Sequence[str]) -> tuple[float, float]:
    """The share of triples that are the prompt's; and that, times the share of the prompt's that recur."""
    if len(words) < 3 or len(asked) < 3:
        return (0.0, float(bool(words) and words == asked))
    own, theirs = _triples(words), set(_triples(asked))
    echo = sum(map(theirs.__contains__, own)) / len(own)
    return echo, max(0.0, 5 * echo * len(theirs.intersection(own)) / len(theirs) - 4)


def _dense(facts: float, sentences: int, words: int) -> float:
    """Numbers and names, 3 giving 0.63, at 2 or more a sentence; nothing up to 7 words, in full from 17."""
    return _saturate(facts, 3) * min(1.0, facts / sentences / 2) * min(1.0, max(0.0, (words - 7) / 10))


def _saturate(amount: float, scale: float) -> float:
    return 1 - math.exp(-amount / scale)
