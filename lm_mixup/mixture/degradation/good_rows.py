"""From one item of a file of good rows to the rows that MIXTURE targets are made of, or to the reason.

Beside every layout that `ingest` reads: passages {title, text}, multiple-choice questions {question, choices,
answer} and claims {sentence | claim | statement, label, explanation}. Every function here is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Final

from lm_mixup.augment.reading.rows import Refused, parse_line, read_item
from lm_mixup.core.schemas import content_id
from lm_mixup.core.task_types import LETTERS, FormatError, Mcq, Tfq, parse_answer, to_pair, write_answer
from lm_mixup.mixture.degradation.pieces import join_pieces, split_pieces
from lm_mixup.mixture.degradation.text_tasks import text_task

Row = dict[str, Any]

_CLAIMS: Final = ("sentence", "claim", "statement")
_VERDICTS: Final = {"true": True, "false": False, "yes": True, "no": False}
_MARK: Final = re.compile(r"(?m)^[ \t]*(?:Q|A|C|S|Answer|Q\d+|A\d+):")
_CALCULATOR: Final = re.compile(r"<<[^<>\n]*>>")
_FINAL: Final = re.compile(r"\n?####[ \t]*(.+?)\s*$")
_FOOTNOTE: Final = re.compile(r"\[(?:citation needed|note \d+|\d{1,3}|[a-z])\]")
_CALL: Final = (
    r"(?i:step[- ]by[- ]step|gradually|chain[- ]of[- ]thoughts?|stream of consciousness|reason(?:ing|s)?\b"
    r"|rationale|think(?:ing)?\b|thoughts?\b|detailed solution|solution in details|accurate as possible"
    r"|be careful)"
)
_CALL_AT_END: Final = re.compile(
    rf"(?:[ \n]+(?=[A-Z])|\n(?![-(]))[^.?!:\"\n]*?{_CALL}[^.?!:\"\n]*[.:!,]*\s*$"
)
_CALL_AT_START: Final = re.compile(rf"^[^.?!:\"\n]*?{_CALL}[^.?!:\"\n]*[.:!?]\s+")
_LEFT_OVER: Final = re.compile(r"\s+(?:OK|Hm+)[.,]*$")
_LEAD: Final = re.compile(r"^(?:Q|A|(?:[Mm]y |[Nn]ext )?[Qq]uestion(?: to you)?):\s*")
_OPENING: Final = re.compile(
    r"(?:(?:The|A|An)\s+)?(?P<name>.+?)\s*(?:\([^()]*\)\s*)?(?:,[^,]{1,60},\s*)?\b(?P<verb>is|was|are|were)\s"
)
_PERSON: Final = re.compile(r"\([^()]*\b\d{4}\s*(?:--|[–-])[^()]*\b\d{4}\)|\([^()]*\bborn\b")
_ASK_PASSAGE: Final = (
    "Tell me about {}.", "What is known about {}?", "Give me some facts about {}.", "Describe {}.",
    "Write a few sentences about {}.", "What can you say about {}?", "Explain {} in a few sentences.",
    "Share some information about {}.", "What should I know about {}?", "Give a short account of {}.",
)  # fmt: skip
_QUESTION: Final = re.compile(r"(?:What|Who|Where|When|Why|How|Which|Is|Are|Do|Does|Did|Can)\b[^\n?.]*[\w)]$")
_FEWEST_PIECES: Final = 2
_WINDOW: Final = (2, 5)  # sentences of a passage that one question asks for


def read_good(
    raw: Any,
    columns: Mapping[str, str],
    source: str,
    max_chars: int,
    *,
    reasoning_calls: bool = True,
) -> list[Row]:
    """The good rows of one item: one, of a claim with its explanation two, of a passage up to four.

    Args:
        raw: A JSONL line as bytes, or a value.
        columns: Our column → the file's, as in `ingest.columns`.
        source: The source of rows that do not name theirs.
        max_chars: Longest prompt or completion.
        reasoning_calls: Whether calls such as "Let's think step by step" stay in the prompts.

    Returns:
        Rows {id, source, task_type, prompt, completion, answer, entity}: `answer` is the target text.

    Raises:
        Refused: The item is no good row.
    """
    record = parse_line(raw) if isinstance(raw, bytes) else raw
    if isinstance(record, Mapping):
        named = record.get("source")
        known = named if isinstance(named, str) and named.strip() else source
        if all(isinstance(record.get(key), str) for key in ("title", "text")):
            return list(_passage(record, known, max_chars))
        if isinstance(record.get("choices"), list):
            return [_choices(record, known, max_chars)]
        claim = next((record[key] for key in _CLAIMS if isinstance(record.get(key), str)), None)
        if claim is not None and "label" in record:
            return list(_claim(record, claim, known, max_chars))
    row = read_item(raw, columns, source, 16 * max_chars)
    prompt, completion = _tidy(row.prompt), _worked(_tidy(row.completion))
    if not reasoning_calls:
        prompt = without_reasoning_calls(prompt)
    prompt = _asked(prompt)
    return [_row(row.id, row.source, "qa", prompt, completion, row.id, max_chars)]


def without_reasoning_calls(prompt: str) -> str:
    """A prompt of a chain-of-thought collection without its calls to reason and `Question:` in front."""
    text = prompt.strip()
    for pattern in (_LEAD, _CALL_AT_START, _LEAD):
        shorter = pattern.sub("", text, count=1)
        text = shorter if len(shorter) > 20 else text
    while (shorter := _CALL_AT_END.sub("", text).rstrip()) != text and len(shorter) > 20:
        text = shorter
    return _LEFT_OVER.sub("", text)


def _row(
    row_id: str,
    source: str,
    task_type: str,
    prompt: str,
    completion: str,
    entity: str,
    max_chars: int,
    answer: str = "",
) -> Row:
    if not prompt:
        raise Refused("no_prompt")
    if not completion:
        raise Refused("no_completion")
    if len(prompt) > max_chars or len(completion) > max_chars:
        raise Refused("too_long")
    if _MARK.search(prompt) or _MARK.search(completion):
        raise Refused("marks_in_text")
    return {
        "id": row_id,
        "source": source,
        "task_type": task_type,
        "prompt": prompt,
        "completion": completion,
        "answer": answer or f"Q: {prompt}\nA: {completion}",
        "entity": entity,
    }


def _tidy(text: str) -> str:
    """Evens out white space; backslash-n where a text has no other backslash stands for a line end."""
    if "\\n" in text and not re.search(r"\\(?!n)", text):
        text = text.replace("\\n", "\n")
    text = _FOOTNOTE.sub("", text.replace("\r\n", "\n").replace("\xa0", " "))
    text = re.sub(r"[ \t]+(?=\n)|(?<=[^\s])[ \t]+(?=[ \t])", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _asked(prompt: str) -> str:
    """The question with a capital letter at its beginning, and a question mark where one line lacks it."""
    if re.match(r"[a-z]+\b", prompt):
        prompt = prompt[0].upper() + prompt[1:]
    return f"{prompt}?" if _QUESTION.match(prompt) else prompt


def _worked(completion: str) -> str:
    """A worked solution in the words of a person: no calculator notes, `#### 5` as a sentence."""
    return _FINAL.sub(r"\nThe answer is \1.", _CALCULATOR.sub("", completion)).strip()


def _identity(record: Mapping[str, Any], *texts: str) -> str:
    for key in ("id", "ex_id"):
        if isinstance(record.get(key), (str, int)) and str(record[key]).strip():
            return str(record[key])
    return content_id(*texts)


def _passage(record: Mapping[str, Any], source: str, max_chars: int) -> Iterator[Row]:
    """The passage as a paragraph, some of its sentences as the answer to a question, and a task about one."""
    title, text = record["title"].strip(), _tidy(record["text"])
    pieces = split_pieces(text)
    if len(pieces) < _FEWEST_PIECES or text.endswith(":"):
        raise Refused("too_short")
    identity = _identity(record, title, text)
    rng = Random(f"passage/{identity}")
    asked = rng.choice(_ASK_PASSAGE).format(title)
    whole = join_pieces(pieces)
    yield _row(f"{identity}/para", source, "para", asked, whole, title, max_chars, answer=whole)
    opening = _OPENING.match(pieces[0].text)
    bare = re.sub(r"\s*\([^()]*\)$", "", title)
    if opening and opening["name"].casefold() == bare.casefold():
        word = "Who" if _PERSON.search(pieces[0].text) else "What"
        lead = re.match(r"(?:The|A|An)\s", pieces[0].text)
        named = f"{lead[0].lower()}{opening['name']}" if lead else bare
        yield _row(
            f"{identity}/what", source, "qa", f"{word} {opening['verb']} {named}?",
            join_pieces(pieces[: rng.randint(1, 2)]), title, max_chars,
        )  # fmt: skip
    task = text_task([piece.text for piece in pieces], rng)
    if task:
        yield _row(f"{identity}/task", source, "qa", *task, title, max_chars)
    count = min(len(pieces), rng.randint(*_WINDOW))
    start = rng.randint(0, len(pieces) - count)
    other = rng.choice([ask for ask in _ASK_PASSAGE if ask.format(title) != asked]).format(title)
    yield _row(
        f"{identity}/ask", source, "qa", other, join_pieces(pieces[start : start + count]), title, max_chars
    )


def _choices(record: Mapping[str, Any], source: str, max_chars: int) -> Row:
    """A question with four options; the answer is a number from 0, a letter, or an option's text."""
    question, choices, answer = record.get("question"), record["choices"], record.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise Refused("no_prompt")
    if len(choices) != len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise Refused("wrong_type")
    options = [" ".join(choice.split()) for choice in choices]
    if isinstance(answer, bool) or answer is None:
        raise Refused("no_completion")
    right = options.index(answer) if answer in options else answer if isinstance(answer, int) else -1
    if right < 0 and isinstance(answer, str) and answer in LETTERS:
        right = LETTERS.index(answer)
    if not 0 <= right < len(LETTERS):
        raise Refused("no_completion")
    a, b, c, d = options
    text = write_answer(Mcq(_tidy(question), (a, b, c, d), LETTERS[right]))
    try:
        prompt, completion = to_pair(parse_answer("mcq", text), "")
    except FormatError as error:
        raise Refused("marks_in_text" if "mark" in str(error) else "wrong_type") from None
    identity = _identity(record, text)
    return _row(identity, source, "mcq", prompt, completion, identity, max_chars, answer=text)


def _claim(record: Mapping[str, Any], claim: str, source: str, max_chars: int) -> Iterator[Row]:
    """The claim as a true/false sample, and where it is explained as a question with the explanation too."""
    label = record["label"]
    verdict = label if isinstance(label, bool) else _VERDICTS.get(str(label).strip().lower())
    if verdict is None:
        raise Refused("no_completion")
    statement = " ".join(claim.split())
    explanation = record.get("explanation")
    explained = _tidy(explanation) if isinstance(explanation, str) else ""
    identity = _identity(record, statement)
    entity = record.get("entity")
    about = entity if isinstance(entity, str) and entity.strip() else identity
    text = write_answer(Tfq(statement, verdict))
    completion = f"{verdict}. {explained}" if explained else str(verdict)
    asked = f"True or false? {statement}"
    yield _row(identity, source, "tfq", asked, completion, about, max_chars, answer=text)
    if explained:
        yield _row(f"{identity}/why", source, "qa", asked, completion, about, max_chars)
