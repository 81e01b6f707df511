"""What the learner does on a GPU: one command, one JSON.

    python benchmarks/gpu.py --json OUT
    python benchmarks/gpu.py --quick --json OUT   a tiny shape: without a GPU it shows that the program runs

Random weights in the shape of Qwen2.5-1.5B, random tokens. The parts:

* `rates`: matrix products in bf16 and copies within the GPU's memory, which the others are held against;
* `gradients_fp32`, `gradients_bf16`: forward and backward of the same episodes, shared prompts against plain:
  seconds, tokens per second, model FLOP utilisation, peak memory, and how far the gradients are apart
  (`benchmarks/learner.py`, without an optimizer). In float32 the model has two layers;
* `learner_shared`, `learner_plain`, `learner_checkpointing`: `LearnerRank` as a run has it, with DeepSpeed
  and the optimizer step;
* `attention`: PyTorch's attention with and without cuDNN's kernel, where every row has another length.

What is not installed is left out, and `left_out` says what and why. A part that fails does not stop the
others: its error stands in the JSON, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import learner
import numpy as np
import torch
import torch.nn.functional as F

PEAK = 989.0  # TFLOP/s of an H100 or H200 in dense bf16, by the datasheet
_FIRST, _LAST = 1500, 6000  # tokens of rows of varying length


def options() -> argparse.Namespace:
    parser = harness.parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", type=int, help="P; default 600, or 40 with --quick")
    parser.add_argument("--completion", type=int, help="longest completion; default 400, or 24 with --quick")
    parser.add_argument("--groups", type=int, help="prompts; default 8, or 2 with --quick")
    parser.add_argument("--generations", type=int, default=8, help="n, completions a prompt")
    parser.add_argument("--micro-tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    args.prompt = args.prompt or (40 if args.quick else 600)
    args.completion = args.completion or (24 if args.quick else 400)
    args.groups = args.groups or (2 if args.quick else 8)
    args.shape = "nano" if args.quick else "qwen2.5-1.5b"
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.spread, args.gradient_checkpointing, args.peak_tflops = 0.5, False, PEAK
    return args


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], repeats: int, warm_up: int = 1) -> float:
    """Median seconds of a call, the device's work included."""
    taken = []
    for turn in range(warm_up + repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        if turn >= warm_up:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def rates(args: argparse.Namespace) -> dict[str, float]:
    """bf16 matrix products (random data: zeros run faster) and copies on the device."""
    size = 512 if args.quick else 8192
    one, other = (torch.randn(size, size, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: one @ other, 10, warm_up=3)
    source = torch.randn(size * size * (1 if args.quick else 16), device=args.device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), 10, warm_up=3)
    return {
        "bf16_tflops": round(2 * size**3 / product / 1e12, 3),
        "copy_gb_per_second": round(2 * source.nbytes / copy / 1e9, 1),
    }


def gradients(args: argparse.Namespace, dtype: str, layers: int | None) -> dict[str, Any]:
    """Shared prompts against plain, as `benchmarks/learner.py` has it."""
    chosen = argparse.Namespace(**vars(args))
    chosen.dtype = dtype
    if layers is not None:
        chosen.shape = f"{args.shape}, {layers} layers"
        learner.SHAPES[chosen.shape] = learner.SHAPES[args.shape] | {"num_hidden_layers": layers}
    shared, plain, ratio = learner.measure(chosen, args.generations, torch.device(args.device))
    return {"shared": shared, "plain": plain, "speed_up": round(ratio, 3)}


def learner_rank(args: argparse.Namespace, *, shared: bool, checkpointing: bool) -> dict[str, Any]:
    """Updates of one DeepSpeed rank: forward, backward and the optimizer, and the weights' way to the CPU."""
    from lm_mixup.config import GrpoConfig, ModelConfig
    from lm_mixup.grpo.learner.rank import LearnerRank
    from lm_mixup.grpo.learner.schedule import OptimizerStep, micro_batches, shared_micro_batches
    from lm_mixup.grpo.losses import GlobalCounts

    episodes = learner.make_episodes(args, args.generations)
    lengths = [episode.length for episode in episodes]
    plan = (
        shared_micro_batches(episodes, args.micro_tokens)
        if shared
        else micro_batches(lengths, args.micro_tokens)
    )
    tokens = sum(len(episode.completion_ids) for episode in episodes)
    step = OptimizerStep(plan, GlobalCounts(tokens, len(episodes), args.completion), 1e-6)
    config = GrpoConfig(
        beta=0.0,
        shared_prompt=shared,
        gradient_checkpointing=checkpointing,
        micro_tokens=args.micro_tokens,
        zero_stage=1,
        max_prompt_length=args.prompt,
        max_completion_length=args.completion,
        prompts_per_step=args.groups,
        num_generations=args.generations,
    )
    model = ModelConfig(dtype="float32" if args.device == "cpu" else "bfloat16")
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rank = LearnerRank(str(args.model), model, config, seed=0)
    rank.join(0, 1, "127.0.0.1", _free_port())
    update = seconds(lambda: rank.update(episodes, [step]), args.repeats)
    figures: dict[str, Any] = {
        "seconds": round(update, 3),
        "micro_batches": len(plan),
        "episode_tokens_per_second": round(sum(lengths) / update),
    }
    if args.device == "cuda":
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        computed = _packed_tokens(episodes, plan) if shared else sum(lengths)
        work = 6.0 * (args.layer_weights * computed + args.head_weights * tokens)
        figures["mfu"] = round(work / update / PEAK / 1e12, 3)
        figures["share_of_measured_rate"] = round(work / update / args.measured / 1e12, 3)
    start = time.perf_counter()
    rank.weights()
    figures["weights_to_cpu_and_digest_seconds"] = round(time.perf_counter() - start, 3)
    return figures


def _packed_tokens(episodes: list[Any], plan: list[list[int]]) -> int:
    """Tokens of packed rows: a group's prompt once a micro-batch."""
    total = 0
    for batch in plan:
        total += sum({episodes[i].group: len(episodes[i].prompt_ids) for i in batch}.values())
        total += sum(len(episodes[i].completion_ids) for i in batch)
    return total


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def attention(args: argparse.Namespace) -> dict[str, Any]:
    """Causal attention forward and backward over rows that each have another length; milliseconds a row.

    `first` is what a length costs the first time that it comes, `again` the second time.
    """
    rng = np.random.default_rng(0)
    lengths = rng.choice(np.arange(_FIRST, _LAST), size=24, replace=False).tolist()
    heads, groups, width = 12, 2, 128
    figures: dict[str, Any] = {}
    for name, cudnn in (("cudnn_on", True), ("cudnn_off", False)):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        first, again = [], []
        for kept in (first, again):
            for length in lengths:
                q = torch.randn(
                    1, heads, length, width, device=args.device, dtype=torch.bfloat16, requires_grad=True
                )
                k, v = (
                    torch.randn(1, groups, length, width, device=args.device, dtype=torch.bfloat16)
                    for _ in range(2)
                )
                k.requires_grad_(), v.requires_grad_()

                def both(q: Any = q, k: Any = k, v: Any = v) -> None:
                    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                    out.sum().backward()

                kept.append(1e3 * seconds(both, 1, warm_up=0))
        # The first rows of all load the kernels themselves.
        figures[name] = {
            "first_ms": round(statistics.median(first[4:]), 3),
            "again_ms": round(statistics.median(again), 3),
            "all_first_ms": round(sum(first), 1),
            "all_again_ms": round(sum(again), 1),
        }
    torch.backends.cuda.enable_cudnn_sdp(True)
    return figures


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "rates": rates,
    "gradients_fp32": lambda args: gradients(args, "fp32", 2),
    "gradients_bf16": lambda args: gradients(args, "fp32" if args.device == "cpu" else "bf16", None),
    "learner_shared": lambda args: learner_rank(args, shared=True, checkpointing=False),
    "learner_plain": lambda args: learner_rank(args, shared=False, checkpointing=False),
    "learner_checkpointing": lambda args: learner_rank(args, shared=True, checkpointing=True),
    "attention": attention,
}


