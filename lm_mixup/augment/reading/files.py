"""The files of a pool, cut into units that can be read on their own.

A unit is a byte range of a JSONL file, aligned on newlines; a row group of a Parquet file; a run of record
batches of a data set saved as Arrow; or a whole file where it cannot be cut (a compressed JSONL file, a JSON
array, Arrow that is not on a local disk). Units in order give the pool's items in order, however large the
byte ranges are.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Literal, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from lm_mixup.augment.reading.hf_datasets import (
    cut_batches,
    hub_files,
    is_hub_name,
    read_batches,
    saved_files,
)
from lm_mixup.core.errors import InputError

Format = Literal["jsonl", "compressed", "json", "parquet", "arrow", "csv", "tsv"]

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl.gz": "compressed",
    ".json.gz": "compressed",
    ".jsonl.zst": "compressed",
    ".json.zst": "compressed",
}
_KNOWN = ", ".join(_SUFFIXES)
_SHARD = re.compile(r"[-_.]?(?:part|shard)?[-_.]?\d+(?:[-_]of[-_]\d+)?$", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16  # bytes in which a file shows whether it is one array
# What a packed file may unpack to: a bomb is small, and refused once this much of it lies in memory.
_UNPACKED = 1 << 30
_MOST_RATIO = 100
_ITEM_BYTES = 64  # that an item takes in memory beside its text
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Unit:
    """What one read returns.

    Attributes:
        uri: The file.
        format: How it is written.
        start: First byte of a JSONL range; row group of a Parquet file; first record batch; else 0.
        end: Byte behind a JSONL range; batch behind the last one, 0 for all; else 0.
        source: The source of its rows, where they do not name theirs.
    """

    uri: str
    format: Format
    start: int
    end: int
    source: str


def list_units(pool: str, split_bytes: int, key: str = "augment.pool") -> tuple[list[Unit], dict[str, int]]:
    """The units of a pool, in order of file and place, and what was found.

    Args:
        pool: A file, folder or glob, local or at any fsspec URI; a folder of `save_to_disk`; a Hub name.
        key: The config key that names the pool, for error messages.

    Returns:
        The units, and counts of `files`, `bytes` and `files_ignored` (names of no known format, or that begin
        with a dot or an underscore, like those of their folders inside the pool).

    Raises:
        InputError: There is no such file, none of a known format, or one cannot be opened.
    """
    fs, paths, ignored, source = _find(pool, key)
    units: list[Unit] = []
    total = 0
    for path in paths:
        uri = path if _is_local(fs) else str(fs.unstrip_protocol(path))
        try:
            size = int(fs.size(path))
            units += _cut(fs, path, uri, size, split_bytes, source or source_name(path))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"file {uri}: not readable ({_line(error)}); repair or remove it") from None
        total += size
    return units, {"files": len(paths), "bytes": total, "files_ignored": ignored}


def _find(pool: str, key: str) -> tuple[Any, list[str], int, str | None]:
    """File system, paths of known formats in order, number of other files, and the source if it has one."""
    if is_hub_name(pool):
        return _known_of_hub(pool, key)
    try:
        fs, path = fsspec.core.url_to_fs(pool)
        saved = saved_files(fs, path.rstrip("/"), f"{key} {pool}")
        if saved is not None:
            others = sum(name.endswith(".arrow") for name in fs.find(path)) - len(saved)
            return fs, saved, others, PurePosixPath(path).name
        if fs.isfile(path):
            found = [path]
        elif fs.isdir(path):
            found = _linked(path) if _is_local(fs) else fs.find(path)
        else:
            found = [match for match in fs.glob(path) if fs.isfile(match)] if set(path) & set("*?[") else []
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{key} {pool}: cannot be opened ({_line(error)}); check the path") from None
    if not found:
        demo = ", or `world`" if key == "augment.pool" else ""
        raise InputError(f"{key} {pool}: no such file or folder; give JSONL or Parquet{demo}")
    visible = [name for name in sorted(found) if not _is_hidden(name, path)]
    known = [name for name in visible if _format(name)]
    if not known:
        raise InputError(f"{key} {pool}: holds no file that ends in one of {_KNOWN}")
    return fs, known, len(found) - len(known), None


def _linked(folder: str) -> list[str]:
    """The files in a local folder and its subfolders, links to folders followed, each folder once."""
    found: list[str] = []
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back to a folder above, or two links to one
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [f"{here}/{name}" for name in sorted(names)]
    return found


def _is_hidden(name: str, pool: str) -> bool:
    """Whether a file, or a folder between it and the pool's, is kept apart by its name.

    So does Spark with what is not committed (`_temporary`), and so do caches and editors.
    """
    inside = PurePosixPath(name)
    if inside.is_relative_to(pool) and inside != PurePosixPath(pool):
        inside = inside.relative_to(pool)
    else:  # a single file, or one that a pattern names
        inside = PurePosixPath(inside.name)
    return any(part.startswith((".", "_")) for part in inside.parts)


def _known_of_hub(pool: str, key: str) -> tuple[Any, list[str], int, str | None]:
    """The same for the data files of a data set on the Hub."""
    uris = hub_files(pool, key)
    known = [uri for uri in uris if _format(uri)]
    if not known:
        raise InputError(f"{key} {pool}: holds no file that ends in one of {_KNOWN}")
    fs = fsspec.core.url_to_fs(known[0])[0]
    source = re.split("[:@]", pool.partition("/")[2])[0]
    return fs, [fs._strip_protocol(uri) for uri in known], len(uris) - len(known), source


def _format(path: str) -> Format | None:
    name = PurePosixPath(path).name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _cut(fs: Any, path: str, uri: str, size: int, split_bytes: int, source: str) -> list[Unit]:
    kind = _format(path)
    if kind == "arrow":
        with fs.open(path, "rb") as file:
            runs = cut_batches(path if _is_local(fs) else file, split_bytes)
        return [Unit(uri, "arrow", start, end, source) for start, end in runs]
    if kind == "json":
        with fs.open(path, "rb") as file:
            kind = "json" if _is_json(file.read(_HEAD)) else "jsonl"
    elif kind == "jsonl":
        with fs.open(path, "rb") as file:
            kind = _kind_of_lines(file.read(_HEAD), uri)
    if kind == "parquet":
        with fs.open(path, "rb") as file:
            groups = pq.ParquetFile(file).num_row_groups
        return [Unit(uri, "parquet", group, 0, source) for group in range(groups)]
    if kind == "jsonl":
        starts = range(0, size, max(1, split_bytes))
        return [Unit(uri, "jsonl", start, min(start + starts.step, size), source) for start in starts]
    return [Unit(uri, cast("Format", kind), 0, 0, source)]


def _kind_of_lines(head: bytes, uri: str) -> Format:
    """What a file that is named JSONL really is, by its first bytes.

    Raises:
        InputError: It is in UTF-16 or UTF-32, in which lines cannot be told apart by bytes.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"file {uri}: is in UTF-16; convert it, e.g. with iconv -f UTF-16 -t UTF-8")
    if head.startswith(_GZIP):
        return "compressed"
    # An array of objects, or an object over several lines; an array as one line among others is a bad row.
    array = re.match(rb"\[\s*[{\]]", head.removeprefix(_BOM).lstrip())
    return "json" if array or _is_open_object(head) else "jsonl"


