"""The five task types: one writer, one parser, one output format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.core import task_types
from lm_mixup.core.task_types import (
    Cs,
    FormatError,
    Mcq,
    Para,
    Qa,
    Tfq,
    parse_answer,
    parse_output,
    write_answer,
)

SAMPLES = [
    Qa("What is iron?", "A metal.\nIts symbol is Fe."),
    Mcq("Which is a gas?", ("iron", "neon", "gold", "lead"), "B"),
    Tfq("Neon is a gas.", True),
    Tfq("Iron is a gas.", False),
    Cs("noble gases", "Neon is inert."),
    Para("Iron is a metal.\n\nIt rusts."),
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_parse_is_the_inverse_of_write(sample: task_types.Sample):
    assert parse_answer(task_types.task_type_of(sample), write_answer(sample)) == sample


words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


@given(words, words)
def test_qa_round_trip(question: str, answer: str):
    assert parse_answer("qa", write_answer(Qa(question, answer))) == Qa(question, answer)


@given(st.lists(words, min_size=5, max_size=5, unique=True), st.sampled_from("ABCD"))
def test_mcq_round_trip(texts: list[str], letter: str):
    sample = Mcq(texts[0], (texts[1], texts[2], texts[3], texts[4]), letter)
    assert parse_answer("mcq", write_answer(sample)) == sample


OPTIONS = "Q: Which is a gas?\nA) iron\nB) neon\nC) B or A\nD) A and B\n"
HEDGED_LETTERS = [
    *("A or B or C or D", "A, B", "A/B", "A. B. C.", "A (or B)", "A) B)", "A and B"),
    *("A or perhaps B is right", "A) iron or B) neon", "A, or B because both are", "A, B and C are right"),
    *("B. Or A", "A or so", "B A", "D) A and B or C", "A & D", "B; maybe C", "A | B"),
]
HEDGED_TRUTHS = [
    *("True or False", "True, or perhaps False", "True/False", "False or true", "True (or false)"),
    *("True, False", "True. False.", "False and True", "True or not"),
]
PLAIN_LETTERS = [
    *("B", "B)", "B.", "B) neon", "B. neon", "B) neon.", "B: neon", "B - neon", "C) B or A", "D. A and B"),
    *("B. Neon is a noble gas; iron or gold would be metals", "B. A gas shines in tubes, C or D do not."),
    *("B because A is a metal", "B) neon, not A", "B. C is wrong, and A or D too", "B, since A is a metal"),
    *("B. It is a gas at room temperature, or above", "B. C, the symbol of carbon, is no gas", "D) A and B."),
]
PLAIN_TRUTHS = [
    *("True", "True.", "True. It is a noble gas, or inert gas", "True, and it glows"),
    *(
        "True: it is false that it burns",
        "True. False would be: iron is a gas",
        "True because neon is inert or nearly so",
    ),
]


@pytest.mark.parametrize("verdict", PLAIN_LETTERS)
def test_a_letter_may_be_explained(verdict: str):
    assert parse_answer("mcq", f"{OPTIONS}Answer: {verdict}").answer == verdict[0]


@pytest.mark.parametrize("verdict", PLAIN_TRUTHS)
def test_a_verdict_may_be_explained(verdict: str):
    assert parse_answer("tfq", f"Neon is a gas.\nAnswer: {verdict}") == Tfq("Neon is a gas.", True)


@pytest.mark.parametrize(
    ("task_type", "text", "reason"),
    [
        ("qa", "", "empty_answer"),
        ("qa", "Q: only a question", "answer_pattern"),
        ("qa", "Q: a\nA: b\nQ: c\nA: d", "repeated_mark"),
        ("qa", "q: a\na: b", "answer_pattern"),
        ("mcq", "Q: a\nA) 1\nB) 2\nC) 3\nAnswer: A", "answer_pattern"),
        ("mcq", "Q: a\nA) 1\nB) 2\nC) 3\nD) 4\nAnswer: E", "answer_pattern"),
        ("mcq", "Q: a\nA) 1\nB) 1\nC) 3\nD) 4\nAnswer: A", "mcq_options_repeat"),
        ("tfq", "Neon is a gas.", "answer_pattern"),
        ("tfq", "Neon is a gas.\nAnswer: Maybe", "answer_pattern"),
        ("tfq", "Neon is a gas.\nAnswer: true", "answer_pattern"),
        ("cs", "C: gases", "answer_pattern"),
        *(("mcq", f"{OPTIONS}Answer: {verdict}", "several_answers") for verdict in HEDGED_LETTERS),
        *(("tfq", f"Neon is a gas.\nAnswer: {verdict}", "several_answers") for verdict in HEDGED_TRUTHS),
        ("para", "  \n ", "empty_answer"),
    ],
)
def test_what_breaks_an_answer_is_said(task_type: task_types.TaskType, text: str, reason: str):
    with pytest.raises(FormatError, match=reason):
        parse_answer(task_type, text)


def test_output_round_trip():
    output = parse_output(task_types.write_output("so it is", "Q: a\nA: b"))
    assert (output.cot, output.answer) == ("so it is", "Q: a\nA: b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>a</think><answer>b</answer><answer>c</answer>", "repeated_tag"),
        ("<think>a</think><answer></answer>", "empty_answer"),
        ("<think>a</think><answer> \n</answer>", "empty_answer"),
        ("<THINK>a</THINK><ANSWER>b</ANSWER>", "missing_tag"),
        ("<think>a</think>", "missing_tag"),
        ("<answer>b</answer>", "missing_tag"),
        ("well: <think>a</think><answer>b</answer>", "text_outside_tags"),
        ("<think>a</think> so <answer>b</answer>", "text_outside_tags"),
        ("<think>a</think><answer>b</answer>.", "text_outside_tags"),
        ("<answer>b</answer><think>a</think>", "text_outside_tags"),
        ("</think>a<think><answer>b</answer>", "text_outside_tags"),
        ("", "missing_tag"),
    ],
)
def test_what_breaks_the_output_is_said(text: str, reason: str):
    with pytest.raises(FormatError, match=reason):
        parse_output(text)


@given(st.text(max_size=200))
def test_no_text_crashes_the_parsers(text: str):
    for parse in (parse_output, *(lambda t, k=kind: parse_answer(k, t) for kind in task_types.TASK_TYPES)):
        try:
            parse(text)
        except FormatError as error:
            assert str(error)


def test_prompt_numbers_its_inputs():
    assert task_types.write_prompt("Merge.", [" a ", "b\nc"]) == "Merge.\n[1] a\n[2] b\nc"


@pytest.mark.parametrize(
    ("prompt", "completion", "text"),
    [
        ("What is iron?", " A metal. ", "Q: What is iron?\nA: A metal."),
        ("", "Iron is a metal.", "Q: \nA: Iron is a metal."),
        ("Name a metal.", "", "Q: Name a metal.\nA: "),
        ("Q: one\nA: two", "three", "Q: Q: one\n A: two\nA: three"),
        ("Go on:\n A: b", "A: c\nA: d", "Q: Go on:\n  A: b\nA: A: c\nA: d"),
    ],
)
def test_an_input_by_hand(prompt: str, completion: str, text: str):
    assert task_types.write_input(prompt, completion) == text
    assert task_types.read_input(text) == (prompt.strip(), completion.strip())


marked = st.text(st.sampled_from([*"QA: \n\r\tx", "\u2003", "\u2028", "é", "ह"]), max_size=24)


@given(marked | st.text(max_size=40), marked | st.text(max_size=40))
def test_read_input_is_the_inverse_of_write_input(prompt: str, completion: str):
    text = task_types.write_input(prompt, completion)
    assert task_types.read_input(text) == (prompt.strip(), completion.strip())
    # `write_prompt` strips its inputs.
    assert task_types.read_input(text.strip()) == (prompt.strip(), completion.strip())


@pytest.mark.parametrize(
    "text", ["Iron is a metal.", "Q: What is iron?", "A: A metal.", "", "Q:A:", "x\nQ: a\nA: b"]
)
def test_a_text_without_marks_is_a_completion(text: str):
    assert task_types.read_input(text) == ("", text)


def test_marks_of_other_writers_are_read():
    assert task_types.read_input("Q:What is iron?\nA:A metal.") == ("What is iron?", "A metal.")


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_pair_is_never_empty(sample: task_types.Sample):
    prompt, completion = task_types.to_pair(sample, "Write about iron.")
    assert prompt.strip()
    assert completion.strip()


def test_pairs_by_hand():
    assert task_types.to_pair(SAMPLES[1], "") == (
        "Which is a gas?\nA) iron\nB) neon\nC) gold\nD) lead",
        "B) neon",
    )
    assert task_types.to_pair(SAMPLES[3], "") == ("True or false? Iron is a gas.", "False")
    assert task_types.to_pair(SAMPLES[5], "Write about iron.")[0] == "Write about iron."


OPTION_LINES = "Which is a gas?\nA) iron\nB) neon\nC) gold\nD) lead"


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("What is iron?", "A metal.", "qa"),
        ("True or false? Iron is a gas.", "False", "tfq"),
        ("True/False: neon is a gas", "true. It is a noble gas.", "tfq"),
        (OPTION_LINES, "B", "mcq"),
        (OPTION_LINES, "B) neon", "mcq"),
        (OPTION_LINES, "(B)", "mcq"),
        (OPTION_LINES, "neon.", "mcq"),
        (OPTION_LINES, "Answer: B", "mcq"),
        (OPTION_LINES.replace("\nD) lead", ""), "A.", "mcq"),
        # Not certain, so qa: the question belongs to the answer.
        ("Iron is a gas.", "False", "qa"),
        ("What does bool(1) print in Python?", "True", "qa"),
        ("Write a true or false question about iron.", "Iron is a gas. (false)", "qa"),
        ("Explain the difference between true or false memories.", "A true memory is real.", "qa"),
        ("Is it true or false? I cannot tell.", "True or false, it does not matter.", "qa"),
        (OPTION_LINES, "A gas is a state of matter, and of these neon is one.", "qa"),
        ("Rank these: A) iron B) neon C) gold", "C", "qa"),
        ("Summarize the letter.\nC) is third\nA) is first\nB) is second", "A", "qa"),
        ("Classify these animals: cat, trout", "cat: mammal, trout: fish", "qa"),
        ("Name a category of films.", "Comedy.", "qa"),
        ("Summarize the article.\n\nIron rusts.", "Iron rusts.", "qa"),
        ("Describe how iron rusts.", "It takes up oxygen.", "qa"),
        ("Write a paragraph about iron", "Iron …", "qa"),
        ("Write a short story about a passage.", "Once …", "qa"),
        ("", "", "qa"),
        ("A) B) C) D)", "A", "qa"),
        ("\0\ufffe", "A\n" * 3, "qa"),
    ],
)
def test_detection(prompt: str, completion: str, expected: str):
    assert task_types.detect_task_type(prompt, completion) == expected


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Vrai ou faux ? Le fer est un gaz.", "Faux"),
        ("Wahr oder falsch? Eisen ist ein Gas.", "Falsch"),
        ("¿Verdadero o falso? El hierro es un gas.", "Falso"),
        ("Верно или неверно? Железо — газ.", "Неверно"),
        ("正误判断：铁是气体。", "错误"),
        ("鉄は気体である。正しいか。", "いいえ"),
        ("철은 기체이다. 참인가 거짓인가?", "거짓"),
        ("صح أم خطأ؟ الحديد غاز.", "خطأ"),
        ("נכון או לא נכון? ברזל הוא גז.", "לא נכון"),
        ("सही या गलत? लोहा एक गैस है।", "गलत"),
        ("ถูกหรือผิด เหล็กเป็นก๊าซ", "ผิด"),
        ("Đúng hay sai? Sắt là chất khí.", "Sai"),
        ("Doğru mu yanlış mı? Demir bir gazdır.", "Yanlış"),
        ("Ποιο είναι αέριο;\nΑ) σίδηρος\nΒ) νέον\nΓ) χρυσός", "Β"),
        ("Что из этого газ?\nА) железо\nВ) неон\nС) золото", "В"),
        ("気体はどれ?\nA) 鉄", "A"),
        ("Опиши, классифицируй и кратко изложи статью.", "Статья о железе."),
        ("请总结这篇文章，并写一段话。", "铁会生锈。"),
        ("Q: 1\nA: 2\nC: 3\nS: 4\nAnswer: True", "</answer><answer>True"),
    ],
)
def test_what_other_languages_and_odd_texts_ask_is_qa(prompt: str, completion: str):
    assert task_types.detect_task_type(prompt, completion) == "qa"


@given(st.text(max_size=80), st.text(max_size=40))
def test_any_text_has_a_task_type(prompt: str, completion: str):
    assert task_types.detect_task_type(prompt, completion) in ("qa", "mcq", "tfq")
