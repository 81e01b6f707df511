"""Votes and corrections on one part: who may vote, what is flagged, what is taken over."""

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup.augment.curate import (
    Noise,
    Ratings,
    curate_table,
    make_work,
    pass_through,
    ratings_of,
    votes_of,
)
from lm_mixup.augment.curation.hoc import count_triples, fit_consensus
from lm_mixup.config import CurateConfig
from lm_mixup.core.schemas import CURATION

TWO = CurateConfig(min_similarity=0.5)


def rows_of(scores, texts=None):
    ids = [f"r{i}" for i in range(len(scores))]
    return pa.table(
        {
            "id": ids,
            "prompt": [f"p{i}" for i in ids],
            "completion": texts or [f"c{i}" for i in ids],
            "score": pa.array(scores, pa.int8()),
        }
    )


def nearest_of(lists, similarities=None):
    return pa.table(
        {
            "id": [f"r{i}" for i in range(len(lists))],
            "neighbor_ids": pa.array([[f"r{j}" for j in js] for js in lists], pa.list_(pa.string())),
            "similarities": pa.array(
                similarities or [[0.9] * len(js) for js in lists], pa.list_(pa.float32())
            ),
        }
    )


def pool(rows):
    ratings = ratings_of(rows)
    order = np.argsort(ratings.keys)
    return Ratings(ratings.keys[order], ratings.texts[order], ratings.scores[order])


def test_votes_by_hand():
    rows = rows_of([5, 4, None, 2, 1])
    nearest = nearest_of([[1, 2, 3], [0, 4, 3], [3, 4, 0], [], [0]])
    votes = votes_of(rows, nearest, pool(rows), TWO)
    assert votes.tolist() == [[5, 4, 2], [4, 5, 1], [-1, 2, 1], [2, -1, -1], [1, 5, -1]]


