"""Stage `mixture`: the MIXTURE rows, each a few poor inputs and the target that they are to become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.config import BuildConfig, DataConfig
from lm_mixup.core.claims import FACT, OPTIONS, claims_of
from lm_mixup.core.noise import add_noise
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import MIXTURE, content_id, extend, table
from lm_mixup.core.task_types import INSTRUCTIONS, LETTERS, Cs, Mcq, parse_answer, write_input
from lm_mixup.core.value_counts import count_values
from lm_mixup.demo import Bundle, Merged, invent, merge, pair_up, replace_terms
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.teacher.fact_coverage import names

Row = dict[str, Any]
SCHEMA = extend(
    MIXTURE,
    pa.schema([(name, pa.string()) for name in ("target_id", "entity", "partner_id", "partner_entity")]),
    pa.schema([("fictional", pa.bool_())]),
)
LEFT_OUT = ("facts_uncovered", "too_few_inputs")


def mixture(
    generate: StageDir,
    degrade: StageDir,
    crosstopic: StageDir | None,
    out: StageDir,
    config: BuildConfig,
    data: DataConfig,
    seed: int,
) -> Outcome:
    """Joins samples and their variants into MIXTURE rows.

    A row's `source_ids` are the variants behind its `inputs`, in order. `target_id` is its sample, and a
    merged row's `partner_id` the other one. The `score` of a row merged here is the lower of the two, it is
    not rated itself; those of `crosstopic` are.

    Args:
        generate: The stage that wrote the samples.
        degrade: The stage that wrote their variants, part by part.
        out: Where the rows go: `SCHEMA`.
        config: Shares of merged and noisy rows and of rows with reasoning; bounds on the inputs.
        data: Not used: a part holds the rows of one part of samples.
        seed: Of all choices.
        crosstopic: Rows that a teacher merged, where there is one; their samples make no other rows.

    Returns:
        How many samples were used, and why the others were left out.
    """
    items: list[Sequence[str]] = list(zip(generate.parts(), degrade.parts(), strict=True))
    items += [(part,) for part in crosstopic.parts()] if crosstopic is not None else []
    kwargs = {
        "generate": generate,
        "degrade": degrade,
        "crosstopic": crosstopic,
        "config": config,
        "seed": seed,
    }
    map_parts(out, items, _make_work, kwargs, num_actors=config.num_actors)
    totals: Counter[str] = Counter()
    for receipt in out.receipts().values():
        totals.update({name: int(value) for name, value in receipt.metrics.items()})
    return Outcome(
        rows_in=sum(receipt.rows_out for receipt in generate.receipts().values()),
        rows_used=totals["samples_used"],
        left_out={reason: totals[reason] for reason in LEFT_OUT if totals[reason]},
    )


def _make_work(
    generate: StageDir, degrade: StageDir, crosstopic: StageDir | None, config: BuildConfig, seed: int
) -> Work:
    merged: set[str] = set()
    if crosstopic is not None:
        for pairs in crosstopic.iter_parts(["target_id", "partner_id"]):
            merged.update(pairs["target_id"].to_pylist(), pairs["partner_id"].to_pylist())

    def work(item: Sequence[str]) -> PartResult:
        if crosstopic is not None and len(item) == 1:
            return merged_part(crosstopic.read_part(item[0]), config, seed)
        samples = generate.read_part(item[0])
        alone = pc.invert(pc.is_in(samples["id"], value_set=pa.array(sorted(merged), pa.string())))
        return mixture_part(samples.filter(alone), degrade.read_part(item[1]), config, seed)

    return work


def merged_part(merged: pa.Table, config: BuildConfig, seed: int) -> PartResult:
    """Makes the MIXTURE rows of one part of samples that a teacher merged."""
    rows: list[Row] = []
    for pair in merged.to_pylist():
        partner = {name: pair[name] for name in ("partner_id", "partner_entity")}
        row = _single_row(pair) | partner | {"method": "crosstopic", "target_id": pair["target_id"]}
        rows.append(_finished(row, pair["variants"], config, seed))
    return _counted(rows, rows_in=0, samples_used=2 * len(rows))


def mixture_part(samples: pa.Table, variants: pa.Table, config: BuildConfig, seed: int) -> PartResult:
    """Makes the MIXTURE rows of one part of samples and the variants of those samples."""
    bundles, left_out = bundles_of(samples.to_pylist(), variants.to_pylist(), config)
    rng = Random(f"mixture/{seed}/{bundles[0].target['id'] if bundles else ''}")
    # Each merge makes one row of two, so that merges / rows comes to the rate asked for.
    wanted = round(config.crosstopic_rate * len(bundles) / (1 + config.crosstopic_rate))
    rows: list[Row] = []
    merged_away: set[int] = set()
    for one, two in pair_up(bundles, wanted, rng):
        merged = merge(bundles[one], bundles[two], config, rng)
        if merged is not None:
            merged_away |= {one, two}
            rows.append(_finished(_merged_row(merged), merged.variants, config, seed))
    for index, bundle in enumerate(bundles):
        if index not in merged_away:
            rows.append(_finished(_single_row(bundle.target), bundle.variants, config, seed))
    return _counted(rows, rows_in=samples.num_rows, samples_used=len(bundles), **left_out)


def _counted(rows: Iterable[Row], rows_in: int, **figures: int) -> PartResult:
    """The rows of a part with its figures, and how many there are of each kind."""
    made = table(rows, SCHEMA)
    inputs = pc.sum(pc.list_value_length(made["inputs"])).as_py() or 0
    return PartResult(made, rows_in=rows_in, metrics={"inputs": inputs, **figures, **count_values(made)})


def bundles_of(
    samples: Iterable[Row], variants: Iterable[Row], config: BuildConfig
) -> tuple[list[Bundle], Counter[str]]:
    """The samples with their variants; those with too few, or that lack a fact, are counted instead."""
    by_target: dict[str, list[Row]] = {}
    for variant in variants:
        by_target.setdefault(variant["target_id"], []).append(variant)
    kept: list[Bundle] = []
    left_out: Counter[str] = Counter()
    for target in samples:
        mine = sorted(by_target.get(target["id"], []), key=lambda variant: variant["position"])
        told = {claim for variant in mine for claim in claims_of(variant)}
        if not told.issuperset(claims_of(target)) or not _options_shown(target, mine):
            left_out["facts_uncovered"] += 1
        elif len(mine) < config.min_inputs:
            left_out["too_few_inputs"] += 1
        else:
            kept.append(Bundle(target, mine))
    return kept, left_out


def _options_shown(target: Row, variants: Sequence[Row]) -> bool:
    """Whether the variants show all options; those of a chat model are claims, and seen to as such."""
    if target["task_type"] != "mcq" or OPTIONS in target["attributes"]:
        return True
    sample = parse_answer("mcq", target["answer"])
    assert isinstance(sample, Mcq)  # noqa: S101
    lines = {line for variant in variants for line in variant["prompt"].split("\n")}
    return all(f"{letter}) {text}" in lines for letter, text in zip(LETTERS, sample.options, strict=True))


def _single_row(target: Row) -> Row:
    return {
        "task_type": target["task_type"],
        "cot": target["cot"],
        "output": target["answer"],
        "score": target["score"],
        "method": "degrade",
        "split": target["split"],
        "target_id": target["id"],
        "entity": target["entity"],
    }


def _merged_row(merged: Merged) -> Row:
    return _single_row(merged.first) | {
        "cot": merged.draft.cot,
        "output": merged.draft.answer,
        "score": min(merged.first["score"], merged.second["score"]),
        "method": "crosstopic",
        "partner_id": merged.second["id"],
        "partner_entity": merged.second["entity"],
    }


def _finished(row: Row, variants: Sequence[Row], config: BuildConfig, seed: int) -> Row:
    """Adds the inputs, with noise or not, and drops the reasoning of some rows."""
    source_ids = [variant["id"] for variant in variants]
    identity = content_id(row["output"], *source_ids)
    rng = Random(f"row/{seed}/{identity}")
    clean = [write_input(variant["prompt"], variant["completion"]) for variant in variants]
    inputs = clean
    if rng.random() < config.noise_rate:
        inputs = [
            add_noise(text, protected_of(variant), rng) for text, variant in zip(clean, variants, strict=True)
        ]
    finished = row | {
        "id": identity,
        "instruction": INSTRUCTIONS[row["task_type"]],
        "inputs": inputs,
        "cot": row["cot"] if rng.random() < config.cot_rate else "",
        "noisy": inputs != clean,
        "source_ids": source_ids,
        "fictional": row["split"] == "sft" and rng.random() < config.fiction_rate,
    }
    return _fictional(finished, variants, rng) if finished["fictional"] else finished


def _fictional(row: Row, variants: Sequence[Row], rng: Random) -> Row:
    """The row with invented names, values and options, the same in its inputs and its target."""
    sample = parse_answer(row["task_type"], row["output"])
    options = sample.options if isinstance(sample, Mcq) else ()
    kept = {sample.category} if isinstance(sample, Cs) else set()
    terms = {*options, *(term for variant in variants for term in protected_of(variant))} - kept
    invented = invent(sorted(terms), rng)
    return row | {
        "inputs": [replace_terms(text, invented) for text in row["inputs"]],
        "cot": replace_terms(row["cot"], invented),
        "output": replace_terms(row["output"], invented),
    }


def protected_of(variant: Row) -> list[str]:
    """What noise must leave whole in a variant: the names, the values, the options and the category."""
    sample = parse_answer(variant["task_type"], variant["answer"])
    options = sample.options if isinstance(sample, Mcq) else ()
    category = [sample.category] if variant["task_type"] == "cs" else []  # type: ignore[union-attr]
    facts = [claim.value for claim in claims_of(variant) if claim.attribute == FACT]
    return [variant["entity"], *variant["values"], *options, *category, *names(facts)]