def source_name(path: str) -> str:
    """What a file's rows are said to come from: its name without shard numbers, or its folder's."""
    name = PurePosixPath(path)
    stem = name.name.split(".")[0]
    return _SHARD.sub("", stem) or name.parent.name or stem


def read_unit(unit: Unit, max_line_bytes: int) -> list[Any]:
    """The raw items of a unit, in order: lines as bytes, or values.

    A line past `max_line_bytes` is cut there, so a file without newlines cannot exhaust the memory.

    Raises:
        InputError: The file is damaged: what was read so far cannot be trusted.
    """
    fs, path = fsspec.core.url_to_fs(unit.uri)
    try:
        with fs.open(path, "rb") as file:
            match unit.format:
                case "jsonl":
                    return list(_lines_between(file, unit.start, unit.end, max_line_bytes))
                case "compressed":
                    most = _most_bytes(int(fs.size(path)))
                    unpacked = _unpacked(file, unit.uri)
                    if path.lower().endswith((".json.gz", ".json.zst")) and _is_json(unpacked.peek(_HEAD)):
                        return _array(_read_at_most(unpacked, most))
                    return list(_lines_at_most(unpacked, max_line_bytes, most))
                case "json":
                    return _array(file.read())
                case "csv" | "tsv":
                    return _delimited(file.read(), "," if unit.format == "csv" else "\t")
                case "parquet":
                    return _row_group(file, unit.start, _most_bytes(int(fs.size(path))))
                case "arrow":
                    return _table_rows(read_batches(path if _is_local(fs) else file, unit.start, unit.end))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"file {unit.uri}: damaged ({_line(error)}); repair or remove it") from None


def _most_bytes(size: int) -> int:
    return max(_UNPACKED, _MOST_RATIO * size)


