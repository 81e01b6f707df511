"""Reckons time, memory and network of every stage from unit costs: the tables of docs/scaling.md.

    python benchmarks/scaling.py                                  # the tables
    python benchmarks/scaling.py --cost gpu_flops=312e12 hbm=2.0e12      # on A100s

Nothing is run. CPU stages were measured (docs/scale.md); GPU stages follow from what a card can do and the
share of it that is assumed, and stand until somebody measures them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

ROWS = {"300K": 300_000, "10M": 10_000_000, "100M": 100_000_000}
GPUS = (8, 64, 512)


@dataclass(frozen=True)
class Costs:
    """What one core, one GPU, one link does, and what one row takes."""

    # Measured on two AVX2 cores (docs/scale.md, docs/training.md), a core, starts of tasks taken off.
    ingest_rows: float = 12_500.0  # rows a second
    curate_rows: float = 7_500.0
    cluster_rows: float = 1_000.0  # 3,970 at 256-d; the products grow with the dimensions, 1,024 here
    select_rows: float = 27_000.0  # of the driver, one process
    core_flops: float = 85e9  # float32
    # An H100 SXM by its data sheet: dense bf16 FLOP/s, memory bytes/s, bytes; a 400 Gb/s link a GPU.
    gpu_flops: float = 989e12
    hbm: float = 3.35e12
    gpu_bytes: float = 80e9
    link: float = 50e9
    # Shares of these that are assumed.
    compute_share: float = 0.4  # training and prefill
    memory_share: float = 0.4  # decoding of full batches
    step_overhead_s: float = 0.005  # of the engine, for each token of a batch
    # A row of a pool, its judgement, a distilled row, a MIXTURE row: tokens.
    row: float = 250.0
    judge_prompt: float = 300.0  # beside the rubric, which the prefix cache holds
    judge_reply: float = 60.0
    poor_share: float = 0.7
    cluster_size: float = 3.5
    completion: float = 400.0
    longest_completion: float = 1_000.0
    mixture_row: float = 1_200.0
    # The published recipe.
    sft_rows: float = 115_200.0
    sft_epochs: float = 3.0
    sft_batch: float = 128.0
    grpo_steps: float = 225.0
    prompts: float = 128.0
    generations: float = 4.0
    embedder_params: float = 0.3e9  # bge-m3 without its vocabulary
    embedder_rows: float = 1_000.0  # rows a second of a GPU: tokenising and copies, not FLOPs, are the limit
    cores_a_gpu: float = 6.0


@dataclass(frozen=True)
class Policy:
    """A policy: parameters, bytes of its key-value cache a token, GPUs of one engine."""

    params: float
    kv: float
    tensor_parallel: int


POLICIES = {
    "1.5B": Policy(1.54e9, 28_672, 1),
    "7B": Policy(7.6e9, 57_344, 1),
    "70B": Policy(72.7e9, 327_680, 8),
}
JUDGE = POLICIES["7B"]


def decode_rate(c: Costs, policy: Policy) -> float:
    """Tokens a second of one GPU whose engine's batch fills its memory.

    Each token of a batch reads the weights and every sequence's cache once (a roofline of memory).
    """
    context = c.cluster_size * c.row + c.completion
    room = 0.9 * c.gpu_bytes * policy.tensor_parallel - 2 * policy.params
    sequences = room / (policy.kv * context)
    seconds = 0.9 * c.gpu_bytes / (c.hbm * c.memory_share) + c.step_overhead_s
    return sequences / seconds / policy.tensor_parallel


def generate_s(c: Costs, policy: Policy, prompt: float, reply: float) -> float:
    """GPU seconds of one reply in a full batch: prefill by FLOPs, decoding by memory."""
    return 2 * policy.params * prompt / (c.gpu_flops * c.compute_share) + reply / decode_rate(c, policy)


def augment_hours(c: Costs, rows: float, policy: Policy, gpus: int) -> dict[str, float]:
    """Hours of each stage of `augment`, with a judge in vLLM engines on the same GPUs."""
    cores = c.cores_a_gpu * gpus
    clusters = rows * c.poor_share / c.cluster_size
    judged = generate_s(c, JUDGE, c.judge_prompt, c.judge_reply)
    seconds = {
        "ingest": rows / c.ingest_rows / cores,
        "rate": rows * judged / gpus,
        "embed": rows / c.embedder_rows / gpus,
        "curate": rows / c.curate_rows / cores,
        "cluster": rows * c.poor_share / c.cluster_rows / cores,
        "distill": clusters * generate_s(c, policy, c.cluster_size * c.row + 100, c.completion) / gpus,
        "rate_distilled": clusters * judged / gpus,
        "select": rows / c.select_rows,
    }
    return {stage: value / 3600 for stage, value in seconds.items()}


def training_gpus(c: Costs, policy: Policy) -> int:
    """Fewest GPUs whose memory holds the training state, 16 bytes a parameter, with a quarter kept free."""
    return -int(-(16 * policy.params) // (0.75 * c.gpu_bytes))


def sft_hours(c: Costs, policy: Policy, gpus: int) -> float:
    """Hours of SFT: 8 FLOPs a parameter and token (activations anew), or ZeRO-3's traffic if it is slower."""
    tokens = c.sft_rows * c.sft_epochs * c.mixture_row
    compute = 8 * policy.params * tokens / (gpus * c.gpu_flops * c.compute_share)
    steps = c.sft_rows * c.sft_epochs / c.sft_batch
    traffic = steps * 3 * 2 * policy.params / c.link
    return max(compute, traffic) / 3600


