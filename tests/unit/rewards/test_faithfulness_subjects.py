"""Names that take each other's place: a value where its subject stood, a subject where its value stood."""

from __future__ import annotations

import pytest

from lm_mixup.rewards.faithfulness import Faithfulness, Source, measure

DELAWARE = (
    Source("say something of the state of Delaware, category Places in America", "It is home to Dover."),
    Source("Places in America is the category, tell of the state of Delaware", "it has about 990,000 people"),
    Source("the state of Delaware, category Places in America", "it has the largest city Wilmington"),
)
DELAWARE_TOLD = (
    "The state of Delaware has the largest city Wilmington and about 990,000 people. It is home to Dover."
)
STATES = (
    Source("where is the state of Oregon?", "It lies in the West."),
    Source("who governs the state of Oregon?", "It is governed from Salem."),
    Source("tell me of the state of Louisiana", "It lies in the South and is governed from Baton Rouge."),
)
STATES_TOLD = (
    "The state of Oregon lies in the West and is governed from Salem. "
    "The state of Louisiana lies in the South and is governed from Baton Rouge."
)
FIJI = (
    Source("i need a line on Fiji", "it is governed from Suva"),
    Source("the Dominican Republic please", "it has the internet domain .do"),
)
FIJI_TOLD = "Fiji is governed from Suva. The Dominican Republic has the internet domain .do."


def swapped(text: str, first: str, second: str) -> str:
    """The text with two words in each other's place."""
    return text.replace(first, "\0").replace(second, first).replace("\0", second)


def bound(text: str, sources: tuple[Source, ...]) -> Faithfulness:
    return measure("", text, sources, "para")


def misplaced(found: Faithfulness) -> set[str]:
    return {span.text for span in found.unsupported if span.kind == "binding"}


@pytest.mark.parametrize(
    ("told", "sources", "first", "second"),
    [
        (DELAWARE_TOLD, DELAWARE, "Delaware", "Dover"),
        (DELAWARE_TOLD, DELAWARE, "Delaware", "Wilmington"),
        (STATES_TOLD, STATES, "West", "Louisiana"),
        (STATES_TOLD, STATES, "Oregon", "South"),
        (STATES_TOLD, STATES, "Salem", "Louisiana"),
        (FIJI_TOLD, FIJI, "Fiji", "Suva"),
    ],
)
def test_a_subject_and_a_value_that_change_places_cost_twice(
    told: str, sources: tuple[Source, ...], first: str, second: str
):
    assert bound(told, sources).fidelity == 1
    found = bound(swapped(told, first, second), sources)
    assert found.fidelity <= 0.25 and {first, second} <= misplaced(found), found


def test_a_word_of_a_compound_name_needs_the_rest_of_it():
    found = bound(swapped(FIJI_TOLD, "Republic", "Suva"), FIJI)
    assert found.fidelity <= 0.25 and {"Dominican", "Republic"} <= misplaced(found), found


@pytest.mark.parametrize(
    "told",
    [
        "Salem is the capital of Oregon, which lies in the West. Baton Rouge governs Louisiana in the South.",
        "Unlike Louisiana, governed from Baton Rouge, Oregon lies in the West and is governed from Salem.",
        "Oregon and Louisiana are states. Oregon lies in the West and Louisiana in the South.",
        "Louisiana lies in the South and Oregon, governed from Salem, in the West.",
    ],
)
def test_other_wording_changes_no_places(told: str):
    assert misplaced(bound(told, STATES)) == set()


def test_what_the_sources_say_of_a_value_may_be_said_again():
    sources = (
        Source("What is the capital of Oregon?", "Salem."),
        Source("What is the state of Oregon known for?", "Salem has a large fair, Portland many bridges."),
    )
    assert misplaced(bound("The capital of Oregon is Salem. Salem has a large fair.", sources)) == set()


def test_names_are_no_subjects_where_the_sources_ask_of_none():
    sources = (
        Source("Name two scientists of the last century.", "Albert Einstein and Marie Curie."),
        Source("Say what they did.", "They worked on relativity and radioactivity."),
    )
    told = "Albert Einstein worked on relativity. Marie Curie worked on radioactivity."
    assert misplaced(bound(told, sources)) == set()


def test_a_compound_name_may_go_on_in_all_ways_that_the_sources_have():
    sources = (
        Source("genitive of the constellation Canis Minor?", "Canis Minoris. The answer is Canis Minoris."),
        Source("size rank of the constellation Canis Minor?", "its 71 lol"),
    )
    told = "The constellation Canis Minor is one with the genitive Canis Minoris and the size rank 71."
    assert bound(told, sources).fidelity == 1
