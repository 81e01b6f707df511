"""Stage `crosstopic`: two near samples of a teacher model become one target about both, written by it.

The facts of both must stand in the new target, and in the inputs chosen for it; that is read off the texts,
as it is for variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from lm_mixup.chat.client import Chat
from lm_mixup.chat.judge import Judge, SharedJudge, share_judge
from lm_mixup.chat.shared import TEACHER, SharedChat, placement_of, share_chat
from lm_mixup.chat.types import ChatFailure, Message
from lm_mixup.config import BuildConfig, DataConfig, RateConfig, TeacherConfig
from lm_mixup.core.claims import FACT, OPTIONS, Claim, claims_of
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, extend
from lm_mixup.core.task_types import Mcq, Sample, Tfq, parse_answer, to_pair, write_answer
from lm_mixup.demo import Bundle
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.assemble import bundles_of
from lm_mixup.mixture.schemas import SCHEMA as SAMPLE
from lm_mixup.mixture.teacher.fact_coverage import tells
from lm_mixup.mixture.teacher.prompts import conversation
from lm_mixup.mixture.teacher.reply_schemas import TOLD, Told, prompt_of, sample_of
from lm_mixup.mixture.teacher.samples import ask_each, choice, rated, why
from lm_mixup.mixture.teacher.variants import SHAPES

Row = dict[str, Any]
_STRINGS = pa.list_(pa.string())
_KEPT: Final = ("id", "task_type", "prompt", "completion", "answer", "entity")
_VARIANT: Final = pa.struct(
    [*((name, pa.string()) for name in _KEPT), ("attributes", _STRINGS), ("values", _STRINGS)]
)
SCHEMA = extend(
    SAMPLE,
    pa.schema([(name, pa.string()) for name in ("target_id", "partner_id", "partner_entity")]),
    pa.schema([("similarity", pa.float32()), ("variants", pa.list_(_VARIANT))]),
)


def crosstopic(
    generate: StageDir,
    degrade: StageDir,
    pairs: StageDir,
    out: StageDir,
    config: BuildConfig,
    rate: RateConfig,
    teacher: TeacherConfig,
    data: DataConfig,
) -> Outcome:
    """Has the teacher merge pairs of samples, and rates what it wrote.

    Args:
        generate: The samples.
        degrade: Their variants.
        pairs: Which samples belong together (`pair_samples`).
        out: Where merged samples go: `SCHEMA`, with the variants that are their inputs. Pairs that do not
            become one go to the rejects; their samples stay rows of their own.
        config: Fewest and most inputs, lowest score.
        rate: The judge.
        teacher: Who writes; the one that wrote the samples.
        data: Rows of a part.

    Raises:
        InputError: A setting is missing, the server refuses all requests, or the budget is spent.
    """
    listed = sorted(pairs.read(["id", "partner_id", "similarity"]).to_pylist(), key=lambda pair: pair["id"])
    size = max(1, data.rows_per_part // 4)
    items = [listed[start : start + size] for start in range(0, len(listed), size)]
    placement = placement_of(teacher, rate)
    judge, chat = share_judge(rate, out), share_chat(teacher, out, TEACHER)
    kwargs = {"generate": generate, "degrade": degrade, "config": config, "judge": judge, "chat": chat}
    map_parts(out, items, _make_work, kwargs, **placement)
    return Outcome(metrics=judge.metrics() | chat.metrics())


def _make_work(
    generate: StageDir, degrade: StageDir, config: BuildConfig, judge: SharedJudge, chat: SharedChat
) -> Work:
    made, teacher = judge.make(), chat.make()

    def work(pairs: list[Row]) -> PartResult:
        ids = [pair[name] for pair in pairs for name in ("id", "partner_id")]
        samples, variants = _rows(generate, "id", ids), _rows(degrade, "target_id", ids)
        return merge_pairs(pairs, samples, variants, teacher, made, config)

    return work


def _rows(stage: StageDir, column: str, values: Sequence[str]) -> list[Row]:
    """The rows of a stage with one of some values, one part in memory at a time."""
    wanted = pa.array(values, pa.string())
    found: list[Row] = []
    for part in stage.iter_parts():
        found += part.filter(pc.is_in(part[column], value_set=wanted)).to_pylist()
    return found


def merge_pairs(
    pairs: Sequence[Row],
    samples: Iterable[Row],
    variants: Iterable[Row],
    chat: Chat,
    judge: Judge,
    config: BuildConfig,
) -> PartResult:
    """Merges the pairs of one part.

    Args:
        pairs: id, partner_id and similarity of each.
        samples: The samples of all pairs.
        variants: Their variants.
        chat: The teacher.
        judge: Rates what it wrote.
        config: Fewest and most inputs, lowest score.

    Returns:
        As many rows and rejects as pairs. Reasons, before the teacher is asked: `sample_left_out` (one is no
        row even by itself), `facts_uncovered`, `too_many_inputs`; after: `teacher_…`, `options_changed`,
        `verdict_changed`, `facts_untold`, and those of ratings.
    """
    targets = list(samples)
    by_id: Mapping[str, Row] = {target["id"]: target for target in targets}
    bundles = {bundle.target["id"]: bundle for bundle in bundles_of(targets, variants, config)[0]}
    rows: list[Row] = []
    reasons: list[str] = []
    for pair in pairs:
        first, second = (bundles.get(pair[name]) for name in ("id", "partner_id"))
        inputs, reason = chosen_inputs(first, second, config) if first and second else ([], "sample_left_out")
        rows.append(_planned(by_id[pair["id"]], by_id[pair["partner_id"]], pair["similarity"], inputs))
        reasons.append(reason)
    asked = [place for place, reason in enumerate(reasons) if not reason]
    answers = ask_each(chat, [_question(rows[place], by_id) for place in asked])
    replies = dict(zip(asked, answers, strict=True))
    for place, reply in replies.items():
        reasons[place] = why(reply) or _write(rows[place], reply, by_id)
    return rated(rows, reasons, replies, judge, config.min_score, SCHEMA)


def chosen_inputs(first: Bundle, second: Bundle, config: BuildConfig) -> tuple[list[Row], str]:
    """The variants that together tell all facts of both samples, and why there are none.

    Of a multiple-choice question only the first sample's is asked, so its options are among the inputs and
    the other's are not.
    """
    theirs = [variant for variant in second.variants if OPTIONS not in variant["attributes"]]
    sides = [
        (first.variants, claims_of(first.target)),
        (theirs, tuple(claim for claim in claims_of(second.target) if claim.attribute == FACT)),
    ]
    inputs: list[Row] = []
    for variants, wanted in sides:
        telling = _cover(variants, wanted)
        if telling is None:
            return [], "facts_uncovered"
        inputs += telling
    if len(inputs) > config.max_inputs:
        return [], "too_many_inputs"
    spare = [variant for variant in (*first.variants, *theirs) if variant not in inputs]
    return inputs + spare[: max(0, config.min_inputs - len(inputs))], ""


def _cover(variants: Sequence[Row], wanted: Sequence[Claim]) -> list[Row] | None:
    """Few variants that tell all that is wanted, in their order; most news first. None: they do not."""
    missing, chosen = set(wanted), set[int]()
    while missing:
        news = [len(missing.intersection(claims_of(variant))) for variant in variants]
        best = max(range(len(variants)), key=lambda place: news[place], default=-1)
        if best < 0 or not news[best]:
            return None
        chosen.add(best)
        missing -= set(claims_of(variants[best]))
    return [variants[place] for place in sorted(chosen)]


def _planned(first: Row, second: Row, similarity: float, inputs: Sequence[Row]) -> Row:
    """The row of a pair, without what the teacher is to write."""
    mine = claims_of(first)
    claims = dict.fromkeys([*mine, *(claim for claim in claims_of(second) if claim.attribute == FACT)])
    names = ("source", "task_type", "passage_id", "entity", "topic", "split")
    return {name: first[name] for name in names} | {
        "id": content_id(first["id"], second["id"]),
        "target_id": first["id"],
        "partner_id": second["id"],
        "partner_entity": second["entity"],
        "similarity": similarity,
        "attributes": [claim.attribute for claim in claims],
        "values": [claim.value for claim in claims],
        "variants": [
            {name: variant[name] for name in (*_KEPT, "attributes", "values")} for variant in inputs
        ],
    }


def _question(row: Row, by_id: Mapping[str, Row]) -> tuple[list[Message], type[BaseModel]]:
    first, second = by_id[row["target_id"]], by_id[row["partner_id"]]
    values = {"kind": row["task_type"], "form": SHAPES[row["task_type"]], "holds": _holds(first, second)}
    facts = [claim.value for claim in claims_of(row) if claim.attribute == FACT]
    data = {"first": first["answer"], "second": second["answer"]}
    data |= {f"fact {number}": fact for number, fact in enumerate(facts, start=1)}
    return conversation("merge", values, data), TOLD[first["task_type"]]


def _sample(row: Row) -> Sample:
    return parse_answer(row["task_type"], row["answer"])


def _holds(*targets: Row) -> bool:
    """Whether a statement with all that these tell is true: it is, if none of them is false."""
    return all(sample.answer for sample in map(_sample, targets) if isinstance(sample, Tfq))


def _write(row: Row, reply: BaseModel | ChatFailure, by_id: Mapping[str, Row]) -> str:
    """Fills in what the teacher wrote; returns why it is none of what was asked for, or nothing."""
    assert isinstance(reply, Told)  # noqa: S101  # `why` has sorted out failures
    sample = sample_of(reply.sample)
    prompt, completion = to_pair(sample, prompt_of(reply.sample))
    answer = write_answer(sample)
    row |= {
        "id": content_id(row["id"], answer),
        "prompt": prompt,
        "completion": completion,
        "answer": answer,
        "cot": " ".join(reply.cot.split()),
    }
    first, second = by_id[row["target_id"]], by_id[row["partner_id"]]
    if isinstance(sample, Mcq) and choice(sample) != choice(_sample(first)):
        return "options_changed"
    if isinstance(sample, Tfq) and sample.answer != _holds(first, second):
        return "verdict_changed"
    text = f"{prompt}\n{completion}"
    facts_told = (tells(text, claim.value) for claim in claims_of(row) if claim.attribute == FACT)
    return "" if all(facts_told) else "facts_untold"
