"""The `grpo` stage: encodes the prompts, starts the actors, runs the loop and writes the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.config import EmbedderConfig, GrpoConfig, ModelConfig, RewardsConfig, TrackingConfig
from lm_mixup.core.errors import InputError, StageEmpty
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.labels import set_gauge
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.distributed.ray_wait import Hang, Incidents
from lm_mixup.grpo import checkpoint
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.loop import Actors, train
from lm_mixup.grpo.metrics import new_alarms, steps_without_update
from lm_mixup.grpo.placement import reserve
from lm_mixup.grpo.rollout.pool import RolloutPool
from lm_mixup.grpo.types import Prompt
from lm_mixup.grpo.validation import Validation
from lm_mixup.rewards.custom import check_custom
from lm_mixup.rewards.library import check_library, require_task_types
from lm_mixup.rewards.workers import RewardWorkers
from lm_mixup.train.tracking import append_metrics, read_stage_metrics, stage_trackers, trim_metrics

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

    The driver holds the encoded prompts, about 40 bytes per token: 28.8K prompts of 600 tokens, a fifth of a
    MIXTURE of 144K, take 0.7 GB.

    Args:
        mixture: The MIXTURE stage.
        library: The rated library of the quality reward.
        sft: The stage whose `model/` is the policy to start from.
        out: Where prompts, checkpoints, metrics and the model are written.
        config: The `grpo` section.
        model: How model files are loaded.
        rewards: The `rewards` section.
        embedder: The embedder that made the library.
        seed: The run's seed.
        tracking: The `tracking` section; its defaults if None.

    Raises:
        InputError: No prompt fits, the library has no sample of a prompt's task type, or a custom reward
            cannot be loaded.
        StageEmpty: No step had an update.
    """
    check_custom(rewards.custom)
    items = [(mixture, part) for part in mixture.parts()]
    policy = sft.location("model")
    map_parts(out, items, _make_encode, {"policy": policy, "model": model, "limit": config.max_prompt_length})
    prompts, held_out, others = _read_prompts(out, config.eval_prompts)
    if not prompts:
        raise InputError(
            f"{mixture.run.uri}/mixture: no row of the grpo split fits in grpo.max_prompt_length="
            f"{config.max_prompt_length}; raise it, or build.grpo_fraction or build.samples"
        )
    info = check_library(library, embedder)
    require_task_types(info, (prompt.task_type for prompt in (*prompts, *held_out)))
    probe = prompts[0].token_ids[:128]
    with _start_actors(library, policy, probe, config, model, rewards, embedder, seed) as actors:
        progress = _run(actors, prompts, held_out, out, config, tracking or TrackingConfig(), seed)
    _check_learned(out)
    drawn = progress.step * config.prompts_per_step
    return Outcome(
        metrics=_summary(out) | {"steps": progress.step, "num_tokens": progress.num_tokens},
        rows_used=min(drawn, len(prompts)),
        left_out={
            "not_drawn": max(0, len(prompts) - drawn),
            "held_out": len(held_out),
            "dev_rows_not_evaluated": others,
        },
        files=[f"{out.name}/model/{name}" for name in out.run.listing(f"{out.name}/model")],
    )


def _make_encode(policy: str, model: ModelConfig, limit: int) -> Callable[[tuple[StageDir, str]], PartResult]:
    from lm_mixup.models.policy import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(policy, model)

    def encode(item: tuple[StageDir, str]) -> PartResult:
        stage, part = item
        rows = stage.read_part(part)
        rows = rows.filter(pc.is_in(rows["split"], pa.array(["grpo", "dev"])))
        kept, too_long = [], []
        for row in rows.to_pylist():
            token_ids = encode_prompt(tokenizer, row["instruction"], row["inputs"])
            prompt = {key: row[key] for key in ("id", "task_type", "split", "inputs")}
            prompt["reference"] = row["output"]
            prompt["entities"] = [row[key] for key in ("entity", "partner_entity") if row[key]]
            if len(token_ids) > limit:
                too_long.append(prompt | {"reason": "prompt_too_long", "tokens": len(token_ids)})
            else:
                kept.append(prompt | {"token_ids": token_ids})
        rejected = pa.Table.from_pylist(too_long) if too_long else None
        return PartResult(pa.Table.from_pylist(kept, schema=PROMPT), rejected, rows_in=rows.num_rows)

    return encode


def _read_prompts(out: StageDir, eval_prompts: int) -> tuple[list[Prompt], list[Prompt], int]:
    """The grpo prompts by id, the first dev prompts for validation, and the number of other dev prompts."""
    rows = out.read(PROMPT.names).sort_by("id")
    dev = rows.filter(pc.equal(rows["split"], "dev"))
    return (
        _prompts(rows.filter(pc.equal(rows["split"], "grpo"))),
        _prompts(dev.slice(0, eval_prompts)),
        max(0, dev.num_rows - eval_prompts),
    )


def _prompts(rows: pa.Table) -> list[Prompt]:
    return [
        Prompt(
            row["id"],
            row["task_type"],
            row["token_ids"],
            row["reference"],
            tuple(row["entities"]),
            tuple(row["inputs"]),
        )
        for row in rows.to_pylist()
    ]


