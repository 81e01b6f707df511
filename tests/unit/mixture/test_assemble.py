"""MIXTURE rows: cross-topic synthesis and assembly."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from random import Random

from small_build import build

from lm_mixup.core.claims import claims_of
from lm_mixup.core.task_types import parse_answer, write_output
from lm_mixup.demo import low_quality_rows
from lm_mixup.demo.fact_check import truth
from lm_mixup.demo.facts import entities_by_name
from lm_mixup.demo.merge_samples import Bundle, merge, pair_up
from lm_mixup.demo.sentence_templates import HELD_OUT
from lm_mixup.demo.topics import TOPICS
from lm_mixup.mixture.assemble import mixture_part


def bundles_of(generated, degraded):
    variants = {}
    for row in degraded.rows.to_pylist():
        variants.setdefault(row["target_id"], []).append(row)
    return [Bundle(row, variants[row["id"]]) for row in generated.rows.to_pylist() if row["id"] in variants]


def test_pairs_are_close_and_disjoint(generated, degraded):
    bundles = bundles_of(generated, degraded)
    pairs = pair_up(bundles, 40, Random(0))
    assert len(pairs) == 40
    flat = [index for pair in pairs for index in pair]
    assert len(set(flat)) == len(flat)
    for one, two in pairs:
        first, second = bundles[one].target, bundles[two].target
        assert all(first[key] == second[key] for key in ("split", "task_type", "topic"))
        assert first["entity"] != second["entity"]
    shared = [
        len(set(bundles[a].target["attributes"]) & set(bundles[b].target["attributes"])) for a, b in pairs
    ]
    assert sum(shared) / len(shared) > 1.5


def test_a_merged_target_tells_what_its_inputs_tell(generated, degraded):
    bundles = bundles_of(generated, degraded)
    done = 0
    for one, two in pair_up(bundles, 80, Random(1)):
        merged = merge(bundles[one], bundles[two], build(), Random(2))
        if merged is None:
            continue
        done += 1
        assert 2 <= len(merged.variants) <= 5
        told = {claim for variant in merged.variants for claim in claims_of(variant)}
        assert told == set(merged.draft.claims)
        for bundle in (bundles[one], bundles[two]):
            mine = {c for v in merged.variants if v["target_id"] == bundle.target["id"] for c in claims_of(v)}
            found = truth(merged.draft.answer, entities_by_name()[bundle.target["entity"]])
            assert set(found.claimed) == mine
    assert done > 40


def test_mixture_rows(mixed, generated, degraded):
    rows = mixed.rows.to_pylist()
    prompts = {row["id"]: row for row in degraded.rows.to_pylist()}
    for row in rows:
        parse_answer(row["task_type"], row["output"])
        assert len(write_output(row["cot"], row["output"])) <= 380
        assert 2 <= len(row["inputs"]) == len(row["source_ids"]) <= 5
        assert row["score"] >= 4
        texts = "\n".join(row["inputs"])
        for source in row["source_ids"]:
            assert prompts[source]["target_id"] in (row["target_id"], row["partner_id"])
            assert all(value in texts for value in prompts[source]["values"])  # noise or not
            assert prompts[source]["entity"] in texts
    assert len({row["id"] for row in rows}) == len(rows)


def test_every_fact_of_a_target_stands_in_its_inputs(mixed):
    rows = mixed.rows.to_pylist()
    for row in rows:
        texts = "\n".join(row["inputs"])
        for name in filter(None, (row["entity"], row["partner_entity"])):
            found = truth(row["output"], entities_by_name()[name])
            assert found.claimed
            assert all(claim.value in texts for claim in found.claimed)


def test_no_entity_is_in_two_splits(mixed):
    splits = {}
    for row in mixed.rows.to_pylist():
        for name in filter(None, (row["entity"], row["partner_entity"])):
            splits.setdefault(name, set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"sft", "grpo", "dev", "test"}


def texts_of(frame):
    """What matches texts of a frame."""
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(frame)))


_HELD_OUT_TEXTS = [
    re.compile(r"\bAs for .+, it "),
    re.compile(r"\bOf .+ it is known that its "),
    re.compile(rf" is the (?:{'|'.join(topic.kind for topic in TOPICS.values())}) that "),
    *map(texts_of, (*HELD_OUT.questions, *HELD_OUT.asks, HELD_OUT.merged_question, *HELD_OUT.prompts)),
]
_HELD_OUT_PROMPTS = [
    texts_of(frame)
    for field in fields(low_quality_rows.HELD_OUT)
    for frame in getattr(low_quality_rows.HELD_OUT, field.name)
]


def test_held_out_wordings_are_in_test_rows_and_nowhere_else(generated, degraded, mixed):
    plain = mixture_part(generated.rows, degraded.rows, build(crosstopic_rate=0.2, noise_rate=0), seed=0)
    seen = Counter()
    for row in plain.rows.to_pylist():
        asked = [text.removeprefix("Q: ").removeprefix("C: ") for text in row["inputs"]]
        in_output = any(frame.search(row["output"]) for frame in _HELD_OUT_TEXTS)
        in_inputs = sum(any(frame.match(text) for frame in _HELD_OUT_PROMPTS) for text in asked)
        seen[row["split"]] += 1
        if row["split"] == "test":
            assert in_output, row["output"]
        else:
            assert not in_output, row["output"]
            assert not in_inputs, asked
    assert set(seen) == {"sft", "grpo", "dev", "test"}
    for row in generated.rows.to_pylist():
        assert any(frame.search(row["prompt"]) for frame in _HELD_OUT_TEXTS) == (
            row["split"] == "test" and row["task_type"] != "cs"
        ), row["prompt"]


def test_poor_prompts_are_held_out_too(degraded):
    def held_out(row):
        return any(frame.match(row["prompt"]) for frame in _HELD_OUT_PROMPTS)

    def may(row):  # statements of poor true/false and multiple-choice rows stand before what asks
        return row["task_type"] in ("qa", "para", "cs")

    rows = degraded.rows.to_pylist()
    assert not [row["prompt"] for row in rows if held_out(row) and row["split"] != "test"]
    test = [row for row in rows if row["split"] == "test" and may(row)]
    assert test and all(held_out(row) for row in test)


def test_shares_of_merged_noisy_and_reasoned_rows(generated, degraded, mixed):
    rows = mixed.rows.to_pylist()
    methods = Counter(row["method"] for row in rows)
    assert 0.1 < methods["crosstopic"] / len(rows) <= 0.21
    assert 0.35 < sum(row["noisy"] for row in rows) / len(rows) < 0.65
    plain = mixture_part(
        generated.rows, degraded.rows, build(crosstopic_rate=0, noise_rate=0, cot_rate=0.5), seed=0
    ).rows.to_pylist()
    assert {row["method"] for row in plain} == {"degrade"}
    assert not any(row["noisy"] for row in plain)
    assert 0.35 < sum(not row["cot"] for row in plain) / len(plain) < 0.65
    assert all(row["partner_id"] is None for row in plain)


def test_samples_that_are_left_out_are_counted(generated, degraded, mixed):
    used = mixed.metrics["samples_used"]
    assert used + mixed.metrics.get("facts_uncovered", 0) + mixed.metrics.get("too_few_inputs", 0) == (
        generated.rows.num_rows
    )
    merged = sum(row["method"] == "crosstopic" for row in mixed.rows.to_pylist())
    assert mixed.rows.num_rows == used - merged
    none = mixture_part(generated.rows, degraded.rows.slice(0, 0), build(), seed=0)
    assert none.rows.num_rows == 0
    assert none.metrics["facts_uncovered"] == generated.rows.num_rows
    strict = mixture_part(generated.rows, degraded.rows, build(min_inputs=5, max_inputs=5), seed=0)
    assert strict.metrics["too_few_inputs"] > 0
    assert all(len(row["inputs"]) == 5 for row in strict.rows.to_pylist())


def test_inputs_of_a_single_target_follow_the_order_of_its_facts(mixed, generated, degraded):
    targets = {row["id"]: claims_of(row) for row in generated.rows.to_pylist()}
    variants = {row["id"]: claims_of(row) for row in degraded.rows.to_pylist()}
    checked = 0
    for row in mixed.rows.to_pylist():
        told = [claim for source in row["source_ids"] for claim in variants[source]]
        if row["method"] == "degrade" and row["task_type"] != "mcq" and len(told) == len(set(told)):
            assert tuple(told) == targets[row["target_id"]]
            checked += 1
    assert checked > 50


def test_invented_rows_can_be_answered_from_their_inputs_alone(generated, degraded):
    fiction = mixture_part(generated.rows, degraded.rows, build(fiction_rate=1.0, noise_rate=0), seed=0)
    plain = mixture_part(generated.rows, degraded.rows, build(noise_rate=0), seed=0)
    known = entities_by_name()
    values = {value for entity in known.values() for value in entity.facts.values() if len(value) > 4}
    for row, real in zip(fiction.rows.to_pylist(), plain.rows.to_pylist(), strict=True):
        assert row["fictional"] == (row["split"] == "sft")
        if not row["fictional"]:
            assert row == real
            continue
        parse_answer(row["task_type"], row["output"])
        entity = known[row["entity"]]
        told = [value for value in entity.facts.values() if value in values and value in real["output"]]
        assert not any(value in text for value in told for text in (row["output"], *row["inputs"]))
        assert not re.search(rf"\b{re.escape(row['entity'])}\b", row["output"])
