"""Samples written by a teacher model, one request each; what does not fit is a reject with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from lm_mixup.chat.client import Chat
from lm_mixup.chat.judge import Judge, RatingFailure, Verdict, rating_columns
from lm_mixup.chat.types import ChatFailure, Message
from lm_mixup.config import BuildConfig
from lm_mixup.core.claims import FACT, OPTIONS
from lm_mixup.core.schemas import content_id, table
from lm_mixup.core.sentences import sentences
from lm_mixup.core.task_types import LETTERS, Mcq, Sample, TaskType, to_pair, write_answer
from lm_mixup.distributed.map_parts import PartResult
from lm_mixup.mixture.schemas import SCHEMA, parted, refusal
from lm_mixup.mixture.teacher.prompts import conversation
from lm_mixup.mixture.teacher.reply_schemas import WRITTEN, Written, prompt_of, sample_of

_FALSE_RATE = 0.4
Question = tuple[TaskType, list[Message]]


def write_samples(
    passages: Sequence[dict[str, Any]],
    about: Sequence[int],
    first: int,
    chat: Chat,
    judge: Judge,
    config: BuildConfig,
    seed: int,
) -> PartResult:
    """Has the samples of one part written, and rates them.

    Args:
        passages: Passage rows.
        about: For each sample, the passage it is about.
        first: Number of the first sample.
        chat: The teacher.
        judge: Rates what was written.
        config: Task mix and lowest score.
        seed: With the sample's number, makes its choices.

    Returns:
        As many rows and rejects as samples. A reject that was not written or not rated has nulls and says why
        in `error`.

    Raises:
        InputError: The server refuses all requests, or the budget is spent. Replies are kept.
    """
    questions = plan_questions(passages, about, first, config, seed)
    replies = ask_each(chat, [(messages, WRITTEN[kind]) for kind, messages in questions])
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    written: set[str] = set()
    for offset, ((kind, _), reply) in enumerate(zip(questions, replies, strict=True)):
        row = _row(reply, kind, passages[about[offset]], first + offset)
        twice = row.get("answer") in written
        reasons.append(why(reply) or ("duplicate" if twice else ""))
        written.add(row.get("answer", ""))
        rows.append(row)
    return rated(rows, reasons, dict(enumerate(replies)), judge, config.min_score, SCHEMA)


def plan_questions(
    passages: Sequence[dict[str, Any]], about: Sequence[int], first: int, config: BuildConfig, seed: int
) -> list[Question]:
    """What is asked for each sample: its task type, and a sentence of its passage to turn on.

    Samples of a passage go through its sentences in turn, beginning at one that the seed chooses; one that
    comes to a sentence and a task type again is told so, and no question is asked twice.
    """
    kinds, shares = list(config.task_mix), list(config.task_mix.values())
    nth: Counter[int] = Counter()
    takes: Counter[tuple[int, str, str]] = Counter()
    questions: list[Question] = []
    for number, index in enumerate(about, start=first):
        passage, rng = passages[index], Random(f"generate/{seed}/{number}")
        kind = rng.choices(kinds, shares)[0]
        listed = sentences(passage["text"])
        start = Random(f"focus/{seed}/{passage['id']}").randrange(len(listed))
        focus = listed[(start + nth[index]) % len(listed)]
        nth[index] += 1
        takes[index, kind, focus] += 1
        values = {
            "take": takes[index, kind, focus],
            "letter": rng.choice(LETTERS),
            "holds": rng.random() >= _FALSE_RATE,
        }
        data = {"title": passage["title"], "text": passage["text"], "focus": focus}
        questions.append((kind, conversation(kind, values, data)))
    return questions


def ask_each(
    chat: Chat, questions: Sequence[tuple[list[Message], type[BaseModel]]]
) -> list[BaseModel | ChatFailure]:
    """The answers, in order; questions that want the same form are asked together."""
    by_form: dict[type[BaseModel], list[int]] = {}
    for index, (_, form) in enumerate(questions):
        by_form.setdefault(form, []).append(index)
    answers: dict[int, BaseModel | ChatFailure] = {}
    for form, indices in by_form.items():
        answers.update(zip(indices, chat.ask([questions[i][0] for i in indices], form), strict=True))
    return [answers[index] for index in range(len(questions))]


def choice(sample: Sample) -> tuple[frozenset[str], str]:
    """The options of a multiple-choice question, and the right one's text."""
    assert isinstance(sample, Mcq)  # noqa: S101
    return frozenset(sample.options), sample.options[LETTERS.index(sample.answer)]


def why(reply: BaseModel | ChatFailure) -> str:
    """The reason of a reject that the teacher did not write; empty if it did."""
    return f"teacher_{reply.split(':')[0]}" if isinstance(reply, ChatFailure) else ""


def rated(
    rows: Sequence[dict[str, Any]],
    reasons: Sequence[str],
    replies: Mapping[int, BaseModel | ChatFailure],
    judge: Judge,
    min_score: int,
    schema: pa.Schema,
) -> PartResult:
    """Rates what the teacher wrote, and refuses what is rated too low.

    Args:
        rows: As many as were planned.
        reasons: Why a row is refused before it is rated; empty if it is not.
        replies: The teacher's, by row; a failed one says in `error` why its row has no rating.
        judge: Rates the rows without a reason.
        min_score: Least score of a row that is kept.
        schema: Of the rows.
    """
    verdicts: list[Verdict] = []
    for index, reason in enumerate(reasons):
        reply = replies.get(index)
        verdicts.append(RatingFailure(reply if isinstance(reply, ChatFailure) else reason))
    written = [index for index, reason in enumerate(reasons) if not reason]
    judged = judge.rate([(rows[index]["prompt"], rows[index]["completion"]) for index in written])
    for index, verdict in zip(written, judged, strict=True):
        verdicts[index] = verdict
    columns = table(rows, schema).to_pydict() | rating_columns(judge.name, verdicts)
    refused = [
        reason or refusal(score, min_score) for reason, score in zip(reasons, columns["score"], strict=True)
    ]
    return parted(pa.table(columns, schema=schema), refused)


def _row(
    reply: BaseModel | ChatFailure, kind: TaskType, passage: dict[str, Any], number: int
) -> dict[str, Any]:
    """The row of a sample; without a sample, of what was to be written about."""
    row = {
        "id": content_id(passage["id"], str(number)),
        "source": passage["source"],
        "task_type": kind,
        "passage_id": passage["id"],
        "entity": passage["entity"],
        "topic": passage["topic"],
        "split": passage["split"],
    }
    if not isinstance(reply, Written):
        return row
    sample = sample_of(reply.sample)
    prompt, completion = to_pair(sample, prompt_of(reply.sample))
    facts = list(dict.fromkeys(" ".join(fact.split()) for fact in reply.facts))
    options = list(sample.options) if isinstance(sample, Mcq) else []
    answer = write_answer(sample)
    return row | {
        "id": content_id(passage["id"], str(number), answer),
        "prompt": prompt,
        "completion": completion,
        "answer": answer,
        "cot": " ".join(reply.cot.split()),
        "attributes": [OPTIONS] * len(options) + [FACT] * len(facts),
        "values": options + facts,
    }
