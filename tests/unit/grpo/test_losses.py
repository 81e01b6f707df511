"""GRPO's losses against hand-worked cases and invariances."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lm_mixup.grpo import losses
from lm_mixup.grpo.losses import (
    GlobalCounts,
    LossInputs,
    LossOptions,
    importance_ratio,
    kl_estimate,
    policy_loss,
    token_logps_and_entropy,
)

LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


def make_inputs(batch: int = 8, length: int = 5, seed: int = 0, shift: float = 0.3) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(batch, length, generator=generator) * 3
    mask = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1), generator=generator)).float()
    noise = torch.randn(batch, length, generator=generator)
    return LossInputs(
        logp=logp.clone().requires_grad_(),
        old_logp=logp + shift * noise,
        engine_logp=logp + shift * noise + 0.05 * torch.randn(batch, length, generator=generator),
        ref_logp=logp - 0.1,
        advantages=torch.randn(batch, generator=generator),
        mask=mask,
    )


def part(inputs: LossInputs, rows: slice) -> LossInputs:
    return LossInputs(**{f.name: getattr(inputs, f.name)[rows] for f in dataclasses.fields(inputs)})


def counts_of(inputs: LossInputs) -> GlobalCounts:
    return GlobalCounts(int(inputs.mask.sum()), len(inputs.mask), max_completion_length=7)


def test_logps_match_log_softmax_and_entropy_of_a_uniform_policy_is_log_v():
    logits = torch.randn(2, 3, 11)
    tokens = torch.randint(0, 11, (2, 3))
    logp, _ = token_logps_and_entropy(logits, tokens, temperature=0.7)
    expected = torch.log_softmax(logits / 0.7, -1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(logp, expected)
    _, entropy = token_logps_and_entropy(torch.zeros(1, 1, 11), torch.zeros(1, 1, dtype=torch.long), 1.0)
    assert entropy.item() == pytest.approx(math.log(11), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_of_chunks_are_those_of_the_whole(dtype: torch.dtype, temperature: float, monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK", 25)  # two rows of 11
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator).mul_(3).to(dtype).requires_grad_()
    plain = logits.detach().clone().requires_grad_()
    tokens = torch.randint(0, 11, (2, 5), generator=generator)
    weight = torch.randn(2, 5, generator=generator)
    logp, entropy = token_logps_and_entropy(logits, tokens, temperature)
    every = torch.log_softmax(plain.float() / temperature, -1)
    torch.testing.assert_close(logp, every.gather(-1, tokens[..., None])[..., 0])
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1).detach())
    (logp * weight).sum().backward()
    (every.gather(-1, tokens[..., None])[..., 0] * weight).sum().backward()
    torch.testing.assert_close(logits.grad, plain.grad)


class Large(TorchDispatchMode):
    """Notes the operations that make a new tensor of so many bytes or more."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.made: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            large = isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.size
            if large and tensor.untyped_storage().data_ptr() not in given:
                self.made.append(str(func))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_the_logits_their_gradient_alone_is_as_large(dtype: torch.dtype, monkeypatch):
    rows, vocabulary = 64, 500
    monkeypatch.setattr(losses, "_CHUNK", 8 * vocabulary)
    logits = torch.randn(1, rows, vocabulary).to(dtype).requires_grad_()
    with Large(logits.nbytes) as large:
        logp, _ = token_logps_and_entropy(logits, torch.randint(0, vocabulary, (1, rows)), 0.7)
        assert large.made == []
        logp.sum().backward()
    assert large.made == ["aten.empty_like.default"]
    assert logits.grad is not None and logits.grad.dtype == dtype


