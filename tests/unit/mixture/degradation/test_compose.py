"""MIXTURE rows of good rows: the target tells what the inputs hold, each thing once and in their order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.core.task_types import Cs, Mcq, Para, Qa, Tfq, parse_answer, read_input, write_answer
from lm_mixup.mixture.degradation.compose import GoodRow, Unfit, merge, union, with_noise
from lm_mixup.mixture.degradation.coverage import coverage, terms
from lm_mixup.mixture.degradation.text_tasks import text_task

TIPS = GoodRow(
    "tips", "tips", "qa", "Give three tips for staying healthy.",
    "Here are three tips:\n1. Eat plenty of fruit because it holds vitamins.\n2. Exercise daily.\n"
    "3. Sleep 8 hours.",
)  # fmt: skip
IRON = GoodRow("iron", "iron", "qa", "What is iron?", "Iron is a metal. It melts at 1538 degrees. It rusts.")
LION = GoodRow("lion", "lion", "qa", "Name a predator.", "Lion.")
FOX = GoodRow("fox", "fox", "qa", "Name an animal that has red fur.", "Fox.")
EDIT = GoodRow(
    "edit", "edit", "qa", "Make it specific.\n\nThe cat eats.", "The cat eats treats in the morning."
)
PARA = GoodRow("para", "para", "para", "Tell me about iron.", "Iron is a metal. It rusts.", "x")
CLAIM = GoodRow(
    "claim", "soup", "tfq", "True or false? Soup is solid.", "False. Soup is mainly liquid.",
    write_answer(Tfq("Soup is solid.", False)),
)  # fmt: skip
CHOICE = GoodRow(
    "choice", "gas", "mcq", "Which is a gas?\nA) iron\nB) neon\nC) gold\nD) lead", "B) neon",
    write_answer(Mcq("Which is a gas?", ("iron", "neon", "gold", "lead"), "B")),
)  # fmt: skip
CATEGORY = GoodRow(
    "cs", "neon", "cs", "Write a statement about noble gases.", "Neon is inert. It glows.",
    write_answer(Cs("noble gases", "Neon is inert. It glows.")),
)  # fmt: skip
QAS = [TIPS, IRON, LION, FOX, EDIT]
seeds = st.integers(0, 100_000)


def test_a_union_asks_and_tells_what_the_row_does():
    row = union(TIPS, 3, Random(1))
    sample = parse_answer("qa", row.output)
    assert sample == Qa(TIPS.prompt, TIPS.completion)
    assert row.sources == ["tips"] * 3
    assert all(read_input(text)[0] and read_input(text)[1] for text in row.inputs)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PARA, Para("Iron is a metal. It rusts.")),
        (CLAIM, Tfq("Soup is solid.", False)),
        (CHOICE, Mcq("Which is a gas?", ("iron", "neon", "gold", "lead"), "B")),
        (CATEGORY, Cs("noble gases", "Neon is inert. It glows.")),
    ],
)
def test_unions_of_the_other_task_types(row: GoodRow, expected: object):
    for seed in range(40):
        made = union(row, 2 + seed % 3, Random(seed))
        assert parse_answer(row.task_type, made.output) == expected
        told = "\n".join(made.inputs)
        if isinstance(expected, Mcq):
            assert all(option in told for option in expected.options)
            answers = [read_input(text)[1] for text in made.inputs]
            assert any(answer in ("B", "neon", "B) neon") for answer in answers)
        if isinstance(expected, Tfq):
            assert any(read_input(text)[1].startswith("False") for text in made.inputs)


def test_a_merge_asks_each_question_once_in_the_order_of_the_inputs():
    row = merge([LION, FOX], 2, Random(3))
    first = read_input(row.inputs[0])[1].strip(".").split()[-1].lower()
    ours, theirs = (LION, FOX) if "lion" in first or row.sources[0] == "lion" else (FOX, LION)
    expected = Qa(f"1. {ours.prompt}\n2. {theirs.prompt}", f"1. {ours.completion}\n2. {theirs.completion}")
    assert parse_answer("qa", row.output) == expected
    assert row.cot.startswith("Each input asks a different question: two questions.")


def test_lists_inside_a_merge_get_bullets_and_blank_lines_go():
    row = merge([TIPS, EDIT], 2, Random(0))
    assert "- Exercise daily." in row.output and "2. Exercise daily." not in row.output
    assert "Make it specific.\nThe cat eats." in row.output


@given(st.lists(st.sampled_from(QAS), min_size=2, max_size=5, unique=True), st.integers(0, 5), seeds)
@settings(max_examples=300)
def test_the_target_is_what_the_inputs_hold(rows: list[GoodRow], more: int, seed: int):
    row = merge(rows, len(rows) + more, Random(seed))
    assert len(row.inputs) == len(rows) + more == len(row.sources)
    sample = parse_answer("qa", row.output)
    assert isinstance(sample, Qa)
    assert coverage(f"{sample.question}\n{sample.answer}", row.inputs) == 1
    for part in rows:
        assert coverage(part.completion, [sample.answer]) == 1
        assert sample.question.count(part.prompt.split("\n")[0]) == 1
    wanted = [row.sources.index(part.id) for part in rows]
    asked = [sample.question.index(part.prompt.split("\n")[0]) for part in rows]
    assert sorted(range(len(rows)), key=wanted.__getitem__) == sorted(range(len(rows)), key=asked.__getitem__)
    assert row == merge(rows, len(rows) + more, Random(seed))


@given(st.sampled_from([*QAS, PARA, CATEGORY]), st.integers(2, 8), seeds)
@settings(max_examples=300)
def test_a_union_is_covered_and_its_reasoning_is_true(good: GoodRow, inputs: int, seed: int):
    try:
        row = union(good, inputs, Random(seed))
    except Unfit as unfit:  # a one-word answer may be given twice in the same words
        assert str(unfit) == "inputs_repeat"
        return
    assert 2 <= len(row.inputs) <= inputs
    assert coverage(good.completion, row.inputs) == 1
    assert coverage(good.completion, [row.output]) == 1
    useless = row.cot.partition("same. ")[2] or row.cot.partition("thing. ")[2]
    left = [text for number, text in enumerate(row.inputs, start=1) if f"[{number}]" not in useless]
    answers = [read_input(text)[1] for text in left]
    assert coverage(good.completion, answers) == 1


@given(st.sampled_from(QAS), seeds)
def test_noise_costs_no_term_of_the_target(good: GoodRow, seed: int):
    clean = merge([good, CHOICE], 4, Random(seed))
    noisy = with_noise(clean, Random(seed))
    assert noisy.output == clean.output
    assert noisy.noisy == (noisy.inputs != clean.inputs)
    assert sum("\nB) neon" in text for text in clean.inputs) == sum(
        "\nB) neon" in text for text in noisy.inputs
    )
    assert coverage("\n".join((CHOICE.completion, good.completion)), noisy.inputs) >= 0.98


def test_what_cannot_be_written_is_refused_with_the_reason():
    marked = GoodRow("m", "m", "qa", "Say it.", "One.\nAnswer: two.")
    with pytest.raises(Unfit, match="repeated_mark"):
        union(marked, 3, Random(0))
    lost = GoodRow(
        "l", "l", "cs", "Write a statement.", "It glows.", write_answer(Cs("noble gases", "It glows."))
    )
    with pytest.raises(Unfit, match="coverage_below"):
        union(lost, 2, Random(0))


SENTENCES = [
    "The tower was built in 1889 by Gustave Eiffel in Paris.",
    "It stands on the left bank of the river Seine.",
    "Short.",
]


@given(seeds)
def test_text_tasks_have_right_answers(seed: int):
    task = text_task(SENTENCES, Random(seed))
    assert task is not None
    prompt, answer = task
    ask, _, text = prompt.partition("\n\n")
    if "words" in ask and ("many" in ask or "Count" in ask):
        assert str(len(text.split())) in answer
    elif "capital" in ask or "upper" in ask:
        assert answer == text.upper()
    elif "year" in ask.lower() or "date" in ask:
        assert "1889" in answer and "1889" in text
    elif "blank" in ask or "missing" in ask:
        assert text.replace("____", answer) in SENTENCES
    elif ":" in ask:
        listed = ask.partition(": ")[2].split(", ")
        assert answer == ", ".join(sorted(listed)) and terms(answer) <= terms(" ".join(SENTENCES)) | {"that"}
    elif "longest" in ask.lower():
        assert max(map(len, text.strip(".").split())) <= len(answer)
    elif "Continue" in ask or "next" in ask or "after" in ask:
        assert answer == SENTENCES[SENTENCES.index(text) + 1]
    else:
        assert answer in SENTENCES and answer != text
    assert text_task(["Too short."], Random(seed)) is None
