"""Stage `distill`: the trained policy writes one dense row from each cluster (paper section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lm_mixup.augment.reading.cluster_members import gather_members
from lm_mixup.config import DistillConfig, ModelConfig
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import DISTILLED
from lm_mixup.core.task_types import (
    INSTRUCTIONS,
    FormatError,
    TaskType,
    parse_answer,
    parse_output,
    to_pair,
    write_input,
)
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.models.resolve import model_folder, portable_path

DEMONSTRATION_NOTICE = (
    "this policy is the demonstration model: it has read the closed world only and does not understand open "
    "text. What it distils from a real pool only demonstrates the pipeline; for training data "
    "use a real model (model.path: Qwen/Qwen2.5-1.5B-Instruct)"
)


def distill(
    cluster: StageDir,
    curated: StageDir,
    out: StageDir,
    policy: str,
    config: DistillConfig,
    model: ModelConfig,
) -> Outcome:
    """Writes one row per cluster.

    Clusters whose prompt is too long, or whose output does not parse, are rejected with a reason and the raw
    text. Each part of clusters is one unit of work; an actor holds one engine. The members of the clusters
    still to be distilled are gathered first (`gather_members`).
    """
    from lm_mixup.distributed.ray_cluster import has_gpu
    from lm_mixup.models.engine import engine_environment

    policy = portable_path(policy)
    parts, done = cluster.parts(), out.receipts()
    pending = [part for number, part in enumerate(parts) if number not in done]
    members = gather_members(cluster, curated, pending, config.num_tasks) if pending else {}
    map_parts(
        out,
        parts,
        make_distiller,
        {"cluster": cluster, "members": members, "policy": policy, "config": config, "model": model},
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        num_gpus=config.tensor_parallel_size if has_gpu() else 0.0,
        runtime_env={"env_vars": engine_environment(max(1, int(config.num_cpus)))},
    )
    metrics = {"policy": policy}
    return Outcome(metrics=metrics | ({"notice": DEMONSTRATION_NOTICE} if is_demonstration(policy) else {}))


def distill_with_trained(
    cluster: StageDir,
    curated: StageDir,
    trained: StageDir,
    out: StageDir,
    config: DistillConfig,
    model: ModelConfig,
) -> Outcome:
    """Writes one row per cluster with the policy that this run has trained, as `distill` does."""
    return distill(cluster, curated, out, trained.location("model"), config, model)


def is_demonstration(policy: str) -> bool:
    """Whether a model is the embedded demonstration model, or was trained from it."""
    config = Path(model_folder(policy)) / "config.json"
    return config.is_file() and "lm_mixup_demonstration" in json.loads(config.read_text(encoding="utf-8"))


def make_distiller(
    cluster: StageDir, members: Mapping[str, Any], policy: str, config: DistillConfig, model: ModelConfig
) -> Callable[[str], PartResult]:
    """Loads the policy into an engine; returns the function that distils one part of clusters.

    Args:
        members: For each part of clusters a reference to its members.
    """
    import ray

    from lm_mixup.models.engine import Engine, Sampling
    from lm_mixup.models.policy import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(policy, model)
    engine = Engine.from_config(
        policy,
        model,
        max_model_len=config.max_prompt_length + config.max_completion_length,
        tensor_parallel_size=config.tensor_parallel_size,
    )
    sampling = Sampling(
        n=1,
        temperature=config.temperature,
        max_tokens=config.max_completion_length,
        repetition_penalty=config.repetition_penalty,
    )

    def work(part: str) -> PartResult:
        clusters = cluster.read_part(part).to_pylist()
        texts = {row["id"]: row for row in ray.get(members[part]).to_pylist()}
        prompts, rejected = [], []
        for row in clusters:
            inputs = [write_input(texts[i]["prompt"], texts[i]["completion"]) for i in row["member_ids"]]
            token_ids = encode_prompt(tokenizer, INSTRUCTIONS[row["task_type"]], inputs)
            if len(token_ids) > config.max_prompt_length:
                rejected.append(_reject(row, "prompt_too_long", ""))
            else:
                prompts.append((row, inputs, token_ids))
        seeds = [int(row["cluster_id"][:7], 16) for row, _, _ in prompts]
        drawn = engine.generate([token_ids for _, _, token_ids in prompts], sampling, seeds)
        rows = []
        for (row, inputs, _), (completion,) in zip(prompts, drawn, strict=True):
            central = texts[row["central_id"]]["prompt"]
            try:
                rows.append(
                    distilled_row(row, completion.text, central, inputs, finished=completion.finished)
                )
            except FormatError as error:
                rejected.append(_reject(row, str(error), completion.text))
        return PartResult(
            pa.Table.from_pylist(rows, schema=DISTILLED),
            pa.Table.from_pylist(rejected) if rejected else None,
            rows_in=len(clusters),
        )

    return work


def distilled_row(
    cluster: dict[str, Any], raw: str, central_prompt: str, inputs: Sequence[str], *, finished: bool
) -> dict[str, Any]:
    """The distilled row that the policy's text stands for.

    Args:
        cluster: A row of `schemas.CLUSTER`, with `task_type`.
        raw: The policy's text.
        central_prompt: The prompt of the cluster's most central member, which a paragraph answers.
        inputs: What the policy was shown, which its text is measured against.
        finished: Whether the policy ended by itself.

    Raises:
        FormatError: The text was cut off, or does not follow the output format or its task's answer format.
    """
    if not finished:
        raise FormatError("cut_at_max_completion_length")
    task_type: TaskType = cluster["task_type"]
    output = parse_output(raw)
    prompt, completion = to_pair(parse_answer(task_type, output.answer), central_prompt)
    return {
        "cluster_id": cluster["cluster_id"],
        "task_type": task_type,
        "prompt": prompt,
        "completion": completion,
        "cot": output.cot,
        "raw": raw,
        "parent_ids": cluster["member_ids"],
        "inputs": list(inputs),
    }


def _reject(cluster: dict[str, Any], reason: str, raw: str) -> dict[str, Any]:
    keep = ("cluster_id", "task_type", "member_ids")
    return {key: cluster[key] for key in keep} | {"reason": reason, "raw": raw}
