"""Refuses distilled rows that their inputs do not bear out, rates the others, and says how rare each is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.embed import embedding_table, vectors_of
from lm_mixup.augment.neighbors import Bank
from lm_mixup.augment.rate import rate_table
from lm_mixup.augment.vector_search.neighbor_table import mean_distance
from lm_mixup.chat.judge import Judge, SharedJudge, share_judge
from lm_mixup.config import EmbedderConfig, RateConfig, RateDistilledConfig
from lm_mixup.core import schemas, task_types
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.models.embedder import Embedder
from lm_mixup.models.resolve import embedder_folder
from lm_mixup.rewards.faithfulness import Source, measure
from lm_mixup.rewards.faithfulness.numbered import answers_each_part, parts_keep_their_text


def rate_distilled(
    distill: StageDir,
    likelihood: StageDir | None,
    out: StageDir,
    rate: RateConfig,
    embedder: EmbedderConfig,
    neighbors_k: int,
    min_score: int | str,
    gate: RateDistilledConfig,
) -> Outcome:
    """Measures and rates distilled rows and scores the kept ones by their distance to each other.

    Input columns: schemas.DISTILLED. Output columns: those, id (content hash), schemas.FAITHFULNESS,
    schemas.RATING, schemas.SOURCE_RATING (a chat judge is shown the inputs), `long_tail` (float32, mean
    cosine distance to the k nearest other kept rows) and, where the stage `likelihood` ran, its column.

    Rejected, with their columns: `faithfulness_below_<min_faithfulness>`, `coverage_below_<min_coverage>`; of
    rows that ask in numbered parts `not_one_answer_per_question` and
    `question_words_below_<min_question_words>`; with a least gain `likelihood_gain_below_<min_gain>` and
    `no_likelihood_gain`. None of these is rated, so no rating is paid for them. Then `unrated` and
    `score_below_<min_score>`. What `unsupported` lists is why a row is not faithful. Metrics: `distilled`,
    `faithful` and `good` rows, the yield step by step.
    Part i holds the rows of part i of the distilled ones.

    Two passes over the parts, since long tail needs the vectors of all kept rows: the first rates and embeds
    (its parts lie in the stage's folder `kept`, so no rating is paid for twice), the second goes over that
    bank shard by shard.

    Args:
        distill: Distilled rows.
        likelihood: Their gains, part for part; None if the config asks for none.
        out: Where the parts are written.
        rate: The judge.
        embedder: The embedder.
        neighbors_k: Neighbours of the long-tail score.
        min_score: Least score kept. A share of the pool is seen to by `select`, which has the pool.
        gate: The `rate_distilled` section.

    Raises:
        InputError: The judge lacks a setting, the embedder's path does not exist, or a row has no inputs.
    """
    least = min_score if isinstance(min_score, int) else 0
    shared = share_judge(rate, out)
    embedder_folder(embedder.path)
    kept = kept_of(out)
    map_parts(
        kept,
        distill.parts(),
        make_rating,
        {
            "distill": distill,
            "likelihood": likelihood,
            "shared": shared,
            "embedder": embedder,
            "min_score": least,
            "gate": gate,
        },
        **_placement(shared, embedder),
        label="rate distilled",
    )
    map_parts(out, kept.parts(), make_long_tail, {"kept": kept, "k": neighbors_k}, label="long tail")
    counts = {
        name: sum(int(receipt.metrics[name]) for receipt in kept.receipts().values())
        for name in ("distilled", "faithful", "good")
    }
    return Outcome(metrics=shared.metrics() | counts)


def kept_of(out: StageDir) -> StageDir:
    """The kept rows of a `rate_distilled` stage with their embeddings, {id, embedding, …}, part for part."""
    return StageDir(out.run, f"{out.name}/kept")


def _placement(shared: SharedJudge, embedder: EmbedderConfig) -> dict[str, Any]:
    """Of actors that hold a judge and an embedder, which take turns on the CPUs but not on a GPU."""
    placed = shared.placement()
    # A model in vLLM is loaded by as many actors as the judge says; any other judge costs an actor nothing.
    if shared.config.backend != "vllm":
        placed["num_actors"] = max(placed["num_actors"], embedder.num_actors)
        placed["num_cpus"] = embedder.num_cpus
    placed["num_gpus"] = max(placed.get("num_gpus", 0.0), embedder.num_gpus)
    return placed


def make_rating(
    distill: StageDir,
    likelihood: StageDir | None,
    shared: SharedJudge,
    embedder: EmbedderConfig,
    min_score: int,
    gate: RateDistilledConfig,
) -> Callable[[str], PartResult]:
    """Makes judge and embedder; the function measures and rates one part and embeds what is kept."""
    judge, model = shared.make(), Embedder(embedder)

    def work(part: str) -> PartResult:
        rows = distill.read_part(part)
        if likelihood is not None:
            rows = with_gain(rows, likelihood.read_part(f"{likelihood.name}/data/{Path(part).name}"))
        faithful, refused = keep_faithful(rows, gate)
        result = keep_rated(faithful, judge, min_score)
        rows = result.rows
        pairs = zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)
        vectors = model.embed([task_types.write_input(prompt, completion) for prompt, completion in pairs])
        embedded = embedding_table(rows["id"], vectors)
        return PartResult(
            rows.append_column("embedding", embedded["embedding"]),
            pa.concat_tables([refused, result.rejected], promote_options="default"),
            refused.num_rows + result.rows_in,
            {
                **result.metrics,
                "distilled": refused.num_rows + result.rows_in,
                "faithful": faithful.num_rows,
                "good": rows.num_rows,
            },
        )

    return work


def keep_faithful(rows: pa.Table, gate: RateDistilledConfig) -> tuple[pa.Table, pa.Table]:
    """The rows that their inputs bear out, and the others with the reason; both with schemas.FAITHFULNESS.

    Raises:
        InputError: A row has no inputs to be measured against.
    """
    measured = [_measured(row) for row in rows.to_pylist()]
    for field in schemas.FAITHFULNESS:
        rows = rows.append_column(field, pa.array([row[field.name] for row in measured], field.type))
    reason = pa.array(
        [_refusal(row, found, gate) for row, found in zip(rows.to_pylist(), measured, strict=True)],
        pa.string(),
    )
    refused = rows.append_column("reason", reason).filter(pc.is_valid(reason))
    return rows.filter(pc.is_null(reason)), refused


def with_gain(rows: pa.Table, gains: pa.Table) -> pa.Table:
    """Distilled rows with their cluster's `likelihood_gain` of `gains`, or null."""
    known = dict(zip(gains["cluster_id"].to_pylist(), gains["likelihood_gain"].to_pylist(), strict=True))
    values = [known.get(cluster) for cluster in rows["cluster_id"].to_pylist()]
    return rows.append_column("likelihood_gain", pa.array(values, pa.float32()))


def _refusal(row: dict[str, Any], measured: dict[str, Any], gate: RateDistilledConfig) -> str | None:
    """Why the gate refuses a row, or None."""
    if measured["faithfulness"] < gate.min_faithfulness:
        return f"faithfulness_below_{gate.min_faithfulness:g}"
    if measured["coverage"] < gate.min_coverage:
        return f"coverage_below_{gate.min_coverage:g}"
    least = gate.likelihood.min_gain
    if "likelihood_gain" in row and least is not None:
        if row["likelihood_gain"] is None:
            return "no_likelihood_gain"
        if row["likelihood_gain"] < least:
            return f"likelihood_gain_below_{least:g}"
    if not gate.min_question_words:
        return None
    if not answers_each_part(row["prompt"], row["completion"]):
        return "not_one_answer_per_question"
    sources = [task_types.read_input(text) for text in row["inputs"]]
    if not parts_keep_their_text(row["prompt"], sources, gate.min_question_words):
        return f"question_words_below_{gate.min_question_words:g}"
    return None


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of schemas.FAITHFULNESS of a distilled row; single words are left out of its spans."""
    if not row["inputs"]:
        raise InputError(
            f"rate_distilled: the distilled row of cluster {row['cluster_id']} has no inputs to be measured "
            "against; run the stage `distill` again (--fresh, or delete its folder)"
        )
    sources = [Source(*task_types.read_input(text)) for text in row["inputs"]]
    found = measure(row["prompt"], row["completion"], sources, row["task_type"])
    spans = [span for span in found.unsupported if span.kind != "word"]
    return {
        "faithfulness": found.fidelity,
        "coverage": found.coverage,
        "unsupported": [span.text for span in spans],
        "unsupported_kinds": [span.kind for span in spans],
    }


def keep_rated(rows: pa.Table, judge: Judge, min_score: int) -> PartResult:
    """The rows rated at `min_score` or above by a judge that is shown their inputs; the others rejected."""
    rated = rate_table(rows, judge, rows["inputs"].to_pylist())
    rows = rated.rows
    pairs = zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)
    ids = pa.array([schemas.content_id(prompt, completion) for prompt, completion in pairs], pa.string())
    rows = rows.append_column("id", ids)
    unrated = pc.is_null(rows["score"])
    reason = pc.if_else(unrated, "unrated", f"score_below_{min_score}")
    keep = pc.fill_null(pc.greater_equal(rows["score"], min_score), False)
    rejected = rows.append_column("reason", reason).filter(pc.invert(keep))
    return PartResult(rows.filter(keep), rejected, rated.rows_in, rated.metrics)


def make_long_tail(kept: StageDir, k: int) -> Callable[[str], PartResult]:
    """Opens the bank of kept rows; the function scores one part."""
    bank = Bank(kept)

    def work(part: str) -> PartResult:
        rows = kept.read_part(part)
        own = bank.start_of(part) + np.arange(rows.num_rows)
        _, similarities = bank.nearest(vectors_of(rows), own, k)
        long_tail = mean_distance(similarities)
        refused = part.replace("/data/", "/rejected/")
        rejected = kept.read_part(refused) if refused in kept.parts("rejected") else None
        rows = rows.drop_columns(["embedding"]).append_column("long_tail", pa.array(long_tail))
        rows_in = rows.num_rows + (rejected.num_rows if rejected is not None else 0)
        return PartResult(rows, rejected, rows_in, {"long_tail_sum": float(long_tail.sum())})

    return work
