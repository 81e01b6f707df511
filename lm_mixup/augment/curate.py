"""Stage `curate`: corrects scores that the neighbours of a row contradict (DS2, arXiv 2410.10877).

The noise of the scores is estimated from the consensus of neighbours (`hoc`). Given the noise, the score of a
row and those of its nearest neighbours yield a posterior over its true score. A score is corrected where the
posterior favours another one with enough confidence.

Curation helps with a judge whose errors are random, as those of language models are. The offline judge errs
systematically and gains nothing: on 4,000 rows of Alpaca, the scores that curation changes move away from the
mean of three LLM judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.curation.hoc import count_triples, fit_consensus
from lm_mixup.config import CurateConfig
from lm_mixup.core.draws import index_in_group
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import CURATION
from lm_mixup.core.score_classes import NUM_CLASSES, posterior, score_histogram
from lm_mixup.core.words import comparable
from lm_mixup.distributed.map_parts import PartResult, map_parts

MIN_TRIPLES = 100  # with fewer, 36 + 6 parameters cannot be estimated: scores then pass through

_SAME_TEXT = 0.9999  # cosine from which a neighbour counts as a copy of the text

Scores = npt.NDArray[np.int8]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Ratings:
    """What votes need of every row, by id: 17 bytes per row, shared by all workers of a node.

    Attributes:
        keys: Hashes of the ids, uint64 [N], ascending.
        texts: Hashes of prompt and completion in lower case and without white space, uint64 [N].
        scores: int8 [N], −1 where unrated.
    """

    keys: Keys
    texts: Keys
    scores: Scores


@dataclass(frozen=True)
class Noise:
    """How noisy the scores are: transition matrix float64 [K, K] and prior float64 [K]."""

    transition: npt.NDArray[np.float64]
    prior: npt.NDArray[np.float64]


def curate(
    rated: StageDir,
    embed: StageDir | None,
    neighbors: StageDir,
    out: StageDir,
    config: CurateConfig,
) -> Outcome:
    """Adds a curated score and its confidence to every row.

    Input columns: id, prompt, completion, score; id, neighbor_ids, similarities. Output columns: all of the
    rated rows', and `schemas.CURATION`; both null where the rating failed. Rejected: the rows that `embed`
    rejected after they were rated, with its reason, match and similarity. Metrics: `transition`, `prior`,
    `triples`, and the rows `flagged` (another score is likelier) and `corrected`.

    Memory: the ratings of the whole pool, 17 bytes per row, on the driver and on each node.

    Args:
        neighbors: Their nearest neighbours, part for part the same rows.
        embed: The embeddings, part for part of the same rows, if rows were rejected there.

    Raises:
        ValueError: The parts of the two stages do not hold the same rows, those rejected left out.
    """
    import ray

    pairs = Pairs(rated, neighbors, embed)
    noise, shared, metrics = None, None, dict[str, Any]()
    if config.enabled:
        ratings = _gather_ratings(rated)
        shared = ray.put(ratings)
        noise, metrics = _estimate_noise(pairs, shared, config)
    map_parts(
        out,
        pairs.names(),
        make_work,
        {"pairs": pairs, "config": config, "noise": noise, "ratings": [shared]},
        num_actors=config.num_actors,
    )
    return Outcome(metrics=metrics)


@dataclass(frozen=True)
class Pairs:
    """Reads a part of the rated rows and the same part of their neighbours, rows rejected since left out."""

    rated: StageDir
    neighbors: StageDir
    embed: StageDir | None = None

    def names(self) -> list[tuple[str, str]]:
        """The parts."""
        return list(zip(self.rated.parts(), self.neighbors.parts(), strict=True))

    def read(
        self, pair: tuple[str, str], columns: list[str] | None = None
    ) -> tuple[pa.Table, pa.Table, pa.Table | None]:
        """The rated rows, their neighbours, and the rated rows that the embed stage rejected."""
        rows, nearest = self.rated.read_part(pair[0], columns), self.neighbors.read_part(pair[1])
        if self.embed is None:
            return rows, nearest, None
        path = f"{self.embed.name}/rejected/{pair[1].rsplit('/', 1)[-1]}"
        if not self.embed.run.exists(path):
            return rows, nearest, None
        rejected = self.embed.read_part(path, ["id", "reason", "match", "similarity"])
        kept, left_out = split_rejected(rows, rejected)
        return kept, nearest, left_out


def split_rejected(rows: pa.Table, rejected: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that are not among the rejected ones {id, reason, match, similarity}, and those that are.

    The latter get the columns that say why.
    """
    at = pc.index_in(rows["id"].combine_chunks(), rejected["id"].combine_chunks())
    left_out = rows.filter(at.is_valid())
    for name in ("reason", "match", "similarity"):
        left_out = left_out.append_column(name, rejected[name].take(at.drop_null()))
    return rows.filter(at.is_null()), left_out


