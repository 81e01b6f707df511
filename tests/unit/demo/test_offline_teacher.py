"""The offline teacher and the poor rows."""

from __future__ import annotations

from random import Random

import pytest

from lm_mixup.chat.judge import Rating, make_judge
from lm_mixup.config import BuildConfig, RateConfig
from lm_mixup.core.claims import Claim
from lm_mixup.core.schemas import compress_score
from lm_mixup.core.task_types import (
    LETTERS,
    TASK_TYPES,
    Mcq,
    Tfq,
    detect_task_type,
    parse_answer,
    parse_output,
    write_answer,
    write_output,
)
from lm_mixup.demo.fact_check import truth
from lm_mixup.demo.facts import entities_by_name, load_entities
from lm_mixup.demo.low_quality_rows import FAULTS, low_quality_row
from lm_mixup.demo.offline_teacher import (
    MAX_OUTPUT_CHARS,
    describe,
    is_true,
    merge_samples,
    options_for,
    write_sample,
)
from lm_mixup.demo.sentence_templates import template_set
from lm_mixup.demo.topics import TOPICS

WORLD = load_entities()
TOPIC_NAMES = tuple(TOPICS)


def drafts(task_type, count=200, held_out=False):
    for number in range(count):
        entity = WORLD[number * 7 % len(WORLD)]
        rng = Random(f"{task_type}{number}")
        yield entity, write_sample(entity, task_type, WORLD, rng, held_out=held_out)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_samples_parse_are_short_and_say_what_they_claim(task_type, held_out):
    for entity, draft in drafts(task_type, held_out=held_out):
        output = write_output(draft.cot, draft.answer)
        assert len(output) <= MAX_OUTPUT_CHARS
        assert parse_answer(task_type, parse_output(output).answer) == draft.sample
        assert draft.cot.strip() and "\n" not in draft.cot
        assert 2 <= len(draft.claims) <= 4
        found = truth(draft.answer, entity)
        assert set(found.claimed) == set(draft.claims), draft.answer
        assert found.holds, draft.answer
        assert entity.name in draft.answer
        assert all(claim.value in draft.answer for claim in draft.claims)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_a_poor_teacher_leaves_facts_out_that_it_lists(task_type):
    for number in range(60):
        entity = WORLD[number * 7 % len(WORLD)]
        draft = write_sample(entity, task_type, WORLD, Random(number), max_claims=2)
        found = truth(draft.answer, entity)
        assert len(draft.claims) >= 3
        assert set(found.claimed) == set(draft.claims[:2]) and found.holds, draft.answer


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_output_is_parsed_as_the_task_type_it_was_written_for(task_type):
    for _, draft in [*drafts(task_type, 40), *drafts(task_type, 40, held_out=True)]:
        prompt, completion = draft.pair
        assert prompt and completion
        if task_type in ("mcq", "tfq", "qa"):
            assert detect_task_type(prompt, completion) == task_type


@pytest.mark.parametrize("held_out", [False, True])
def test_nine_in_ten_samples_are_rated_high(held_out):
    mix = BuildConfig.model_validate({}).task_mix
    judge = make_judge(RateConfig(relevance=False))
    share = 0.0
    for task_type, part in mix.items():
        verdicts = judge.rate([draft.pair for _, draft in drafts(task_type, 150, held_out)])
        scores = [compress_score(v.overall) for v in verdicts if isinstance(v, Rating)]
        share += part * sum(score >= 4 for score in scores) / len(verdicts)
    assert share >= 0.9