def left_out(args: argparse.Namespace) -> dict[str, str]:
    """Parts that cannot run here, with the reason."""
    reasons = {}
    if importlib.util.find_spec("deepspeed") is None:
        reasons |= dict.fromkeys([part for part in PARTS if part.startswith("learner")], "no deepspeed here")
    if args.device == "cpu":
        reasons["attention"] = "no GPU here: cuDNN's attention is a matter of GPUs"
    why = (
        "no vLLM here"
        if importlib.util.find_spec("vllm") is None
        else "not part of this program: `python benchmarks/grpo.py --model qwen2.5-1.5b` runs the whole loop"
    )
    reasons["rollout"] = f"{why}; tokens per second of the engine"
    reasons["weight_transports"] = f"{why}; seconds of a sync by object_store, ipc and nccl need an engine"
    return reasons


def main() -> None:
    args = options()
    reasons = left_out(args)
    results: dict[str, Any] = {}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        if any(part.startswith("learner") and part not in reasons for part in args.parts):
            args.model = Path(scratch) / "model"
            args.layer_weights, args.head_weights = learner.write_model(
                args.shape,
                args.model,
                args.prompt + args.completion,
                dtype="fp32" if args.device == "cpu" else "bf16",
                device=torch.device(args.device),
            )
        for part in args.parts:
            if part in reasons:
                continue
            start = time.perf_counter()
            try:
                results[part] = PARTS[part](args)
            except Exception as error:  # noqa: BLE001 - the other parts still count
                traceback.print_exc()
                results[part] = {"error": f"{type(error).__name__}: {error}"}
                failed = True
            args.measured = results.get("rates", {}).get("bf16_tflops", PEAK)
            results[part]["part_seconds"] = round(time.perf_counter() - start, 1)
            print(f"{part}: {json.dumps(results[part])}", flush=True)
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
            write(args, results, reasons)  # what there is, should the next part end the process
    for part, reason in reasons.items():
        print(f"left out: {part}: {reason}")
    if failed:
        sys.exit(1)


def write(args: argparse.Namespace, results: dict[str, Any], reasons: dict[str, str]) -> None:
    if args.json is None:
        return
    shown = ("shape", "prompt", "completion", "spread", "groups", "generations", "micro_tokens", "repeats")
    config = {key: getattr(args, key) for key in shown}
    where = harness.machine() | {"torch": torch.__version__, "device": args.device}
    if args.device == "cuda":
        where |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    value = {"name": "gpu", "machine": where, "config": config, **results, "left_out": reasons}
    args.json.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
