"""The build stages' pure parts: passages, generate, degrade, cross-topic synthesis, assembly."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.backends.frames import HELD_OUT
from lm_mixup.backends.judge import Rating, RatingFailure, make_judge
from lm_mixup.backends.topics import TOPICS
from lm_mixup.config import BuildConfig, DataConfig, RateConfig, TeacherConfig
from lm_mixup.errors import InputError
from lm_mixup.mixture.assemble import mixture_part
from lm_mixup.mixture.crosstopic import Bundle, merge, pair_up
from lm_mixup.mixture.degrade import degrade_part
from lm_mixup.mixture.generate import generate, generate_part, plan
from lm_mixup.mixture.passages import passages
from lm_mixup.mixture.slots import claims_of, slots
from lm_mixup.runs import RunDir
from lm_mixup.tasks import LETTERS, parse_answer, write_output
from lm_mixup.world import poor
from lm_mixup.world.facts import entities_by_name, load_entities, split_of
from lm_mixup.world.truth import truth

SAMPLES = 489


def build(**values):
    return BuildConfig.model_validate({"samples": SAMPLES, **values})


class FixedJudge:
    """Gives every row the same verdict."""

    name = "fixed"

    def __init__(self, verdict):
        self.verdict = verdict

    def rate(self, rows):
        return [self.verdict] * len(rows)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    out = RunDir(tmp_path_factory.mktemp("run")).stage("passages")
    passages(out, build(), DataConfig(), seed=0)
    return out.read().to_pylist()


@pytest.fixture(scope="module")
def generated(listed):
    return generate_part(listed, range(len(listed)), 0, make_judge(RateConfig()), build(), seed=0)


@pytest.fixture(scope="module")
def degraded(generated):
    return degrade_part(generated.rows, make_judge(RateConfig()), build(), seed=0)


@pytest.fixture(scope="module")
def mixed(generated, degraded):
    config = build(crosstopic_rate=0.2, noise_rate=0.5)
    return mixture_part(generated.rows, degraded.rows, config, seed=0)


# passages


def test_a_passage_an_entity_with_its_split(listed):
    assert [row["entity"] for row in listed] == [entity.name for entity in load_entities()]
    assert {row["split"] for row in listed} == {"sft", "grpo", "test"}
    assert len({row["id"] for row in listed}) == len(listed)
    config = build()
    for row in listed:
        assert row["split"] == split_of(row["entity"], 0, config.grpo_fraction, config.test_fraction)


def test_splits_follow_the_fractions_and_the_seed():
    names = [f"entity {number}" for number in range(4000)]
    shares = Counter(split_of(name, 1, 0.2, 0.1) for name in names)
    assert abs(shares["test"] / 4000 - 0.1) < 0.02
    assert abs(shares["grpo"] / 4000 - 0.2) < 0.03
    assert [split_of(name, 1, 0.2, 0.1) for name in names] != [split_of(name, 2, 0.2, 0.1) for name in names]
    assert {split_of(name, 1, 0.0, 0.0) for name in names} == {"sft"}


def test_user_passages_are_read_and_the_broken_ones_rejected(tmp_path):
    lines = [
        json.dumps({"id": "1", "title": "Tea", "text": " Tea is a drink. "}),
        "{broken",
        json.dumps({"id": "2", "title": "Tea", "text": ""}),
        json.dumps({"id": "3", "title": "  ", "text": "No title."}),
        json.dumps({"id": "1", "title": "Tea", "text": "Again."}),
        "[1, 2]",
        json.dumps({"title": "Coffee", "text": "Coffee is a drink."}),
    ]
    source = tmp_path / "passages.jsonl"
    source.write_text("\n".join(lines) + "\n\n")
    out = RunDir(tmp_path / "run").stage("passages")
    config = build(passages=str(source), passage_min_words=1)
    passages(out, config, DataConfig(rows_per_part=3), seed=0)
    kept, rejected = out.read().to_pylist(), out.read(kind="rejected").to_pylist()
    assert [(row["title"], row["text"]) for row in kept] == [
        ("Tea", "Tea is a drink."),
        ("Coffee", "Coffee is a drink."),
    ]
    reasons = [row["reason"] for row in rejected]
    assert reasons == ["not_json", "no_text", "no_title", "duplicate_id", "not_json"]
    assert rejected[0]["text"] == "{broken"
    receipts = out.receipts().values()
    assert sum(r.rows_in for r in receipts) == 7 == len(kept) + len(rejected)
    with pytest.raises(InputError, match="offline teacher"):
        generate(
            out,
            RunDir(tmp_path / "run").stage("generate"),
            config,
            RateConfig(),
            TeacherConfig(),
            DataConfig(),
            seed=0,
        )


def test_parquet_passages(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [7], "title": ["Tea"], "text": ["A drink."]}), tmp_path / "p.parquet")
    out = RunDir(tmp_path / "run").stage("passages")
    passages(out, build(passages=str(tmp_path / "p.parquet"), passage_min_words=1), DataConfig(), seed=0)
    assert out.read(["id", "title", "topic"]).to_pylist() == [{"id": "7", "title": "Tea", "topic": None}]


@pytest.mark.parametrize("content", [None, ""])
def test_missing_or_empty_passages_are_the_user_s_error(tmp_path, content):
    source = tmp_path / "none.jsonl"
    if content is not None:
        source.write_text(content)
    with pytest.raises(InputError, match=r"none\.jsonl"):
        passages(
            RunDir(tmp_path / "run").stage("passages"), build(passages=str(source)), DataConfig(), seed=0
        )


def test_damaged_parquet_is_the_user_s_error(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    out = RunDir(tmp_path / "run").stage("passages")
    with pytest.raises(InputError, match="cannot be read"):
        passages(out, build(passages=str(tmp_path / "bad.parquet")), DataConfig(), seed=0)


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
    alone = generate_part(listed, about, 100, make_judge(RateConfig()), build(), seed=0)
    ids = set(alone.rows["id"].to_pylist())
    assert len(ids) > 40
    assert ids <= set(generated.rows["id"].to_pylist())


def test_another_seed_writes_other_samples(listed, generated):
    other = generate_part(listed, range(60), 0, make_judge(RateConfig()), build(), seed=1)
    assert not set(other.rows["answer"].to_pylist()) & set(generated.rows["answer"].to_pylist())


def test_the_task_mix_is_kept(listed):
    config = build(task_mix={"qa": 3, "tfq": 1})
    kinds = generate_part(listed, [0, 150] * 100, 0, FixedJudge(Rating(9, 9, 9, 9)), config, 0).rows[
        "task_type"
    ]
    counts = Counter(kinds.to_pylist())
    assert set(counts) == {"qa", "tfq"}
    assert 0.65 < counts["qa"] / counts.total() < 0.85


def test_a_sample_is_written_once(listed):
    part = generate_part(listed, [5] * 400, 0, FixedJudge(Rating(9, 9, 9, 9)), build(), seed=0)
    answers = part.rows["answer"].to_pylist()
    assert len(answers) == len(set(answers))
    assert part.rows_in == 400 == part.rows.num_rows + part.rejected.num_rows


def test_unrated_samples_are_rejected_with_nulls(listed):
    part = generate_part(
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
        planned = slots(target, config, seed=3)
        sizes.add(len(planned))
        assert least <= len(planned) <= most
        assert {claim for slot in planned for claim in slot.claims} == set(claims_of(target))
        assert [slot.position for slot in planned] == list(range(len(planned)))
        assert all(bool(slot.claims) == (slot.fault != "vague") for slot in planned)
        asking = [slot for slot in planned if slot.options]
        assert len(asking) == (target["task_type"] == "mcq")
    assert sizes == set(range(least, most + 1))


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
    part = degrade_part(few, FixedJudge(Rating(9, 9, 9, 9)), build(), seed=0)
    assert part.rows.num_rows == 0
    assert part.rejected.num_rows == part.rows_in > 0
    assert set(part.rejected["reason"].to_pylist()) == {"score_not_below_4"}


def test_unrated_variants_are_rejected(generated):
    part = degrade_part(generated.rows.slice(0, 3), FixedJudge(RatingFailure("no")), build(), seed=0)
    assert set(part.rejected["reason"].to_pylist()) == {"unrated"}
    assert part.rejected["score"].null_count == part.rejected.num_rows == part.rows_in


# cross-topic synthesis and assembly


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
    assert {split for found in splits.values() for split in found} == {"sft", "grpo", "test"}


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
    texts_of(frame) for field in fields(poor.HELD_OUT) for frame in getattr(poor.HELD_OUT, field.name)
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
    assert set(seen) == {"sft", "grpo", "test"}
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
