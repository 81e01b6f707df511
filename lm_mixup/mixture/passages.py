"""Stage `passages`: what high-quality samples are written from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any, Final

import pyarrow as pa

from lm_mixup import demo
from lm_mixup.augment.reading.files import list_units, read_unit
from lm_mixup.config import BuildConfig, DataConfig
from lm_mixup.core.draws import split_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import PASSAGE, content_id, extend, table
from lm_mixup.core.sentences import segment, words
from lm_mixup.demo import WORLD
from lm_mixup.distributed.map_parts import PartResult, receipt_of

SCHEMA = extend(
    PASSAGE,
    pa.schema([(name, pa.string()) for name in ("entity", "topic", "split", "document_id", "license")]),
    pa.schema([("position", pa.int32())]),
)
_REJECTED = pa.schema([("id", pa.string()), ("text", pa.string()), ("reason", pa.string())])

_LICENCES: Final = ("license", "licence")
_UNIT_BYTES: Final = 4 << 20  # of a JSONL file that are read at a time
_LONGEST_LINE: Final = 64 << 20  # bytes; what is longer is cut, and refused as no JSON

# A line of the user's file: a mapping, or the raw line where it is not one.
Raw = dict[str, Any] | str
# A passage row without its split, and why it is refused; empty if it is not.
Passage = tuple[dict[str, Any], str]


def passages(out: StageDir, config: BuildConfig, data: DataConfig, seed: int) -> Outcome:
    """Lists the passages, each with its entity and split.

    The closed world gives one passage an entity. A user's files are read a few megabytes or a row group at a
    time; there a document's title stands for its entity, so all of it is in one split. Texts of more than
    `passage_words` words are cut between sentences (`segment`): `document_id` and `position` say where a
    passage is from. What is counted as rows are passages, and lines that are no document.

    Args:
        out: Where the rows go: `SCHEMA`. Lines that are no passage go to the rejects, with the raw line.
        config: `passages` says where from; the fractions say how entities are split.
        data: Rows of a part.
        seed: Of the draw of documents, where there is one.

    Raises:
        InputError: There are no such files or data set, or one cannot be read.
    """
    documents = demo.passages() if config.passages == WORLD else _documents(config, seed)
    rows = _cut(documents, config)
    done = out.receipts()
    part = 0
    while batch := list(islice(rows, data.rows_per_part)):
        if part not in done:
            result = passages_part(batch, config)
            out.write_part(part, result.rows, result.rejected, receipt_of(part, result))
        part += 1
    if part == 0:
        raise InputError(
            f"build.passages: {config.passages} holds no rows; give a file with {{id, title, text}}"
        )
    return Outcome()


def passages_part(batch: Sequence[Passage], config: BuildConfig) -> PartResult:
    """Parts the passages from what is none, and gives each its split.

    Args:
        batch: Passages and refused lines.
        config: The fractions and the seed of the split.
    """
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row, reason in batch:
        if reason:
            rejected.append({"id": row.get("id"), "text": row["text"], "reason": reason})
            continue
        split = split_of(
            row["entity"], config.split_seed, config.grpo_fraction, config.test_fraction, config.dev_fraction
        )
        kept.append(row | {"split": split})
    return PartResult(table(kept, SCHEMA), table(rejected, _REJECTED), rows_in=len(batch))


def _cut(documents: Iterable[Raw], config: BuildConfig) -> Iterator[Passage]:
    """The passages of all documents, one document in memory at a time."""
    seen: set[str] = set()
    for raw in documents:
        row, reason = _checked(raw)
        if not reason and row["id"] in seen:
            reason = "duplicate_id"
        if reason:
            text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
            yield {"id": row.get("id"), "text": text}, reason
            continue
        seen.add(row["id"])
        row |= {"document_id": row["id"], "position": 0}
        if config.passages == WORLD:
            yield row, ""
        else:
            yield from _passages_of(row, config)


def _passages_of(document: dict[str, Any], config: BuildConfig) -> Iterator[Passage]:
    """The passages of one document; the only one of a short document keeps its id."""
    texts = segment(document["text"], config.passage_words)
    for position, text in enumerate(texts):
        identity = document["id"] if len(texts) == 1 else content_id(document["id"], str(position), text)
        short = words(text) < config.passage_min_words
        reason = f"fewer_than_{config.passage_min_words}_words" if short else ""
        yield document | {"id": identity, "text": text, "position": position}, reason


def _checked(raw: Raw) -> tuple[dict[str, Any], str]:
    """A passage row without its split, and why it is refused, if it is."""
    if not isinstance(raw, dict):
        return {}, "not_json"
    title, text = (raw.get(key) for key in ("title", "text"))
    if not isinstance(text, str) or not text.strip():
        return {}, "no_text"
    if not isinstance(title, str) or not title.strip():
        return {}, "no_title"
    row = {
        "id": str(raw["id"]) if raw.get("id") not in (None, "") else content_id(title, text),
        "title": title.strip(),
        "text": text.strip(),
        "source": str(raw["source"]),
        "entity": str(raw.get("entity") or title).strip(),
        "topic": raw.get("topic") if isinstance(raw.get("topic"), str) else None,
        "license": next((raw[key] for key in _LICENCES if isinstance(raw.get(key), str)), None),
    }
    return row, ""


def _documents(config: BuildConfig, seed: int) -> Iterator[Raw]:
    """The documents of files or of a data set; with `max_documents` runs of them drawn with the seed."""
    units, _ = list_units(config.passages, _UNIT_BYTES, "build.passages")
    if config.max_documents is not None:
        Random(f"documents/{seed}").shuffle(units)
    read = (_parsed(item, unit.source) for unit in units for item in read_unit(unit, _LONGEST_LINE))
    yield from islice((raw for raw in read if raw), config.max_documents)


def _parsed(item: Any, source: str) -> Raw:
    """A document with its source, or the raw line where it is none; empty if the line is."""
    if isinstance(item, bytes):
        text = item.decode("utf-8", errors="replace").strip()
        try:
            item = json.loads(text)
        except json.JSONDecodeError:
            return text
    if not isinstance(item, dict):
        return json.dumps(item, ensure_ascii=False, default=str)
    return item | {"source": item.get("source") or source}
