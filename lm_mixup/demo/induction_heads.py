"""Initialises small models with an induction circuit, which copies tokens from the context.

Distillation requires copying: names and numbers of the inputs go into the answer. A transformer copies by an
induction circuit (Olsson et al. 2022, arXiv 2209.11895): a head of one layer tells each token what stood
before it, and a head of the next looks for earlier tokens that followed the present one and copies them.
Trained from random weights the circuit comes late; written in, it works from the first step, and training
refines it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

_FAST = 4  # rotary frequencies that tell the previous token from the others
_SHARPNESS = 8.0  # logit of a previous-token head, per frequency, at distance 1
_MATCH = 12.0  # logit of an induction head at an exact match
_PREVIOUS = 2.0  # size of what the previous-token head writes, in sizes of a token's embedding
_COPY = 5.0  # size of what the induction heads copy, likewise


@torch.no_grad()
def write_induction(policy: Qwen2ForCausalLM, seed: int) -> None:
    """Writes a previous-token head into layer 0 and two induction heads into layer 1.

    The residual stream is split into an orthonormal basis of three parts. Token embeddings fill the first and
    the third; the second, kept free of them, takes the first part of the previous token.

    Args:
        policy: Random weights; at least 2 layers and 3 heads, and as many key-value heads as heads.
    """
    config = policy.config
    width, heads, layers = config.hidden_size, config.num_attention_heads, policy.model.layers
    if len(layers) < 2 or heads < 3:
        raise ValueError(f"an induction circuit needs 2 layers and 3 heads, not {len(layers)} and {heads}")
    size = width // heads
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    first, second, third = (basis[:, part * size : (part + 1) * size] for part in range(3))
    embedding = policy.model.embed_tokens.weight
    embedding.sub_(embedding @ second @ second.T)
    norm = float(embedding.norm(dim=1).mean())
    shown = math.sqrt(width * size / (width - size))  # norm of a part of an embedding after RMSNorm
    _write_previous(layers[0].self_attn, config, size, first, second * (_PREVIOUS * norm / shown))
    ratio = math.sqrt(1 + _PREVIOUS**2)  # embedding and what stood before it, in one residual stream
    query, key = shown / ratio * math.sqrt(0.5), math.sqrt(width) * _PREVIOUS / ratio * math.sqrt(0.5)
    scale = math.sqrt(_MATCH * math.sqrt(size) / (query * key))
    copied = _COPY * norm * ratio / (shown * math.sqrt(2))
    for head, part in enumerate((first, third)):
        mix = torch.linalg.qr(torch.randn(size, size, generator=generator))[0][: size // 2]
        rows = slice(head * size, (head + 1) * size)
        attention = layers[1].self_attn
        attention.q_proj.weight[rows] = _on_slow_frequencies(mix @ first.T * scale)
        attention.k_proj.weight[rows] = _on_slow_frequencies(mix @ second.T * scale)
        attention.v_proj.weight[rows] = part.T
        attention.o_proj.weight[:, rows] = part * copied


def _write_previous(attention: Any, config: Any, size: int, read: torch.Tensor, write: torch.Tensor) -> None:
    """Head 0 attends one token back: biases alone, turned against each other by one rotary step."""
    theta = config.rope_parameters["rope_theta"]
    half, amplitude = size // 2, math.sqrt(_SHARPNESS * math.sqrt(size))
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:size] = 0
        projection.bias[:size] = 0
    for index in range(_FAST):
        angle = theta ** (-2 * index / size)
        attention.q_proj.bias[index] = amplitude
        attention.k_proj.bias[index] = amplitude * math.cos(angle)
        attention.k_proj.bias[index + half] = amplitude * math.sin(angle)
    attention.v_proj.weight[:size] = read.T
    attention.o_proj.weight[:, :size] = write


def _on_slow_frequencies(rows: torch.Tensor) -> torch.Tensor:
    """Places `size/2` rows on the rotary pairs that hardly turn over a prompt: a match holds anywhere."""
    half = rows.shape[0]
    placed = torch.zeros(2 * half, rows.shape[1])
    placed[half // 2 : half] = rows[: half - half // 2]
    placed[half + half // 2 :] = rows[half - half // 2 :]
    return placed
