"""Forward and backward of the same episodes: shared prompts against every episode in a row of its own.

The learner's own code on random weights, without an optimizer step. Both sides take turns in one run, and
their gradients are compared. The bound is what counting tokens promises, n(P + R) / (P + nR); the logits of
completion tokens cost both sides the same, so the bound cannot be quite reached. The ratio is of seconds.

    python benchmarks/learner.py
    python benchmarks/learner.py --shape qwen2.5-1.5b --dtype bf16 --prompt 1500 --completion 600
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lm_mixup.grpo.learner.collate import MicroBatch, collate, collate_shared
from lm_mixup.grpo.learner.forward import completion_logps, use_shared_prompts
from lm_mixup.grpo.learner.schedule import micro_batches, shared_micro_batches
from lm_mixup.grpo.losses import GlobalCounts, LossInputs, LossOptions, policy_loss
from lm_mixup.grpo.types import Episode

SHAPES = {
    "nano": {
        "vocab_size": 768,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "small": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
    },
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEMPERATURE = 1.0


@dataclass
class Side:
    """One way to compute the episodes, and what it took."""

    model: Qwen2ForCausalLM
    batches: list[MicroBatch]
    seconds: list[float]
    peak_gib: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(batch.input_ids.numel() for batch in self.batches)


def make_episodes(args: argparse.Namespace, n: int) -> list[Episode]:
    rng = np.random.default_rng(0)
    vocabulary = SHAPES[args.shape]["vocab_size"]
    episodes = []
    for group in range(args.groups):
        prompt = rng.integers(1, vocabulary, args.prompt).tolist()
        for _ in range(n):
            shortest = round(args.completion * (1 - args.spread))
            length = int(rng.integers(shortest, args.completion + 1))
            engine = np.full(length, -np.log(vocabulary), dtype=np.float32)
            tokens = rng.integers(1, vocabulary, length).tolist()
            episodes.append(Episode(prompt, tokens, engine, float(rng.normal()), group))
    return episodes


def make_model(args: argparse.Namespace, device: torch.device) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    longest = args.prompt + args.completion
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[args.shape], max_position_embeddings=longest))
    model = model.to(DTYPES[args.dtype]).train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def write_model(
    shape: str, folder: Path, longest: int, *, dtype: str, device: torch.device
) -> tuple[int, int]:
    """Writes random weights in a shape, with the tokenizer of `nano`, which decodes no id beyond its own.

    Returns:
        The number of weights in the layers, and in the output head.
    """
    from lm_mixup.config import ModelConfig
    from lm_mixup.models.policy import load_tokenizer, save_model

    options = argparse.Namespace(
        shape=shape, dtype=dtype, prompt=longest, completion=0, gradient_checkpointing=False
    )
    model = make_model(options, device)
    save_model(folder, model.cpu(), load_tokenizer("nano", ModelConfig()))
    return sum(p.numel() for p in model.model.layers.parameters()), model.lm_head.weight.numel()


def run(side: Side, counts: GlobalCounts, device: torch.device) -> None:
    """Forward and backward of all micro-batches; the gradients stay in the model."""
    side.model.zero_grad()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    for micro in side.batches:
        logp, _ = completion_logps(side.model, micro, TEMPERATURE)
        fields = (logp, logp.detach(), micro.engine_logp, None, micro.advantages, micro.mask)
        loss, _ = policy_loss(LossInputs(*fields), LossOptions(beta=0.0), counts)
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
        side.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    side.seconds.append(time.perf_counter() - start)


def gradient_difference(plain: Side, shared: Side) -> float:
    """Norm of the difference of the gradients over the norm of the plain ones."""
    difference = norm = 0.0
    for one, other in zip(plain.model.parameters(), shared.model.parameters(), strict=True):
        difference += float((one.grad.float() - other.grad.float()).square().sum())
        norm += float(one.grad.float().square().sum())
    return (difference / norm) ** 0.5


def flops(model: Qwen2ForCausalLM, side: Side, completion_tokens: int) -> float:
    """Floating-point operations of the matrix products with weights, forward and backward.

    Attention scores and recomputation under gradient checkpointing are left out, as usual in MFU.
    """
    layers = sum(p.numel() for p in model.model.layers.parameters())
    head = model.lm_head.weight.numel()
    return 6.0 * (layers * side.tokens + head * completion_tokens)


def measure(args: argparse.Namespace, n: int, device: torch.device) -> tuple[dict, dict, float]:
    """One row of the table: figures of shared and plain, and how many times faster shared is."""
    episodes = make_episodes(args, n)
    counts = GlobalCounts(sum(len(e.completion_ids) for e in episodes), len(episodes), args.completion)
    plain_model, shared_model = (make_model(args, device) for _ in range(2))
    use_shared_prompts(shared_model)
    plain_plan = micro_batches([e.length for e in episodes], args.micro_tokens)
    shared_plan = shared_micro_batches(episodes, args.micro_tokens)
    plain = Side(plain_model, [collate([episodes[i] for i in b], 0).to(device) for b in plain_plan], [])
    shared = Side(
        shared_model, [collate_shared([episodes[i] for i in b]).to(device) for b in shared_plan], []
    )
    for _ in range(args.repeats + 1):
        for side in (plain, shared):
            run(side, counts, device)
    episode_tokens = sum(e.length for e in episodes)
    bound = episode_tokens / (episode_tokens - args.groups * (n - 1) * args.prompt)
    speed_up = statistics.median(
        one / other for one, other in zip(plain.seconds[1:], shared.seconds[1:], strict=True)
    )
    figures = []
    for side in (shared, plain):
        seconds = statistics.median(side.seconds[1:])
        row = {
            "tokens": side.tokens,
            "seconds": round(seconds, 3),
            "episode_tokens_per_second": round(episode_tokens / seconds),
        }
        if device.type == "cuda":
            row["peak_gib"] = round(side.peak_gib, 1)
            row["mfu"] = round(flops(side.model, side, counts.tokens) / seconds / args.peak_tflops / 1e12, 3)
        figures.append(row)
    figures[0] |= {
        "bound": round(bound, 3),
        "speed_up": round(speed_up, 3),
        "share_of_bound": round(speed_up / bound, 3),
        "gradient_difference": float(f"{gradient_difference(plain, shared):.1e}"),
    }
    return figures[0], figures[1], speed_up


def options() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="the model, with random weights")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--prompt", type=int, default=600, help="P, tokens of a prompt")
    parser.add_argument("--completion", type=int, default=128, help="R, tokens of the longest completion")
    parser.add_argument(
        "--spread", type=float, default=0.0, help="completions have (1 - spread) R to R tokens"
    )
    parser.add_argument("--generations", type=int, nargs="+", default=[4, 8], help="n, completions a group")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--micro-tokens", type=int, default=16384)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument(
        "--repeats", type=int, help="measured turns of each side; default 5, or 3 with --quick"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense bf16, for MFU")
    args = parser.parse_args()
    args.repeats = args.repeats or (3 if args.quick else 5)
    return args


def main() -> None:
    args = options()
    ours: dict = {}
    peer: dict = {}
    ratio = 1.0
    for n in args.generations:
        shared, plain, ratio = measure(args, n, torch.device(args.device))
        ours |= {f"n={n} {key}": value for key, value in shared.items()}
        peer |= {f"n={n} {key}": value for key, value in plain.items()}
    config = {
        key: getattr(args, key)
        for key in ("shape", "dtype", "prompt", "completion", "spread", "groups", "gradient_checkpointing")
    }
    config |= {"device": args.device, "threads": torch.get_num_threads()}
    harness.finish("learner", config, ours, peer, ratio, args.json)


if __name__ == "__main__":
    main()
