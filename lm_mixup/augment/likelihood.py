"""Stage `likelihood`: how much likelier a distilled row is given its own inputs than given another cluster's.

An output that any inputs would have called forth (a constant answer, the same phrase for every cluster) gains
nothing from its own. The stage runs where `rate_distilled.likelihood.model` names a model; `rate_distilled`
writes the gain beside its own measure, which needs no model, and may refuse rows by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lm_mixup.augment.perplexity import log_likelihoods, measuring_model, open_engine, placement_of
from lm_mixup.config import LikelihoodConfig, ModelConfig
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.task_types import INSTRUCTIONS
from lm_mixup.distributed.map_parts import PartResult, map_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lm_mixup.models.engine import Engine

KEY = "rate_distilled.likelihood.model"
OUTPUT = pa.schema([("cluster_id", pa.string()), ("likelihood_gain", pa.float32()), ("tokens", pa.int32())])
REJECTED = pa.schema([("cluster_id", pa.string()), ("reason", pa.string())])


def likelihood(distill: StageDir, out: StageDir, config: LikelihoodConfig, model: ModelConfig) -> Outcome:
    """Measures (log π(o | own inputs) − log π(o | another's inputs)) / |o| of every distilled row, in nats.

    o is the policy's text (`raw`), both prompts are what the policy is asked with. The other inputs are those
    of the next row of the part with the same task type, and of any where there is none, so the instruction
    says as little as it can. Two forward passes over each row: the cost grows with the number of tokens.

    Input columns: schemas.DISTILLED. Output columns: cluster_id, likelihood_gain (float32), tokens (of o).
    Rejected: `too_long` for the model or `max_length`, and `no_other_row` in the part. Part i holds the rows
    of part i of the distilled ones; a part's figures depend on that part alone.

    Raises:
        InputError: There is no such model, or it has no weights.
    """
    chosen = measuring_model(config.model, model, KEY)
    kwargs = {"distill": distill, "config": config, "model": chosen}
    map_parts(out, distill.parts(), make_work, kwargs, **placement_of(config))
    return Outcome(metrics={"model": chosen.path})


def make_work(distill: StageDir, config: LikelihoodConfig, model: ModelConfig) -> Callable[[str], PartResult]:
    """Loads the model into an engine; the function measures one part."""
    tokenizer, engine, room = open_engine(config, model)
    columns = ["cluster_id", "task_type", "raw", "inputs"]

    def work(part: str) -> PartResult:
        return measure(distill.read_part(part, columns).to_pylist(), tokenizer, engine, room)

    return work


def measure(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, engine: Engine, room: int
) -> PartResult:
    """The gains of one part's rows.

    Args:
        rows: {cluster_id, task_type, raw, inputs}.
        room: Most tokens of a prompt and the text.
    """
    from lm_mixup.models.policy import encode_pair, encode_prompt

    pairs: list[tuple[list[int], list[int]]] = []
    measured: list[Mapping[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        other = _another(rows, place)
        if other is None:
            rejected.append({"cluster_id": row["cluster_id"], "reason": "no_other_row"})
            continue
        _, text = encode_pair(tokenizer, "", row["raw"])
        instruction = INSTRUCTIONS[row["task_type"]]
        prompts = [
            encode_prompt(tokenizer, instruction, inputs) for inputs in (row["inputs"], other["inputs"])
        ]
        if max(map(len, prompts)) + len(text) > room:
            rejected.append({"cluster_id": row["cluster_id"], "reason": "too_long"})
            continue
        measured.append(row)
        pairs += [(prompt, text) for prompt in prompts]
    scores = log_likelihoods(engine, pairs)
    found = [
        {
            "cluster_id": row["cluster_id"],
            "likelihood_gain": float((own - others).mean()),
            "tokens": len(own),
        }
        for row, own, others in zip(measured, scores[::2], scores[1::2], strict=True)
    ]
    return PartResult(
        schemas.table(found, OUTPUT),
        schemas.table(rejected, REJECTED) if rejected else None,
        rows_in=len(rows),
        metrics={"gain_sum": sum(row["likelihood_gain"] for row in found)},
    )


def _another(rows: Sequence[Mapping[str, Any]], place: int) -> Mapping[str, Any] | None:
    """The next row with other inputs, round the end: of the same task type if there is one."""
    following = [*rows[place + 1 :], *rows[:place]]
    others = [row for row in following if row["inputs"] != rows[place]["inputs"]]
    alike = (row for row in others if row["task_type"] == rows[place]["task_type"])
    return next(alike, others[0] if others else None)