def _gather_ratings(rated: StageDir) -> Ratings:
    import ray

    def read(part: str) -> Ratings:
        return ratings_of(rated.read_part(part, ["id", "prompt", "completion", "score"]))

    task = ray.remote(read)
    pieces = ray.get([task.remote(part) for part in rated.parts()])
    keys, texts, scores = (
        np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("keys", "texts", "scores")
    )
    order = np.argsort(keys, kind="stable")
    return Ratings(keys[order], texts[order], scores[order])


def _estimate_noise(pairs: Pairs, shared: Any, config: CurateConfig) -> tuple[Noise | None, dict[str, Any]]:
    """The noise, from the triples of all parts; None where there are too few."""
    import ray

    def count(pair: tuple[str, str], ratings: Ratings) -> npt.NDArray[np.float64]:
        rows, nearest, _ = pairs.read(pair, ["id", "prompt", "completion", "score"])
        votes = votes_of(rows, nearest, ratings, config)
        return count_triples(votes[:, :3], NUM_CLASSES)

    counted = ray.remote(count)
    counts = np.sum(ray.get([counted.remote(pair, shared) for pair in pairs.names()]), axis=0)
    triples = round(float(counts.sum()))
    if triples < MIN_TRIPLES:
        return None, {"triples": triples}
    noise = Noise(*fit_consensus(counts, max_iterations=config.steps))
    estimate = {"transition": noise.transition.round(4).tolist(), "prior": noise.prior.round(4).tolist()}
    return noise, {"triples": triples, **estimate}


def make_work(
    pairs: Pairs, config: CurateConfig, noise: Noise | None, ratings: list[Any]
) -> Callable[[tuple[str, str]], PartResult]:
    """The function that curates a pair of parts, rated rows and neighbours."""
    import ray

    known: Ratings | None = ray.get(ratings[0]) if ratings[0] is not None else None

    def work(pair: tuple[str, str]) -> PartResult:
        rows, nearest, rejected = pairs.read(pair)
        if noise is None or known is None:
            result = pass_through(rows)
        else:
            votes = votes_of(rows, nearest, known, config)
            result = curate_table(rows, votes, noise, config.min_confidence)
        if rejected is None:
            return result
        return replace(result, rejected=rejected, rows_in=result.rows_in + rejected.num_rows)

    return work


def ratings_of(rows: pa.Table) -> Ratings:
    """The ratings of some rows, in their order."""
    pairs = zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)
    texts = [
        "".join(f"{comparable(prompt)}\0{comparable(completion)}".split()) for prompt, completion in pairs
    ]
    return Ratings(hashes(rows["id"].to_pylist()), hashes(texts), _scores(rows))