@pytest.mark.parametrize("held_out", [False, True])
def test_nearly_all_poor_rows_are_rated_low(held_out):
    judge = make_judge(RateConfig(relevance=False))
    pairs = []
    for number in range(600):
        rng = Random(number)
        entity, task_type = rng.choice(WORLD), rng.choice(TASK_TYPES)
        fault = rng.choice(FAULTS)
        claims = entity.claims([rng.choice(sorted(entity.facts))]) if fault != "vague" else ()
        row = low_quality_row(entity, task_type, claims, fault, rng, held_out=held_out)
        assert parse_answer(task_type, write_answer(row.sample)) == row.sample
        assert detect_task_type(row.prompt, row.completion) in (task_type, "qa")
        assert all(claim.value in f"{row.prompt}\n{row.completion}" for claim in claims)
        pairs.append((row.prompt, row.completion))
    scores = [compress_score(v.overall) for v in judge.rate(pairs) if isinstance(v, Rating)]
    assert len(scores) == len(pairs)
    assert sum(score < 4 for score in scores) / len(scores) > 0.97


def test_poor_row_wants_claims_unless_it_is_vague():
    entity = entities_by_name()["France"]
    with pytest.raises(ValueError, match="vague"):
        low_quality_row(entity, "qa", entity.claims(["capital"]), "vague", Random(0))
    with pytest.raises(ValueError, match="vague"):
        low_quality_row(entity, "qa", (), "register", Random(0))


def test_multiple_choice_has_one_right_option_and_all_letters_occur():
    letters = set()
    for entity, draft in drafts("mcq", 120):
        sample = draft.sample
        assert isinstance(sample, Mcq)
        asked = draft.claims[0]
        assert sample.options[LETTERS.index(sample.answer)] == asked.value == entity.facts[asked.attribute]
        assert len(set(sample.options)) == 4
        letters.add(sample.answer)
    assert letters == set(LETTERS)


def test_true_and_false_statements_both_occur_and_are_labelled_right():
    answers = []
    for entity, draft in drafts("tfq"):
        assert isinstance(draft.sample, Tfq)
        assert draft.sample.answer == is_true(entity, draft.claims)
        assert sum(not is_true(entity, [claim]) for claim in draft.claims) <= 1
        answers.append(draft.sample.answer)
    assert 0.25 < answers.count(False) / len(answers) < 0.55


def test_the_same_facts_have_many_wordings():
    france = entities_by_name()["France"]
    claims = france.claims(["capital", "continent", "currency", "language"])
    rngs = map(Random, range(300))
    texts = {rng.choice(template_set(False).statements)(france, claims, rng) for rng in rngs}
    assert len(texts) >= 40
    assert all(set(truth(text, france).claimed) == set(claims) for text in texts)


def test_the_same_random_state_gives_the_same_sample():
    one, two = (write_sample(WORLD[3], "qa", WORLD, Random("x")) for _ in range(2))
    assert one == two


def test_an_entity_with_too_few_facts_is_refused():
    france = entities_by_name()["France"]
    poor = type(france)("countries", "Atlantis", {"capital": "Poseidonis"})
    with pytest.raises(ValueError, match="Atlantis"):
        write_sample(poor, "qa", WORLD, Random(0))
    with pytest.raises(ValueError, match="three wrong options"):
        options_for(france, Claim("capital", "Paris"), [france], Random(0))


def test_a_passage_tells_every_fact():
    for entity in WORLD[::5]:
        found = truth(describe(entity), entity)
        assert not found.missing and not found.wrong


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_merged_samples_tell_of_both_entities(task_type):
    merged_some = False
    for number in range(40):
        rng = Random(number)
        one, two = rng.sample([entity for entity in WORLD if entity.topic == TOPIC_NAMES[number % 6]], 2)
        first, second = (write_sample(entity, task_type, WORLD, rng) for entity in (one, two))
        merged = merge_samples(
            first.sample, (one, first.claims[:2]), (two, second.claims[:2]), rng, held_out=number % 2 == 1
        )
        if merged is None:
            continue
        merged_some = True
        assert len(write_output(merged.cot, merged.answer)) <= MAX_OUTPUT_CHARS
        assert parse_answer(task_type, merged.answer) == merged.sample
        told = truth(merged.answer, one).claimed, truth(merged.answer, two).claimed
        assert set(told[0]) == set(first.claims[:2])
        assert set(told[1]) == set(second.claims[:2])
    assert merged_some
