"""The five task types: how a sample of each is written, parsed and checked; the policy's prompt and output.

Everything that writes or reads the model's text goes through this module, so training targets, reward texts,
library texts and distilled rows can be compared: they come from one writer and one parser.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lm_mixup.core.words import visible

TaskType = Literal["qa", "mcq", "tfq", "cs", "para"]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
Fault = Literal["incomplete", "vague", "register", "redundant", "reasoning", "options"]
"""What is poor about a variant: it drops facts, is vague, in the wrong register, says things twice, cuts its
reasoning short, or (multiple choice) shows some of the options."""

LETTERS = ("A", "B", "C", "D")

INSTRUCTIONS: dict[TaskType, str] = {
    "qa": "Merge the inputs into one complete question and answer.",
    "mcq": "Merge the inputs into one multiple-choice question with four options and its answer.",
    "tfq": "Merge the inputs into one statement and say whether it is true or false.",
    "cs": "Merge the inputs into one category and one statement about it.",
    "para": "Merge the inputs into one complete paragraph.",
}


class FormatError(ValueError):
    """A text that does not follow its format; the message says how."""


@dataclass(frozen=True)
class Qa:
    """Question and answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Mcq:
    """A question with four options, in the order A to D, and the letter of the right one."""

    question: str
    options: tuple[str, str, str, str]
    answer: str


@dataclass(frozen=True)
class Tfq:
    """A statement and whether it holds."""

    statement: str
    answer: bool


@dataclass(frozen=True)
class Cs:
    """A category and a statement that belongs to it."""

    category: str
    statement: str


@dataclass(frozen=True)
class Para:
    """Free text."""

    text: str


Sample = Qa | Mcq | Tfq | Cs | Para


def task_type_of(sample: Sample) -> TaskType:
    """The task type of a sample."""
    match sample:
        case Qa():
            return "qa"
        case Mcq():
            return "mcq"
        case Tfq():
            return "tfq"
        case Cs():
            return "cs"
        case Para():
            return "para"


def write_answer(sample: Sample) -> str:
    """The text of a sample, as it stands between the `<answer>` tags."""
    match sample:
        case Qa(question, answer):
            return f"Q: {question}\nA: {answer}"
        case Mcq(question, options, answer):
            lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
            return "\n".join([f"Q: {question}", *lines, f"Answer: {answer}"])
        case Tfq(statement, answer):
            return f"{statement}\nAnswer: {answer}"
        case Cs(category, statement):
            return f"C: {category}\nS: {statement}"
        case Para(text):
            return text


_QA = re.compile(r"Q:[ \t]*(?P<question>.+?)\nA:[ \t]*(?P<answer>.+)", re.DOTALL)
_CS = re.compile(r"C:[ \t]*(?P<category>.+?)\nS:[ \t]*(?P<statement>.+)", re.DOTALL)
_MCQ = re.compile(
    r"Q:[ \t]*(?P<question>.+?)\nA\)[ \t]*(?P<A>[^\n]+)\nB\)[ \t]*(?P<B>[^\n]+)\n"
    r"C\)[ \t]*(?P<C>[^\n]+)\nD\)[ \t]*(?P<D>[^\n]+)\nAnswer:[ \t]*(?P<answer>[A-D])\b(?P<rest>[^\n]*)",
    re.DOTALL,
)
_TFQ = re.compile(r"(?P<statement>.+?)\nAnswer:[ \t]*(?P<answer>True|False)\b(?P<rest>[^\n]*)", re.DOTALL)
_MARK = re.compile(r"^(Q|A|C|S|Answer):", re.MULTILINE)
_AND = r"(?:or|and|also|both|either|else|maybe|perhaps|possibly)\b"
_OR_AT_ONCE = re.compile(r"[^\w.:]*or\b", re.IGNORECASE)