@contextmanager
def _start_actors(
    library: StageDir,
    policy: str,
    probe: list[int],
    config: GrpoConfig,
    model: ModelConfig,
    rewards: RewardsConfig,
    embedder: EmbedderConfig,
    seed: int,
) -> Iterator[Actors]:
    """Reserves resources and starts the actors; releases both however the block ends."""
    placement = reserve(config, rewards)
    with ExitStack() as started:
        started.callback(placement.release)
        # Engines and reward actors load in the background while the learner forms its group.
        rollout = RolloutPool(policy, model, config, placement)
        started.callback(rollout.shutdown)
        if config.mode == "colocated" and placement.on_gpu:
            rollout.sleep()  # vLLM profiles GPU memory at start-up: the learner must not be there yet
        places = placement.group, placement.reward_bundles, placement.reward_gpus
        workers = RewardWorkers(library, rewards, embedder, places)
        started.callback(workers.shutdown)
        learner = Learner(policy, model, config, seed, placement)
        started.callback(learner.shutdown)
        yield Actors(rollout, workers, learner, rewards, probe)


def _run(
    actors: Actors,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    out: StageDir,
    config: GrpoConfig,
    tracking: TrackingConfig,
    seed: int,
) -> Progress:
    """Trains to the end; if learner ranks die or hang, restarts the learner from the newest checkpoint.

    Raises:
        RuntimeError: They did more than `grpo.max_failures` times within `grpo.failure_window_s`.
    """
    import ray

    failures, incidents = 0, Incidents(config.failure_window_s)
    while True:
        try:
            if failures:
                actors.learner.restart()
            return _train(actors, prompts, held_out, out, config, tracking, seed)
        except (ray.exceptions.RayError, Hang) as error:
            dead = actors.learner.dead_ranks()
            if not dead and not isinstance(error, Hang):
                raise
            failures = incidents.add(0)
            ranks = (
                "learner rank " + ", ".join(map(str, dead)) + " died"
                if dead
                else f"the learner hangs: {error}"
            )
            if failures > config.max_failures:
                raise RuntimeError(
                    f"{ranks}, after {failures - 1} recoveries (grpo.max_failures="
                    f"{config.max_failures}). A process killed by the system usually ran out of memory: "
                    "lower grpo.micro_tokens, or use more learner ranks with grpo.zero_stage 3"
                ) from error
            step = checkpoint.newest_step(out)
            source = f"the checkpoint of step {step}" if step else "the SFT model: there is no checkpoint yet"
            times = f"failure {failures} of {config.max_failures} tolerated"
            say(f"  {ranks}; restarting the learner from {source} ({times})")


def _train(
    actors: Actors,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    out: StageDir,
    config: GrpoConfig,
    tracking: TrackingConfig,
    seed: int,
) -> Progress:
    """Resumes from the newest checkpoint, runs the loop, writes logs and checkpoints, saves the model."""
    progress = checkpoint.load_latest(out, actors.learner)
    validation = Validation(out, actors, held_out, progress.step)
    log = out.fetch("metrics.jsonl")
    lines = trim_metrics(log, progress.step)
    settings = config.model_dump(mode="json")
    with (
        stage_trackers(out, tracking, settings, [*lines, *validation.tracker_lines]) as write_trackers,
        track("grpo", config.max_steps, progress.step) as advance,
    ):
        validation.on_line = write_trackers

        def on_step(now: Progress, metrics: dict[str, Any]) -> None:
            nonlocal progress
            progress, step = now, now.step
            lines.append(metrics)
            append_metrics(log, metrics)
            out.upload(log.name)
            write_trackers(metrics)
            _set_gauges(metrics, actors)
            for text in new_alarms(lines, synchronous=config.mode != "async").values():
                say(f": {text}", lead=f"  grpo step {step}", style="bold yellow")
            last = step == config.max_steps
            if last or step % config.eval_steps == 0:
                validation.run(step)
            if last or step % config.save_steps == 0:
                checkpoint.save(out, actors.learner, progress, config.save_limit)
            advance(1, note=f"reward {metrics['reward']:.3f}")

        train(actors, prompts, config, seed, progress, validation.run_first, on_step)
    actors.learner.save_model(out, "model")
    if config.keep_best:
        validation.use_best()
    return progress


def _set_gauges(metrics: Mapping[str, Any], actors: Actors) -> None:
    """The figures of a step for Prometheus, as docs/cluster.md names them."""
    for role in ("rollout", "update"):
        set_gauge("lm_mixup_tokens_per_second", metrics[f"tokens_per_second/{role}"], "grpo", role)
    set_gauge("lm_mixup_staleness", metrics["staleness/max"], "grpo")
    set_gauge("lm_mixup_sync_seconds", metrics["timing_s/sync"], "grpo")
    set_gauge("lm_mixup_queue_depth", actors.rollout.waiting, "grpo", "rollout")


def _check_learned(out: StageDir) -> None:
    """Says how many steps changed nothing, and refuses a training of none that did."""
    lines = read_stage_metrics(out)
    idle = steps_without_update(lines)
    if idle and idle == len(lines):
        raise StageEmpty(
            f"{out.name}: not one of {idle} steps had a group with different rewards, so no optimizer step "
            f"was taken and {out.run.uri}/{out.name}/model is that of sft; raise grpo.num_generations or "
            "grpo.temperature, or look at what rewards.weights reward"
        )
    if idle:
        say(f"  {out.name}: {idle} of {len(lines)} steps had no group with different rewards: no update")


def _summary(out: StageDir) -> dict[str, Any]:
    """First and last metrics, for the manifest."""
    lines, checks = read_stage_metrics(out), read_stage_metrics(out, "validation.jsonl")
    summary: dict[str, Any] = {}
    if lines:
        summary |= {"reward_first": lines[0]["reward"], "reward_last": lines[-1]["reward"]}
    if checks:
        summary |= {"validation_first": checks[0], "validation_last": checks[-1]}
    return summary
