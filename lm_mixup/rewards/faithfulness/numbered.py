"""Pairs that ask and answer in numbered parts, and which sources each part was made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import regex

from lm_mixup.core.words import words
from lm_mixup.rewards.faithfulness.facts import Reading
from lm_mixup.rewards.faithfulness.facts import read as read_text
from lm_mixup.rewards.faithfulness.sources import SourceReading
from lm_mixup.rewards.faithfulness.support import Span

_NUMBER: Final = regex.compile(r"(?m)^[ \t]*(?P<number>\d{1,2})[.)][ \t]+")


@dataclass(frozen=True, slots=True)
class Piece:
    r"""A part of a pair, and where it stands in `prompt\ncompletion`."""

    text: str
    at: int

    def moved(self, span: Span) -> Span:
        """A span of the part as a span of the whole."""
        return Span(span.start + self.at, span.end + self.at, span.text, span.kind)

    def part(self, text: str) -> Piece:
        """A text that stands in this one; one that does not, because it was put together, begins with it."""
        return Piece(text, self.at + max(0, self.text.find(text)))


def numbered_parts(prompt: str, completion: str) -> list[tuple[Piece, Piece]]:
    """The parts of a pair whose prompt and completion are both numbered from 1 to the same number, 2 or more.

    Empty where they are not, or where a part may itself hold a numbered list: then nothing says which number
    begins a part.
    """
    asked, told = _numbered(prompt), _numbered(completion)
    if len(asked) < 2 or len(asked) != len(told):
        return []
    after = len(prompt) + 1
    return [
        (Piece(prompt[a:b], a), Piece(completion[c:d], after + c))
        for (a, b), (c, d) in zip(asked, told, strict=True)
    ]


def _numbered(text: str) -> list[tuple[int, int]]:
    marks = list(_NUMBER.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return []
    if [int(mark["number"]) for mark in marks] != list(range(1, len(marks) + 1)):
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [(mark.end(), end) for mark, end in zip(marks, ends, strict=True)]


def sources_of_parts(prompts: Sequence[Piece], sources: Sequence[SourceReading]) -> list[list[SourceReading]]:
    """For each part the sources whose question it is most like; all for a part that is like none.

    A source that is like no part, since it asks nothing of its own, belongs to all.
    """
    asked = [_terms(read_text(piece.text)) for piece in prompts]
    spread = Counter(term for terms in asked for term in terms)
    shares: list[list[SourceReading]] = [[] for _ in prompts]
    for source in sources:
        terms = _terms(source.prompt)
        fits = [sum(1 / spread[term] for term in terms & mine) for mine in asked]
        best = max(fits)
        for number, fit in enumerate(fits):
            if fit >= 0.75 * best:
                shares[number].append(source)
    return [mine or list(sources) for mine in shares]


def _terms(reading: Reading) -> set[str]:
    return {word.stem for word in reading.words} | {
        fact.key for fact in reading.facts if fact.kind != "quoted"
    }


def answers_each_part(prompt: str, completion: str) -> bool:
    """Whether a prompt in numbered parts, 2 or more, has an answer of as many; true for any other prompt.

    An answer that itself holds a numbered list fails: nothing says which number begins a part, and a model
    that numbers both loses its place there, drops items or tells them twice.
    """
    asked = len(_numbered(prompt))
    return asked < 2 or len(_numbered(completion)) == asked


def parts_keep_their_text(prompt: str, sources: Sequence[tuple[str, str]], least: float) -> bool:
    """Whether each numbered part of a prompt still has the words of the question it was made of.

    A part that says "Given some ingredients, generate a recipe." and leaves out the ingredients cannot be
    answered. The question of a part is that of the source which shares the most words with it.

    Args:
        prompt: The prompt; one that is not in numbered parts passes.
        sources: The pairs that it was made of.
        least: Least share of the different words of the question in the part.
    """
    parts = [set(words(prompt[start:end])) for start, end in _numbered(prompt)]
    questions = [set(words(question)) for question, _ in sources]
    if len(parts) < 2:
        return True
    for part in parts:
        question = max(questions, key=lambda asked: len(asked & part) / max(len(asked | part), 1))
        if len(question & part) < least * len(question):
            return False
    return True
