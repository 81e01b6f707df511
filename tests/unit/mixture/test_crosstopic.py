"""Cross-topic rows of a teacher's samples: who is paired with whom, and what may come of it."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_build import FixedJudge
from stage_rows import put_part

from lm_mixup.chat.judge import Rating, RatingFailure
from lm_mixup.chat.types import ChatFailure
from lm_mixup.config import BuildConfig, Config
from lm_mixup.core.claims import FACT, OPTIONS, claims_of
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.schemas import table
from lm_mixup.core.task_types import Mcq, Para, Qa, Tfq, parse_answer, to_pair, write_answer
from lm_mixup.distributed.map_parts import receipt_of
from lm_mixup.mixture.assemble import mixture
from lm_mixup.mixture.crosstopic import merge_pairs
from lm_mixup.mixture.pair_samples import nearest_pairs, pair_group
from lm_mixup.mixture.schemas import SCHEMA as SAMPLE
from lm_mixup.mixture.variant_plan import SCHEMA as VARIANT
from lm_mixup.stages import all_stages, required_inputs, stages_of

# Pairs


def unit(rows):
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def map_here(out, items, make_work, kwargs, **_):
    """`map_parts` without Ray."""
    work = make_work(**kwargs)
    for number, item in enumerate(items):
        result = work(item)
        out.write_part(number, result.rows, result.rejected, receipt_of(number, result))


def random_group(seed, count, passages):
    rng = np.random.default_rng(seed)
    return (
        unit(rng.normal(size=(count, 8))),
        [f"s{n:03d}" for n in range(count)],
        [f"p{n % passages}" for n in range(count)],
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 20), st.floats(-0.5, 0.9), st.integers(1, 20)
)
def test_pairs_are_near_disjoint_and_of_different_passages(seed, count, passages, floor, most):
    vectors, ids, of = random_group(seed, count, passages)
    pairs = nearest_pairs(vectors, ids, of, floor, most)
    flat = [place for first, second, _ in pairs for place in (first, second)]
    assert len(set(flat)) == len(flat) and len(pairs) <= most
    assert all(of[first] != of[second] and ids[first] < ids[second] for first, second, _ in pairs)
    cosines = vectors @ vectors.T
    for first, second, similarity in pairs:
        assert similarity == pytest.approx(cosines[first, second], abs=1e-4) and similarity >= floor - 1e-4
    # The first pair is the nearest there is, and no free pair is nearer than the last.
    allowed = [
        (i, j) for i in range(count) for j in range(i) if of[i] != of[j] and cosines[i, j] >= floor + 1e-4
    ]
    assert bool(pairs) or not allowed
    if pairs:
        assert pairs[0][2] == pytest.approx(max((cosines[p] for p in allowed), default=pairs[0][2]), abs=2e-4)


def test_the_order_of_the_samples_does_not_matter():
    vectors, ids, of = random_group(3, 50, 9)
    order = Random(0).sample(range(50), 50)
    mixed = nearest_pairs(vectors[order], [ids[n] for n in order], [of[n] for n in order], 0.1, 15)
    named = [(ids[order[a]], ids[order[b]], s) for a, b, s in mixed]
    assert named == [(ids[a], ids[b], s) for a, b, s in nearest_pairs(vectors, ids, of, 0.1, 15)]


def test_many_samples_of_a_passage_do_not_hide_the_next_passage():
    rng = np.random.default_rng(0)
    crowd = unit([1, 0, 0] + 0.01 * rng.normal(size=(60, 3)))
    vectors = np.concatenate([crowd, unit([[1, 0.5, 0]])])
    passages = ["a"] * 60 + ["b"]
    ((first, second, _),) = nearest_pairs(vectors, [f"{n:02d}" for n in range(61)], passages, 0.5, 10)
    assert second == 60 and first < 60
    assert nearest_pairs(vectors, [f"{n:02d}" for n in range(61)], passages, 0.99, 10) == []


def test_a_group_gets_the_share_that_was_asked_for():
    vectors, ids, of = random_group(0, 110, 50)
    columns = {"id": ids, "passage_id": of, "split": ["sft"] * 110, "task_type": ["qa"] * 110}
    config = BuildConfig(crosstopic_rate=0.1, crosstopic_min_similarity=-1)
    part = pair_group(pa.table(columns), vectors, config)
    assert part.rows.num_rows == 10 and part.rows_in == 110  # 10 merged of 100 rows
    assert set(part.rows["task_type"].to_pylist()) == {"qa"} and set(part.rows["split"].to_pylist()) == {
        "sft"
    }
    nothing = BuildConfig(crosstopic_rate=0, crosstopic_min_similarity=-1)
    assert pair_group(pa.table(columns), vectors, nothing).rows.num_rows == 0


def test_samples_that_are_no_rows_are_not_paired(tmp_path, monkeypatch):
    from lm_mixup.mixture import pair_samples as stage

    monkeypatch.setattr(stage, "map_parts", map_here)
    run = RunDir(tmp_path)
    made = [sample("a"), sample("b"), *(sample("b") | {"id": n, "passage_id": n} for n in "cd")]
    told = {"a": ([0], [1]), "b": ([0], []), "c": ([], []), "d": ([0],)}  # c lacks a fact, d an input
    poor = [row for target in made for row in variants(target, *told[target["id"]])]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0] * 4, pa.float32()), 2)
    for name, rows in (
        ("generate", table(made, SAMPLE)),
        ("degrade", table(poor, VARIANT)),
        ("embed_samples", pa.table({"embedding": vectors})),
    ):
        put_part(run.stage(name), 0, rows)
    stages = [run.stage(name) for name in ("generate", "degrade", "embed_samples", "pair_samples")]
    outcome = stage.pair_samples(*stages, BuildConfig(crosstopic_rate=1))
    (pair,) = stages[-1].read(["id", "partner_id"]).to_pylist()
    assert pair == {"id": "a", "partner_id": "b"}
    assert outcome.rows_in == 4 and outcome.rows_used == 2
    assert outcome.left_out == {"facts_uncovered": 1, "too_few_inputs": 1, "not_paired": 0}


# Merging

FACTS = {
    "a": ["Alder Mill opened in 1810.", "Local farmers brought barley daily."],
    "b": ["Birch Mill opened in 1822."],
}
OPTIONS_OF_A = {
    f"option_{at}": f"a {n}" for at, n in zip("abcd", ("one", "two", "three", "four"), strict=True)
}


def sample(name, kind="qa", split="sft", holds=True):
    told = " ".join(FACTS[name])
    options = (f"{name} one", f"{name} two", f"{name} three", f"{name} four")
    good = {
        "qa": Qa(f"What is known of {name}?", told),
        "mcq": Mcq(told, options, "B"),
        "tfq": Tfq(told, holds),
        "para": Para(told),
    }[kind]
    prompt, completion = to_pair(good, "Write a paragraph.")
    claims = ([(OPTIONS, text) for text in options] if kind == "mcq" else []) + [
        (FACT, f) for f in FACTS[name]
    ]
    return {
        "id": name,
        "source": "own",
        "task_type": kind,
        "prompt": prompt,
        "completion": completion,
        "answer": write_answer(good),
        "cot": "So.",
        "passage_id": f"passage {name}",
        "entity": f"Mill {name}",
        "topic": None,
        "split": split,
        "score": 5,
        "attributes": [attribute for attribute, _ in claims],
        "values": [value for _, value in claims],
    }


def variants(target, *told):
    """One variant for each list of claims, by number."""
    rows = []
    for position, numbers in enumerate(told):
        mine = [(target["attributes"][n], target["values"][n]) for n in numbers]
        text = " ".join(value for attribute, value in mine if attribute == FACT) or "Nothing much."
        kind = target["task_type"]
        poor = {
            "qa": Qa("what?", text),
            "mcq": Mcq(text, ("yes", "no", "maybe", "both"), "A"),
            "tfq": Tfq(text, True),
            "para": Para(text),
        }[kind]
        prompt, completion = to_pair(poor, "Write.")
        rows.append(
            {
                "id": f"{target['id']}{position}",
                "source": "own",
                "task_type": kind,
                "prompt": prompt,
                "completion": completion,
                "answer": write_answer(poor),
                "target_id": target["id"],
                "entity": target["entity"],
                "split": target["split"],
                "position": position,
                "attributes": [attribute for attribute, _ in mine],
                "values": [value for _, value in mine],
            }
        )
    return rows


class Teacher:
    """Answers with all facts, unless told otherwise."""

    def __init__(self, **changes):
        self.changes, self.asked = changes, []

    def ask(self, conversations, form):
        return [self.answer(messages, form) for messages in conversations]

    def answer(self, messages, form):
        data = json.loads(messages[1]["content"])
        self.asked.append((messages[0]["content"], data))
        if "failure" in self.changes:
            return ChatFailure(self.changes["failure"])
        told = self.changes.get("told", " ".join(text for name, text in data.items() if name[:4] == "fact"))
        first = data["first"]
        fields = {"QaForm": {"question": "Both?", "answer": told}, "ParaForm": {"prompt": "P", "text": told}}
        fields["TfqForm"] = {"statement": told, "answer": self.changes.get("holds", True)}
        fields["McqForm"] = {
            "question": told,
            **OPTIONS_OF_A,
            "answer": self.changes.get("letter", first[-1]),
        }
        name = form.model_json_schema()["properties"]["sample"]["$ref"].rsplit("/", 1)[-1]
        return form.model_validate({"sample": fields[name], "cot": "Both are mills."})


TOLD_MCQ = (([0, 1, 2, 3], [4, 5]), ([0, 1, 2, 3, 4], [4], []))
GOOD = FixedJudge(Rating(9, 9, 9, 9))
PAIR = [{"id": "a", "partner_id": "b", "similarity": 0.8}]


def merged(kind="qa", teacher=None, judge=GOOD, told=(([0], [1]), ([0], [])), holds=True, **build):
    one, two = sample("a", kind, holds=holds), sample("b", kind)
    listed = [*variants(one, *told[0]), *variants(two, *told[1])]
    config = BuildConfig.model_validate({"min_inputs": 2, "max_inputs": 4, **build})
    part = merge_pairs(PAIR, [two, one], listed, teacher or Teacher(), judge, config)
    assert part.rows_in == 1 == part.rows.num_rows + part.rejected.num_rows
    return part


def reason_of(part):
    return part.rejected["reason"].to_pylist()[0] if part.rejected.num_rows else ""


def test_a_merged_sample_tells_all_facts_of_both_and_so_do_its_inputs():
    teacher = Teacher()
    (row,) = merged(teacher=teacher).rows.to_pylist()
    assert all(fact in row["answer"] for facts in FACTS.values() for fact in facts)
    assert [variant["id"] for variant in row["variants"]] == ["a0", "a1", "b0"]
    assert set(row["values"]) == {fact for facts in FACTS.values() for fact in facts}
    assert {claim for v in row["variants"] for claim in claims_of(v)} == set(claims_of(row))
    assert (row["target_id"], row["partner_id"], row["entity"], row["partner_entity"]) == (
        "a",
        "b",
        "Mill a",
        "Mill b",
    )
    assert row["score"] == 5 and row["split"] == "sft" and row["similarity"] == pytest.approx(0.8)
    ((task, data),) = teacher.asked
    assert list(data) == ["first", "second", "fact 1", "fact 2", "fact 3"]
    assert not any(fact in task for facts in FACTS.values() for fact in facts)  # material is data, not task


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("sample_left_out", {"told": (([0],), ([0], []))}),
        ("facts_uncovered", {"kind": "mcq", "told": (([0, 1, 2, 3], [4, 5]), ([0, 1, 2, 3, 4], []))}),
        ("too_many_inputs", {"max_inputs": 2}),
        ("facts_untold", {"teacher": Teacher(told="Alder Mill: 1810. Birch Mill: 1822.")}),
        ("facts_untold", {"teacher": Teacher(told="Farmers: barley, Alder Mill 1811, Birch 1822.")}),
        ("teacher_invalid_reply", {"teacher": Teacher(failure="invalid_reply: no")}),
        ("score_below_4", {"judge": FixedJudge(Rating(5, 5, 5, 5))}),
        ("unrated", {"judge": FixedJudge(RatingFailure("request_failed: 500"))}),
        ("options_changed", {"kind": "mcq", "teacher": Teacher(letter="C"), "told": TOLD_MCQ}),
        ("verdict_changed", {"kind": "tfq", "holds": False}),
        ("verdict_changed", {"kind": "tfq", "teacher": Teacher(holds=False)}),
        ("", {"kind": "tfq", "holds": False, "teacher": Teacher(holds=False)}),
        ("", {"kind": "para"}),
    ],
)  # fmt: skip
def test_what_is_not_a_merge_of_both_is_refused(reason, arguments):
    part = merged(**arguments)
    assert reason_of(part) == reason
    if reason:
        (row,) = part.rejected.to_pylist()
        assert row["target_id"] == "a" and (row["score"] is None) == (reason != "score_below_4")


def test_nobody_is_asked_for_what_cannot_become_a_row():
    for arguments in ({"told": (([0],), ([0], []))}, {"max_inputs": 2}):
        teacher = Teacher()
        merged(teacher=teacher, **arguments)
        assert not teacher.asked


def test_a_merged_question_keeps_the_options_of_the_first_and_leaves_the_others_out():
    (row,) = merged("mcq", told=TOLD_MCQ).rows.to_pylist()
    assert [variant["id"] for variant in row["variants"]] == ["a0", "a1", "b1"]
    assert parse_answer("mcq", row["answer"]).options[1] == "a two"
    assert row["attributes"].count(OPTIONS) == 4
    assert reason_of(merged("mcq", told=(TOLD_MCQ[0], ([0, 1, 2, 3, 4], [])))) == "facts_uncovered"


def test_few_inputs_are_filled_up_with_spare_ones():
    (row,) = merged(told=(([0, 1], [], []), ([0], [], [])), min_inputs=3).rows.to_pylist()
    assert [variant["id"] for variant in row["variants"]] == ["a0", "b0", "a1"]
    (row,) = merged(told=(([0, 1], [0]), ([0], [0])), min_inputs=2).rows.to_pylist()
    assert [variant["id"] for variant in row["variants"]] == ["a0", "b0"]


# In MIXTURE


def test_merged_samples_are_one_row_and_every_sample_is_accounted_for(tmp_path, monkeypatch):
    from lm_mixup.mixture import assemble

    monkeypatch.setattr(assemble, "map_parts", map_here)
    run = RunDir(tmp_path)
    one, two, left = sample("a"), sample("b"), sample("a") | {"id": "c"}
    poor = variants(one, [0], [1]) + variants(two, [0], []) + variants(left, [0], [1])
    parts = {
        "generate": [table([one, left], SAMPLE), table([two], SAMPLE)],
        "degrade": [table([v for v in poor if v["target_id"] != "b"], VARIANT), table(poor[2:4], VARIANT)],
        "crosstopic": [merged().rows],
    }
    for name, tables in parts.items():
        for number, rows in enumerate(tables):
            put_part(run.stage(name), number, rows)
    config = BuildConfig(noise_rate=0, max_inputs=4)
    stages = [run.stage(name) for name in ("generate", "degrade", "mixture")]
    outcome = mixture(*stages[:2], run.stage("crosstopic"), *stages[2:], config, Config().data, 0)
    rows = run.stage("mixture").read().to_pylist()
    assert sorted((r["method"], r["target_id"]) for r in rows) == [("crosstopic", "a"), ("degrade", "c")]
    (both,) = [r for r in rows if r["method"] == "crosstopic"]
    assert both["source_ids"] == ["a0", "a1", "b0"] and len(both["inputs"]) == 3
    assert (both["entity"], both["partner_entity"], both["partner_id"]) == ("Mill a", "Mill b", "b")
    assert all(fact in "\n".join(both["inputs"]) for facts in FACTS.values() for fact in facts)
    assert outcome.rows_in == 3 == outcome.rows_used + sum(outcome.left_out.values())


def test_a_teacher_model_brings_the_stages_with_it():
    taught = Config.model_validate({"teacher": {"backend": "openai"}})
    assert tuple(stages_of("build", taught))[3:] == ("embed_samples", "pair_samples", "crosstopic", "mixture")
    assert required_inputs(all_stages(taught)["mixture"], taught) == ("generate", "degrade", "crosstopic")
    for other in (
        Config(),
        Config.model_validate({"teacher": {"backend": "openai"}, "build": {"crosstopic_rate": 0}}),
    ):
        assert tuple(stages_of("build", other)) == ("passages", "generate", "degrade", "mixture")
    listed = [*stages_of("run", taught)]
    for name in listed:  # each stage comes behind what it reads
        needed = {
            one for names in required_inputs(all_stages(taught)[name], taught) for one in names.split("|")
        }
        assert needed <= set(listed[: listed.index(name)])
