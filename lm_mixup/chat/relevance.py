"""Whether an answer is its prompt's own: the cosine of the two, embedded apart, and the words they share.

The cosine alone tells a right answer from another question's in 99.6% of cases, but its level does not say
the same everywhere: "4" is near to no question, and a story is as good as another where the prompt names no
subject. So how much a low cosine means is weighed with how much the answer says and the prompt asks for.

The cosine of an answer that repeats its question is 1. What is copied from the prompt is left out before
anything is compared, so that a copied question lends no relevance to what stands behind it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from lm_mixup.config import EmbedderConfig
from lm_mixup.core import words

# Fitted by logistic regression (C = 1) on the Alpaca rows that the rater's weights are fitted on: each row's
# own answer against the answers of three other rows. `benchmarks/offline_judge.py` does it again.
LOGIT: Final = {"intercept": -1.75, "cosine": 16.62, "shared": 3.08, "length": -3.82, "asked": -1.84}
# Set by hand, between right answers preferred and the correlation with judges, each of which costs the other.
LENIENCE: Final = 3.4  # added to the logit: what is as likely right as not is not yet held against an answer
STEEPNESS: Final = 1.5  # of the way from relevant to not
COPIED: Final = 0.8  # share of a sentence's word triples that stand in the prompt, from which it is a copy
MAX_TOKENS: Final = 128  # of either side that are embedded: half the time of 256, and no figure the worse


def irrelevance(cosine: float, shared: int, length: int, asked: int) -> float:
    """How sure it is that the answer is not the prompt's, in (0, 1).

    Args:
        cosine: Of the embedded prompt and answer.
        shared: Different content words that both have.
        length: Words of the answer.
        asked: Different content words of the prompt.
    """
    logit = LOGIT["intercept"] + LENIENCE
    for name, value in zip(
        ("cosine", "shared", "length", "asked"), evidence(cosine, shared, length, asked), strict=True
    ):
        logit += LOGIT[name] * value
    return 1 / (1 + math.exp(min(50.0, STEEPNESS * logit)))


def evidence(cosine: float, shared: int, length: int, asked: int) -> tuple[float, float, float, float]:
    """What `LOGIT` weighs, each at most 1: shared words to 3, the counts logarithmic to 100 and 50."""
    return (
        cosine,
        min(1.0, shared / 3),
        min(1.0, math.log1p(length) / math.log(101)),
        min(1.0, math.log1p(asked) / math.log(51)),
    )


def without_copied(prompt: str, completion: str) -> str:
    """The completion without what is copied from the prompt, or all of it, if no more is left.

    Copied are a prompt as a whole, if it has three words or more, and sentences of its word triples.
    """
    theirs = triples(words.words(prompt))
    if not theirs:
        return completion
    rest = completion.replace(prompt.strip(), "\n", 1)
    places = words.sentences(rest)
    kept = [rest[start:end] for start, end in places if not _is_copied(words.words(rest[start:end]), theirs)]
    if not kept or (rest == completion and len(kept) == len(places)):
        return completion
    return "\n".join(kept)


def _is_copied(sentence: Sequence[str], theirs: Collection[tuple[str, ...]]) -> bool:
    own = triples(sentence)
    return len(own) >= 2 and sum(map(theirs.__contains__, own)) >= COPIED * len(own)


def triples(listed: Sequence[str]) -> set[tuple[str, ...]]:
    """The different triples of words in a row."""
    return set(zip(listed, listed[1:], listed[2:], strict=False))


class Relevance:
    """Embeds prompts and answers with the packaged MiniLM, which the constants above are fitted to.

    Another embedder has other cosines: unrelated texts are near 0 here, and near 0.4 with bge-m3. So this one
    does not follow `embedder.path`.

    Args:
        num_cpus: CPU threads.
    """

    def __init__(self, num_cpus: float = 1.0) -> None:
        from lm_mixup.models.embedder import Embedder

        self._embedder = Embedder(EmbedderConfig(path="minilm", max_length=MAX_TOKENS, num_cpus=num_cpus))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, 384]; equal texts are embedded once."""
        return self._embedder.embed(texts)

    def cosines(self, rows: Sequence[tuple[str, str]]) -> list[float]:
        """The cosine of each prompt with what its completion tells."""
        texts = [prompt for prompt, _ in rows] + [
            without_copied(prompt, completion) for prompt, completion in rows
        ]
        vectors = self.embed(texts)
        products = np.einsum("nd,nd->n", vectors[: len(rows)], vectors[len(rows) :])
        return [float(value) for value in products]
