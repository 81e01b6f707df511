"""Texts of a published MIXTURE: one text back into the inputs it was joined from, and targets in our format.

How a publisher joined the inputs stands nowhere in the data, so it is read off the text: by numbers, by the
marks of the task type, by blank lines. What cannot be told apart is refused, not guessed; a known separator
can be given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from lm_mixup.core.task_types import FormatError, TaskType, parse_answer, write_answer

LEAST_INPUTS: Final = 2
MOST_INPUTS: Final = 20

# `[1]`, `(1)`, `1.`, `1)`, `Input 1:` at the start of a line; the shape is what stands around the number.
_NUMBER: Final = re.compile(
    r"^[ \t]*(?P<before>(?:[A-Za-z][A-Za-z -]{0,30}[ #])?[\[(#]?)"
    r"(?P<number>\d{1,2})(?P<after>[\]).:]{1,2})[ \t]*",
    re.MULTILINE,
)
_HEADS: Final[dict[TaskType, str]] = {
    "qa": r"(?:Q|Question):",
    "mcq": r"(?:Q|Question):",
    "tfq": r"(?:Q|Question|S|Statement):",
    "cs": r"(?:C|Category):",
}
# What else must stand in an input that begins with such a mark.
_TAILS: Final[dict[TaskType, str]] = {
    "qa": r"(?:A|Answer):",
    "mcq": r"(?:Answer:|A\))",
    "tfq": r"Answer:",
    "cs": r"(?:S|Statement):",
}
_VERDICT: Final = re.compile(r"(?i)\bAnswer:[ \t]*(?:true|false)\b[^\n]*")
_RULE: Final = re.compile(r"\n[ \t]*(?:-{3,}|={3,}|\*{3,}|#{3,})[ \t]*(?:\n|$)")
_BLANK: Final = re.compile(r"\n[ \t]*\n")

# What begins a line of its own in a target, where it was written on one line.
_BREAKS: Final[dict[TaskType, str]] = {
    "qa": r"A:",
    "mcq": r"[A-D]\)|Answer:",
    "tfq": r"Answer:",
    "cs": r"S:",
}
_CASED_VERDICT: Final = re.compile(r"(?im)^answer:[ \t]*(true|false)\b")
_STATEMENT_MARK: Final = re.compile(r"^(?:Q|Question|S|Statement):[ \t]*")


class Unreadable(ValueError):
    """A text that is no MIXTURE text; the message is the reason of the reject."""


def split_inputs(task_type: TaskType, text: str, separator: str | None = None) -> tuple[list[str], str]:
    """The inputs that a text was joined from, and how they were told apart.

    The first way that gives two texts or more is taken: `separator`; `numbered`; `marked`; `ruled`;
    `blank_lines`. Text before the first mark goes with the first input, so nothing but numbers and rules is
    lost.

    Args:
        task_type: Says which marks an input begins with.
        text: The inputs in one text.
        separator: What stands between the inputs; then nothing else is tried.

    Raises:
        Unreadable: `one_input` or `more_than_20_inputs`.
    """
    text = _with_unix_lines(text).strip()
    if separator is not None:
        ways = {"separator": text.split(separator)}
    else:
        ways = {
            "numbered": _numbered(text),
            "marked": [_RULE.sub("\n", piece) for piece in _marked(task_type, text)],
            "ruled": _RULE.split(text),
            "blank_lines": _BLANK.split(text),
        }
    for way, pieces in ways.items():
        inputs = [piece.strip() for piece in pieces if piece.strip()]
        if len(inputs) >= LEAST_INPUTS:
            return bounded(inputs), way
    raise Unreadable("one_input")


def bounded(inputs: list[str]) -> list[str]:
    """The inputs, if there are as many as a MIXTURE row may have.

    Raises:
        Unreadable: There are not.
    """
    if len(inputs) < LEAST_INPUTS:
        raise Unreadable("one_input")
    if len(inputs) > MOST_INPUTS:
        raise Unreadable(f"more_than_{MOST_INPUTS}_inputs")
    return inputs


def canonical(task_type: TaskType, text: str) -> str:
    """An answer as `task_types.write_answer` writes it.

    Spaces at the ends of lines, empty lines outside paragraphs, an answer on one line, and the letter case of
    a verdict are put right; anything else that does not read is refused.

    Raises:
        Unreadable: The text does not follow the format of its task type; the reason says how.
    """
    text = _with_unix_lines(text).strip()
    if task_type == "para":
        return _written(task_type, text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    plain = "\n".join(lines)
    if task_type == "tfq":
        plain = _STATEMENT_MARK.sub("", plain)
    broken = re.sub(rf"[ \t]+(?=(?:{_BREAKS[task_type]}))", "\n", plain)
    for candidate in (plain, broken):
        try:
            cased = _CASED_VERDICT.sub(lambda found: f"Answer: {found[1].capitalize()}", candidate)
            return _written(task_type, cased)
        except Unreadable as error:
            reason = error
    raise reason


def _written(task_type: TaskType, text: str) -> str:
    try:
        return write_answer(parse_answer(task_type, text))
    except FormatError as error:
        raise Unreadable(f"output_{error}".replace("output_empty_answer", "no_output")) from None


def _with_unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _numbered(text: str) -> list[str]:
    """Pieces that are numbered 1, 2, … in one shape, the first at the start of the text."""
    cuts: list[re.Match[str]] = []
    for found in _NUMBER.finditer(text):
        if not cuts and found.start() > 0:
            return []
        same = not cuts or (found["before"], found["after"]) == (cuts[0]["before"], cuts[0]["after"])
        if same and int(found["number"]) == len(cuts) + 1:
            cuts.append(found)
    if not cuts:
        return []
    ends = [cut.start() for cut in cuts[1:]] + [len(text)]
    return [text[cut.end() : end] for cut, end in zip(cuts, ends, strict=True)]


def _marked(task_type: TaskType, text: str) -> list[str]:
    """Pieces that each begin with the mark of their task type; of true/false, or end with a verdict.

    Marks within lines count only where lines begin with fewer than two. Texts of which one has the first mark
    and not the second are not told apart by marks: such a mark is a chance word.
    """
    if task_type == "para":
        return []
    for place in (r"(?im)^[ \t]*", r"(?i)(?:^|(?<=\s))"):
        heads = [found.start() for found in re.finditer(place + _HEADS[task_type], text)]
        pieces = _cut(text, heads[1:])
        if len(heads) >= LEAST_INPUTS and all(
            re.search(rf"(?i)(?:^|\s){_TAILS[task_type]}", piece) for piece in pieces
        ):
            return pieces
    if task_type == "tfq":
        return _cut(text, [found.end() for found in _VERDICT.finditer(text)])
    return []


def _cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *places, len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]
