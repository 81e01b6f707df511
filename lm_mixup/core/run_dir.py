"""The run directory: stage outputs, manifests, fingerprints and resume.

The rows of a stage are in numbered Parquet parts. A part is written atomically, its receipt after it, and the
manifest after all parts. After a kill at any point, everything that a receipt or manifest names is complete,
and the same command resumes from there. Local paths and fsspec URIs (`s3://…`) work alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lm_mixup.core import remote

Kind = Literal["data", "rejected"]


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage.

    `rows_in == rows_out + rows_rejected` for stages that map rows to rows. Stages that merge or sample set
    `rows_used` and say in `left_out` how many input rows were not used, by reason.
    """

    stage: str
    fingerprint: str
    inputs: dict[str, str]
    rows_in: int
    rows_out: int
    rows_rejected: int
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    rows_used: int | None = None
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """The record of one finished part; it exists only if the part is complete."""

    part: int
    rows_in: int
    rows_out: int
    rows_rejected: int
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a stage function returns to the pipeline, besides the parts it wrote.

    Attributes:
        metrics: Metrics for the manifest (JSON-able); the sums of the metrics in receipts are added to them.
        rows_used: For stages that merge or sample: input rows that went into the output.
        left_out: Input rows that did not, by reason.
        rows_in: Input rows, where the receipts do not count them.
        rows_out: Output rows, where they are not in parts (a model, a page).
        files: Output files relative to the run directory; default: the stage's parts.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    rows_used: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    rows_in: int | None = None
    rows_out: int | None = None
    files: list[str] = field(default_factory=list)


def fingerprint(*identities: Any) -> str:
    """A short digest of JSON-able values, the same on every machine."""
    text = json.dumps(identities, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class RunDir:
    """A run directory at a local path or fsspec URI."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri).rstrip("/")
        self.fs, self.path = remote.open_file_system(self.uri)
        self.session = uuid.uuid4().hex[:12]  # of the driver; travels to its workers with this object
        self.is_local = (
            "file" in self.fs.protocol if isinstance(self.fs.protocol, tuple) else self.fs.protocol == "file"
        )

    def stage(self, name: str) -> StageDir:
        """The directory of one stage."""
        return StageDir(self, name)

    def write_json(self, relative: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False)
        self.write_bytes(relative, text.encode("utf-8") + b"\n")

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Writes a file atomically."""
        target = f"{self.path}/{relative}"
        self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if not self.is_local:  # object stores publish a key only when its upload is complete
            self.fs.pipe_file(target, content)
            return
        scratch = f"{target}.{uuid.uuid4().hex}.tmp"
        with open(scratch, "wb") as file:  # noqa: PTH123
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, target)  # noqa: PTH105

    def read_bytes(self, relative: str) -> bytes:
        """The content of a file."""
        content: bytes = self.fs.cat_file(f"{self.path}/{relative}")
        return content

    def read_json(self, relative: str) -> Any:
        """The value in a JSON file, or None where there is no such file."""
        if not self.exists(relative):
            return None
        return json.loads(self.read_bytes(relative))

    def exists(self, relative: str) -> bool:
        """Whether the file or folder is there."""
        return bool(self.fs.exists(f"{self.path}/{relative}"))

    def listing(self, relative: str) -> list[str]:
        """File names in a folder, sorted; none where the folder is absent."""
        folder = f"{self.path}/{relative}"
        if not self.fs.isdir(folder):
            return []
        self.fs.invalidate_cache(folder)
        return sorted(path.rsplit("/", 1)[-1] for path in self.fs.ls(folder, detail=False))

    def rename(self, old: str, new: str) -> None:
        """Moves a folder of this run: at once where the run is local."""
        self.fs.mv(f"{self.path}/{old}", f"{self.path}/{new}", recursive=True)

    def remove(self, relative: str) -> None:
        """Removes a file or a whole folder of this run, if there."""
        if self.exists(relative):
            self.fs.rm(f"{self.path}/{relative}", recursive=True)


