"""Embeddings looked up by id: from the rows' own part first, from wherever they are if need be."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from stage_rows import put_part

from lm_mixup.augment.embed import embedding_table, vectors_for
from lm_mixup.core.run_dir import RunDir, StageDir

OWN = "curate/data/part-000001.parquet"


class Listed(StageDir):
    """Counts how often its folder is listed."""

    times = 0

    def parts(self, kind="data"):
        self.times += 1
        return super().parts(kind)


@pytest.fixture
def embed(tmp_path) -> Listed:
    """Three parts of four rows; row n has the embedding [n, 1]."""
    stage = Listed(RunDir(tmp_path), "embed")
    for part in range(3):
        rows = np.arange(4 * part, 4 * part + 4)
        put_part(stage, part, embedding_table([f"r{n}" for n in rows], np.stack([rows, np.ones(4)], axis=1)))
    return stage


@pytest.mark.parametrize(
    ("rows", "part", "times"), [([7, 4], OWN, 0), ([4, 11, 6, 0], OWN, 1), ([5, 1], "", 1), ([8], "x/y", 1)]
)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_only_rows_of_other_parts_have_the_folder_listed(embed, rows, part, times, kind):
    found = vectors_for(pa.array([f"r{n}" for n in rows], kind), embed, part)
    assert found.to_pylist() == [[n, 1] for n in rows]
    assert embed.times == times


def test_a_row_without_an_embedding_is_an_error(embed):
    with pytest.raises(RuntimeError, match="no embedding of row r12 curate"):
        vectors_for(pa.array(["r5", "r12"]), embed, OWN)