def test_kl_estimators_by_hand():
    logp, ref = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert kl_estimate(logp, ref, "k1").item() == pytest.approx(0.5)
    assert kl_estimate(logp, ref, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(logp, ref, "k3").item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_k3_is_non_negative_and_zero_only_at_equality():
    difference = torch.arange(-50, 51) / 10
    k3 = kl_estimate(difference, torch.zeros(101), "k3")
    assert (k3 >= 0).all()
    assert k3[50] == 0
    assert (k3[[0, 49, 51, 100]] > 0).all()


def test_on_policy_gradient_is_minus_advantage_over_token_count():
    """With ratio 1 and no KL, d loss / d logp of a token is −advantage / tokens: the policy gradient."""
    inputs = make_inputs(shift=0.0)
    inputs = dataclasses.replace(inputs, old_logp=inputs.logp.detach(), ref_logp=None)
    options = LossOptions(loss="dapo", beta=0.0, importance_correction="none")
    loss, _ = policy_loss(inputs, options, counts_of(inputs))
    loss.backward()
    expected = -inputs.advantages[:, None] * inputs.mask / inputs.mask.sum()
    torch.testing.assert_close(inputs.logp.grad, expected)


def test_clipping_by_hand():
    """Ratio 1.5 is clipped at 1.2 for a positive advantage, without gradient; not for a negative one."""
    logp = torch.log(torch.tensor([[1.5], [1.5]])).requires_grad_()
    zeros = torch.zeros(2, 1)
    inputs = LossInputs(logp, zeros, zeros, None, torch.tensor([1.0, -1.0]), torch.ones(2, 1))
    options = LossOptions(loss="dapo", beta=0.0, importance_correction="none")
    loss, sums = policy_loss(inputs, options, GlobalCounts(2, 2, 1))
    assert loss.item() == pytest.approx((-1.2 + 1.5) / 2)
    loss.backward()
    assert inputs.logp.grad[0].item() == 0
    assert inputs.logp.grad[1].item() == pytest.approx(1.5 / 2)
    assert sums["clipped"] == 1


def test_cispo_limits_high_ratios_whatever_the_advantage_and_low_ones_never():
    logp = torch.log(torch.tensor([[1.5], [1.5], [0.5]])).requires_grad_()
    zeros = torch.zeros(3, 1)
    inputs = LossInputs(logp, zeros, zeros, None, torch.tensor([1.0, -1.0, -1.0]), torch.ones(3, 1))
    options = LossOptions(loss="cispo", beta=0.0, importance_correction="none")
    loss, sums = policy_loss(inputs, options, GlobalCounts(3, 3, 1))
    loss.backward()
    torch.testing.assert_close(inputs.logp.grad[:, 0], torch.tensor([-1.2, 1.2, 0.5]) / 3)
    assert sums["clipped"] == 2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pieces", [2, 8])
def test_one_by_eight_equals_eight_by_one(loss: str, pieces: int):
    """However the batch is cut, losses and gradients add up to those of the whole."""
    whole = make_inputs()
    counts = counts_of(whole)
    options = LossOptions(loss=loss, importance_correction="sequence")
    total, _ = policy_loss(whole, options, counts)
    total.backward()
    cut = make_inputs()
    size = 8 // pieces
    shares = [policy_loss(part(cut, slice(i, i + size)), options, counts)[0] for i in range(0, 8, size)]
    torch.stack(shares).sum().backward()
    assert sum(share.item() for share in shares) == pytest.approx(total.item(), abs=1e-6)
    torch.testing.assert_close(cut.logp.grad, whole.logp.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_changes_nothing(loss: str):
    inputs = make_inputs()
    filler = torch.full((8, 3), -7.0)
    wide = LossInputs(
        logp=torch.cat([inputs.logp.detach(), filler], 1).requires_grad_(),
        old_logp=torch.cat([inputs.old_logp, filler + 1], 1),
        engine_logp=torch.cat([inputs.engine_logp, filler - 1], 1),
        ref_logp=torch.cat([inputs.ref_logp, filler], 1),
        advantages=inputs.advantages,
        mask=torch.cat([inputs.mask, torch.zeros(8, 3)], 1),
    )
    options = LossOptions(loss=loss, importance_correction="sequence")
    narrow_loss, narrow_sums = policy_loss(inputs, options, counts_of(inputs))
    wide_loss, wide_sums = policy_loss(wide, options, counts_of(inputs))
    assert wide_loss.item() == pytest.approx(narrow_loss.item(), abs=1e-6)
    for key, value in narrow_sums.items():
        if key != "ratio":  # summed over the padded width only where the mask is one
            assert wide_sums[key] == pytest.approx(value, abs=1e-4)


def test_gspo_uses_one_ratio_a_sequence():
    logp = torch.tensor([[0.1, 0.3]], requires_grad=True)
    zeros = torch.zeros(1, 2)
    inputs = LossInputs(logp, zeros, zeros, None, torch.tensor([1.0]), torch.ones(1, 2))
    options = LossOptions(loss="gspo", beta=0.0, epsilon=9.0, epsilon_high=9.0, importance_correction="none")
    loss, _ = policy_loss(inputs, options, GlobalCounts(2, 1, 2))
    assert loss.item() == pytest.approx(-math.exp(0.2))
    loss.backward()
    torch.testing.assert_close(inputs.logp.grad, torch.full((1, 2), -math.exp(0.2) / 2))


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    logp = torch.log(torch.tensor([[3.0]])).requires_grad_()
    zeros = torch.zeros(1, 1)
    inputs = LossInputs(logp, zeros, zeros, None, torch.tensor([1.0]), torch.ones(1, 1))
    options = LossOptions(loss="cispo", beta=0.0, importance_correction="none")
    policy_loss(inputs, options, GlobalCounts(1, 1, 1))[0].backward()
    assert inputs.logp.grad.item() == pytest.approx(-1.2)


def test_importance_ratio_is_truncated_in_the_loss_and_reported_before():
    zeros = torch.zeros(1, 1)
    engine = torch.full((1, 1), -math.log(5.0))
    inputs = LossInputs(zeros.clone().requires_grad_(), zeros, engine, None, torch.ones(1), torch.ones(1, 1))
    assert importance_ratio(inputs, "token").item() == pytest.approx(5.0)
    loss, sums = policy_loss(inputs, LossOptions(loss="dapo", beta=0.0), GlobalCounts(1, 1, 1))
    assert loss.item() == pytest.approx(-2.0)
    assert sums["ratio"] == pytest.approx(5.0)


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_a_masked_ratio_teaches_nothing_and_leaves_the_kl(correction: str):
    old = torch.tensor([[0.1, math.log(5.0)], [0.1, 0.2]])
    logp = old.clone().requires_grad_()
    inputs = LossInputs(logp, old, torch.zeros(2, 2), old - 1, torch.ones(2), torch.ones(2, 2))

    def gradient(beta: float) -> torch.Tensor:
        options = LossOptions(
            beta=beta, kl_estimator="k1", importance_correction=correction, importance_limit="mask"
        )
        loss, sums = policy_loss(inputs, options, GlobalCounts(1, 2, 2))
        assert sums["ratio"] > 5  # as measured, before the limit
        return -torch.autograd.grad(loss, logp)[0]

    taught = {"token": [[math.exp(0.1), 0.0], [math.exp(0.1), math.exp(0.2)]]}
    taught["sequence"] = [[0.0, 0.0], [math.exp(0.3), math.exp(0.3)]]
    torch.testing.assert_close(gradient(0.0), torch.tensor(taught[correction]))
    torch.testing.assert_close(gradient(0.5), torch.tensor(taught[correction]) - 0.5)


def test_sequence_ratio_is_the_product_over_completion_tokens_only():
    old = torch.tensor([[0.1, 0.2, 9.0]])
    inputs = LossInputs(old, old, torch.zeros(1, 3), None, torch.ones(1), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(importance_ratio(inputs, "sequence"), torch.full((1, 3), math.exp(0.3)))


def test_log_ratio_cannot_overflow():
    old = torch.tensor([[200.0]])
    inputs = LossInputs(old, old, torch.zeros(1, 1), None, torch.ones(1), torch.ones(1, 1))
    assert torch.isfinite(importance_ratio(inputs, "token")).all()


def test_dr_grpo_divides_by_a_constant_and_grpo_by_the_length():
    """A long and a short sequence with equal advantage: grpo weighs them alike, dr_grpo by their tokens."""
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    zeros = torch.zeros(2, 4)

    def gradient(loss: str) -> torch.Tensor:
        logp = zeros.clone().requires_grad_()
        inputs = LossInputs(logp, zeros, zeros, None, torch.ones(2), mask)
        options = LossOptions(loss=loss, beta=0.0, importance_correction="none")
        policy_loss(inputs, options, GlobalCounts(5, 2, 4))[0].backward()
        return -logp.grad.sum(-1)

    torch.testing.assert_close(gradient("grpo"), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(gradient("dr_grpo"), torch.tensor([0.5, 0.125]))
    torch.testing.assert_close(gradient("dapo"), torch.tensor([0.8, 0.2]))


def test_dual_clip_bounds_what_a_bad_completion_weighs_and_nothing_else():
    """Ratios 5 and 2 at advantage −1 with c = 3: losses 3 (no gradient) and 2; at advantage 1 as without."""
    ratios = torch.tensor([[5.0, 2.0]])
    logp = ratios.log().requires_grad_()
    zeros = torch.zeros(1, 2)
    options = LossOptions(loss="dapo", beta=0.0, epsilon_high=0.3, importance_correction="none")
    dual, counts = dataclasses.replace(options, dual_clip=3.0), GlobalCounts(2, 1, 2)
    for advantage, plain, bounded in ((-1.0, 7.0, 5.0), (1.0, -2.6, -2.6)):
        inputs = LossInputs(logp, zeros, zeros, None, torch.tensor([advantage]), torch.ones(1, 2))
        assert policy_loss(inputs, options, counts)[0].item() == pytest.approx(plain / 2)
        loss, _ = policy_loss(inputs, dual, counts)
        assert loss.item() == pytest.approx(bounded / 2)
        if advantage < 0:
            (grad,) = torch.autograd.grad(loss, logp)
            torch.testing.assert_close(grad, torch.tensor([[0.0, 1.0]]))