class StageDir:
    """The outputs of one stage in a run directory."""

    def __init__(self, run: RunDir, name: str) -> None:
        self.run = run
        self.name = name

    @property
    def local(self) -> Path:
        """The folder as a local path, for parts that write files themselves (models, checkpoints).

        Of a run at a URI it is this node's scratch folder: `upload` what has to last, `fetch` what is there.
        """
        if not self.run.is_local:
            return remote.scratch_folder(self.run.uri, self.run.session, self.name)
        folder = Path(self.run.path).absolute() / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def location(self, relative: str) -> str:
        """A file or folder of the stage as every node can name it: an absolute path, or a URI."""
        return str(self.local / relative) if self.run.is_local else f"{self.run.uri}/{self.name}/{relative}"

    def upload(self, relative: str, last: Sequence[str] = ()) -> None:
        """Copies a file or folder from the scratch folder to the URI. Does nothing in a local run.

        Args:
            last: Names of files that are written after the others.
        """
        if not self.run.is_local and (self.local / relative).exists():
            remote.upload(self.run.fs, self.local / relative, f"{self.run.path}/{self.name}/{relative}", last)

    def fetch(self, relative: str) -> Path:
        """The local path of a file or folder; in a remote run it is copied from the URI, if it is there."""
        target = self.local / relative
        if not self.run.is_local and self.run.exists(f"{self.name}/{relative}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            remote.download(self.run.fs, f"{self.run.path}/{self.name}/{relative}", target)
        return target

    def exists(self, relative: str) -> bool:
        """Whether the stage has the file or folder."""
        return self.run.exists(f"{self.name}/{relative}")

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the stage is not done."""
        value = self.run.read_json(f"{self.name}/manifest.json")
        return Manifest(**value) if value is not None else None

    def begin(self, digest: str, *, fresh: bool = False) -> str | None:
        """Prepares the folder for work under a fingerprint.

        Unfinished work with the same fingerprint is kept. Other content is removed, except trained models and
        checkpoints, which move aside and are restored when their fingerprint is requested again.

        Args:
            fresh: Whether to remove what is there, whatever its fingerprint.

        Returns:
            The folder that trained files were moved to, relative to the run directory; None if there were
            none.
        """
        started = self.run.read_json(f"{self.name}/started.json")
        held = None if started is None else started["fingerprint"]
        moved = None
        trained = any(self.run.exists(f"{self.name}/{part}") for part in ("checkpoints", "model"))
        if not fresh and held is not None and held != digest and trained:
            moved = self._move_aside(held)
        elif fresh or held != digest:
            self._clear()
        if not fresh:
            self._bring_back(digest)
        self.run.remove(f"{self.name}/manifest.json")
        self.run.write_json(f"{self.name}/started.json", {"fingerprint": digest})
        return moved

    def _aside(self, digest: str) -> str:
        return f"{self.name}.kept-{digest[:8]}"

    def _move_aside(self, digest: str) -> str:
        aside = self._aside(digest)
        self.run.remove(aside)  # earlier work under the same settings than that which moves there now
        self.run.rename(self.name, aside)
        return aside

    def _bring_back(self, digest: str) -> None:
        aside = self._aside(digest)
        if self.run.exists(aside) and not self.run.exists(self.name):
            self.run.rename(aside, self.name)

    def _clear(self) -> None:
        """Removes the folder, manifest and receipts first: a kill leaves no record of removed files."""
        for part in ("manifest.json", "started.json", "receipts"):
            self.run.remove(f"{self.name}/{part}")
        self.run.remove(self.name)

    def finish(self, manifest: Manifest) -> None:
        """Writes the manifest: from here on the stage is done."""
        self.run.write_json(f"{self.name}/manifest.json", asdict(manifest))

    def write_part(self, part: int, rows: pa.Table, rejected: pa.Table | None, receipt: Receipt) -> None:
        """Writes one part's rows and rejects, then its receipt."""
        if rejected is not None and rejected.num_rows:
            self._write_table(f"{self.name}/rejected/{part_name(part)}", rejected)
        self._write_table(f"{self.name}/data/{part_name(part)}", rows)
        self.run.write_json(f"{self.name}/receipts/part-{part:06d}.json", asdict(receipt))

    def _write_table(self, relative: str, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        self.run.write_bytes(relative, sink.getvalue().to_pybytes())

    def receipts(self) -> dict[int, Receipt]:
        """The finished parts, by number."""
        folder = f"{self.name}/receipts"
        names = (name for name in self.run.listing(folder) if name.endswith(".json"))
        values = (self.run.read_json(f"{folder}/{name}") for name in names)
        return {value["part"]: Receipt(**value) for value in values}

    def parts(self, kind: Kind = "data") -> list[str]:
        """Paths of the parts, relative to the run directory, in order."""
        names = self.run.listing(f"{self.name}/{kind}")
        return [f"{self.name}/{kind}/{name}" for name in names if name.endswith(".parquet")]

    def read_part(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """One part as a table, or some of its columns: of a remote file no others are fetched."""
        if columns is None:
            return pq.read_table(pa.BufferReader(self.run.read_bytes(relative)))
        with self.run.fs.open(f"{self.run.path}/{relative}", "rb") as file:
            return pq.read_table(file, columns=columns)

    def iter_parts(self, columns: list[str] | None = None, kind: Kind = "data") -> Iterator[pa.Table]:
        """The parts in order, one in memory at a time."""
        for relative in self.parts(kind):
            yield self.read_part(relative, columns)

    def read(self, columns: list[str] | None = None, kind: Kind = "data") -> pa.Table:
        """All rows in one table: for stages whose output is small by design, for tests and for the report."""
        tables = list(self.iter_parts(columns, kind))
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})


def part_name(part: int) -> str:
    """The file name of a part."""
    return f"part-{part:06d}.parquet"


def summarise(
    stage: StageDir, digest: str, inputs: Mapping[str, str], seconds: float, outcome: Outcome
) -> Manifest:
    """The manifest of a stage from its receipts and its outcome.

    Args:
        stage: The stage, all its parts written.
        inputs: Fingerprints of the stages it read, by name.
    """
    receipts = list(stage.receipts().values())
    return Manifest(
        stage=stage.name,
        fingerprint=digest,
        inputs=dict(inputs),
        rows_in=sum(r.rows_in for r in receipts) if outcome.rows_in is None else outcome.rows_in,
        rows_out=sum(r.rows_out for r in receipts) if outcome.rows_out is None else outcome.rows_out,
        rows_rejected=sum(r.rows_rejected for r in receipts),
        seconds=round(seconds, 3),
        metrics=_sum_by_key(r.metrics for r in receipts) | dict(outcome.metrics),
        files=outcome.files or stage.parts(),
        rejected_by_reason={
            k: int(v) for k, v in _sum_by_key(r.rejected_by_reason for r in receipts).items()
        },
        rows_used=outcome.rows_used,
        left_out=dict(outcome.left_out),
    )


def _sum_by_key(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
