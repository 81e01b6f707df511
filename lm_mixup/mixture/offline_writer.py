"""What the offline teacher writes: samples of the closed world and their poor variants, by rules."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa

from lm_mixup.chat.judge import Judge, rating_columns
from lm_mixup.config import BuildConfig
from lm_mixup.core.schemas import content_id, table
from lm_mixup.demo import write_sample, write_variant
from lm_mixup.distributed.map_parts import PartResult
from lm_mixup.mixture import variant_plan
from lm_mixup.mixture.schemas import SCHEMA, parted, refusal, too_good
from lm_mixup.mixture.variant_plan import VariantPlan, plan_variants

_TRIES = 8  # times a sample that was written before is written anew
_ROUNDS = 4  # times a variant is written anew because it came out too good


def write_samples(
    passages: Sequence[dict[str, Any]],
    about: Sequence[int],
    first: int,
    judge: Judge,
    config: BuildConfig,
    seed: int,
) -> PartResult:
    """Writes and rates the samples of one part; those of the test split are in frames held out for it.

    Args:
        passages: Passage rows.
        about: For each sample, the passage it is about.
        first: Number of the first sample.
        judge: Rates the samples.
        config: Task mix and lowest score.
        seed: With the sample's number, makes its choices.
    """
    kinds, shares = list(config.task_mix), list(config.task_mix.values())
    written: set[str] = set()
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for number, index in enumerate(about, start=first):
        passage = passages[index]
        rng = Random(f"generate/{seed}/{number}")
        task_type = rng.choices(kinds, shares)[0]
        for _ in range(1 + _TRIES):
            sample = write_sample(passage, task_type, rng, max_claims=config.max_facts)
            if sample["answer"] not in written:
                break
        reasons.append("duplicate" if sample["answer"] in written else "")
        written.add(sample["answer"])
        about_passage = {name: passage[name] for name in ("source", "entity", "topic", "split")}
        identity = content_id(passage["id"], str(number), sample["answer"])
        rows.append(sample | about_passage | {"id": identity, "passage_id": passage["id"]})
    verdicts = judge.rate([(row["prompt"], row["completion"]) for row in rows])
    rated = table(rows, SCHEMA).to_pydict() | rating_columns(judge.name, verdicts)
    scores = rated["score"]
    reasons = [
        reason or refusal(score, config.min_score) for reason, score in zip(reasons, scores, strict=True)
    ]
    return parted(pa.table(rated, schema=SCHEMA), reasons)


def write_variants(samples: pa.Table, judge: Judge, config: BuildConfig, seed: int) -> PartResult:
    """Writes and rates the variants of one part of samples."""
    targets = samples.to_pylist()
    pending = [(target, plan) for target in targets for plan in plan_variants(target, config, seed)]
    rows = [_row(target, plan, seed, attempt=0) for target, plan in pending]
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
    return parted(
        pa.table(table(rows, variant_plan.SCHEMA).to_pydict() | columns, schema=variant_plan.SCHEMA), reasons
    )


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["prompt"], row["completion"]


def _row(target: dict[str, Any], plan: VariantPlan, seed: int, attempt: int) -> dict[str, Any]:
    rng = Random(f"variant/{seed}/{target['id']}/{plan.position}/{attempt}")
    variant = write_variant(target, plan.claims, plan.fault, rng, options=plan.options, shown=plan.shown)
    return variant | {
        "id": content_id(target["id"], str(plan.position), variant["prompt"], variant["completion"]),
        "source": target["source"],
        "task_type": target["task_type"],
        "target_id": target["id"],
        "entity": target["entity"],
        "split": target["split"],
        "position": plan.position,
        "attributes": [claim.attribute for claim in plan.claims],
        "values": [claim.value for claim in plan.claims],
    }
