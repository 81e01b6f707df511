"""A run's MIXTURE and training set as a folder that `datasets.load_dataset` reads.

Parts go from the run directory into Parquet files one at a time: memory is that of one part, however large
the corpus is.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.core.value_counts import count_values
from lm_mixup.export.card import Subset, write_card

MIXTURE: Final = "mixture"
TRAINING_SET: Final = "training_set"
SUBSETS: Final = {MIXTURE: "mixture", TRAINING_SET: "select"}
ROWS_PER_FILE: Final = 100_000
_WHOLE: Final = "train"


def export(run: RunDir, folder: str, licence: str | None = None, title: str | None = None) -> list[Subset]:
    """Writes the finished MIXTURE and training set of a run, and a card, into a new folder.

    `mixture/<split>-*.parquet` has the splits sft, grpo and test; `training_set/train-*.parquet` the rows of
    `select`. Columns are those of the stages. The folder appears when it is whole.

    Args:
        folder: A local folder that is not there yet, or is empty.
        licence: Identifier for the card's front matter, such as `cc-by-4.0`; default: `unknown`.
        title: The card's title; default: the folder's name.

    Returns:
        What was written, with its figures.

    Raises:
        InputError: Neither stage is done or has rows, or the folder holds something.
    """
    check_target(Path(folder).expanduser().absolute())
    stages = {name: run.stage(stage) for name, stage in SUBSETS.items()}
    done = {name: stage for name, stage in stages.items() if stage.manifest() is not None}
    if not done:
        raise InputError(
            f"{run.uri}: neither mixture nor select is done; run `lm-mixup build` or `lm-mixup augment` first"
        )
    with new_folder(folder) as (scratch, name):
        subsets = [write_subset(subset, stage, scratch / subset) for subset, stage in done.items()]
        subsets = [subset for subset in subsets if subset.rows]
        if not subsets:
            raise InputError(f"{run.uri}: {' and '.join(done)} hold no rows; there is nothing to export")
        write_card(scratch / "README.md", run, subsets, title or name, licence)
    return subsets


@contextmanager
def new_folder(folder: str) -> Iterator[tuple[Path, str]]:
    """A folder to fill, which takes its place when the block ends well.

    Yields:
        Where to write, and the name that the folder will have.

    Raises:
        InputError: There is something in the folder's place.
    """
    target = Path(folder).expanduser().absolute()
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    scratch.mkdir()
    try:
        yield scratch, target.name
        if target.exists():
            target.rmdir()
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuses a folder that holds something: nothing of it is ever overwritten.

    Raises:
        InputError: It does, or it is a file.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is not empty; give a new folder")


def write_subset(name: str, stage: StageDir, folder: Path, rows_per_file: int = ROWS_PER_FILE) -> Subset:
    """Copies a stage's rows into Parquet files of each split, part by part, and counts them.

    Args:
        rows_per_file: A file that has as many is closed, and the next begins.
    """
    subset = Subset(name)
    with ExitStack() as opened:
        files: dict[str, SplitFiles] = {}
        for part in stage.iter_parts():
            for split, rows in by_split(part):
                if split not in files:
                    files[split] = SplitFiles(folder, split, part.schema, rows_per_file)
                    opened.callback(files[split].close)
                files[split].write(rows)
            subset.figures.update(count_values(part))
    return subset


def by_split(part: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each split of a part; all of them as `train` where there are no splits."""
    if "split" not in part.schema.names:
        if part.num_rows:
            yield _WHOLE, part
        return
    for split in sorted(set(part["split"].to_pylist())):
        yield split, part.filter(pc.equal(part["split"], split))


class SplitFiles:
    """The Parquet files of one split, one open at a time."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, rows_per_file: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._split, self._schema = folder, split, schema
        self._rows_per_file = rows_per_file
        self._writer: Any = None
        self._files = 0
        self._rows = 0

    def write(self, rows: pa.Table) -> None:
        """Adds rows."""
        if self._writer is None:
            path = self._folder / f"{self._split}-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._files, self._rows = self._files + 1, 0
        self._writer.write_table(rows.cast(self._schema))
        self._rows += rows.num_rows
        if self._rows >= self._rows_per_file:
            self.close()

    def close(self) -> None:
        """Finishes the open file; the next rows begin another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
