"""The `grpo` stage: encodes the prompts, starts the parts, runs the loop, and writes the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.config import EmbedderConfig, GrpoConfig, ModelConfig, RewardsConfig
from lm_mixup.errors import InputError
from lm_mixup.grpo import checkpoint
from lm_mixup.grpo.batch import reward_batch
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.learner import Learner
from lm_mixup.grpo.loop import Parts, train
from lm_mixup.grpo.metrics import MetricsLog, read_metrics
from lm_mixup.grpo.placement import reserve
from lm_mixup.grpo.rollout import Prompt, RolloutPool
from lm_mixup.parts import PartResult, map_parts
from lm_mixup.progress import track
from lm_mixup.rewards.workers import RewardWorkers
from lm_mixup.runs import Outcome, StageDir

PROMPT = pa.schema(
    [
        ("id", pa.string()),
        ("task_type", pa.string()),
        ("split", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("reference", pa.string()),
    ]
)


def grpo(
    mixture: StageDir,
    library: StageDir,
    policy: str,
    out: StageDir,
    config: GrpoConfig,
    model: ModelConfig,
    rewards: RewardsConfig,
    embedder: EmbedderConfig,
    seed: int,
) -> Outcome:
    """Trains the policy by GRPO on MIXTURE's grpo split and writes `grpo/model`.

    The driver holds the encoded prompts (4 bytes a token: 144K prompts of 600 tokens are 350 MB).

    Args:
        mixture: The MIXTURE stage.
        library: The rated library of the quality reward.
        policy: Folder or Hub name of the model to start from.
        out: Where prompts, checkpoints, metrics and the model are written.
        config: The `grpo` section.
        model: How model files are loaded.
        rewards: The `rewards` section.
        embedder: The embedder that the library was made with.
        seed: The run's seed.

    Raises:
        InputError: No prompt fits.
    """
    items = [(mixture, part) for part in mixture.parts()]
    map_parts(out, items, _make_encode, {"policy": policy, "model": model, "limit": config.max_prompt_length})
    prompts, held_out = _read_prompts(out, config.eval_prompts)
    if not prompts:
        raise InputError(
            f"{mixture.run.uri}/mixture: no row of the grpo split fits grpo.max_prompt_length="
            f"{config.max_prompt_length}; raise it, or build.grpo_fraction or build.samples"
        )
    progress = _run(prompts, held_out, library, policy, out, config, model, rewards, embedder, seed)
    drawn = progress.step * config.prompts_per_step
    return Outcome(
        metrics=_summary(out.local) | {"steps": progress.step, "num_tokens": progress.num_tokens},
        rows_used=min(drawn, len(prompts)),
        left_out={"not_drawn": max(0, len(prompts) - drawn), "held_out": len(held_out)},
        files=[f"grpo/model/{path.name}" for path in sorted((out.local / "model").iterdir())],
    )


def _make_encode(policy: str, model: ModelConfig, limit: int) -> Callable[[tuple[StageDir, str]], PartResult]:
    from lm_mixup.backends.policy import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(policy, model)

    def encode(item: tuple[StageDir, str]) -> PartResult:
        stage, part = item
        rows = stage.read_part(part)
        rows = rows.filter(pc.is_in(rows["split"], pa.array(["grpo", "test"])))
        kept, refused = [], []
        for row in rows.to_pylist():
            token_ids = encode_prompt(tokenizer, row["instruction"], row["inputs"])
            prompt = {key: row[key] for key in ("id", "task_type", "split")} | {"reference": row["output"]}
            if len(token_ids) > limit:
                refused.append(prompt | {"reason": "prompt_too_long", "tokens": len(token_ids)})
            else:
                kept.append(prompt | {"token_ids": token_ids})
        rejected = pa.Table.from_pylist(refused) if refused else None
        return PartResult(pa.Table.from_pylist(kept, schema=PROMPT), rejected, rows_in=rows.num_rows)

    return encode


def _read_prompts(out: StageDir, eval_prompts: int) -> tuple[list[Prompt], list[Prompt]]:
    """The grpo prompts, and the first of the test prompts for validation, by id."""
    rows = sorted(out.read().to_pylist(), key=lambda row: row["id"])
    by_split: dict[str, list[Prompt]] = {"grpo": [], "test": []}
    for row in rows:
        prompt = Prompt(row["id"], row["task_type"], row["token_ids"], row["reference"])
        by_split[row["split"]].append(prompt)
    return by_split["grpo"], by_split["test"][:eval_prompts]


def _run(
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    library: StageDir,
    policy: str,
    out: StageDir,
    config: GrpoConfig,
    model: ModelConfig,
    rewards: RewardsConfig,
    embedder: EmbedderConfig,
    seed: int,
) -> Progress:
    """Starts the parts, resumes from the newest checkpoint, runs the loop, and writes the model."""
    folder = out.local
    placement = reserve(config, rewards)
    # Engines and reward actors load in the background while the learner forms its group.
    rollout = RolloutPool(policy, model, config, placement)
    workers = RewardWorkers(library, rewards, embedder, (placement.group, placement.first_reward_bundle))
    learner = Learner(policy, model, config, seed, placement)
    parts = Parts(rollout, workers, learner, rewards, probe=_probe(prompts[0], config))
    try:
        progress = checkpoint.load_latest(folder / "checkpoints", learner)
        log = MetricsLog(folder / "metrics.jsonl", progress.step)
        validation = Validation(folder / "validation.jsonl", parts, held_out, progress.step)
        with track("grpo", config.max_steps, progress.step) as advance:

            def on_step(step: int, num_tokens: int, metrics: dict[str, Any]) -> None:
                nonlocal progress
                progress = Progress(step, num_tokens)
                log.write(metrics)
                last = step == config.max_steps
                if last or step % config.eval_steps == 0:
                    validation.run(step)
                if last or step % config.save_steps == 0:
                    checkpoint.save(folder / "checkpoints", learner, progress, config.save_limit)
                advance(1, note=f"reward {metrics['reward']:.3f}")

            train(
                parts, prompts, config, seed, progress.step, progress.num_tokens, validation.before, on_step
            )
        log.close()
        learner.save_model(folder / "model")
        return progress
    finally:
        workers.shutdown()
        rollout.shutdown()
        learner.shutdown()
        placement.release()


def _probe(prompt: Prompt, config: GrpoConfig) -> list[int]:
    """The sequence both sides score after each weight sync: a prompt's first tokens, at most 128."""
    return prompt.token_ids[: min(128, config.max_prompt_length)]


class Validation:
    """Greedy rollouts on held-out prompts, a line a validation in `validation.jsonl`."""

    def __init__(self, path: Path, parts: Parts, prompts: Sequence[Prompt], resume_step: int) -> None:
        self._path = path
        self._parts = parts
        self._prompts = prompts
        self._lines = [line for line in read_metrics(path) if line["step"] <= resume_step]

    def before(self, step: int) -> None:
        """Validates the starting weights, where no step has been done."""
        if step == 0 and not self._lines:
            self.run(0)

    def run(self, step: int) -> None:
        """Completes the held-out prompts greedily, scores them and writes a line."""
        if not self._prompts:
            return
        groups = self._parts.rollout.generate(self._prompts, [0] * len(self._prompts), greedy=True)
        scores = self._parts.rewards.score(reward_batch(groups))
        line: dict[str, Any] = {"step": step, "reward": float(scores.total.mean())}
        line |= {f"rewards/{name}/mean": float(values.mean()) for name, values in scores.components.items()}
        line["format/compliance"] = float((scores.components["format"] >= 1.0).mean())
        self._lines.append(line)
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in self._lines), encoding="utf-8")
        scratch.replace(self._path)


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