def hashes(texts: list[str]) -> Keys:
    """64-bit hashes of texts. The probability of any collision among 100 million texts is 1 in 3,700."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _scores(rows: pa.Table) -> Scores:
    return np.asarray(rows["score"].fill_null(-1).to_numpy(), dtype=np.int8)


def votes_of(rows: pa.Table, nearest: pa.Table, ratings: Ratings, config: CurateConfig) -> Scores:
    """The scores of rows and of their nearest neighbours.

    A neighbour does not vote if it is the row itself, a copy of the row or of a nearer voter, unrated, or
    less similar than `min_similarity`; the next neighbour votes instead. Copies agree without being
    right, so each text has one vote, that of its nearest rated copy. Copies are texts that differ only in
    letter case, white space and what no reader sees (`words.comparable`). A neighbour with the embedding
    of the row itself is a copy too; similarities among neighbours are not known here.

    Args:
        rows: id, prompt, completion, score.
        nearest: id, neighbor_ids, similarities of the same rows.
        config: How many neighbours vote, and how near they must be.

    Returns:
        int8 [N, 1 + neighbors]: the row's own score first; −1 where there is none.

    Raises:
        ValueError: The two tables do not hold the same rows, or a neighbour is not in the pool.
    """
    if not rows["id"].combine_chunks().equals(nearest["id"].combine_chunks()):
        raise ValueError("rated rows and neighbours are not the same rows in the same order")
    own = ratings_of(rows)
    lists = nearest["neighbor_ids"].combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    row = np.repeat(np.arange(len(own.keys)), lengths)
    keys = hashes(lists.flatten().to_pylist())
    similarities = nearest["similarities"].combine_chunks().flatten().to_numpy()
    found = np.minimum(np.searchsorted(ratings.keys, keys), max(0, len(ratings.keys) - 1))
    if not (ratings.keys[found] == keys).all():
        raise ValueError("a neighbour is not among the rated rows")
    votes = (keys != own.keys[row]) & (ratings.texts[found] != own.texts[row]) & (ratings.scores[found] >= 0)
    votes &= (similarities < _SAME_TEXT) & (similarities >= config.min_similarity)
    voters = np.flatnonzero(votes)
    voters = voters[_first_of_each(row[voters], ratings.texts[found[voters]])]
    row, cast = row[voters], ratings.scores[found[voters]]
    turn = index_in_group(row)
    heard = turn < config.neighbors
    result = np.full((len(own.keys), 1 + config.neighbors), -1, dtype=np.int8)
    result[:, 0] = own.scores
    result[row[heard], 1 + turn[heard]] = cast[heard]
    return result


def _first_of_each(row: npt.NDArray[np.int64], texts: Keys) -> npt.NDArray[np.int64]:
    """Where each pair of row and text stands first, ascending."""
    order = np.lexsort((texts, row))  # stable: of equal pairs the first is first
    row, texts = row[order], texts[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (np.diff(row) != 0) | (texts[1:] != texts[:-1])
    return np.sort(order[fresh])


def curate_table(rows: pa.Table, votes: Scores, noise: Noise, min_confidence: float) -> PartResult:
    """Corrects the scores of one part.

    Args:
        votes: int8 [N, 1 + k] from `votes_of`.
        min_confidence: Least probability of another score for it to be taken.

    Returns:
        The rows with `curated_score`, and as `confidence` the probability of that score. Rows that no
        neighbour votes on keep their score with confidence 1.
    """
    own = votes[:, 0].astype(np.int64)
    rated, voted = own >= 0, (votes[:, 1:] >= 0).any(axis=1)
    # The fit may drive a probability to 0, whose logarithm is not finite.
    transition, prior = (np.maximum(fitted, 1e-300) for fitted in (noise.transition, noise.prior))
    chance = posterior(score_histogram(votes), transition, prior)
    likeliest = chance.argmax(axis=1)
    flagged = rated & voted & (likeliest != own)
    corrected = flagged & (chance.max(axis=1) >= min_confidence)
    score = np.where(corrected, likeliest, own)
    confidence = np.where(voted, np.take_along_axis(chance, np.maximum(score, 0)[:, None], axis=1)[:, 0], 1.0)
    return _with_curation(
        rows, score, confidence, rated, {"flagged": int(flagged.sum()), "corrected": int(corrected.sum())}
    )


def pass_through(rows: pa.Table) -> PartResult:
    """The scores as they are, with confidence 1."""
    scores = _scores(rows).astype(np.int64)
    return _with_curation(rows, scores, np.ones(len(scores)), scores >= 0, {"flagged": 0, "corrected": 0})


def _with_curation(
    rows: pa.Table,
    score: npt.NDArray[np.int64],
    confidence: npt.NDArray[np.float64],
    rated: npt.NDArray[np.bool_],
    metrics: dict[str, int],
) -> PartResult:
    for field, values in zip(CURATION, (score, confidence), strict=True):
        rows = rows.append_column(field, pa.array(values, mask=~rated).cast(field.type))
    return PartResult(rows, rows_in=rows.num_rows, metrics=metrics)
