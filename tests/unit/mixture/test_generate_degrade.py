"""Samples and their poor variants: what is kept, what is refused, and what each tells."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_build import SAMPLES, FixedJudge, build

from lm_mixup.chat.judge import Rating, RatingFailure, make_judge
from lm_mixup.config import RateConfig
from lm_mixup.core.claims import claims_of
from lm_mixup.core.task_types import LETTERS, parse_answer
from lm_mixup.demo.fact_check import truth
from lm_mixup.demo.facts import entities_by_name
from lm_mixup.mixture.assemble import bundles_of
from lm_mixup.mixture.generate import plan
from lm_mixup.mixture.offline_writer import write_samples, write_variants
from lm_mixup.mixture.variant_plan import plan_variants

# generate


@given(st.integers(1, 400), st.integers(1, 1500), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_plan_covers_every_sample_once_and_splits_no_passage(count, samples, rows_per_part):
    parts = plan(count, samples, rows_per_part)
    assert parts[0]["first"] == 0
    assert parts[-1]["stop"] == samples
    for part, following in pairwise(parts):
        assert part["stop"] == following["first"]
        assert part["passage_stop"] <= following["passage"]
    for part in parts:
        about = [i * count // samples for i in range(part["first"], part["stop"])]
        assert part["passage"] <= about[0] and about[-1] < part["passage_stop"]
        one_passage = len(set(about)) == 1
        assert len(about) <= rows_per_part or one_passage


def test_samples_are_kept_by_score_and_none_is_lost(generated):
    kept, rejected = generated.rows.to_pylist(), generated.rejected.to_pylist()
    assert generated.rows_in == SAMPLES == len(kept) + len(rejected)
    assert len(kept) >= 0.88 * SAMPLES
    assert min(row["score"] for row in kept) >= 4
    assert {row["reason"] for row in rejected} <= {"score_below_4", "duplicate"}
    assert all(row["score"] < 4 for row in rejected if row["reason"] == "score_below_4")
    assert len({row["id"] for row in kept}) == len(kept)
    for row in kept:
        parse_answer(row["task_type"], row["answer"])
        assert truth(row["answer"], entities_by_name()[row["entity"]]).holds


def test_samples_do_not_depend_on_the_parts(listed, generated):
    about = list(range(100, 160))
    alone = write_samples(listed, about, 100, make_judge(RateConfig(relevance=False)), build(), seed=0)
    ids = set(alone.rows["id"].to_pylist())
    assert len(ids) > 40
    assert ids <= set(generated.rows["id"].to_pylist())


def test_another_seed_writes_other_samples(listed, generated):
    other = write_samples(listed, range(60), 0, make_judge(RateConfig(relevance=False)), build(), seed=1)
    assert not set(other.rows["answer"].to_pylist()) & set(generated.rows["answer"].to_pylist())


def test_the_task_mix_is_kept(listed):
    config = build(task_mix={"qa": 3, "tfq": 1})
    kinds = write_samples(listed, [0, 150] * 100, 0, FixedJudge(Rating(9, 9, 9, 9)), config, 0).rows[
        "task_type"
    ]
    counts = Counter(kinds.to_pylist())
    assert set(counts) == {"qa", "tfq"}
    assert 0.65 < counts["qa"] / counts.total() < 0.85


def test_a_sample_is_written_once(listed):
    part = write_samples(listed, [5] * 400, 0, FixedJudge(Rating(9, 9, 9, 9)), build(), seed=0)
    answers = part.rows["answer"].to_pylist()
    assert len(answers) == len(set(answers))
    assert part.rows_in == 400 == part.rows.num_rows + part.rejected.num_rows


def test_unrated_samples_are_rejected_with_nulls(listed):
    part = write_samples(
        listed, range(5), 0, FixedJudge(RatingFailure("request_failed: 500")), build(), seed=0
    )
    assert part.rows.num_rows == 0
    rows = part.rejected.to_pylist()
    assert [row["reason"] for row in rows] == ["unrated"] * 5
    assert all(row["score"] is None and row["overall"] is None and row["error"] for row in rows)


# degrade


@pytest.mark.parametrize(("least", "most"), [(2, 2), (2, 5), (6, 20)])
def test_variants_hold_all_claims_within_the_bounds(generated, least, most):
    config = build(min_inputs=least, max_inputs=most)
    sizes = set()
    for target in generated.rows.to_pylist():
        plans = plan_variants(target, config, seed=3)
        sizes.add(len(plans))
        assert least <= len(plans) <= most
        assert {claim for plan in plans for claim in plan.claims} == set(claims_of(target))
        assert [plan.position for plan in plans] == list(range(len(plans)))
        assert all(bool(plan.claims) == (plan.fault != "vague") for plan in plans)
        asking = [plan for plan in plans if plan.options]
        assert len(asking) == (target["task_type"] == "mcq")
    assert sizes == set(range(least, most + 1))


def test_sizes_and_faults_are_those_of_the_config(generated):
    config = build(max_inputs=20, size_mix={2: 1, 7: 3}, fault_mix={"reasoning": 3, "register": 1})
    plans = [plan_variants(target, config, seed=0) for target in generated.rows.to_pylist()]
    sizes = Counter(len(mine) for mine in plans)
    assert set(sizes) == {2, 7} and 0.68 < sizes[7] / sizes.total() < 0.82
    faults = Counter(plan.fault for mine in plans for plan in mine if len(mine) == 2)
    assert set(faults) == {"reasoning", "register"}  # two inputs have no room for one that tells nothing new
    assert 0.6 < faults["reasoning"] / faults.total() < 0.9


@pytest.mark.parametrize("least", [2, 3, 6])
def test_options_are_dealt_out_to_two_inputs_that_show_all_together(generated, least):
    config = build(min_inputs=least, max_inputs=least, fault_mix={"incomplete": 1, "options": 1e6})
    part = write_variants(generated.rows, FixedJudge(Rating(4, 4, 4, 4)), config, seed=0)
    by_target = {}
    for row in part.rows.to_pylist():
        by_target.setdefault(row["target_id"], []).append(row)
    asked = 0
    for target in generated.rows.to_pylist():
        rows = by_target[target["id"]]
        assert len(rows) == least
        assert {claim for row in rows for claim in claims_of(row)} == set(claims_of(target))
        if target["task_type"] != "mcq":
            continue
        good = parse_answer("mcq", target["answer"])
        lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, good.options, strict=True)]
        shown = [[line for line in lines if line in row["prompt"].split("\n")] for row in rows]
        partial = [some for some in shown if some]
        assert len(partial) == 2 and all(2 <= len(some) <= 3 for some in partial)
        assert {line for some in partial for line in some} == set(lines)
        right = lines[LETTERS.index(good.answer)]
        assert all(right in some for some in partial)
        whole, lost = bundles_of([target], rows, config)
        assert len(whole) == 1 and not lost
        half = [row for row, some in zip(rows, shown, strict=True) if some != partial[0]]
        assert bundles_of([target], half, config)[1]["facts_uncovered"] == 1
        asked += 1
    assert asked > 30


def test_the_union_of_the_variants_holds_the_facts_of_the_target(generated, degraded):
    by_target = {}
    for row in [*degraded.rows.to_pylist(), *degraded.rejected.to_pylist()]:
        by_target.setdefault(row["target_id"], []).append(row["prompt"] + "\n" + row["completion"])
    for target in generated.rows.to_pylist():
        texts = "\n".join(by_target[target["id"]])
        assert all(value in texts for value in target["values"])
        assert target["entity"] in texts
        if target["task_type"] == "mcq":
            options = parse_answer("mcq", target["answer"]).options
            assert all(f"{letter}) {text}" in texts for letter, text in zip(LETTERS, options, strict=True))


def test_variants_are_poor_pool_rows(degraded):
    rows = degraded.rows.to_pylist()
    assert degraded.rows_in == len(rows) + degraded.rejected.num_rows
    assert degraded.rejected.num_rows < 0.06 * degraded.rows_in
    assert set(degraded.rejected["reason"].to_pylist()) <= {"score_not_below_4"}
    assert max(row["score"] for row in rows) < 4
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        parse_answer(row["task_type"], row["answer"])


def test_variants_that_never_come_out_poor_are_rejected(generated):
    few = generated.rows.slice(0, 10)
    part = write_variants(few, FixedJudge(Rating(9, 9, 9, 9)), build(), seed=0)
    assert part.rows.num_rows == 0
    assert part.rejected.num_rows == part.rows_in > 0
    assert set(part.rejected["reason"].to_pylist()) == {"score_not_below_4"}


def test_unrated_variants_are_rejected(generated):
    part = write_variants(generated.rows.slice(0, 3), FixedJudge(RatingFailure("no")), build(), seed=0)
    assert set(part.rejected["reason"].to_pylist()) == {"unrated"}
    assert part.rejected["score"].null_count == part.rejected.num_rows == part.rows_in
