"""The built-in components of a batch: what is embedded, and what there is nothing to judge in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lm_mixup.config import EmbedderConfig, RewardsConfig, RewardWeights
from lm_mixup.core.errors import InputError
from lm_mixup.core.task_types import Qa, Tfq, write_answer, write_input, write_output
from lm_mixup.rewards.batch import RewardBatch
from lm_mixup.rewards.quality import make_library
from lm_mixup.rewards.workers import in_actor, score_components


def vector(text: str) -> np.ndarray:
    """A direction of its own for every text."""
    drawn = np.random.default_rng(list(text.encode())).normal(size=16)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def test_every_readable_answer_is_embedded_once_for_quality_and_alignment_both():
    asked: list[list[str]] = []

    def embed(texts):
        asked.append(list(texts))
        return np.stack([vector(text) for text in texts])

    good, poor = write_answer(Qa("Iron?", "Fe.")), write_answer(Qa("Iron?", "dunno"))
    true = write_answer(Tfq("Neon is a gas.", True))
    bank = np.stack([vector(good), vector(poor), vector(true)] * 2)
    groups = np.arange(6)
    library = make_library(bank, np.array([5, 0, 3, 5, 0, 3]), groups, 1, 0.01)
    completions = [write_output("", text) for text in (true, good, poor, "no marks")] + ["no tags"]
    references = np.stack([vector(true), *[vector(good)] * 4])
    batch = RewardBatch(
        ["tfq", "qa", "qa", "qa", "qa"],
        completions,
        [true, *[good] * 4],
        list(range(5)),
        [[write_input("True or false? Neon is a gas.", "True")], *[[write_input("iron symbol?", "Fe")]] * 4],
    )
    scores = score_components(
        batch,
        references,
        embed,
        {"qa": library, "tfq": library},
        RewardsConfig(neighbors=1),
    )
    assert asked == [[true, good, poor]]
    assert scores["alignment"].tolist() == [1, 1, 0, 0, 0]
    assert scores["quality"].tolist() == [0.3, 1, 0, 0, 0]
    assert scores["format"].tolist() == [1, 1, 1, 0.5, 0]
    assert scores["faithfulness"].tolist()[:2] == [1, 1]
    assert scores["faithfulness"][2] < 0.3 and scores["faithfulness"].tolist()[3:] == [0, 0]

    ended = replace(batch, finished=[False, True, True, True, True])
    cut = score_components(
        ended, references, embed, {"qa": library, "tfq": library}, RewardsConfig(neighbors=1)
    )
    assert all(values[0] == 0 for values in cut.values()), "what did not finish earns nothing"
    assert all((values[1:] == scores[name][1:]).all() for name, values in cut.items())

    blind = replace(batch, inputs=())
    with pytest.raises(
        InputError, match="faithfulness weighs for tfq, qa, but completions came without inputs"
    ):
        score_components(blind, references, embed, {"qa": library, "tfq": library}, RewardsConfig())
    weights = RewardWeights(faithfulness=0.0)
    alone = score_components(
        blind, references, embed, {"qa": library, "tfq": library}, RewardsConfig(neighbors=1, weights=weights)
    )
    assert alone["quality"].tolist() == scores["quality"].tolist()


@pytest.mark.parametrize(("gpus_of_library", "gpus_of_actor"), [(1, 0), (0, 1), (0.5, 0.1)])
def test_completions_are_embedded_in_the_precision_of_the_library(gpus_of_library, gpus_of_actor):
    embedder = EmbedderConfig(num_gpus=gpus_of_library)
    placed = in_actor(embedder, RewardsConfig(num_gpus=gpus_of_actor), 4)
    assert (placed.num_gpus, placed.num_cpus) == (gpus_of_actor, 4)
    assert placed.identity() == embedder.identity()
