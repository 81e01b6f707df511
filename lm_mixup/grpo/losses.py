"""GRPO's losses as pure functions of tensors.

Every loss is a sum divided by counts of the whole global batch. So the gradient does not depend on how the
batch is split into micro-batches or over ranks: the micro-batches' losses add up to the loss.

Shapes: B sequences, T completion tokens (right-padded), float32 unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

LossName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token", "sequence"]
Limit = Literal["truncate", "mask"]

_LOG_RATIO_LIMIT = 20.0
_CHUNK = 1 << 24  # logits processed at once: 64 MiB in float32


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a policy loss.

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
    """Counts of the whole global batch, by which losses are divided."""

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
    dual_clip: float | None = None
    importance_correction: Correction = "token"
    importance_cap: float = 2.0
    importance_limit: Limit = "truncate"


def token_logps_and_entropy(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log π(token) and the entropy of π at each position.

    Args:
        logits: [B, T, V].
        tokens: [B, T] int64.
        temperature: The sampling temperature; the engine's log-probs include it too.

    Returns:
        float32 [B, T] log-probabilities with gradient, and [B, T] entropies in nats without.
    """
    logp, entropy = _TokenLogps.apply(logits.flatten(0, 1), tokens.flatten(), temperature)
    return logp.view_as(tokens), entropy.view_as(tokens)


class _TokenLogps(torch.autograd.Function):
    """Log-probs and entropies computed in chunks of rows, forward and backward.

    Logits are by far the largest tensor of an update. Beside them and their gradient, both in the model's
    dtype, only a few chunks are held; plain autograd would keep float32 copies of all of them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        rows = max(1, _CHUNK // logits.shape[-1])
        logps, entropies, log_zs = [], [], []
        for chunk, chosen in zip(logits.split(rows), tokens.split(rows), strict=True):
            scaled = _scaled(chunk, temperature)
            log_z = scaled.logsumexp(-1)
            logps.append(scaled.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - log_z)
            entropies.append(log_z - torch.softmax(scaled, dim=-1).mul_(scaled).sum(-1))
            log_zs.append(log_z)
        logp, entropy = torch.cat(logps), torch.cat(entropies)
        ctx.save_for_backward(logits, tokens, torch.cat(log_zs))
        ctx.rows, ctx.temperature = rows, temperature
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """∂ log π(token) / ∂ logit = (1[token] − π) / temperature."""
        logits, tokens, log_z = ctx.saved_tensors
        weight = (grads[0] / ctx.temperature).unsqueeze(-1)
        gradient = torch.empty_like(logits)
        whole = (gradient, logits, tokens.unsqueeze(-1), log_z.unsqueeze(-1), weight)
        for out, chunk, chosen, norm, share in zip(*(t.split(ctx.rows) for t in whole), strict=True):
            change = torch.sub(_scaled(chunk, ctx.temperature), norm).exp_().mul_(-share)
            out.copy_(change.scatter_add_(-1, chosen, share))
        return gradient, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Float32 logits over temperature; no copy if there is nothing to convert."""
    wide = logits.float()
    return wide if temperature == 1 else wide / temperature


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) (Schulman 2020, "Approximating KL divergence").

    k1 = log π/π_ref is unbiased with high variance; k2 = k1²/2; k3 = π_ref/π − 1 − log π_ref/π, which the
    paper uses, is unbiased, non-negative and has low variance.
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
    (truncated importance sampling; Yao et al. 2025). `sequence` uses one product per sequence.
    """
    difference = (inputs.old_logp - inputs.engine_logp).detach() * inputs.mask
    if correction == "sequence":
        difference = difference.sum(-1, keepdim=True).expand_as(difference)
    return torch.exp(difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))


def cap_ratio(ratio: Tensor, cap: float, limit: Limit) -> Tensor:
    """The importance weights [B, T] of ratios [B, T], never above the cap.

    `truncate` sets larger ratios to the cap; `mask` sets them to 0, so those tokens give no gradient.
    """
    return ratio.clamp(max=cap) if limit == "truncate" else ratio.masked_fill(ratio > cap, 0.0)


def policy_loss(
    inputs: LossInputs, options: LossOptions, counts: GlobalCounts
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one micro-batch: its share of the global batch's loss.

    Sources: grpo, DeepSeekMath (arXiv 2402.03300); dr_grpo (2503.20783); dapo's token mean and clip-higher
    (2503.14476); gspo (2507.18071); cispo (2506.13585); dual clip (1912.09729, equation 5).

    Returns:
        The scalar loss, and token sums for the metrics: `kl`, `clipped`, `ratio`.
    """
    log_ratio = inputs.logp - inputs.old_logp
    if options.loss == "gspo":
        # One ratio per sequence, its gradient spread over the tokens: sg[s] · π/sg[π].
        length = inputs.mask.sum(-1, keepdim=True).clamp(min=1)
        sequence = ((log_ratio * inputs.mask).sum(-1, keepdim=True) / length).detach()
        log_ratio = inputs.logp - inputs.logp.detach() + sequence
    ratio = torch.exp(log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    low, high = 1 - options.epsilon, 1 + options.epsilon_high
    advantages = inputs.advantages.unsqueeze(-1)
    if options.loss == "cispo":
        per_token = -ratio.detach().clamp(max=high) * advantages * inputs.logp
    else:
        gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        if options.dual_clip is not None:
            gain = torch.where(advantages < 0, torch.maximum(gain, options.dual_clip * advantages), gain)
        per_token = -gain

    weights = importance_ratio(inputs, options.importance_correction)
    if options.importance_correction != "none":
        per_token = per_token * cap_ratio(weights, options.importance_cap, options.importance_limit)

    kl_sum = 0.0
    if inputs.ref_logp is not None:
        kl = kl_estimate(inputs.logp, inputs.ref_logp, options.kl_estimator)
        per_token = per_token + options.beta * kl
        kl_sum = float((kl.detach() * inputs.mask).sum())

    with torch.no_grad():
        outside = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        if options.loss == "cispo":  # clips the weight of a token, whatever the sign of its advantage
            outside = ratio > high
        sums = {
            "kl": kl_sum,
            "clipped": float((outside * inputs.mask).sum()),
            "ratio": float((weights * inputs.mask).sum()),
        }
    return _aggregate(per_token, inputs.mask, options.loss, counts), sums


def _aggregate(per_token: Tensor, mask: Tensor, loss: LossName, counts: GlobalCounts) -> Tensor:
    """This micro-batch's share of the mean over the global batch.

    `dapo` and `cispo` weight all tokens equally, `grpo` and `gspo` all sequences; `dr_grpo` divides by a
    constant length, so that long wrong answers are not favored.
    """
    masked = per_token * mask
    match loss:
        case "dapo" | "cispo":
            return masked.sum() / counts.tokens
        case "grpo" | "gspo":
            return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / counts.sequences
        case "dr_grpo":
            return masked.sum() / (counts.sequences * counts.max_completion_length)
