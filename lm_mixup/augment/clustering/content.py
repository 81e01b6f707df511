"""Similarity of what rows are about, computed from their words: which rows have a common subject to merge.

The embedding of a short row says much of its form ("Name three …", "Rewrite the sentence: …"). Two rows of
one form and two subjects are near each other, and their only merge is a row that asks two questions. Rare
words say what a row is about, and they need no second model.

A row is a bag of hashed words. A word weighs by its inverse document frequency among the rows to be
clustered, counted from the same hashes; words of the prompt weigh double, since they name the subject. Both
passes hold numbers only: 1 MB of counts for each block of parts, and the words of a row beside its vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pyarrow as pa

from lm_mixup.core.words import words

BUCKETS = 1 << 18
"""Words are counted by hash: two rows of 40 words each share one by chance once in 160 pairs."""

CONTENT = pa.list_(pa.int32())
"""A row's words, ascending: twice the bucket, plus 1 where the prompt holds the word."""

# Words in more of the rows than this say nothing of the subject: "the", but also "sentence" in a pool of
# exercises.
_COMMON = 1 / 8
_PROMPT_WEIGHT = 2.0
_MOST_WORDS = 256  # a row's first ones: what a long text is about stands in its beginning


def content_of(prompts: Sequence[str], completions: Sequence[str]) -> pa.Array:
    """The words of rows, as `CONTENT`."""
    return pa.array(
        [_codes(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)], CONTENT
    )


def _codes(prompt: str, completion: str) -> list[int]:
    codes: dict[int, int] = {}
    for text, in_prompt in ((prompt, 1), (completion, 0)):
        for word in words(text):
            bucket = crc32(_singular(word).encode()) % BUCKETS
            codes.setdefault(bucket, 2 * bucket + in_prompt)
    return sorted(itertools.islice(codes.values(), _MOST_WORDS))


def _singular(word: str) -> str:
    """The word without the ending of an English plural."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def document_frequencies(content: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """int32 [BUCKETS]: the rows that hold each word."""
    codes = pa.chunked_array([content] if isinstance(content, pa.Array) else content.chunks, CONTENT)
    flat = codes.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.bincount(flat >> 1, minlength=BUCKETS).astype(np.int32)


def word_weights(frequencies: np.ndarray, rows: int) -> np.ndarray:
    """float32 [BUCKETS]: ln(an eighth of the rows / rows with the word), at least 0."""
    return np.log(np.maximum(rows * _COMMON / (1.0 + frequencies), 1.0)).astype(np.float32)


def content_similarity(content: pa.ChunkedArray | pa.Array, weights: np.ndarray) -> np.ndarray:
    """float32 [n, n]: the cosine of the weighted words of every two rows; 0 for one of common words alone."""
    from scipy.sparse import csr_matrix

    column = content.combine_chunks() if isinstance(content, pa.ChunkedArray) else content
    codes = column.flatten().to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
    values = weights[codes >> 1] * np.where(codes & 1, np.float32(_PROMPT_WEIGHT), np.float32(1))
    matrix = csr_matrix((values, codes >> 1, starts), shape=(len(column), BUCKETS))
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1))).ravel()
    similar = (matrix @ matrix.T).toarray()
    similar /= np.maximum(lengths[:, None] * lengths, 1e-12)
    return np.asarray(similar, dtype=np.float32)
