"""Hugging Face data sets as pools: the data files behind a Hub name, and folders written by `save_to_disk`.

Of a Hub data set only the list of its data files is asked for; they are then read like any other file, each
task fetching the byte range or the row group it needs. No code of a data set is run. A saved folder's Arrow
files are mapped into memory, a run of record batches a unit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import pyarrow as pa

from lm_mixup.core.errors import InputError

PREFIX: Final = "hf:"
_NAME: Final = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")
_DEFAULT_SPLIT: Final = "train"


def is_hub_name(pool: str) -> bool:
    """Whether a pool is given as `hf:ORG/NAME…`; `hf://…` is a URI like any other."""
    return pool.startswith(PREFIX) and not pool.startswith(f"{PREFIX}//")


def hub_files(pool: str, key: str = "augment.pool") -> list[str]:
    """The URIs of the data files of `hf:ORG/NAME[:CONFIG][@SPLIT]`, in order, with the revision they are of.

    Without a split: `train`, or the only one.

    Raises:
        InputError: The name is not well formed, or there is no such data set, configuration or split, or no
            network.
    """
    match = _NAME.fullmatch(pool.removeprefix(PREFIX))
    if match is None:
        raise InputError(f"{key} {pool}: not a data set's name; write hf:ORG/NAME, hf:ORG/NAME:CONFIG@SPLIT")
    return data_files(match["name"], match["config"], match["split"], f"{key} {pool}")


def data_files(name: str, config: str | None, split: str | None, where: str) -> list[str]:
    """The data files of a data set on the Hub, or in a local folder laid out as one."""
    from datasets import load_dataset_builder

    try:
        by_split = load_dataset_builder(name, config).config.data_files or {}
    except ConnectionError as error:
        raise InputError(
            f"{where}: no connection to the Hub ({error}); download it, name its folder"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # no such data set or configuration, or a script
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: not available ({reason}); check name, configuration and access") from None
    files = {str(name): [str(file) for file in listed] for name, listed in by_split.items()}
    return files[_split(list(files), split, where, "@")]


def snapshot(name: str, patterns: list[str], key: str) -> str:
    """The local folder of a data set's files at `hf:ORG/NAME[@REVISION]`, called after the revision's commit.

    What lies in the cache of `huggingface_hub` is not downloaded again.

    Args:
        patterns: Globs of the files that are wanted.
        key: The config key that names it, for error messages.

    Raises:
        InputError: The name is not well formed, there is no such data set or revision, or no network.
    """
    from huggingface_hub import snapshot_download

    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None or match["config"]:
        raise InputError(f"{key} {name}: not a data set's name; write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    try:
        return str(
            snapshot_download(
                match["name"], repo_type="dataset", revision=match["split"], allow_patterns=patterns
            )
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{key} {name}: not available ({reason}); check name, access and network, or name its folder"
        ) from None


def _split(names: list[str], wanted: str | None, where: str, join: str) -> str:
    """The split to read: the one asked for, else `train`, else the only one."""
    only = names[0] if len(names) == 1 else _DEFAULT_SPLIT
    chosen = wanted or only
    if chosen not in names:
        listed = ", ".join(f"{join}{name}" for name in names) or "none"
        raise InputError(f"{where}: has no split `{chosen}`; add one of {listed}")
    return chosen


def saved_files(fs: Any, folder: str, where: str) -> list[str] | None:
    """The Arrow files of a folder written by `save_to_disk`, in order; None where it is no such folder.

    Of a folder of several splits: `train`, or the only one; others are pools of their own.

    Raises:
        InputError: It has several splits and none is called `train`, or its files are not listed.
    """
    if fs.isfile(f"{folder}/dataset_dict.json"):
        splits = _json(fs, f"{folder}/dataset_dict.json", where).get("splits") or []
        folder = f"{folder}/{_split([str(name) for name in splits], None, where, '/')}"
    if not (fs.isfile(f"{folder}/state.json") and fs.isfile(f"{folder}/dataset_info.json")):
        return None
    state = _json(fs, f"{folder}/state.json", where)
    try:
        return [f"{folder}/{file['filename']}" for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise InputError(f"{where}: {folder}/state.json lists no files; save the data set again") from None


def _json(fs: Any, path: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(fs.cat_file(path))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{where}: {path} is damaged; save the data set again")
    return value


def cut_batches(file: IO[bytes] | str, split_bytes: int) -> list[tuple[int, int]]:
    """Runs [start, end) of the record batches of an Arrow stream, each of about `split_bytes`.

    Args:
        file: A local path, which is mapped and of which only the headers are read; or an open file, not cut.
        split_bytes: Bytes of a run; a batch is never cut.
    """
    if not isinstance(file, str):
        return [(0, 0)]
    runs: list[tuple[int, int]] = []
    start, size, number = 0, 0, -1
    with open_stream(file) as batches:
        for number, batch in enumerate(batches):
            size += batch.nbytes
            if size >= split_bytes:
                runs.append((start, number + 1))
                start, size = number + 1, 0
    return runs if start > number else [*runs, (start, number + 1)]


def read_batches(file: IO[bytes] | str, start: int, end: int) -> pa.Table:
    """The rows of the batches [start, end) of an Arrow stream; all of them, if `end` is 0."""
    with open_stream(file) as batches:
        chosen = [batch for number, batch in enumerate(batches) if start <= number and not 0 < end <= number]
        return pa.Table.from_batches(chosen, schema=batches.schema)


@contextmanager
def open_stream(file: IO[bytes] | str) -> Iterator[Any]:
    """The record batches of an Arrow stream, mapped into memory where it is a local file."""
    if isinstance(file, str):
        with pa.memory_map(file) as mapped, pa.ipc.open_stream(mapped) as reader:
            yield reader
    else:
        with pa.ipc.open_stream(pa.PythonFile(file, mode="r")) as reader:
            yield reader