def parse_answer(task_type: TaskType, text: str) -> Sample:
    """Reads a sample from its text: the inverse of `write_answer`.

    Args:
        task_type: What the text should hold.
        text: The text between the `<answer>` tags.

    Returns:
        The sample, its fields stripped.

    Raises:
        FormatError: The text does not follow the format of its task type.
    """
    text = text.strip()
    if not text:
        raise FormatError("empty_answer")
    match task_type:
        case "qa":
            found = _whole(_QA, text, marks=("Q", "A"))
            return Qa(_field(found, "question"), _field(found, "answer"))
        case "mcq":
            found = _whole(_MCQ, text, marks=("Q", "Answer"))
            a, b, c, d = (_field(found, letter) for letter in LETTERS)
            if len({a, b, c, d}) < len(LETTERS):
                raise FormatError("mcq_options_repeat")
            own = found[found["answer"]].strip()
            named = found["rest"].lstrip(" \t).:(")
            is_named = named.startswith(own)  # an option may itself say "A or B"
            others = f"[{''.join(letter for letter in LETTERS if letter != found['answer'])}]"
            _refuse_hedge(named[len(own) :] if is_named else found["rest"], others, at_once=not is_named)
            return Mcq(_field(found, "question"), (a, b, c, d), found["answer"])
        case "tfq":
            found = _whole(_TFQ, text, marks=("Answer",))
            other = "False" if found["answer"] == "True" else "True"
            _refuse_hedge(found["rest"], f"(?i:{other})", at_once=True)
            return Tfq(_field(found, "statement"), found["answer"] == "True")
        case "cs":
            found = _whole(_CS, text, marks=("C", "S"))
            return Cs(_field(found, "category"), _field(found, "statement"))
        case "para":
            return Para(text)


def _whole(pattern: re.Pattern[str], text: str, marks: tuple[str, ...]) -> re.Match[str]:
    """Matches the whole text, which must hold each line mark exactly once and no other."""
    found = pattern.fullmatch(text)
    if found is None:
        raise FormatError("answer_pattern")
    if sorted(_MARK.findall(text)) != sorted(marks):
        raise FormatError("repeated_mark")
    return found


def _refuse_hedge(rest: str, other: str, *, at_once: bool) -> None:
    """Refuses a verdict that is followed by another: who names them all is always right.

    An explanation may follow, and speak of the others: "B. Neon is a gas, A or C are none".

    Args:
        rest: The line from the verdict on.
        other: Pattern of the other verdicts.
        at_once: Whether `rest` begins right behind the verdict: no right answer goes on with "or" there.
    """
    joined = rf"\W*[,/|&+;]\W*{other}\b|\W*(?:(?i:{_AND})\W+)+{other}\b"
    listed = rf"(?:\W*(?i:{_AND}))*\W*{other}\b(?:\W+(?:(?i:{_AND})|{other}\b))*\W*$"
    if (at_once and _OR_AT_ONCE.match(rest)) or re.match(f"{joined}|{listed}", rest):
        raise FormatError("several_answers")


def _field(found: re.Match[str], name: str) -> str:
    value = found[name].strip()
    if not value:
        raise FormatError(f"empty_{name}")
    return value


@dataclass(frozen=True)
class Output:
    """The policy's output: its reasoning and its answer text, both stripped."""

    cot: str
    answer: str


