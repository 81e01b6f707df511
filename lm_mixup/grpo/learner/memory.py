"""How much of its GPU's memory a learner rank will need, before the first rollout is paid for.

An update that runs out of memory fails in the middle of a run, with an allocator's message. What a token
costs is measured with the loaded policy on its own device, so that kernels, adapters and checkpointing count
as they are; the rest follows from the number of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from lm_mixup.config import GrpoConfig
from lm_mixup.core.errors import InputError

_SHORT, _LONG = 64, 192  # tokens of the two rows whose difference gives the bytes per token
_GIB = 1 << 30
_SHARDED_FROM = {"optimizer": 1, "gradients": 2, "weights": 3}  # ZeRO stages


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes that one rank holds at the peak of an update.

    Attributes:
        weights: The policy, in its dtype.
        reference: The reference model; 0 without one.
        gradients: Sums over micro-batches, this rank's share.
        optimizer: AdamW's two moments and, for bfloat16, the float32 weights; this rank's share.
        activations: What the backward pass of one micro-batch keeps.
        logits: Those of its completion tokens, and their gradient.
    """

    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def resident(self) -> int:
        """What stays while engines generate on the same GPU."""
        return self.weights + self.reference + self.optimizer

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / _GIB:.1f}" for field in fields(self))
        return f"{self.peak / _GIB:.0f} GiB ({parts})"


def estimate(
    policy: Any, config: GrpoConfig, *, has_reference: bool, bytes_per_token: float, world_size: int
) -> LearnerMemory:
    """The memory of one rank for micro-batches of `grpo.micro_tokens`.

    Args:
        policy: The policy with its adapters, before DeepSpeed shards it.
        config: The `grpo` section.
        has_reference: Whether a second copy of the weights is held.
        bytes_per_token: From `activation_bytes`.
        world_size: Learner ranks.
    """
    sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in policy.parameters()]
    weights = sum(count * width for count, width, _ in sizes)
    trained = sum(count for count, _, trains in sizes if trains)
    width = next(iter(policy.parameters())).element_size()
    stage = config.zero_stage
    shared = {name: world_size if stage >= first else 1 for name, first in _SHARDED_FROM.items()}
    # float32 sums and moments; at stage 0 DeepSpeed keeps everything in the policy's dtype.
    state_width = width if stage == 0 else 4
    states = 2 if state_width == width else 3  # a policy in another dtype has float32 weights as well
    tokens = max(config.micro_tokens, config.max_prompt_length + config.max_completion_length)
    vocabulary = policy.get_output_embeddings().weight.shape[0]
    return LearnerMemory(
        weights=weights // shared["weights"],
        reference=weights if has_reference else 0,
        gradients=trained * state_width // shared["gradients"],
        optimizer=trained * state_width * states // shared["optimizer"],
        activations=int(tokens * bytes_per_token),
        logits=2 * tokens * vocabulary * width,
    )


def activation_bytes(policy: Any) -> float:
    """Bytes per token that the backward pass needs: what autograd keeps, and the layer it recomputes.

    Two short rows are sent through the policy, and what autograd saves is counted, each buffer once. With
    checkpointing one layer at a time is recomputed, which comes on top.
    """
    layers = policy.config.get_text_config().num_hidden_layers
    was_training = policy.training
    policy.eval()  # checkpointing is off
    whole = _slope(policy)
    policy.train()
    kept = _slope(policy)
    policy.train(was_training)
    return whole if kept >= whole else kept + whole / layers


def _slope(policy: Any) -> float:
    return (_saved(policy, _LONG) - _saved(policy, _SHORT)) / (_LONG - _SHORT)


def _saved(policy: nn.Module, tokens: int) -> int:
    """Bytes that autograd keeps of a row of so many tokens, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps an address from being used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    device = next(policy.parameters()).device
    row = torch.zeros(1, tokens, dtype=torch.long, device=device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(input_ids=row, use_cache=False, logits_to_keep=1)
    return sum(storage.nbytes() for storage in kept.values())


def check_fits(needed: LearnerMemory, total: int, config: GrpoConfig, *, checkpointing: bool) -> None:
    """Refuses settings under which an update cannot fit the GPU.

    Args:
        needed: The estimate.
        total: Bytes of the GPU.
        config: The `grpo` section.
        checkpointing: Whether gradient checkpointing is on.

    Raises:
        InputError: With the estimate by its parts, and the setting to change.
    """
    free = total - needed.resident
    if config.mode == "colocated" and free < config.gpu_memory_utilization * total:
        share = max(0.0, free / total - 0.05)
        raise InputError(
            f"grpo: the learner keeps {needed.resident / _GIB:.0f} GiB of a GPU of {total / _GIB:.0f} GiB "
            f"beside the engines, so grpo.gpu_memory_utilization {config.gpu_memory_utilization} does not "
            f"fit; {f'set it to {share:.2f} or less, ' if share >= 0.1 else ''}raise grpo.learner_ranks "
            "with grpo.zero_stage 2 or 3, or set grpo.mode: async"
        )
    if needed.peak <= total:
        return
    longest = config.max_prompt_length + config.max_completion_length
    per_token = (needed.activations + needed.logits) / max(config.micro_tokens, longest)
    room = int((total - needed.resident - needed.gradients) / per_token)
    if not checkpointing:
        remedy = "set grpo.gradient_checkpointing: true"
    elif room >= longest:
        remedy = f"lower grpo.micro_tokens to {room // 256 * 256 or room}"
    else:
        remedy = "raise grpo.learner_ranks with grpo.zero_stage 2 or 3, or shorten grpo.max_completion_length"
    raise InputError(f"grpo: an update needs about {needed}; the GPU has {total / _GIB:.0f} GiB: {remedy}")
