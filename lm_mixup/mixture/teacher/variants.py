"""Poor variants written by a teacher model: all variants of a sample in one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from pydantic import BaseModel

from lm_mixup.chat.client import Chat
from lm_mixup.chat.judge import Judge, RatingFailure, Verdict, rating_columns
from lm_mixup.chat.types import ChatFailure, Message
from lm_mixup.config import BuildConfig
from lm_mixup.core.claims import FACT, OPTIONS, claims_of
from lm_mixup.core.schemas import content_id, table
from lm_mixup.core.task_types import (
    Cs,
    Mcq,
    Sample,
    TaskType,
    parse_answer,
    to_pair,
    without_options,
    write_answer,
)
from lm_mixup.distributed.map_parts import PartResult
from lm_mixup.mixture.schemas import parted, too_good
from lm_mixup.mixture.teacher.fact_coverage import tells
from lm_mixup.mixture.teacher.prompts import conversation
from lm_mixup.mixture.teacher.reply_schemas import Form, prompt_of, sample_of, variants_form
from lm_mixup.mixture.teacher.samples import ask_each, choice, why
from lm_mixup.mixture.variant_plan import SCHEMA, VariantPlan, plan_variants

Row = dict[str, Any]
_ROUNDS = 2  # times that a sample's variants are asked for, where some came out too good
FAULTS: Final = {
    "incomplete": "incomplete. The bare facts in a few words, without context or a full answer.",
    "vague": "vague. Non-committal words that say nothing certain.",
    "register": "wrong register. Sloppy chat language with fillers, lower case, no care.",
    "redundant": "redundant. Says the same thing twice in a row.",
    "reasoning": "reasoning cut short. Jumps to the result and leaves out what leads to it.",
    "options": "a bare question, without context.",  # we take the options out
}
SHAPES: Final[dict[TaskType, str]] = {
    "qa": '{"question": "…", "answer": "…"}',
    "mcq": '{"question": "…", "option_a": "…", "option_b": "…", "option_c": "…", "option_d": "…",'
    ' "answer": "A"}',
    "tfq": '{"statement": "…", "answer": true}',
    "cs": '{"category": "…", "statement": "…"}',
    "para": '{"prompt": "…", "text": "…"}',
}


def write_variants(samples: pa.Table, chat: Chat, judge: Judge, config: BuildConfig, seed: int) -> PartResult:
    """Has the variants of one part of samples written, and rates them.

    What a variant tells is read off its text (`fact_coverage.tells`), not off what was asked for. Variants
    that come out at `config.min_score` or better are asked for once more.

    Args:
        samples: Rows that a teacher wrote (`teacher/samples.py`).
        chat: The teacher.
        judge: Rates the variants.
        config: How many variants, and what is too good for one.
        seed: Of the plan.

    Returns:
        As many rows and rejects as variants were planned.

    Raises:
        InputError: The server refuses all requests, or the budget is spent. Replies are kept.
    """
    targets = samples.to_pylist()
    plans = [plan_variants(target, config, seed) for target in targets]
    rows: list[list[Row]] = [[{} for _ in mine] for mine in plans]
    verdicts: list[list[Verdict]] = [[RatingFailure("")] * len(mine) for mine in plans]
    reasons: list[list[str]] = [["asked"] * len(mine) for mine in plans]
    good = f"score_not_below_{config.min_score}"
    for attempt in range(_ROUNDS):
        open_ = [i for i, mine in enumerate(reasons) if not {"asked", good}.isdisjoint(mine)]
        replies = ask_each(chat, [_question(targets[i], plans[i], harsher=attempt > 0) for i in open_])
        places = []
        for i, reply in zip(open_, replies, strict=True):
            if attempt and isinstance(reply, ChatFailure):
                continue  # the first attempt stands
            for plan in plans[i]:
                at = plan.position
                if reasons[i][at] in ("asked", good):
                    rows[i][at] = _row(targets[i], plan, reply)
                    reasons[i][at] = why(reply)
                    verdicts[i][at] = RatingFailure(reply if isinstance(reply, ChatFailure) else "")
                    places += [] if reasons[i][at] else [(i, at)]
        judged = judge.rate([(rows[i][at]["prompt"], rows[i][at]["completion"]) for i, at in places])
        for (i, at), verdict in zip(places, judged, strict=True):
            score = rating_columns(judge.name, [verdict])["score"][0]
            verdicts[i][at], reasons[i][at] = verdict, too_good(score, config.min_score)
    flat = [row for mine in rows for row in mine]
    columns = rating_columns(judge.name, [verdict for mine in verdicts for verdict in mine])
    whole = pa.table(table(flat, SCHEMA).to_pydict() | columns, schema=SCHEMA)
    return parted(whole, [reason for mine in reasons for reason in mine])


def _question(
    target: Row, plans: Sequence[VariantPlan], *, harsher: bool
) -> tuple[list[Message], type[BaseModel]]:
    facts = [claim for claim in claims_of(target) if claim.attribute == FACT]
    numbers = {claim: number for number, claim in enumerate(facts, start=1)}
    values = {
        "kind": target["task_type"],
        "form": SHAPES[target["task_type"]],
        "faults": FAULTS,
        "harsher": harsher,
        "plan": [
            {
                "facts": [numbers[claim] for claim in plan.claims if claim in numbers],
                "options": bool(plan.options),
                "fault": plan.fault,
            }
            for plan in plans
        ],
    }
    data = {"sample": target["answer"], **{f"fact {n}": claim.value for claim, n in numbers.items()}}
    return conversation("degrade", values, data), variants_form(target["task_type"], len(plans))


def _row(target: Row, plan: VariantPlan, reply: BaseModel | ChatFailure) -> Row:
    """The row of a variant; without a variant, of what was to be written."""
    row = {
        "id": content_id(target["id"], str(plan.position)),
        "source": target["source"],
        "task_type": target["task_type"],
        "target_id": target["id"],
        "entity": target["entity"],
        "split": target["split"],
        "position": plan.position,
    }
    if isinstance(reply, ChatFailure):
        return row
    form: Form = reply.variants[plan.position]  # type: ignore[attr-defined]
    good = parse_answer(target["task_type"], target["answer"])
    sample = _in_category(sample_of(form), good)
    prompt, completion = to_pair(sample, prompt_of(form))
    shown: tuple[str, ...] = ()
    if isinstance(sample, Mcq) and isinstance(good, Mcq) and choice(sample) == choice(good):
        shown = plan.shown or good.options
        prompt = without_options(prompt, shown)
    text = f"{prompt}\n{completion}"
    covered = [
        claim
        for claim in claims_of(target)
        if (claim.value in shown if claim.attribute == OPTIONS else tells(text, claim.value))
    ]
    return row | {
        "id": content_id(target["id"], str(plan.position), prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "answer": write_answer(sample),
        "attributes": [claim.attribute for claim in covered],
        "values": [claim.value for claim in covered],
    }


def _in_category(sample: Sample, good: Sample) -> Sample:
    """A category-statement variant is in the category of its target, whatever the teacher called it."""
    if isinstance(sample, Cs) and isinstance(good, Cs):
        return Cs(good.category, sample.statement)
    return sample
