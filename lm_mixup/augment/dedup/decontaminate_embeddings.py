"""Rows that are similar to an evaluation item, by the cosine of their embeddings.

Finds what shared n-grams (`decontaminate`) cannot: paraphrases, and translations if the embedder knows both
languages. The vectors of all items are held once per node, in the Ray object store. A row
takes 2·E·d operations for E items, so 10,000 items of 384-d cost about 0.1 ms a row and core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lm_mixup.augment.dedup.decontaminate import read_eval_items
from lm_mixup.config import EmbedDecontaminateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.nearest import nearest
from lm_mixup.core.schemas import content_id

SECTION: Final = "embed.decontaminate"
REASON: Final = "contaminated_embedding"
MOST_ITEMS: Final = 100_000  # 150 MB of 384-d vectors, 400 MB of 1024-d
LEVELS: Final = (0.7, 0.8, 0.9)

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EvalVectors:
    """The embeddings of evaluation items.

    Attributes:
        ids: The items' ids.
        vectors: float32 [E, d], E at least 1, of length 1.
    """

    ids: Sequence[str]
    vectors: Vectors


def read_distinct_items(config: EmbedDecontaminateConfig) -> tuple[list[tuple[str, str]], int]:
    """Id and text of the evaluation items, of equal texts the first; and how many items there are in all.

    Raises:
        InputError: A set is missing, damaged, or has no column of text that is known; there are no items, or
            too many.
    """
    items: dict[str, tuple[str, str]] = {}
    count = 0
    for name, texts in read_eval_items(config, SECTION):
        count += 1
        text = "\n".join(texts).strip()
        if text:
            items.setdefault(content_id(text), (name, text))
        if len(items) > MOST_ITEMS:
            raise InputError(
                f"{SECTION}.files: more than {MOST_ITEMS:,} different items; name fewer evaluation sets, and "
                "have the others compared by n-grams (ingest.decontaminate)"
            )
    if not items:
        raise InputError(f"{SECTION}.files: none of the {count} items has a text; check {SECTION}.columns")
    return list(items.values()), count


def reject_similar(
    rows: pa.Table, vectors: Vectors, evals: EvalVectors, min_similarity: float
) -> tuple[npt.NDArray[np.bool_], pa.Table, dict[str, float]]:
    """Separates the rows that are too similar to an evaluation item.

    Args:
        vectors: Their embeddings, float32 [N, d], of length 1.

    Returns:
        bool [N], which rows stay; the others with `reason`, `match` (the item's id) and `similarity`; and how
        many rows reach each of `LEVELS`, to choose the threshold by.
    """
    items, cosines = nearest(vectors, evals.vectors)
    keep = cosines < np.float32(min_similarity)
    matches = [evals.ids[item] for item in items[~keep]]
    rejected = rows.filter(pa.array(~keep))
    rejected = rejected.append_column("reason", pa.array([REASON] * len(matches), pa.string()))
    rejected = rejected.append_column("match", pa.array(matches, pa.string()))
    rejected = rejected.append_column("similarity", pa.array(cosines[~keep], pa.float32()))
    reached = {f"eval_similarity_{level}": float((cosines >= level).sum()) for level in LEVELS}
    return keep, rejected, reached