def _too_much(most: int) -> ValueError:
    return ValueError(
        f"it unpacks to more than {most / (1 << 30):.2g} GiB and {_MOST_RATIO} times its size; "
        "if the file is trusted, decompress it to JSONL first, which is read in pieces"
    )


def _read_at_most(file: IO[bytes], most: int) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise _too_much(most)
    return content


def _lines_at_most(file: IO[bytes], limit: int, most: int) -> Iterator[bytes]:
    held = 0
    for line in _lines(file, limit):
        held += len(line) + _ITEM_BYTES
        if held > most:
            raise _too_much(most)
        yield line


def _row_group(file: IO[bytes], group: int, most: int) -> list[Any]:
    """The rows of a group, a few at a time: a value that repeats takes next to nothing in the file."""
    rows: list[Any] = []
    held = 0
    for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, row_groups=[group]):
        table = pa.Table.from_batches([batch])
        for place, column in enumerate(table.columns):
            if pa.types.is_dictionary(column.type):
                table = table.set_column(place, table.field(place).name, _decoded_dictionary(column))
        held += table.nbytes + _ITEM_BYTES * table.num_rows
        if held > most:
            raise _too_much(most)
        rows += _table_rows(table)
    return rows


def _decoded_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)


def _unpacked(file: IO[bytes], uri: str) -> io.BufferedReader:
    if file.read(2) == _GZIP:
        file.seek(0)
        return io.BufferedReader(gzip.GzipFile(fileobj=file), _HEAD)
    if uri.lower().endswith(".gz"):
        raise OSError("not gzip")
    file.seek(0)
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), _HEAD)


def _is_json(head: bytes) -> bool:
    return _is_array(head) or _is_open_object(head)


def _is_open_object(head: bytes) -> bool:
    """Whether a file begins with an object over several lines; a lone brace above a row is a bad row."""
    return re.match(rb"\{[ \t]*\r?\n\s*[\"}]", head.removeprefix(_BOM).lstrip()) is not None


def _is_array(head: bytes) -> bool:
    return head.removeprefix(_BOM).lstrip().startswith(b"[")


def _lines_between(file: IO[bytes], start: int, end: int, limit: int) -> Iterator[bytes]:
    """The lines whose first byte lies in [start, end)."""
    position = 0
    if start > 0:  # the line that reaches into this range belongs to the one before
        file.seek(start - 1)
        position = start - 1
        while piece := file.readline(limit):
            position += len(piece)
            if piece.endswith(b"\n"):
                break
    yield from _lines(file, limit, position, end)


def _lines(file: IO[bytes], limit: int, position: float = 0, end: float = math.inf) -> Iterator[bytes]:
    """The lines that begin at `position` or behind it, before `end`, each cut at `limit`."""
    while position < end and (piece := file.readline(limit)):
        line = piece.removeprefix(_BOM) if position == 0 else piece
        position += len(piece)
        while not piece.endswith(b"\n") and (piece := file.readline(limit)):
            position += len(piece)
        if line:  # a file of nothing but a byte-order mark has no line
            yield line


def _array(content: bytes) -> list[Any]:
    text = content.removeprefix(_BOM).decode("utf-8").strip()
    values: list[Any] = []
    place = 0
    while place < len(text):  # one value, or several behind each other
        value, end = json.JSONDecoder().raw_decode(text, place)
        values += value if isinstance(value, list) else [value]
        while end < len(text) and text[end].isspace():
            end += 1
        place = end
    return values


def _delimited(content: bytes, delimiter: str) -> list[Any]:
    """The rows of a CSV or TSV file as records of text; its first line names the columns.

    Raises:
        ValueError: The file is not UTF-8, a column has no name or another's, or a row has too many fields.
    """
    csv.field_size_limit(sys.maxsize)
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(lines, [])
        if len(set(names)) < len(names):
            raise ValueError("two columns have one name")
        rows: list[Any] = []
        for fields in lines:
            if not fields:  # an empty line
                continue
            if len(fields) > len(names):
                raise ValueError(f"line {lines.line_num} has {len(fields)} fields, the header {len(names)}")
            rows.append(dict(zip(names, fields, strict=False)))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from None
    return rows


def _table_rows(table: pa.Table) -> list[Any]:
    try:
        return list(table.to_pylist())
    except UnicodeDecodeError:  # text columns are not checked on reading: take them apart value by value
        columns = [_decoded(column) for column in table.columns]
        return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _decoded(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; texts that are not UTF-8 stay bytes."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    return [_text_or_bytes(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value
