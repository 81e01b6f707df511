"""What docs/scaling.md shows is what follows from the unit costs, and that follows the laws it should."""

from __future__ import annotations

import dataclasses

import pytest
from manifests import ROOT


@pytest.fixture
def scaling(import_benchmark):
    return import_benchmark("scaling")


def test_the_tables_of_the_document_are_those_that_are_printed(scaling, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scaling.py"])
    scaling.main()
    printed = capsys.readouterr().out
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for name, table in scaling.TABLES.items():
        assert f"<!-- {name} -->\n{table(scaling.Costs())}\n" in document, name
        assert table(scaling.Costs()) in printed


def test_known_answers(scaling):
    """By hand: 16 bytes × 7.6e9 over 60 GB a GPU; 8 FLOPs a parameter; 15.2 GB of weights over 1 GB/s."""
    costs, policy = scaling.Costs(), scaling.POLICIES["7B"]
    assert scaling.training_gpus(costs, policy) == 3
    tokens = 115_200 * 3 * 1_200
    fast_link = dataclasses.replace(costs, link=1e15)
    a_second = 8 * 0.4 * 989e12 / (8 * 7.6e9)
    assert scaling.sft_hours(fast_link, policy, 8) == pytest.approx(tokens / a_second / 3600)
    starved = dataclasses.replace(costs, link=1e9)
    assert scaling.sft_hours(starved, policy, 512) == pytest.approx(2_700 * 3 * 15.2 / 3600)


@pytest.mark.parametrize("policy", ["1.5B", "7B", "70B"])
def test_twice_the_rows_take_twice_as_long_and_twice_the_gpus_half(scaling, policy):
    costs, chosen = scaling.Costs(), scaling.POLICIES[policy]
    one, two = (scaling.augment_hours(costs, rows, chosen, 8) for rows in (1e6, 2e6))
    wide = scaling.augment_hours(costs, 1e6, chosen, 16)
    for stage, hours in one.items():
        assert two[stage] == pytest.approx(2 * hours)
        assert wide[stage] == pytest.approx(hours if stage == "select" else hours / 2)


def test_a_larger_policy_decodes_slower_and_never_faster_than_its_memory(scaling):
    costs = scaling.Costs()
    rates = [scaling.decode_rate(costs, policy) for policy in scaling.POLICIES.values()]
    assert rates == sorted(rates, reverse=True)
    for policy, rate in zip(scaling.POLICIES.values(), rates, strict=True):
        read = policy.kv * (costs.cluster_size * costs.row + costs.completion)  # for a token of a sequence
        assert rate * read < costs.hbm
