"""Reading the parts of a stage for the page: a bounded number of them, and only the columns asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from lm_mixup.core.run_dir import Kind, RunDir, StageDir

MOST_PARTS = 64


@dataclass(frozen=True)
class Coverage:
    """How many parts of a stage were looked at."""

    read: int
    parts: int


def spread(stage: StageDir, kind: Kind, most: int) -> tuple[list[str], Coverage]:
    """At most `most` parts of a stage, evenly spread, always the same ones."""
    parts = stage.parts(kind)
    chosen = [parts[i * len(parts) // most] for i in range(most)] if len(parts) > most else parts
    return chosen, Coverage(read=len(chosen), parts=len(parts))


def read_parts(stage: StageDir, chosen: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
    """The chosen parts with those of the columns that they have."""
    for relative in chosen:  # opened, not read whole: an object store sends only these columns
        with stage.run.fs.open(f"{stage.run.path}/{relative}", "rb") as file:
            yield pq.ParquetFile(file).read(columns)


def first_with_parts(run: RunDir, names: Sequence[str], kind: Kind = "data") -> StageDir | None:
    """The first of some stages that has rows of this kind."""
    return next((stage for stage in map(run.stage, names) if stage.parts(kind)), None)
