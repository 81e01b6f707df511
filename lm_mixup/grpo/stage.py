"""The `grpo` stage: encodes the prompts, starts the parts, runs the loop, and writes the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.config import EmbedderConfig, GrpoConfig, ModelConfig, RewardsConfig, TrackingConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.grpo import checkpoint
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.loop import Parts, train
from lm_mixup.grpo.metrics import raised
from lm_mixup.grpo.placement import reserve
from lm_mixup.grpo.rollout.pool import RolloutPool
from lm_mixup.grpo.types import Prompt
from lm_mixup.grpo.validation import Validation
from lm_mixup.rewards.custom import check_custom
from lm_mixup.rewards.library import check_library, require_task_types
from lm_mixup.rewards.workers import RewardWorkers
from lm_mixup.train.tracking import append_metrics, mirrored, read_metrics, trim_metrics

PROMPT = pa.schema(
    [
        ("id", pa.string()),
        ("task_type", pa.string()),
        ("split", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("reference", pa.string()),
        ("entities", pa.list_(pa.string())),
        ("inputs", pa.list_(pa.string())),
    ]
)


def grpo(
    mixture: StageDir,
    library: StageDir,
    sft: StageDir,
    out: StageDir,
    config: GrpoConfig,
    model: ModelConfig,
    rewards: RewardsConfig,
    embedder: EmbedderConfig,
    seed: int,
    tracking: TrackingConfig | None = None,
) -> Outcome:
    """Trains the policy by GRPO on MIXTURE's grpo split and writes `grpo/model`.

    The driver holds the encoded prompts (some 40 bytes a token: 28.8K prompts of 600 tokens, a fifth of a
    MIXTURE of 144K, are 0.7 GB).

    Args:
        mixture: The MIXTURE stage.
        library: The rated library of the quality reward.
        sft: The stage whose `model/` is the policy to start from.
        out: Where prompts, checkpoints, metrics and the model are written.
        config: The `grpo` section.
        model: How model files are loaded.
        rewards: The `rewards` section.
        embedder: The embedder that the library was made with.
        seed: The run's seed.
        tracking: The `tracking` section; default: its defaults.

    Raises:
        InputError: No prompt fits, the library has no sample of a prompt's task type, or a custom reward
            cannot be loaded.
    """
    check_custom(rewards.custom)
    items = [(mixture, part) for part in mixture.parts()]
    policy = str(sft.local / "model")
    map_parts(out, items, _make_encode, {"policy": policy, "model": model, "limit": config.max_prompt_length})
    prompts, held_out, others = _read_prompts(out, config.eval_prompts, with_inputs=bool(rewards.custom))
    if not prompts:
        raise InputError(
            f"{mixture.run.uri}/mixture: no row of the grpo split fits grpo.max_prompt_length="
            f"{config.max_prompt_length}; raise it, or build.grpo_fraction or build.samples"
        )
    info = check_library(library, embedder)
    require_task_types(info, (prompt.task_type for prompt in (*prompts, *held_out)))
    with _live_parts(library, policy, _probe(prompts[0]), config, model, rewards, embedder, seed) as parts:
        progress = _run(parts, prompts, held_out, out.local, config, tracking or TrackingConfig(), seed)
    drawn = progress.step * config.prompts_per_step
    return Outcome(
        metrics=_summary(out.local) | {"steps": progress.step, "num_tokens": progress.num_tokens},
        rows_used=min(drawn, len(prompts)),
        left_out={
            "not_drawn": max(0, len(prompts) - drawn),
            "held_out": len(held_out),
            "test_rows_not_evaluated": others,
        },
        files=[f"grpo/model/{path.name}" for path in sorted((out.local / "model").iterdir())],
    )


def _make_encode(policy: str, model: ModelConfig, limit: int) -> Callable[[tuple[StageDir, str]], PartResult]:
    from lm_mixup.models.policy import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(policy, model)

    def encode(item: tuple[StageDir, str]) -> PartResult:
        stage, part = item
        rows = stage.read_part(part)
        rows = rows.filter(pc.is_in(rows["split"], pa.array(["grpo", "test"])))
        kept, refused = [], []
        for row in rows.to_pylist():
            token_ids = encode_prompt(tokenizer, row["instruction"], row["inputs"])
            prompt = {key: row[key] for key in ("id", "task_type", "split", "inputs")}
            prompt["reference"] = row["output"]
            prompt["entities"] = [row[key] for key in ("entity", "partner_entity") if row[key]]
            if len(token_ids) > limit:
                refused.append(prompt | {"reason": "prompt_too_long", "tokens": len(token_ids)})
            else:
                kept.append(prompt | {"token_ids": token_ids})
        rejected = pa.Table.from_pylist(refused) if refused else None
        return PartResult(pa.Table.from_pylist(kept, schema=PROMPT), rejected, rows_in=rows.num_rows)

    return encode


def _read_prompts(
    out: StageDir, eval_prompts: int, *, with_inputs: bool
) -> tuple[list[Prompt], list[Prompt], int]:
    """The grpo prompts by id, the first test prompts for validation, and how many test prompts are left over.

    The texts of inputs are read if asked for.
    """
    columns = [name for name in PROMPT.names if with_inputs or name != "inputs"]
    rows = out.read(columns).sort_by("id")
    test = rows.filter(pc.equal(rows["split"], "test"))
    return (
        _prompts(rows.filter(pc.equal(rows["split"], "grpo"))),
        _prompts(test.slice(0, eval_prompts)),
        max(0, test.num_rows - eval_prompts),
    )


def _prompts(rows: pa.Table) -> list[Prompt]:
    return [
        Prompt(
            row["id"],
            row["task_type"],
            row["token_ids"],
            row["reference"],
            tuple(row["entities"]),
            tuple(row.get("inputs", ())),
        )
        for row in rows.to_pylist()
    ]


@contextmanager
def _live_parts(
    library: StageDir,
    policy: str,
    probe: list[int],
    config: GrpoConfig,
    model: ModelConfig,
    rewards: RewardsConfig,
    embedder: EmbedderConfig,
    seed: int,
) -> Iterator[Parts]:
    """Reserves resources and starts the actors; ends both however the block ends."""
    placement = reserve(config, rewards)
    with ExitStack() as started:
        started.callback(placement.release)
        # Engines and reward actors load in the background while the learner forms its group.
        rollout = RolloutPool(policy, model, config, placement)
        started.callback(rollout.shutdown)
        if config.mode == "colocated" and placement.on_gpu:
            rollout.sleep()  # else vLLM, which measures the GPU as it starts, counts the learner in
        workers = RewardWorkers(library, rewards, embedder, (placement.group, placement.first_reward_bundle))
        started.callback(workers.shutdown)
        learner = Learner(policy, model, config, seed, placement)
        started.callback(learner.shutdown)
        yield Parts(rollout, workers, learner, rewards, probe)


def _run(
    parts: Parts,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    folder: Path,
    config: GrpoConfig,
    tracking: TrackingConfig,
    seed: int,
) -> Progress:
    """Trains to the end; when learner ranks die, again from the newest checkpoint with a new learner.

    Raises:
        RuntimeError: They died more than `grpo.max_failures` times.
    """
    import ray

    failures = 0
    while True:
        try:
            if failures:
                parts.learner.restart()
            return _train(parts, prompts, held_out, folder, config, tracking, seed)
        except ray.exceptions.RayError as error:
            lost = parts.learner.lost()
            if not lost:
                raise
            failures += 1
            ranks = "learner rank " + ", ".join(map(str, lost))
            if failures > config.max_failures:
                raise RuntimeError(
                    f"{ranks} died, after {failures - 1} recoveries (grpo.max_failures="
                    f"{config.max_failures}). A process that the system kills mostly lacks memory: lower "
                    "grpo.micro_tokens, or use more learner ranks with grpo.zero_stage 3"
                ) from error
            step = checkpoint.newest_step(folder / "checkpoints")
            source = (
                f"its checkpoint of step {step}" if step else "the SFT model, as there is no checkpoint yet"
            )
            times = f"failure {failures} of {config.max_failures} that are borne"
            say(f"  {ranks} died; starting the learner again, from {source} ({times})")


def _train(
    parts: Parts,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    folder: Path,
    config: GrpoConfig,
    tracking: TrackingConfig,
    seed: int,
) -> Progress:
    """Resumes from the newest checkpoint, runs the loop with what is written beside it, saves the model."""
    progress = checkpoint.load_latest(folder / "checkpoints", parts.learner)
    validation = Validation(folder, parts, held_out, progress.step)
    log = folder / "metrics.jsonl"
    lines = trim_metrics(log, progress.step)
    settings = config.model_dump(mode="json")
    with (
        mirrored(folder, tracking, settings, [*lines, *validation.tracked]) as mirror,
        track("grpo", config.max_steps, progress.step) as advance,
    ):
        validation.on_line = mirror

        def on_step(now: Progress, metrics: dict[str, Any]) -> None:
            nonlocal progress
            progress, step = now, now.step
            lines.append(metrics)
            append_metrics(log, metrics)
            mirror(metrics)
            for text in raised(lines, synchronous=config.mode != "async").values():
                say(f"  [bold yellow]grpo step {step}[/]: {text}")
            last = step == config.max_steps
            if last or step % config.eval_steps == 0:
                validation.run(step)
            if last or step % config.save_steps == 0:
                checkpoint.save(folder / "checkpoints", parts.learner, progress, config.save_limit)
            advance(1, note=f"reward {metrics['reward']:.3f}")

        train(parts, prompts, config, seed, progress, validation.before, on_step)
    parts.learner.save_model(folder / "model")
    if config.keep_best:
        validation.use_best(folder / "model")
    return progress


def _probe(prompt: Prompt) -> list[int]:
    """The sequence both sides score after each weight sync: a prompt's first tokens, at most 128."""
    return prompt.token_ids[:128]


def _summary(folder: Path) -> dict[str, Any]:
    """First and last figures for the manifest."""
    lines = read_metrics(folder / "metrics.jsonl")
    checks = read_metrics(folder / "validation.jsonl")
    summary: dict[str, Any] = {}
    if lines:
        summary |= {"reward_first": lines[0]["reward"], "reward_last": lines[-1]["reward"]}
    if checks:
        summary |= {"validation_first": checks[0], "validation_last": checks[-1]}
    return summary
