"""Stage `mixture` with `build.samples_from`: good rows degraded and merged by rule, without a teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import pyarrow as pa

from lm_mixup.augment.embed import vectors_of
from lm_mixup.config import BuildConfig, DataConfig
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, table
from lm_mixup.core.task_types import INSTRUCTIONS
from lm_mixup.core.value_counts import count_values
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.assemble import SCHEMA
from lm_mixup.mixture.degradation.compose import Composed, GoodRow, Unfit, merge, union, with_noise
from lm_mixup.mixture.degradation.coverage import similar
from lm_mixup.mixture.degradation.pieces import split_pieces

Row = dict[str, Any]
REJECTED = pa.schema(
    [("id", pa.string()), ("draw", pa.int32()), ("method", pa.string()), ("reason", pa.string())]
)
_COLUMNS: Final = ["id", "entity", "task_type", "prompt", "completion", "answer", "split", "entry"]
_NEIGHBORS: Final = 64
_NEAREST: Final = 16  # of the neighbours that may be merged, those that are drawn from
_STRANGER_RATE: Final = 0.2  # partners drawn from anywhere: what is unrelated is asked apart too
_SAME_QUESTION: Final = 0.75  # common terms of two questions from which they are one question
_SAME_TEXT: Final = 0.92  # cosine from which two rows may say the same, or contradict each other
_TRIES: Final = 3
_KNOWN_WORDS: Final = 8  # of a sentence that must not be both in a held-out split and in another
HELD_OUT: Final = ("test", "dev")


@dataclass(frozen=True)
class Bank:
    """The samples of one split.

    Attributes:
        rows: The samples.
        vectors: float32 [N, d], of length 1, in their order.
        place: The place of each by its id.
    """

    rows: list[GoodRow]
    vectors: np.ndarray
    place: dict[str, int]


def compose_rows(
    samples: StageDir, embed: StageDir, out: StageDir, config: BuildConfig, data: DataConfig, seed: int
) -> Outcome:
    """Makes `config.samples` MIXTURE rows: unions of one sample's variants, and merges with near samples.

    Samples of the training splits that share a sentence of 8 words with one of `test` or `dev` are not used.
    A row depends on (seed, sample id, number of the draw) and on the samples of its split, not on parts
    or workers. Rows that cannot be made are rejected with the reason, so planned rows == rows + rejects.

    An actor holds all samples and their embeddings: of 100 thousand, 200 MB at 384 dimensions.

    Args:
        samples: The good rows (`read_samples`).
        embed: Their embeddings, part by part.
        out: Where the rows go: `assemble.SCHEMA`.
        config: How many rows, their sizes, the shares of merged and noisy ones and of those with reasoning.
        data: Rows of a part.
        seed: Of all choices.
    """
    ids: list[str] = []
    entries: list[str] = []
    for part in samples.iter_parts(["id", "entry"]):
        ids += part["id"].to_pylist()
        entries += part["entry"].to_pylist()
    shares = {name: entry.share for name, entry in config.entries().items()}
    draws = plan(ids, entries, shares, config.samples, seed)
    items = in_parts(draws, data.rows_per_part)
    kwargs = {"samples": samples, "embed": embed, "config": config, "seed": seed}
    map_parts(out, items, _make_work, kwargs, num_actors=config.num_actors)
    return Outcome()


def plan(
    ids: Sequence[str], entries: Sequence[str], shares: Mapping[str, float | None], rows: int, seed: int
) -> list[tuple[str, int]]:
    """How many MIXTURE rows each sample leads.

    An entry with a share gets that share of the rows, the others share the rest by their number of samples.
    Within an entry samples lead equally many, the odd ones those of the least hash of (seed, id).

    Args:
        ids: Of the samples.
        entries: The entry of `samples_from` that each is of.
        shares: Share of rows by entry; None: by size.
        rows: MIXTURE rows in all.
        seed: Of the odd ones.

    Returns:
        (id, number of rows), in the order of the ids, those without a row left out.
    """
    sizes = Counter(entries)
    given = {name: float(share) for name in sizes if (share := shares.get(name)) is not None}
    rest = sum(count for name, count in sizes.items() if name not in given)
    left = max(0.0, 1 - sum(given.values())) if rest else 0.0
    weight = {name: given.get(name, left * count / rest if rest else 0.0) for name, count in sizes.items()}
    total = sum(weight.values())
    wanted = {name: round(rows * share / total) for name, share in weight.items()}
    order: dict[str, list[str]] = {}
    for row_id, name in zip(ids, entries, strict=True):
        order.setdefault(name, []).append(row_id)
    counts: dict[str, int] = {}
    for name, members in order.items():
        each, odd = divmod(wanted[name], len(members))
        ranked = sorted(members, key=lambda row_id: content_id(str(seed), row_id))
        counts |= {row_id: each + (place < odd) for place, row_id in enumerate(ranked)}
    return [(row_id, counts[row_id]) for row_id in ids if counts[row_id]]


def in_parts(draws: Sequence[tuple[str, int]], rows_per_part: int) -> list[list[tuple[str, int]]]:
    """The plan in parts of at most `rows_per_part` rows, all rows of a sample in one part."""
    parts: list[list[tuple[str, int]]] = []
    size = 0
    for row_id, count in draws:
        if not parts or size + count > rows_per_part:
            parts.append([])
            size = 0
        parts[-1].append((row_id, count))
        size += count
    return parts


def _make_work(samples: StageDir, embed: StageDir, config: BuildConfig, seed: int) -> Work:
    import faiss

    faiss.omp_set_num_threads(1)
    banks = load_banks(samples, embed)

    def work(item: Sequence[tuple[str, int]]) -> PartResult:
        return compose_part(item, banks, config, seed)

    return work


def load_banks(samples: StageDir, embed: StageDir) -> dict[str, Bank]:
    """The samples of each split with their embeddings, without those that tell a held-out sentence."""
    rows: dict[str, list[GoodRow]] = {}
    vectors: dict[str, list[np.ndarray]] = {}
    for part, embedded in zip(samples.iter_parts(_COLUMNS), embed.iter_parts(["embedding"]), strict=True):
        for row, vector in zip(part.to_pylist(), vectors_of(embedded), strict=True):
            split, _ = row.pop("split"), row.pop("entry")
            rows.setdefault(split, []).append(GoodRow(**row))
            vectors.setdefault(split, []).append(vector)
    held = long_sentences(row for split in HELD_OUT for row in rows.get(split, []))
    banks: dict[str, Bank] = {}
    for split, found in rows.items():
        fit = [
            i for i, row in enumerate(found) if split in HELD_OUT or held.isdisjoint(long_sentences([row]))
        ]
        chosen = [found[i] for i in fit]
        places = {row.id: place for place, row in enumerate(chosen)}
        banks[split] = Bank(chosen, np.stack(vectors[split])[fit], places)
    return banks


def long_sentences(rows: Iterable[GoodRow]) -> set[str]:
    """The sentences of the answers that are long enough to be known again."""
    pieces = (piece.text for row in rows for piece in split_pieces(row.completion))
    return {text for text in pieces if len(text.split()) >= _KNOWN_WORDS}


def compose_part(
    item: Sequence[tuple[str, int]], banks: Mapping[str, Bank], config: BuildConfig, seed: int
) -> PartResult:
    """Makes the MIXTURE rows of some samples."""
    made: list[Row] = []
    seen: set[str] = set()
    rejected: list[Row] = [
        {"id": row_id, "draw": draw, "method": None, "reason": "text_is_held_out"}
        for row_id, count in item
        if not any(row_id in bank.place for bank in banks.values())
        for draw in range(count)
    ]
    for split, bank in banks.items():
        mine = [(bank.place[row_id], count) for row_id, count in item if row_id in bank.place]
        if not mine:
            continue
        queries = bank.vectors[[place for place, _ in mine]]
        indices, alike = knn(queries, bank.vectors, min(_NEIGHBORS, len(bank.rows)))
        for (place, count), near, similarity in zip(mine, indices, alike, strict=True):
            partners = mergeable(bank, place, near, similarity, config.crosstopic_min_similarity)
            for draw in range(count):
                lead = bank.rows[place]
                rng = Random(f"compose/{seed}/{lead.id}/{draw}")
                merged = rng.random() < config.crosstopic_rate
                method = "crosstopic" if merged else "degrade"
                try:
                    rows, composed = _composed(bank, place, partners if merged else None, config, rng)
                    row = _finished(composed, rows, split, method, config, rng)
                    if row["id"] in seen:
                        raise Unfit("duplicate")
                except Unfit as unfit:
                    rejected.append({"id": lead.id, "draw": draw, "method": method, "reason": str(unfit)})
                    continue
                seen.add(row["id"])
                made.append(row)
    rows_made = table(made, SCHEMA)
    return PartResult(
        rows_made,
        table(rejected, REJECTED),
        rows_in=len(made) + len(rejected),
        metrics={"inputs": sum(len(row["inputs"]) for row in made), **count_values(rows_made)},
    )


def mergeable(bank: Bank, place: int, near: np.ndarray, similarity: np.ndarray, floor: float) -> list[int]:
    """The nearest rows of other content that a row is merged with: related, but not the same question."""
    lead = bank.rows[place]
    found: list[int] = []
    for other, alike in zip(near.tolist(), similarity.tolist(), strict=True):
        row = bank.rows[other]
        near_enough = floor <= alike < _SAME_TEXT and _is_apart(lead, row)
        if near_enough and all(_is_apart(bank.rows[place], row) for place in found):
            found.append(other)
        if len(found) == _NEAREST:
            break
    return found


def _is_apart(one: GoodRow, other: GoodRow) -> bool:
    return one.entity != other.entity and similar(one.prompt, other.prompt) < _SAME_QUESTION


def _composed(
    bank: Bank, place: int, partners: Sequence[int] | None, config: BuildConfig, rng: Random
) -> tuple[list[GoodRow], Composed]:
    """A row that is not too long, of fewer inputs or partners where need be, and the samples behind it."""
    sizes = config.size_mix or dict.fromkeys(range(config.min_inputs, config.max_inputs + 1), 1.0)
    size = rng.choices(list(sizes), list(sizes.values()))[0]
    lead = bank.rows[place]
    for _ in range(_TRIES):
        if partners is None:
            rows, composed = [lead], union(lead, size, rng)
        else:
            rows = _with_partners(bank, lead, partners, rng.randint(2, size), rng)
            composed = merge(rows, max(size, len(rows)), rng)
        if len(composed.output) + sum(map(len, composed.inputs)) <= config.max_row_chars:
            break
        size = max(2, size - 1)
    else:
        raise Unfit("too_long")
    if rng.random() < config.noise_rate:
        composed = with_noise(composed, rng)
    return rows, composed


def _with_partners(
    bank: Bank, lead: GoodRow, partners: Sequence[int], count: int, rng: Random
) -> list[GoodRow]:
    """The lead and `count` − 1 others, all apart from each other."""
    rows = [lead]
    near = rng.sample(partners, len(partners))
    for _ in range(8 * count):
        if len(rows) == count:
            break
        stranger = rng.random() < _STRANGER_RATE or not near
        row = bank.rows[rng.randrange(len(bank.rows)) if stranger else near.pop()]
        if all(_is_apart(row, other) for other in rows):
            rows.append(row)
    if len(rows) < 2:
        raise Unfit("no_partner")
    rng.shuffle(rows)
    return rows


def _finished(
    composed: Composed, rows: Sequence[GoodRow], split: str, method: str, config: BuildConfig, rng: Random
) -> Row:
    lead, partner = rows[0], rows[1] if len(rows) > 1 else None
    return {
        "id": content_id(composed.output, *composed.inputs),
        "task_type": composed.task_type,
        "instruction": INSTRUCTIONS[composed.task_type],
        "inputs": composed.inputs,
        "cot": composed.cot if rng.random() < config.cot_rate else "",
        "output": composed.output,
        "score": None,
        "method": method,
        "noisy": composed.noisy,
        "source_ids": composed.sources,
        "split": split,
        "target_id": lead.id,
        "entity": lead.entity,
        "partner_id": partner.id if partner else None,
        "partner_entity": partner.entity if partner else None,
        "fictional": False,
    }
