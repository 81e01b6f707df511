import pytest

from lm_mixup.core.task_types import (
    Cs,
    FormatError,
    Mcq,
    Para,
    Qa,
    Tfq,
    answer_of,
    judged_text,
    task_type_of,
    write_answer,
    write_output,
)
from lm_mixup.rewards.format import format_reward, format_rewards

SAMPLES = [
    Qa("What is the symbol of iron?", "Fe, from the Latin ferrum."),
    Mcq("Which is a noble gas?", ("Iron", "Neon", "Zinc", "Tin"), "B"),
    Tfq("Neon is a noble gas.", True),
    Cs("Noble gases", "Neon glows red-orange in a discharge tube."),
    Para("Iron is a metal. Its symbol is Fe."),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=task_type_of)
def test_well_formed_output_earns_all(sample):
    assert format_reward(task_type_of(sample), write_output("because", write_answer(sample))) == 1.0


@pytest.mark.parametrize("sample", SAMPLES, ids=task_type_of)
def test_what_is_judged_is_what_the_one_writer_wrote(sample):
    text = write_answer(sample)
    assert judged_text(task_type_of(sample), text) == text
    assert answer_of(task_type_of(sample), write_output("because", f"\n {text} \n")) == text


@pytest.mark.parametrize(
    "completion",
    [
        "<think>a</think><answer>Q: x\nA: y</answer><answer>Q: x\nA: y</answer>",
        "<think>a</think><think>b</think><answer>Q: x\nA: y</answer>",
        "<think>a</think><answer></answer>",
        "<think>a</think><answer>  \n </answer>",
        "<think>a</think><answer>Q: x\nA: y</answer> and more",
        "<answer>Q: x\nA: y</answer><think>a</think>",
        "<THINK>a</THINK><Answer>Q: x\nA: y</Answer>",
        "<think>a</think><answer>Q: x\nA: y",
        "Q: x\nA: y",
        "",
    ],
)
def test_broken_tags_earn_nothing_and_leave_nothing_to_judge(completion):
    assert format_reward("qa", completion) == 0.0
    assert answer_of("qa", completion) is None


@pytest.mark.parametrize(
    ("task_type", "answer"),
    [
        ("qa", "just text"),
        ("qa", "q: x\na: y"),
        ("qa", "Q: x\nA: y\nQ: z\nA: w"),
        ("mcq", "Q: x\nA) 1\nB) 2\nC) 3\nAnswer: A"),
        ("mcq", "Q: x\nA) 1\nB) 2\nC) 3\nD) 4\nAnswer: E"),
        ("mcq", "Q: x\nA) 1\nB) 2\nC) 3\nD) 4\nanswer: a"),
        ("tfq", "Neon is a gas.\nAnswer: true"),
        ("tfq", "Neon is a gas."),
        ("cs", "C: x"),
    ],
)
def test_tags_without_the_pattern_earn_half_and_leave_nothing_to_judge(task_type, answer):
    completion = write_output("because", answer)
    assert format_reward(task_type, completion) == 0.5
    assert answer_of(task_type, completion) is None


def test_paragraph_is_granted_the_pattern_only_when_there_is_one():
    assert format_reward("para", write_output("", "Any text at all.")) == 1.0
    assert format_reward("para", write_output("", " ")) == 0.0


def test_spaces_do_not_change_the_judged_text():
    assert judged_text("qa", "Q:   x  \nA:y ") == judged_text("qa", "Q: x\nA: y")


def test_judged_text_refuses_what_cannot_be_read():
    with pytest.raises(FormatError):
        judged_text("qa", "no marks")


def test_format_rewards_keep_the_order():
    good, bad = write_output("", "Q: x\nA: y"), "nothing"
    assert format_rewards(["qa", "qa", "para"], [good, bad, good]).tolist() == [1.0, 0.0, 1.0]
