"""Stage `mixture` from a published MIXTURE: its files become MIXTURE rows, or rejects with a reason.

The layout is that of `dokiik/MIXTURE`: `data_sft/{cs,mcq,qa,para,tfq}/…` and `data_grpo/{train,test}…`, JSON
arrays or JSONL, each row with `input`, `output`, `cot` and `instruction`, under `data_grpo` also `task_type`.
What the layout does not tell is null: scores, how a row was made, and which inputs have noise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import fsspec
import pyarrow as pa

from lm_mixup.augment.reading.files import Unit, list_units, read_unit
from lm_mixup.augment.reading.hf_datasets import is_hub_name, snapshot
from lm_mixup.augment.reading.rows import Refused, parse_line, raw_text
from lm_mixup.config import BuildConfig, DataConfig
from lm_mixup.core.draws import hash_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, extend, table
from lm_mixup.core.task_types import INSTRUCTIONS, TASK_TYPES, TaskType
from lm_mixup.core.value_counts import count_values, splits_in
from lm_mixup.distributed.map_parts import PartResult, receipt_of
from lm_mixup.mixture.assemble import SCHEMA as ASSEMBLED
from lm_mixup.mixture.published_text import Unreadable, bounded, canonical, split_inputs

Split = Literal["test", "grpo", "dev", "sft"]
_KEY: Final = "build.mixture"
_PARTS: Final = ("data_grpo", "data_sft")
_SPLIT_BYTES: Final = 8 << 20
_MOST_LINE_BYTES: Final = 16 << 20
_TEST_NAMES: Final = frozenset(("test", "eval", "val", "valid", "validation", "dev"))
_OTHER_NAMES: Final[dict[str, TaskType]] = {"paragraph": "para", "tf": "tfq"}
# Rows of a split keep their target from the splits behind it.
_SPLITS: Final[tuple[Split, ...]] = ("test", "grpo", "sft")
_TAG: Final = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)

SCHEMA = extend(ASSEMBLED, pa.schema([("published_id", pa.string()), ("published_instruction", pa.string())]))
REJECTED = pa.schema([(name, pa.string()) for name in ("reason", "where", "id", "raw")])


@dataclass(frozen=True)
class File:
    """A piece of a published file, and what its path tells of its rows."""

    unit: Unit
    name: str
    split: Split
    task_type: TaskType | None


@dataclass
class Seen:
    """What was read so far: 32 bytes and a dictionary's overhead for each row.

    Attributes:
        rows: Ids of rows.
        targets: The split of each target, by digest.
    """

    rows: set[str] = field(default_factory=set)
    targets: dict[str, Split] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """A raw row, the file that it is of, and its number there, from 1."""

    raw: Any
    file: File
    number: int


def published(out: StageDir, config: BuildConfig, data: DataConfig) -> Outcome:
    """Reads a published MIXTURE into rows of `SCHEMA`; every other row goes to the rejects with its reason.

    A row's instruction is ours (`task_types.INSTRUCTIONS`), so that training and distillation ask alike; the
    given one is kept beside it. A target of the test split is refused in the others, and one of the grpo
    split in the sft split: `target_in_test`, `target_in_grpo`.

    The driver reads one file at a time: a JSON array is wholly in memory, JSONL in pieces of 8 MiB.

    Args:
        out: Where the rows go.
        config: `mixture` says where from, `mixture_separator` what stands between the inputs.
        data: Rows of a part.

    Returns:
        Counts of rows by split and task type, and of the ways in which inputs were told apart.

    Raises:
        InputError: There are no such files, one is damaged, or no row can be used for training.
    """
    files, ignored = list_files(mixture_folder(str(config.mixture)), str(config.mixture))
    items, seen, done = _items(files), Seen(), out.receipts()
    part = 0
    while batch := list(islice(items, data.rows_per_part)):
        result = published_part(batch, seen, config)
        if part not in done:
            out.write_part(part, result.rows, result.rejected, receipt_of(part, result))
        part += 1
    _check(out, str(config.mixture))
    return Outcome(metrics={"files": len({file.unit.uri for file in files}), "files_ignored": ignored})


def mixture_folder(source: str) -> str:
    """The folder of a published MIXTURE; one on the Hub is downloaded, or found where it was before.

    Raises:
        InputError: The name is not well formed, there is no such data set, or no network.
    """
    if is_hub_name(source):
        return snapshot(source, [f"{part}/**" for part in _PARTS], _KEY)
    return source.rstrip("/")


def list_files(folder: str, source: str) -> tuple[list[File], int]:
    """The pieces of the published files, test rows first, then those for GRPO; and files of other kinds.

    Args:
        folder: Holds `data_sft`, `data_grpo` or both.
        source: How the config calls it.

    Raises:
        InputError: It holds neither.
    """
    fs, root = fsspec.core.url_to_fs(folder)
    there = [part for part in _PARTS if fs.isdir(f"{root}/{part}")]
    if not there:
        raise InputError(
            f"{_KEY} {source}: holds neither data_sft/ nor data_grpo/; give hf:dokiik/MIXTURE, or a folder "
            "that is laid out like it"
        )
    files: list[File] = []
    ignored = 0
    for part in there:
        units, found = list_units(f"{folder}/{part}", _SPLIT_BYTES, _KEY)
        ignored += found["files_ignored"]
        files += [_file(unit, part) for unit in units]
    return sorted(files, key=lambda file: _SPLITS.index(file.split)), ignored


def _file(unit: Unit, part: str) -> File:
    name = f"{part}/" + unit.uri.rpartition(f"/{part}/")[2]
    words = re.split(r"[^a-z]+", name.lower())
    split: Split = "test" if _TEST_NAMES.intersection(words) else "grpo" if part == "data_grpo" else "sft"
    folders = PurePosixPath(name).parts[1:-1]
    return File(unit, name, split, next((kind for kind in map(task_type_named, folders) if kind), None))


def task_type_named(name: Any) -> TaskType | None:
    """The task type of a name such as `qa`, `qa_mixup` or `paragraph`; None if it is none."""
    if not isinstance(name, str):
        return None
    short = name.strip().lower().removesuffix("_mixup")
    return short if short in TASK_TYPES else _OTHER_NAMES.get(short)


def _items(files: Sequence[File]) -> Iterator[Item]:
    """The raw rows of all files, one piece in memory at a time, numbered within their file."""
    number, name = 0, ""
    for file in files:
        number = number if file.name == name else 0
        name = file.name
        for raw in read_unit(file.unit, _MOST_LINE_BYTES):
            number += 1
            yield Item(raw, file, number)


def published_part(batch: Sequence[Item], seen: Seen, config: BuildConfig) -> PartResult:
    """Parts the MIXTURE rows of a batch from what is none.

    Args:
        batch: Raw rows, in order.
        seen: What came before; this batch is added to it.
        config: What stands between inputs, and the share of targets of the sft split held for dev.
    """
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    figures: Counter[str] = Counter()
    for item in batch:
        given: str | None = None
        try:
            record = _record(item.raw)
            given = _optional(record, "id")
            row, way = read_row(record, item.file, config.mixture_separator)
            _once(row, seen)
            if row["split"] == "sft" and _is_dev(row, config):
                row["split"] = "dev"
        except (Unreadable, Refused) as error:
            where = f"{item.file.name}:{item.number}"
            rejected.append({"reason": str(error), "where": where, "id": given, "raw": raw_text(item.raw)})
            continue
        kept.append(row | {"published_id": given})
        figures[f"inputs/{way}"] += 1
    rows = table(kept, SCHEMA)
    metrics = figures + count_values(rows)
    return PartResult(rows, table(rejected, REJECTED), rows_in=len(batch), metrics=metrics)


def _is_dev(row: dict[str, Any], config: BuildConfig) -> bool:
    """Whether a row of the sft split is held for dev: by its target, which so stands in one split only."""
    return hash_of(config.split_seed, content_id(row["task_type"], row["output"])) < config.dev_fraction


def read_row(record: dict[str, Any], file: File, separator: str | None) -> tuple[dict[str, Any], str]:
    """A MIXTURE row from a published one, and how its inputs were told apart.

    Raises:
        Unreadable: It is none; the message says why.
    """
    task_type = task_type_named(record.get("task_type")) or file.task_type
    if task_type is None:
        raise Unreadable("unknown_task_type")
    inputs, way = _inputs(record.get("input"), task_type, separator)
    output, cot = _text(record.get("output"), "no_output"), _optional(record, "cot") or ""
    if _TAG.search(output) or _TAG.search(cot):
        raise Unreadable("tags_in_target")
    output = canonical(task_type, output)
    row = {
        "id": content_id(task_type, output, *inputs),
        "task_type": task_type,
        "instruction": INSTRUCTIONS[task_type],
        "inputs": inputs,
        "cot": cot.strip(),
        "output": output,
        "source_ids": [],
        "split": file.split,
        "published_instruction": _optional(record, "instruction"),
    }
    return row, way


def _record(raw: Any) -> dict[str, Any]:
    record = parse_line(raw) if isinstance(raw, bytes) else raw
    if not isinstance(record, dict):
        raise Unreadable("not_an_object")
    return record


def _inputs(value: Any, task_type: TaskType, separator: str | None) -> tuple[list[str], str]:
    """Inputs given as a list or as one text."""
    if isinstance(value, list):
        return bounded([_text(text, "no_input") for text in value]), "listed"
    return split_inputs(task_type, _text(value, "no_input"), separator)


def _text(value: Any, if_empty: str) -> str:
    """A text that can be stored and is not blank."""
    if value is None:
        raise Unreadable(if_empty)
    if not isinstance(value, str):
        raise Unreadable("wrong_type")
    if not value.strip():
        raise Unreadable(if_empty)
    if "\0" in value or value != value.encode("utf-8", "ignore").decode("utf-8"):
        raise Unreadable("bad_character")
    return value.strip()


def _optional(record: dict[str, Any], name: str) -> str | None:
    """A text that may be missing; a number, as in ids, is written out."""
    value = record.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "") if not isinstance(value, str) or value.strip() else None


def _once(row: dict[str, Any], seen: Seen) -> None:
    """Refuses a row that was there before, and one whose target stands in a split that is held out from it.

    Raises:
        Unreadable: It says which.
    """
    if row["id"] in seen.rows:
        raise Unreadable("duplicate")
    split = seen.targets.setdefault(content_id(row["task_type"], row["output"]), row["split"])
    if split != row["split"]:
        raise Unreadable(f"target_in_{split}")
    seen.rows.add(row["id"])


def _check(out: StageDir, source: str) -> None:
    """Refuses a MIXTURE that cannot be trained on.

    Raises:
        InputError: No row of split sft could be read; it says why the others were refused.
    """
    rows: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for receipt in out.receipts().values():
        rows.update({name: int(value) for name, value in receipt.metrics.items()})
        reasons.update(receipt.rejected_by_reason)
    if splits_in(rows).get("sft"):
        return
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)) or "there are none"
    hint = "; say in build.mixture_separator what stands between inputs" if reasons["one_input"] else ""
    raise InputError(f"{_KEY} {source}: no row for SFT ({counted}){hint}; see mixture/rejected")