def test_neither_the_row_itself_nor_its_duplicates_vote():
    rows = rows_of([5, 5, 3, 2], ["Same text.", "same  TEXT.", "x", "y"])
    rows = rows.set_column(1, "prompt", [["p"] * 4])
    similarities = [[1.0, 0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [1.0, 0.5], [1.0, 0.5]]
    nearest = nearest_of([[0, 1, 2, 3], [0, 2, 3], [3, 0], [2, 0]], similarities)
    votes = votes_of(rows, nearest, pool(rows), TWO)
    assert votes[0].tolist() == [5, 3, 2]  # neither itself nor r1, which differs in case and blanks alone
    assert votes[1].tolist() == [5, 3, 2]
    assert votes[2].tolist() == [3, 5, -1]  # r3 has the same embedding
    assert votes[3].tolist() == [2, 5, -1]


def test_copies_among_the_neighbours_have_one_vote_that_of_the_nearest_rated():
    rows = rows_of([5, None, 3, 4, 2], ["own", "One text", "one TEXT", "onetext", "another"])
    rows = rows.set_column(1, "prompt", [["p"] * 5])
    votes = votes_of(rows, nearest_of([[1, 2, 3, 4], [], [4, 0], [], [3, 2, 0]]), pool(rows), TWO)
    assert votes[0].tolist() == [5, 3, 2]  # r1 is unrated, r2 has its text's vote, r3 is the text once more
    assert votes[4].tolist() == [2, 4, 5]  # here r3 is nearer; what votes for one row may vote for another


def test_strangers_do_not_vote():
    rows = rows_of([5, 4, 3])
    nearest = nearest_of([[1, 2], [0, 2], [0, 1]], [[0.9, 0.49], [0.9, 0.5], [0.49, 0.4]])
    assert votes_of(rows, nearest, pool(rows), TWO).tolist() == [[5, 4, -1], [4, 5, 3], [3, -1, -1]]


def test_rows_and_neighbours_must_be_the_same():
    rows = rows_of([1, 2])
    with pytest.raises(ValueError, match="same rows"):
        votes_of(rows, nearest_of([[1], [0], [0]]), pool(rows), TWO)
    with pytest.raises(ValueError, match="not among the rated rows"):
        votes_of(rows, nearest_of([[1], [7]]), pool(rows), TWO)


NOISE = Noise(0.7 * np.eye(6) + 0.05, np.full(6, 1 / 6))


def test_neighbours_that_agree_overrule_a_score():
    rows = rows_of([0, 5, 5, None, 1])
    votes = np.array([[0, 5, 5], [5, 5, 5], [5, -1, -1], [-1, 3, 3], [1, 4, 2]], np.int8)
    result = curate_table(rows, votes, NOISE, 0.5)
    assert result.rows["curated_score"].to_pylist() == [5, 5, 5, None, 1]
    # posterior of row 0: 0.75² · 0.05 against 0.75 · 0.05² and four of 0.05³
    right = 0.75**2 * 0.05
    confidence = result.rows["confidence"].to_pylist()
    assert confidence[0] == pytest.approx(right / (right + 0.75 * 0.05**2 + 4 * 0.05**3), rel=1e-5)
    assert confidence[2] == 1.0 and confidence[3] is None
    assert result.metrics == {"flagged": 1, "corrected": 1}
    assert result.rows.schema.field("curated_score").type == CURATION.field("curated_score").type
    kept = curate_table(rows, votes, NOISE, 0.99)
    assert kept.rows["curated_score"].to_pylist() == [0, 5, 5, None, 1]
    assert kept.metrics == {"flagged": 1, "corrected": 0}


def test_off_scores_pass_through():
    result = pass_through(rows_of([3, None, 0]))
    assert result.rows["curated_score"].to_pylist() == [3, None, 0]
    assert result.rows["confidence"].to_pylist() == [1.0, None, 1.0]


def test_curation_brings_planted_scores_closer_to_the_truth():
    rng = np.random.default_rng(0)
    rows, group = 6_000, 6
    transition = 0.65 * np.eye(6) + 0.35 / 6
    truth = np.repeat(rng.integers(0, 6, rows // group), group)
    scores = (rng.random(rows)[:, None] > transition[truth].cumsum(axis=1)).sum(axis=1)
    table = rows_of(scores.tolist())
    start = np.arange(rows) // group * group
    lists = [[int(start[i] + (i + j) % group) for j in (1, 2, 3)] for i in range(rows)]
    votes = votes_of(table, nearest_of(lists), pool(table), CurateConfig(neighbors=3))
    noise = Noise(*fit_consensus(count_triples(votes[:, :3], 6)))
    assert np.abs(noise.transition - transition).sum(axis=1).mean() < 0.1
    curated = curate_table(table, votes, noise, 0.5).rows["curated_score"].to_numpy()
    assert (scores == truth).mean() < 0.73 and (curated == truth).mean() > 0.85
    # the rows it changed are right more often than they were
    changed = curated != scores
    assert (curated == truth)[changed].mean() > 0.7


@pytest.mark.parametrize("copies", [1, 2])
def test_capitalised_twins_do_not_make_the_judge_look_better(copies):
    """Groups of three texts of one true score, 65% of whose scores are right; a twin is rated alike."""
    rng = np.random.default_rng(0)
    groups, transition = 2_000, 0.65 * np.eye(6) + 0.07 * (1 - np.eye(6))
    truth = np.repeat(rng.integers(0, 6, groups), 3)
    scores = (rng.random(3 * groups)[:, None] > transition[truth].cumsum(axis=1)).sum(axis=1)
    texts = [[f"text {n}", f"TEXT {n}"][:copies] for n in range(3 * groups)]
    table = rows_of(np.repeat(scores, copies).tolist(), [copy for text in texts for copy in text])
    table = table.set_column(1, "prompt", [["p"] * table.num_rows])
    text = np.arange(table.num_rows) // copies
    turned = [text // 3 * 3 + (text + step) % 3 for step in range(3)]  # its own copies come first
    places = np.concatenate([turned[step][:, None] * copies + np.arange(copies) for step in range(3)], axis=1)
    votes = votes_of(table, nearest_of(places.tolist()), pool(table), TWO)
    found, _ = fit_consensus(count_triples(votes[:, :3], 6))
    assert np.abs(found - transition).sum(axis=1).mean() < 0.1
    assert np.diag(found).mean() == pytest.approx(0.65, abs=0.03)


def test_config_refuses_a_vote_of_one():
    with pytest.raises(ValueError, match="neighbors"):
        CurateConfig(neighbors=1)
    assert callable(make_work)