def grpo_step_s(c: Costs, policy: Policy, gpus: int) -> dict[str, float]:
    """Seconds of the parts of a step, half of the GPUs for rollouts and half for the learner."""
    half = gpus / 2
    completions = c.prompts * c.generations
    prompt = c.mixture_row - c.completion
    engines = max(1.0, half / policy.tensor_parallel)
    batch = completions / engines
    cache = batch * policy.kv * (prompt + c.completion)
    token_s = (2 * policy.params + cache) / (
        policy.tensor_parallel * c.hbm * c.memory_share
    ) + c.step_overhead_s
    prefill = 2 * policy.params * c.prompts * prompt / (half * c.gpu_flops * c.compute_share)
    tokens = c.prompts * (prompt + c.generations * c.completion)  # a group's prompt once
    scored = 2 * c.embedder_params * c.completion * completions
    sync = 2 * policy.params * 2 / c.link  # gathered on one rank, then sent to every engine at once
    return {
        "rollout": prefill + c.longest_completion * token_s,
        "reward, CPU": scored / (c.core_flops * c.cores_a_gpu * gpus),
        "reward, one GPU": scored / (c.gpu_flops * c.compute_share / 4),
        "update": 10 * policy.params * tokens / (half * c.gpu_flops * c.compute_share),
        "sync": sync,
    }


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def augment_table(c: Costs, policy: Policy, gpus: int) -> str:
    """Stages down, pool sizes across."""
    each = {name: augment_hours(c, rows, policy, gpus) for name, rows in ROWS.items()}
    stages = list(next(iter(each.values())))
    lines = [[f"`{stage}`", *(_figure(each[name][stage]) for name in ROWS)] for stage in stages]
    lines.append(["all", *(_figure(sum(each[name].values())) for name in ROWS)])
    return _table([f"hours, {gpus} GPUs", *ROWS], lines)


def sizes_table(c: Costs) -> str:
    """`augment` as a whole: policies and GPUs down, pool sizes across."""
    lines = []
    for label, policy in POLICIES.items():
        for gpus in GPUS:
            hours = {name: augment_hours(c, rows, policy, gpus) for name, rows in ROWS.items()}
            cells = [f"{_figure(sum(h.values()))} ({max(h, key=h.__getitem__)})" for h in hours.values()]
            lines.append([label, str(gpus), *cells])
    return _table(["distiller", "GPUs", *ROWS], lines)


def training_table(c: Costs) -> str:
    """SFT and GRPO: policies and GPUs down."""
    lines = []
    for label, policy in POLICIES.items():
        least = training_gpus(c, policy)
        for gpus in GPUS:
            if gpus / 2 < least:
                lines.append([label, str(gpus), *["does not fit"] * 6])
                continue
            parts = grpo_step_s(c, policy, gpus)
            in_turn = sum(value for name, value in parts.items() if name != "reward, one GPU")
            lines.append(
                [
                    label,
                    str(gpus),
                    _figure(sft_hours(c, policy, gpus)),
                    *(_figure(parts[name]) for name in ("rollout", "reward, CPU", "update", "sync")),
                    _figure(in_turn * c.grpo_steps / 3600),
                ]
            )
    head = [
        "policy",
        "GPUs",
        "SFT, hours",
        "rollout, s",
        "reward on CPU, s",
        "update, s",
        "sync, s",
        "GRPO, hours",
    ]
    return _table(head, lines)


def unit_table(c: Costs) -> str:
    """What follows from the unit costs for each policy."""
    lines = [
        [
            label,
            _figure(decode_rate(c, policy)),
            _figure(c.gpu_flops * c.compute_share / (8 * policy.params)),
            f"{16 * policy.params / 1e9:,.0f} GB",
            str(training_gpus(c, policy)),
            f"{2 * policy.params / 1e9:,.0f} GB",
        ]
        for label, policy in POLICIES.items()
    ]
    head = [
        "policy",
        "decoded tokens/s a GPU",
        "trained tokens/s a GPU",
        "training state",
        "GPUs at least",
        "weights, a sync",
    ]
    return _table(head, lines)


TABLES: dict[str, Callable[[Costs], str]] = {
    "units": unit_table,
    "augment": lambda c: augment_table(c, POLICIES["7B"], 64),
    "sizes": sizes_table,
    "training": training_table,
}


def main() -> None:
    """Prints the tables under the given costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cost", nargs="*", default=[], metavar="NAME=VALUE", help="costs other than the stated ones"
    )
    given = dict(text.split("=", 1) for text in parser.parse_args().cost)
    costs = dataclasses.replace(Costs(), **{name: float(value) for name, value in given.items()})
    print("\n\n".join(table(costs) for table in TABLES.values()))


if __name__ == "__main__":
    main()
