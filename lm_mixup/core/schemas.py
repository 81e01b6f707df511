"""The rows that flow between stages, as pyarrow schemas. Columns may be added by a stage; these stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

_STRINGS = pa.list_(pa.string())

PASSAGE = pa.schema(
    [("id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("source", pa.string())]
)

INSTRUCTION = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("task_type", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
    ]
)

# An unrated row has nulls here and says why in `error`; it never has a zero. `expected` is `overall` before
# it was rounded, or the same number where the judge gives whole ones only: it tells rows of one rating apart.
RATING = pa.schema(
    [
        ("rarity", pa.int8()),
        ("complexity", pa.int8()),
        ("informativeness", pa.int8()),
        ("overall", pa.int8()),
        ("expected", pa.float32()),
        ("score", pa.int8()),
        ("rater", pa.string()),
        ("error", pa.string()),
    ]
)

# Of a judge that was shown a distilled row's sources: how far they bear out what it says, 1 to 10, and what
# it quotes of the row as not borne out. Null where no judge was shown them.
SOURCE_RATING = pa.schema([("faithfulness_rating", pa.int8()), ("unsupported_quotes", _STRINGS)])

CURATION = pa.schema([("curated_score", pa.int8()), ("confidence", pa.float32())])

CLUSTER = pa.schema(
    [
        ("cluster_id", pa.string()),
        ("member_ids", _STRINGS),
        ("size", pa.int32()),
        ("cohesion", pa.float32()),
    ]
)

MIXTURE = pa.schema(
    [
        ("id", pa.string()),
        ("task_type", pa.string()),
        ("instruction", pa.string()),
        ("inputs", _STRINGS),
        ("cot", pa.string()),
        ("output", pa.string()),
        ("score", pa.int8()),
        ("method", pa.string()),
        ("noisy", pa.bool_()),
        ("source_ids", _STRINGS),
        ("split", pa.string()),
    ]
)

DISTILLED = pa.schema(
    [
        ("cluster_id", pa.string()),
        ("task_type", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("cot", pa.string()),
        ("raw", pa.string()),
        ("parent_ids", _STRINGS),
        ("inputs", _STRINGS),
    ]
)

# How far a distilled row's inputs bear it out, and the spans of prompt and completion that they do not, each
# with its kind (`rewards.faithfulness.Span`).
FAITHFULNESS = pa.schema(
    [
        ("faithfulness", pa.float32()),
        ("coverage", pa.float32()),
        ("unsupported", _STRINGS),
        ("unsupported_kinds", _STRINGS),
    ]
)


def extend(*schemas: pa.Schema) -> pa.Schema:
    """One schema with the fields of all, in order."""
    return pa.schema([field for schema in schemas for field in schema])


def content_id(*texts: str) -> str:
    """A row's id from its content: 128 bits of BLAKE2b, in hex. Texts are delimited, not run together."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def is_clean(text: str) -> bool:
    """Neither NUL nor half of a surrogate pair: what UTF-8 and tokenizers can carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def compress_score(overall: int) -> int:
    """The 0-5 score of a 1-10 overall rating: clip(overall, 4, 9) − 4 (paper section 3.1)."""
    return min(9, max(4, overall)) - 4


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of `schema` from dicts; absent keys become nulls, keys outside the schema are an error."""
    listed = list(rows)
    names = set(schema.names)
    for row in listed:
        if extra := row.keys() - names:
            raise KeyError(f"columns {sorted(extra)} are not in the schema {schema.names}")
    return pa.Table.from_pylist(listed, schema=schema)
