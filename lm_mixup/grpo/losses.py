"""GRPO's losses as pure functions of tensors.

Every loss is returned as a sum divided by figures of the whole global batch, so the gradient is the same
however the batch is cut into micro-batches or spread over ranks: adding up the micro-batches' losses gives
the loss.

Shapes: B sequences, T completion tokens (right-padded), float32 unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token", "sequence"]
Limit = Literal["truncate", "mask"]

_LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class LossInputs:
    """What a policy loss reads.

    Attributes:
        logp: [B, T] log π_learner under the current weights, with gradient.
        old_logp: [B, T] log π_learner before this rollout batch's first update.
        engine_logp: [B, T] log π_engine, as sampled.
        ref_logp: [B, T] log π_reference, or None without a KL term.
        advantages: [B] group-relative advantages.
        mask: [B, T] 1 for completion tokens, 0 for padding.
    """

    logp: Tensor
    old_logp: Tensor
    engine_logp: Tensor
    ref_logp: Tensor | None
    advantages: Tensor
    mask: Tensor


@dataclass(frozen=True)
class GlobalCounts:
    """Figures of the whole global batch that losses are divided by."""

    tokens: int
    sequences: int
    max_completion_length: int


@dataclass(frozen=True)
class LossOptions:
    """The constants of a policy loss."""

    loss: LossName = "dapo"
    beta: float = 0.01
    kl_estimator: KlEstimator = "k3"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    importance_correction: Correction = "token"
    importance_cap: float = 2.0
    importance_limit: Limit = "truncate"


def token_logps_and_entropy(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log π(token) and the entropy of π at each position.

    Args:
        logits: [B, T, V].
        tokens: [B, T] int64.
        temperature: The sampling temperature, applied here as the engine applies it.

    Returns:
        [B, T] log-probabilities with gradient, [B, T] entropies in nats without.
    """
    scaled = logits.float() / temperature
    log_z = torch.logsumexp(scaled, dim=-1)
    logp = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - log_z
    with torch.no_grad():
        expected = (torch.softmax(scaled, dim=-1) * scaled).sum(-1)
    return logp, (log_z - expected).detach()


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) (Schulman 2020, "Approximating KL divergence").

    k1 = log π/π_ref is unbiased with high variance; k2 = k1²/2; k3 = π_ref/π − 1 − log π_ref/π is unbiased,
    non-negative and of low variance: the paper's choice.
    """
    difference = logp - ref_logp
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            inverse = (-difference).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
            return torch.expm1(inverse) - inverse


def importance_ratio(inputs: LossInputs, correction: Correction) -> Tensor:
    """π_learner / π_engine of the sampled tokens, before truncation: [B, T], no gradient.

    The engine's kernels differ from the learner's, so samples are slightly off-policy even with equal weights
    (truncated importance sampling; Yao et al. 2025). `sequence` uses one product a sequence.
    """
    difference = (inputs.old_logp - inputs.engine_logp).detach() * inputs.mask
    if correction == "sequence":
        difference = difference.sum(-1, keepdim=True).expand_as(difference)
    return torch.exp(difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))


def limited(ratio: Tensor, cap: float, limit: Limit) -> Tensor:
    """The weight that an importance ratio gives: never above the cap.

    Args:
        ratio: [B, T].
        cap: Largest weight.
        limit: `truncate` gives what lies above it the cap, `mask` gives it 0: nothing is learned there.
    """
    return ratio.clamp(max=cap) if limit == "truncate" else ratio.masked_fill(ratio > cap, 0.0)


def policy_loss(
    inputs: LossInputs, options: LossOptions, counts: GlobalCounts
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one micro-batch as its share of the global batch's loss.

    Sources: grpo, DeepSeekMath (arXiv 2402.03300); dr_grpo (2503.20783); dapo's token mean and clip-higher
    (2503.14476); gspo (2507.18071); cispo (2506.13585).

    Returns:
        The scalar loss, and token sums for the metrics: `kl`, `clipped`, `ratio`.
    """
    log_ratio = inputs.logp - inputs.old_logp
    if options.loss == "gspo":
        # One ratio a sequence, its gradient spread over the tokens: sg[s] · π/sg[π].
        length = inputs.mask.sum(-1, keepdim=True).clamp(min=1)
        sequence = ((log_ratio * inputs.mask).sum(-1, keepdim=True) / length).detach()
        log_ratio = inputs.logp - inputs.logp.detach() + sequence
    ratio = torch.exp(log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    low, high = 1 - options.epsilon, 1 + options.epsilon_high
    advantages = inputs.advantages.unsqueeze(-1)
    if options.loss == "cispo":
        per_token = -ratio.detach().clamp(max=high) * advantages * inputs.logp
    else:
        per_token = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)

    weights = importance_ratio(inputs, options.importance_correction)
    if options.importance_correction != "none":
        per_token = per_token * limited(weights, options.importance_cap, options.importance_limit)

    kl_sum = 0.0
    if inputs.ref_logp is not None:
        kl = kl_estimate(inputs.logp, inputs.ref_logp, options.kl_estimator)
        per_token = per_token + options.beta * kl
        kl_sum = float((kl.detach() * inputs.mask).sum())

    with torch.no_grad():
        outside = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        if options.loss == "cispo":  # which limits the weight of every token, and gives none a gradient of 0
            outside = ratio > high
        sums = {
            "kl": kl_sum,
            "clipped": float((outside * inputs.mask).sum()),
            "ratio": float((weights * inputs.mask).sum()),
        }
    return _aggregate(per_token, inputs.mask, options.loss, counts), sums


def _aggregate(per_token: Tensor, mask: Tensor, loss: LossName, counts: GlobalCounts) -> Tensor:
    """This micro-batch's share of the mean over the global batch.

    `dapo` and `cispo` weigh every token alike; `grpo` and `gspo` every sequence; `dr_grpo` divides by a
    constant length, so that long wrong answers are not favoured.
    """
    masked = per_token * mask
    match loss:
        case "dapo" | "cispo":
            return masked.sum() / counts.tokens
        case "grpo" | "gspo":
            return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / counts.sequences
        case "dr_grpo":
            return masked.sum() / (counts.sequences * counts.max_completion_length)
