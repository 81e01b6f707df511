"""The planted faults of the reward benchmarks: each is found, on a row that can be checked by eye."""

from __future__ import annotations

from random import Random

import pytest

from lm_mixup.core.task_types import Mcq, Qa, Tfq, to_pair, write_answer, write_input
from lm_mixup.rewards.faithfulness import Source, measure

INPUTS = [
    write_input("capital of Chad?", "It is N'Djamena."),
    write_input("population of Chad", "15.5 million. 15.5 million."),
    write_input("area of Chad", "its 1,280,000 km2 lol"),
]
SAMPLE = Qa(
    "What are the capital, population and area of Chad?",
    "It is known that Chad has the capital N'Djamena, a population of 15.5 million "
    "and an area of 1,280,000 km2.",
)
OTHER = Qa("Which symbol does the element gold have?", "The element gold has the symbol Au.")


@pytest.fixture
def planted(import_benchmark):
    return import_benchmark("planted")


@pytest.fixture
def reward_hacks(import_benchmark):
    return import_benchmark("reward_hacks")


def score(sample) -> float:
    sources = [
        Source("capital of Chad?", "It is N'Djamena."),
        Source("population of Chad", "15.5 million. 15.5 million."),
        Source("area of Chad", "its 1,280,000 km2 lol"),
    ]
    return measure(*to_pair(sample, ""), sources, "qa").score


@pytest.mark.parametrize("seed", range(5))
def test_every_planted_fault_costs(planted, seed: int):
    faults = planted.plant(SAMPLE, INPUTS, OTHER, Random(seed)) | {"constant": planted.constant(SAMPLE)}
    assert {"one digit changed", "two numbers swapped", "negation inserted", "facts dropped"} <= faults.keys()
    assert score(SAMPLE) == 1
    for name, faulty in faults.items():
        assert faulty != SAMPLE
        assert score(faulty) <= 0.6, (name, write_answer(faulty))


def test_closed_answers_are_turned(planted):
    mcq = Mcq("Which?", ("a", "b", "c", "d"), "B")
    assert planted.plant(mcq, INPUTS, mcq, Random(0))["wrong letter"].answer != "B"
    tfq = Tfq("Chad lies in Africa.", True)
    assert planted.plant(tfq, INPUTS, tfq, Random(0))["verdict flipped"] == Tfq("Chad lies in Africa.", False)


def test_a_useless_output_that_comes_close_is_told(reward_hacks):
    below = {"the reference": {"qa": 0.0}, "blanks": {"qa": 0.9}, "echo": {"qa": 0.2, "cs": 0.149}}
    assert reward_hacks.close_calls(below) == ["echo (cs: 0.149)"]


def test_outputs_of_a_row_hold_the_reference_and_cut_ones(reward_hacks):
    row = {"task_type": "qa", "output": write_answer(SAMPLE), "inputs": INPUTS}
    other = {"task_type": "qa", "output": write_answer(OTHER), "inputs": INPUTS}
    made = {output.name: output for output in reward_hacks.outputs_of(row, other, Random(0))}
    assert write_answer(SAMPLE) in made["the reference"].completion and made["the reference"].finished
    assert not made["blanks up to the limit"].finished and not made["cut at the limit"].finished
