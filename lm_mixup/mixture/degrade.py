"""Stage `degrade`: poor variants of each high-quality sample, which together still hold all that it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import pyarrow as pa

from lm_mixup.backends.judge import Judge, SharedJudge, rating_columns, share_judge
from lm_mixup.backends.wording import Claim
from lm_mixup.config import BuildConfig, DataConfig, RateConfig
from lm_mixup.mixture.generate import CLAIMS, parted
from lm_mixup.parts import PartResult, Work, map_parts
from lm_mixup.records import INSTRUCTION, RATING, content_id, extend, table
from lm_mixup.runs import Outcome, StageDir
from lm_mixup.tasks import Cs, Mcq, Sample, parse_answer, write_answer
from lm_mixup.world.facts import entities_by_name
from lm_mixup.world.poor import Fault, Options, PoorRow, poor_row

SCHEMA = extend(
    INSTRUCTION,
    RATING,
    pa.schema([(name, pa.string()) for name in ("answer", "target_id", "entity", "split")]),
    pa.schema([("position", pa.int16())]),
    CLAIMS,
)
_ROUNDS = 4  # times a variant is written anew because it came out too good
_TELLING: tuple[Fault, ...] = ("incomplete", "incomplete", "register", "redundant")


@dataclass(frozen=True)
class Slot:
    """A variant to be written: what it tells and what is poor about it.

    Attributes:
        position: Its place among the variants of its target, in the order in which the target tells its
            facts.
        claims: What it tells; none for a vague one.
        fault: What is poor about it.
        options: The target's options, where it asks the target's question.
    """

    position: int
    claims: tuple[Claim, ...]
    fault: Fault
    options: Options | None = None


def degrade(
    generate: StageDir, out: StageDir, config: BuildConfig, rate: RateConfig, data: DataConfig, seed: int
) -> Outcome:
    """Writes `config.min_inputs` to `config.max_inputs` poor variants of each sample and rates them.

    Args:
        generate: The stage that wrote the samples.
        out: Where the rows go: `SCHEMA`. Variants that come out at `config.min_score` or better, time and
            again, and those that could not be rated go to the rejects.
        config: How many variants.
        rate: The judge.
        data: Not used: a part holds the variants of one part of samples.
        seed: Of all choices.
    """
    shared = share_judge(rate, out)
    kwargs = {"generate": generate, "config": config, "shared": shared, "seed": seed}
    map_parts(out, generate.parts(), _make_work, kwargs, **shared.placement())
    return Outcome(metrics=shared.metrics())


def _make_work(generate: StageDir, config: BuildConfig, shared: SharedJudge, seed: int) -> Work:
    judge = shared.make()
    return lambda relative: degrade_part(generate.read_part(relative), judge, config, seed)


def degrade_part(samples: pa.Table, judge: Judge, config: BuildConfig, seed: int) -> PartResult:
    """Writes and rates the variants of one part of samples."""
    targets = samples.to_pylist()
    pending = [(target, slot) for target in targets for slot in slots(target, config, seed)]
    rows = [_row(target, slot, seed, attempt=0) for target, slot in pending]
    columns = rating_columns(judge.name, judge.rate([_pair(row) for row in rows]))
    for attempt in range(1, _ROUNDS):
        good = [
            i for i, score in enumerate(columns["score"]) if score is not None and score >= config.min_score
        ]
        if not good:
            break
        for i in good:
            rows[i] = _row(*pending[i], seed, attempt)
        again = rating_columns(judge.name, judge.rate([_pair(rows[i]) for i in good]))
        for name, values in again.items():
            for i, value in zip(good, values, strict=True):
                columns[name][i] = value
    reasons = [_reason(score, config.min_score) for score in columns["score"]]
    return parted(pa.table(table(rows, SCHEMA).to_pydict() | columns, schema=SCHEMA), reasons)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["prompt"], row["completion"]


def _reason(score: int | None, min_score: int) -> str:
    if score is None:
        return "unrated"
    return f"score_not_below_{min_score}" if score >= min_score else ""


def slots(target: dict[str, Any], config: BuildConfig, seed: int) -> list[Slot]:
    """Plans the variants of a target: its claims are dealt out in order, the rest is vague or repeats.

    Args:
        target: A row of `generate`.
        config: Fewest and most variants.
        seed: With the target's id, makes the choices.
    """
    rng = Random(f"degrade/{seed}/{target['id']}")
    claims = claims_of(target)
    sample = parse_answer(target["task_type"], target["answer"])
    options = sample.options if isinstance(sample, Mcq) else None
    count = rng.randint(config.min_inputs, config.max_inputs)
    telling = min(count, len(claims))
    if count > 2 and telling == count and rng.random() < 0.3:
        telling -= 1
    planned = [
        Slot(0, group, rng.choice(_TELLING), options if options and group[0] == claims[0] else None)
        for group in _dealt(claims, telling, alone=options is not None)
    ]
    for _ in range(count - telling):
        planned.insert(rng.randint(0, len(planned)), _spare(claims, options is not None, rng))
    if options:  # the question stands anywhere among them
        planned.insert(rng.randrange(len(planned)), planned.pop(_asking(planned)))
    return [Slot(i, slot.claims, slot.fault, slot.options) for i, slot in enumerate(planned)]


def _asking(planned: Sequence[Slot]) -> int:
    return next(i for i, slot in enumerate(planned) if slot.options)


def _spare(claims: Sequence[Claim], closed: bool, rng: Random) -> Slot:
    """A variant that adds nothing: vague, or one more telling of a claim."""
    if rng.random() < 0.5:
        return Slot(0, (), "vague")
    return Slot(0, (rng.choice(claims[1:] if closed and claims[1:] else claims),), "redundant")


def _dealt(claims: Sequence[Claim], groups: int, alone: bool) -> list[tuple[Claim, ...]]:
    """Deals claims into groups of neighbours, as even as can be, none empty.

    Args:
        claims: At least as many as groups.
        groups: How many groups, at least one.
        alone: Whether the first claim is to have a group of its own, where there are two groups or more.
    """
    if alone and groups > 1:
        return [tuple(claims[:1]), *_dealt(claims[1:], groups - 1, alone=False)]
    cuts = [round(i * len(claims) / groups) for i in range(groups + 1)]
    return [tuple(claims[a:b]) for a, b in pairwise(cuts)]


def claims_of(row: dict[str, Any]) -> tuple[Claim, ...]:
    """The claims that a row's `attributes` and `values` list."""
    return tuple(map(Claim, row["attributes"], row["values"]))


def _row(target: dict[str, Any], slot: Slot, seed: int, attempt: int) -> dict[str, Any]:
    rng = Random(f"variant/{seed}/{target['id']}/{slot.position}/{attempt}")
    poor = _poor(target, slot, rng)
    return {
        "id": content_id(target["id"], str(slot.position), poor.prompt, poor.completion),
        "source": target["source"],
        "task_type": target["task_type"],
        "prompt": poor.prompt,
        "completion": poor.completion,
        "answer": write_answer(poor.sample),
        "target_id": target["id"],
        "entity": target["entity"],
        "split": target["split"],
        "position": slot.position,
        "attributes": [claim.attribute for claim in slot.claims],
        "values": [claim.value for claim in slot.claims],
    }


def _poor(target: dict[str, Any], slot: Slot, rng: Random) -> PoorRow:
    sample: Sample = parse_answer(target["task_type"], target["answer"])
    return poor_row(
        entities_by_name()[target["entity"]],
        target["task_type"],
        slot.claims,
        slot.fault,
        rng,
        category=sample.category if isinstance(sample, Cs) else "",
        options=slot.options,
        held_out=target["split"] == "test",
    )