_OUTPUT = re.compile(r"\s*<think>(?P<cot>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def write_output(cot: str, answer: str) -> str:
    """The policy's output text: reasoning, then answer."""
    return f"<think>{cot}</think>\n<answer>{answer}</answer>"


def parse_output(text: str) -> Output:
    """Reads the policy's output: one `<think>` block, one `<answer>` block, nothing outside.

    Tags are case-sensitive. The reasoning may be empty, the answer may not.

    Raises:
        FormatError: A tag is missing or repeated, text stands outside the tags, or the answer is empty.
    """
    for tag in _TAGS:
        count = text.count(tag)
        if count != 1:
            raise FormatError(f"{'missing' if count == 0 else 'repeated'}_tag:{tag}")
    found = _OUTPUT.fullmatch(text)
    if found is None:
        raise FormatError("text_outside_tags")
    output = Output(found["cot"].strip(), found["answer"].strip())
    if not output.answer:
        raise FormatError("empty_answer")
    return output


_OWN_MARK = re.compile(r"\n( *A:)")
_HELD_MARK = re.compile(r"\n ( *A:)")
_INPUT = re.compile(r"Q:(?P<prompt>.*?)\nA:(?P<completion>.*)", re.DOTALL)


def write_prompt(instruction: str, inputs: Sequence[str]) -> str:
    """The user turn of the policy: the instruction, then the poor inputs, numbered.

    SFT, GRPO and distillation all call this one function.
    """
    listed = "\n".join(f"[{number}] {text.strip()}" for number, text in enumerate(inputs, start=1))
    return f"{instruction}\n{listed}"


def write_input(prompt: str, completion: str) -> str:
    """One pool row as an input text of the policy: `Q: {prompt}`, and on the next line `A: {completion}`.

    A line of the prompt that begins with `A:` gets one space more in front, so that the first `A:` at the
    beginning of a line is always the mark. `read_input` takes that space away again.
    """
    held = _OWN_MARK.sub(r"\n \1", prompt.strip())
    return f"Q: {held}\nA: {completion.strip()}"


def read_input(text: str) -> tuple[str, str]:
    """The prompt and the completion of an input text: the inverse of `write_input`, up to outer whitespace.

    A text without the marks has no prompt: it is the completion.
    """
    found = _INPUT.fullmatch(text.strip())
    if found is None:
        return "", text.strip()
    return _HELD_MARK.sub(r"\n\1", found["prompt"].strip()), found["completion"].strip()


def to_pair(sample: Sample, prompt: str) -> tuple[str, str]:
    """The training pair (prompt, completion) that a distilled sample stands for.

    Args:
        sample: The parsed answer.
        prompt: What a paragraph answers: the prompt of the cluster's most central row. The other task types
            carry their own.
    """
    match sample:
        case Qa(question, answer):
            return question, answer
        case Mcq(question, options, answer):
            lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
            return "\n".join([question, *lines]), f"{answer}) {options[LETTERS.index(answer)]}"
        case Tfq(statement, answer):
            return f"True or false? {statement}", str(answer)
        case Cs(category, statement):
            return f"Write a statement about {category}.", statement
        case Para(text):
            return prompt, text


def without_options(prompt: str, shown: Collection[str]) -> str:
    """A multiple-choice prompt of `to_pair` with those of its options alone that are to be shown."""
    lines = prompt.split("\n")
    options = [line for line in lines[-len(LETTERS) :] if line[len("A) ") :] in shown]
    return "\n".join([*lines[: -len(LETTERS)], *options])


_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-D])[).:][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_LETTER = re.compile(r"(?:answer[ \t]*(?:is)?[ \t]*:?[ \t]*)?\(?([A-D])(?:[).:](?=\s|$)|\s*$)", re.IGNORECASE)
_TRUE_FALSE = re.compile(r"\btrue\s*(?:or|/)\s*false\b", re.IGNORECASE)
_VERDICT = re.compile(r"\s*(?:true|false)\b(?!\s*(?:or|/)\s*(?:true|false))", re.IGNORECASE)
_FEWEST_OPTIONS = 3


def detect_task_type(prompt: str, completion: str) -> TaskType:
    """The task type of a pool row that does not declare one: qa, unless the row is certain to be another.

    `tfq` asks "true or false" and is answered with one of the two; `mcq` lists at least three of the options
    A to D, each on a line, in order, and is answered with a letter or an option. A row that merely asks to
    classify, summarise or describe is qa: its question belongs to its answer, and only qa keeps both.
    """
    prompt, completion = visible(prompt), visible(completion)
    if _TRUE_FALSE.search(prompt) and _VERDICT.match(completion):
        return "tfq"
    options = _OPTION_LINE.findall(prompt)
    letters = [letter for letter, _ in options]
    listed = len(letters) >= _FEWEST_OPTIONS and letters == sorted(set(letters))
    told = completion.strip()
    if listed and (_LETTER.match(told) or any(told.rstrip(".") == text.rstrip(".") for _, text in options)):
        return "mcq"
    return "qa"


def judged_text(task_type: TaskType, answer: str) -> str:
    """The canonical text of an answer, which the library and the rewards embed.

    Both sides go through this function, so that the distance between two texts measures their content and not
    their white space.

    Raises:
        FormatError: The answer does not follow the format of its task type.
    """
    return write_answer(parse_answer(task_type, answer))


def answer_of(task_type: TaskType, completion: str) -> str | None:
    """The canonical answer text of a policy's raw completion; None if it cannot be parsed."""
    try:
        return judged_text(task_type, parse_output(completion).answer)
    except FormatError:
        return None
