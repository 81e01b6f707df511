"""What rows are about: weights by hand, invariances, and rows of one form kept apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup.augment.clustering.cohesion import Bounds, clusters_of
from lm_mixup.augment.clustering.content import (
    BUCKETS,
    content_of,
    content_similarity,
    document_frequencies,
    word_weights,
)
from lm_mixup.augment.clustering.size_bounded import bounded_clusters, residual_reasons
from lm_mixup.config import ClusterConfig

ROWS = [
    ("Name three ways to save energy in the office.", "Turn off lights and use efficient appliances."),
    ("Name three ways to save energy in a factory.", "Use efficient lighting and machines."),
    ("Name three types of mountains.", "Shield, fold and volcanic mountains."),
    ("Name three types of triangles.", "Acute, right and obtuse triangles."),
    *((f"Name three kinds of thing{n}.", f"One{n}, two{n} and many{n}.") for n in range(36)),
]


def similarity(rows):
    content = content_of(*zip(*rows, strict=True))
    return content_similarity(content, word_weights(document_frequencies(content), len(rows)))


def test_a_common_subject_counts_and_a_common_form_does_not():
    similar = similarity(ROWS)
    assert similar[2, 3] < ClusterConfig().min_content_similarity < similar[0, 1]
    assert similar[4, 5] == 0  # "name three kinds of" stands in most rows
    np.testing.assert_allclose(similar, similar.T)
    np.testing.assert_allclose(similar.diagonal(), 1, atol=1e-6)


def test_the_cosine_of_two_rows_by_hand():
    """Of "oak" (in 2 of 160 rows, in the prompts) and four words that one row holds alone."""
    rows = [("oak elm", "ash"), ("oak fir", "yew"), *((f"w{n}", "") for n in range(158))]
    shared, alone = np.log(160 / 8 / 3), np.log(160 / 8 / 2)
    expected = (2 * shared) ** 2 / ((2 * shared) ** 2 + (2 * alone) ** 2 + alone**2)
    assert similarity(rows)[0, 1] == pytest.approx(expected, rel=1e-5)


def test_words_of_parts_are_counted_as_those_of_the_whole():
    whole = document_frequencies(content_of(*zip(*ROWS, strict=True)))
    halves = [
        document_frequencies(content_of(*zip(*ROWS[s], strict=True))) for s in (slice(7), slice(7, None))
    ]
    np.testing.assert_array_equal(whole, sum(halves))
    assert whole.shape == (BUCKETS,)
    assert whole.max() == len(ROWS)  # "name"
    chunks = pa.chunked_array([content_of(*zip(*ROWS[s], strict=True)) for s in (slice(7), slice(7, None))])
    np.testing.assert_array_equal(document_frequencies(chunks), whole)


def test_the_similarity_of_two_rows_does_not_depend_on_their_places():
    order = np.random.default_rng(0).permutation(len(ROWS))
    moved = similarity([ROWS[row] for row in order])
    np.testing.assert_array_equal(moved, similarity(ROWS)[np.ix_(order, order)])


@pytest.mark.parametrize("text", ["", "Name three kinds of", "…"])
def test_a_row_that_says_nothing_is_like_no_other(text):
    similar = similarity([*ROWS, (text, "")])
    assert np.isfinite(similar).all()
    assert not similar[-1, :-1].any()


def test_rows_of_one_form_and_two_subjects_share_no_cluster():
    """Five rows as near as can be by their embeddings: two subjects, and a row alone with its own."""
    vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (5, 1))
    subjects = np.array([0, 1, 0, 1, 2])
    mergeable = subjects[:, None] == subjects
    bounds = Bounds(2, 5, 0.3)
    labels = bounded_clusters(vectors, bounds, mergeable)
    assert [members.tolist() for members in clusters_of(labels)] == [[0, 2], [1, 3]]
    assert residual_reasons(vectors, labels, bounds, mergeable) == {4: "kin_in_form_only"}
    assert len(clusters_of(bounded_clusters(vectors, bounds))) == 1
