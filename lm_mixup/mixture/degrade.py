"""Stage `degrade`: poor variants of each high-quality sample, which together still hold all that it tells."""

from __future__ import annotations

from random import Random
from typing import Any

import pyarrow as pa

from lm_mixup.chat.judge import Judge, SharedJudge, rating_columns, share_judge
from lm_mixup.chat.shared import TEACHER, SharedChat, placement_of, share_chat
from lm_mixup.config import BuildConfig, RateConfig, TeacherConfig
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, table
from lm_mixup.demo import write_variant
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.generate import rate_of
from lm_mixup.mixture.schemas import parted, too_good
from lm_mixup.mixture.teacher.variants import taught_variants
from lm_mixup.mixture.variant_plan import SCHEMA, Slot, slots

_ROUNDS = 4  # times a variant is written anew because it came out too good


def degrade(
    generate: StageDir,
    out: StageDir,
    config: BuildConfig,
    rate: RateConfig,
    teacher: TeacherConfig,
    seed: int,
) -> Outcome:
    """Writes `config.min_inputs` to `config.max_inputs` poor variants of each sample and rates them.

    Args:
        generate: The stage that wrote the samples.
        out: Where the rows go: `slots.SCHEMA`. Variants that come out at `config.min_score` or better, time
            and again, and those that could not be written or rated go to the rejects.
        config: How many variants.
        rate: The judge.
        teacher: Who writes; the one that wrote the samples.
        seed: Of all choices.
    """
    shared = share_judge(rate_of(rate, teacher), out)
    kwargs = {"generate": generate, "config": config, "judge": shared, "seed": seed}
    if teacher.backend == "offline":
        map_parts(out, generate.parts(), _make_work, kwargs, **shared.placement())
        return Outcome(metrics=shared.metrics())
    placement = placement_of(teacher, rate)
    chat = share_chat(teacher, out, TEACHER)
    map_parts(out, generate.parts(), _make_taught, kwargs | {"chat": chat}, **placement)
    return Outcome(metrics=shared.metrics() | chat.metrics())


def _make_work(generate: StageDir, config: BuildConfig, judge: SharedJudge, seed: int) -> Work:
    made = judge.make()
    return lambda relative: degrade_part(generate.read_part(relative), made, config, seed)


def _make_taught(
    generate: StageDir, config: BuildConfig, judge: SharedJudge, chat: SharedChat, seed: int
) -> Work:
    made, teacher = judge.make(), chat.make()
    return lambda relative: taught_variants(generate.read_part(relative), teacher, made, config, seed)


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
    reasons = [too_good(score, config.min_score) for score in columns["score"]]
    return parted(pa.table(table(rows, SCHEMA).to_pydict() | columns, schema=SCHEMA), reasons)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["prompt"], row["completion"]


def _row(target: dict[str, Any], slot: Slot, seed: int, attempt: int) -> dict[str, Any]:
    rng = Random(f"variant/{seed}/{target['id']}/{slot.position}/{attempt}")
    variant = write_variant(target, slot.claims, slot.fault, rng, options=slot.options, shown=slot.shown)
    return variant | {
        "id": content_id(target["id"], str(slot.position), variant["prompt"], variant["completion"]),
        "source": target["source"],
        "task_type": target["task_type"],
        "target_id": target["id"],
        "entity": target["entity"],
        "split": target["split"],
        "position": slot.position,
        "attributes": [claim.attribute for claim in slot.claims],
        "values": [claim.value for claim in slot.claims],
    }
