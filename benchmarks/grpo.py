"""GRPO steps against TRL's GRPOTrainer: same model, prompts, group size, token caps, learning rate and cores.

    python benchmarks/grpo.py [--prompt 140] [--completion 128] [--prompts 16] [--generations 4] [--steps 6]
    python benchmarks/grpo.py --model qwen2.5-1.5b --prompt 600 --completion 400 --prompts 8 --generations 8 \
        --micro-tokens 16384 --transport ipc          on a GPU: random weights in that shape

Four sides, one after the other, each in a process of its own: ours in turn (`colocated`), ours overlapped
(`async`; on GPU if there are two), TRL, and a bare vLLM engine with all cores that answers the requests of a
step and does nothing else. On a GPU, TRL too draws its completions with vLLM, in its own process. Figures
are medians over the steps, and of these the medians over the rounds, in which the sides take turns. The ratio
is TRL's step time over that of our faster mode. The reward is a trivial function: what is compared are
rollout, learning and weight sync.

`mfu` counts, of 989 TFLOP/s, the work of an update with shared prompts: six operations per weight and token,
and two for the reference model; recomputed activations are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from learner import SHAPES, write_model

SIDES = ("colocated", "async", "trl", "vllm")
WARM_UP = 2
LEARNING_RATE, BETA = 1e-5, 0.01
PEAK = 989e12  # FLOP/s of an H100 or H200 in dense bf16, by the datasheet


def arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="folder, name, or a shape of learner.py")
    parser.add_argument("--prompt", type=int, default=140, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=128, help="most tokens of a completion")
    parser.add_argument("--prompts", type=int, default=16, help="prompts a step")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="measured steps, after warm-up")
    parser.add_argument("--rounds", type=int, default=1, help="times that the sides take turns")
    parser.add_argument("--micro", type=int, default=16, help="completions of one TRL forward pass")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="of one of our forward passes")
    parser.add_argument("--transport", choices=("object_store", "ipc"), default="object_store")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--steps-to", type=Path, help="file that our steps are appended to, one line per step"
    )
    parser.add_argument("--side", choices=SIDES, help="only this side, in this process")
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.steps = min(args.prompts, 8), min(args.steps, 5)
    return args


def prompt_ids(args: argparse.Namespace) -> list[list[int]]:
    """Enough prompts for every step: passages of the closed world, cut to the same number of tokens."""
    from random import Random

    from lm_mixup.config import ModelConfig
    from lm_mixup.core.task_types import INSTRUCTIONS
    from lm_mixup.demo.facts import load_entities
    from lm_mixup.demo.offline_teacher import describe
    from lm_mixup.models.policy import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(args.model, ModelConfig())
    rng, passages = Random(0), [describe(entity) for entity in load_entities()]
    prompts = []
    for _ in range(args.prompts * (args.steps + WARM_UP)):
        text = " ".join(rng.sample(passages, 12))
        frame = len(encode_prompt(tokenizer, INSTRUCTIONS["qa"], [""]))
        words = tokenizer(text, add_special_tokens=False)["input_ids"][: args.prompt - frame - 2]
        prompts.append(encode_prompt(tokenizer, INSTRUCTIONS["qa"], [tokenizer.decode(words)])[: args.prompt])
    return prompts


def gpus() -> int:
    return torch.cuda.device_count()


def cores() -> int:
    return int(harness.machine()["cores"])


def layout(mode: str) -> dict[str, Any]:
    """Actors of a mode: in turn, a rank and an engine on each GPU or core; at the same time, one engine.

    On CPU that engine shares the cores with a rank on each: it has about a third of the work.
    """
    if mode == "colocated":
        each = gpus() or cores()
        return {"learner_ranks": each, "rollout_actors": each, "cpus_per_actor": 0.9}
    ranks = gpus() - 1 if gpus() else cores()
    share = 1 if gpus() else cores() / (ranks + 1)
    return {"learner_ranks": ranks, "rollout_actors": 1, "cpus_per_actor": 0.9 * share}


def vowels(text: str) -> float:
    """The reward: the share of vowels."""
    return sum(map(text.count, "aeiou")) / max(1, len(text))


class Vowels:
    """The reward as our loop asks for it."""

    def score(self, batch: Any) -> Any:
        from lm_mixup.rewards.workers import RewardScores

        total = np.array([vowels(text) for text in batch.completions])
        return RewardScores(
            total, {"quality": total, "alignment": 0 * total, "format": 0 * total, "faithfulness": 0 * total}
        )


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    from lm_mixup.config import GrpoConfig, ModelConfig, RayConfig, RewardsConfig
    from lm_mixup.distributed.ray_cluster import start_ray
    from lm_mixup.grpo.checkpoint import Progress
    from lm_mixup.grpo.learner.learner import Learner
    from lm_mixup.grpo.loop import Actors, train
    from lm_mixup.grpo.placement import reserve
    from lm_mixup.grpo.rollout.pool import RolloutPool
    from lm_mixup.grpo.types import Prompt
    from lm_mixup.models.resolve import model_folder
    from lm_mixup.train.tracking import append_metrics

    os.environ.setdefault("RAY_worker_niceness", "0")  # as TRL's process has it; by default Ray's yield
    start_ray(RayConfig())
    config = GrpoConfig(
        max_steps=args.steps + WARM_UP,
        num_generations=args.generations,
        prompts_per_step=args.prompts,
        max_prompt_length=args.prompt,
        max_completion_length=args.completion,
        learning_rate=LEARNING_RATE,
        beta=BETA,
        micro_tokens=args.micro_tokens,
        mode=args.side,
        weight_transport=args.transport,
        **layout(args.side),
        drop_zero_std=False,  # TRL learns from every group
        max_refills=0,
    )
    rewards = RewardsConfig(num_cpus=0.1)
    placement = reserve(config, rewards)
    folder, model = model_folder(args.model), ModelConfig()
    prompts = [Prompt(str(i), "qa", ids, "") for i, ids in enumerate(prompt_ids(args))]
    rollout = RolloutPool(folder, model, config, placement)
    learner = Learner(folder, model, config, 0, placement)
    actors = Actors(rollout, Vowels(), learner, rewards, probe=prompts[0].token_ids[:128])  # type: ignore[arg-type]
    lines: list[dict[str, Any]] = []

    def on_step(_: Progress, line: dict[str, Any]) -> None:
        lines.append(line)
        if args.steps_to:
            append_metrics(args.steps_to, line)

    try:
        train(actors, prompts, config, 0, Progress(), lambda step: None, on_step)
    finally:
        # A process with a CUDA context and a process group may not end by itself when Ray does.
        learner.shutdown()
        rollout.shutdown()
    kept = lines[WARM_UP:]
    keys = ("step", "rollout", "reward", "update", "sync")
    figures = {
        **{key: statistics.median(line[f"timing_s/{key}"] for line in kept) for key in keys},
        "completion_tokens": statistics.mean(line["completions/mean_length"] for line in kept),
        "rollout_tokens_per_second": statistics.median(line["tokens_per_second/rollout"] for line in kept),
        "update_tokens_per_second": statistics.median(line["tokens_per_second/update"] for line in kept),
        "probe_difference": max(line["sync/probe_logp_difference"] for line in lines),
        "logp_difference": statistics.mean(line["sampling/logp_difference/mean"] for line in kept),
    }
    if gpus():
        figures["mfu"] = update_work(args, figures["completion_tokens"]) / figures["update"] / PEAK
    return figures


def update_work(args: argparse.Namespace, length: float) -> float:
    """Operations of an update: layers over prompts and completions, the output head over completions."""
    from safetensors import safe_open

    from lm_mixup.models.resolve import model_folder

    layers = head = 0
    for file in Path(model_folder(args.model)).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                size = int(np.prod(weights.get_slice(name).get_shape()))
                layers += size if ".layers." in name else 0
                head = max(head, size if "embed_tokens" in name or "lm_head" in name else 0)
    completions = args.prompts * args.generations * length
    return (6 + 2) * (layers * (args.prompts * args.prompt + completions) + head * completions)


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lm_mixup.config import ModelConfig
    from lm_mixup.models.policy import load_policy, load_tokenizer

    tokenizer = load_tokenizer(args.model, ModelConfig())
    texts = [tokenizer.decode(ids) for ids in prompt_ids(args)]
    ends: list[float] = []
    lengths: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(float(np.mean([len(ids) for ids in completion_ids])))
        return [vowels(text) for text in completions]

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        max_steps=args.steps + WARM_UP,
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.prompts * args.generations // args.micro,
        num_generations=args.generations,
        max_completion_length=args.completion,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=BETA,
        temperature=1.0,
        use_vllm=torch.cuda.is_available(),
        vllm_enable_sleep_mode=True,
        vllm_gpu_memory_utilization=0.45,
        vllm_max_model_length=args.prompt + args.completion,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
    )
    trainer = GRPOTrainer(
        model=load_policy(args.model, ModelConfig()),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    trainer.train()
    steps = [after - before for before, after in itertools.pairwise(ends)][WARM_UP - 1 :]
    return {"step": statistics.median(steps), "completion_tokens": statistics.mean(lengths[WARM_UP:])}


def run_vllm(args: argparse.Namespace) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    from lm_mixup.models.resolve import model_folder

    here: dict[str, Any] = {"gpu_memory_utilization": 0.45}
    if not gpus():
        here = {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": 4096,
            "kv_cache_memory_bytes": 1 << 30,
        }
    engine = LLM(
        model=model_folder(args.model),
        max_model_len=args.prompt + args.completion,
        enable_prefix_caching=True,
        disable_log_stats=True,
        **here,
    )
    prompts = prompt_ids(args)
    params = SamplingParams(n=args.generations, temperature=1.0, max_tokens=args.completion, logprobs=0)
    speeds = []
    for step in range(args.steps + WARM_UP):
        chosen = prompts[step * args.prompts : (step + 1) * args.prompts]
        started = time.perf_counter()
        requests = [{"prompt_token_ids": ids} for ids in chosen]
        outputs = engine.generate(requests, params, use_tqdm=False)  # type: ignore[arg-type]
        tokens = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
        speeds.append(tokens / (time.perf_counter() - started))
    return {"rollout_tokens_per_second": statistics.median(speeds[WARM_UP:])}


def in_process_of_its_own(side: str, argv: list[str]) -> dict[str, Any]:
    from lm_mixup.models.engine import engine_environment

    env = dict(os.environ)
    if side == "vllm":  # TRL and our actors manage their own threads
        env |= engine_environment(threads=cores())
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, __file__, *argv, "--side", side, "--json", out.name]
        with peak_gpu_gib() as peak:
            subprocess.run(command, env=env, check=True, stdout=sys.stderr)
        result: dict[str, Any] = json.loads(Path(out.name).read_text(encoding="utf-8"))
        return result | ({"gpu_gib": max(peak)} if peak else {})


@contextlib.contextmanager
def peak_gpu_gib() -> Iterator[list[float]]:
    """GiB used on the first GPU, by `nvidia-smi`, twice a second; stays empty where there is no GPU."""
    seen: list[float] = []
    if not gpus():
        yield seen
        return
    command = [
        "nvidia-smi",
        "--query-gpu=memory.used",
        "--format=csv,noheader,nounits",
        "-lms",
        "500",
        "-i",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        lines = watch.stdout
        reader = threading.Thread(target=lambda: seen.extend(float(line) / 1024 for line in lines))
        reader.start()
        try:
            yield seen
        finally:
            watch.terminate()
            reader.join()


def main() -> None:
    args = arguments()
    if args.side:
        run = {"trl": run_trl, "vllm": run_vllm}.get(args.side, run_ours)
        args.json.write_text(json.dumps(run(args)), encoding="utf-8")
        return
    argv = [word for word in sys.argv[1:] if word != "--json" and word != str(args.json)]
    with tempfile.TemporaryDirectory() as scratch:
        if args.model in SHAPES and args.model != "nano":
            folder, device = Path(scratch) / args.model, torch.device("cuda" if gpus() else "cpu")
            dtype = "bf16" if gpus() else "fp32"
            write_model(args.model, folder, args.prompt + args.completion, dtype=dtype, device=device)
            torch.cuda.empty_cache()
            argv += ["--model", str(folder)]
        compare(args, argv)


def compare(args: argparse.Namespace, argv: list[str]) -> None:
    """Runs the sides in turn, prints the table and writes the JSON."""
    sides = [side for side in args.sides if side != "async" or gpus() != 1]
    turns = [{side: in_process_of_its_own(side, argv) for side in sides} for _ in range(args.rounds)]
    results = {side: harness.medians([turn[side] for turn in turns]) for side in sides}
    modes = [side for side in sides if side in SIDES[:2]]
    best = min(modes, key=lambda side: results[side]["step"], default="")
    both = best and "trl" in results
    ratio = results["trl"]["step"] / results[best]["step"] if both else math.nan
    ours = {f"{side} {key}": round(results[side][key], 4) for side in modes for key in results[side]}
    peer = {}
    if "vllm" in results:
        bare = results["vllm"]["rollout_tokens_per_second"]
        peer["bare vLLM tokens/s"] = round(bare)
        for side in modes:
            ours[f"{side} rollout of bare vLLM"] = round(results[side]["rollout_tokens_per_second"] / bare, 2)
    peer |= {f"TRL {key}": round(value, 2) for key, value in results.get("trl", {}).items()}
    keys = ("prompt", "completion", "prompts", "generations", "steps", "micro_tokens", "transport", "rounds")
    shape = {key: getattr(args, key) for key in keys} | {"mode": best}
    harness.finish("grpo", {"model": args.model} | shape, ours, peer, ratio, args.json)


if __name__ == "__main__":
    main()
