"""The memory estimate: measured bytes per token, sums by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lm_mixup.config import GrpoConfig
from lm_mixup.core.errors import InputError
from lm_mixup.grpo.learner.memory import LearnerMemory, _saved, activation_bytes, check_fits, estimate

GIB = 1 << 30


def tiny(dtype: torch.dtype = torch.float32) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def settings(**changes: object) -> GrpoConfig:
    lengths = {"max_prompt_length": 100, "max_completion_length": 100, "micro_tokens": 1000}
    return GrpoConfig.model_validate(lengths | changes)


def memory(**changes: int) -> LearnerMemory:
    parts = {"weights": 3, "reference": 3, "gradients": 6, "optimizer": 18, "activations": 51, "logits": 6}
    return LearnerMemory(**{name: count * GIB for name, count in (parts | changes).items()})


def test_the_bytes_of_a_long_row_are_those_of_short_ones_times_its_tokens():
    policy = tiny().train()
    fixed = _saved(policy, 0 + 64) - 64 * activation_bytes(policy)
    assert _saved(policy, 777) == pytest.approx(777 * activation_bytes(policy) + fixed, rel=0.01)


def test_a_layer_keeps_at_least_its_input_its_projections_and_its_mlp():
    """Of a layer in float32: its input, q, k, v, attention's output, gate, up and their product."""
    least = 4 * (32 + 32 + 16 + 16 + 32 + 3 * 64) * 4  # floats, of 4 layers, bytes each
    assert least <= activation_bytes(tiny()) <= 4 * least


def test_checkpointing_keeps_the_layers_inputs_and_one_layer():
    plain = tiny().train()
    checkpointed = tiny().train()
    checkpointed.gradient_checkpointing_enable()
    whole, less = activation_bytes(plain), activation_bytes(checkpointed)
    assert less < 0.55 * whole
    assert less >= whole / 4 + 4 * 32 * 4  # one layer, and 32 floats of each of 4
    assert checkpointed.training


@pytest.mark.parametrize("stage, parts", [(0, (2, 4)), (1, (4, 6)), (2, (2, 6)), (3, (2, 6))])
def test_sums_by_hand_in_bfloat16_on_two_ranks(stage, parts):
    policy = tiny(torch.bfloat16)
    count = sum(p.numel() for p in policy.parameters())
    needed = estimate(
        policy, settings(zero_stage=stage), has_reference=True, bytes_per_token=10.0, world_size=2
    )
    assert needed.weights == count * 2 // (2 if stage == 3 else 1)
    assert needed.reference == count * 2
    assert (needed.gradients, needed.optimizer) == tuple(count * part for part in parts)
    assert needed.activations == 10_000
    assert needed.logits == 2 * 1000 * 100 * 2


def test_frozen_weights_have_no_gradient_and_no_state():
    policy = tiny()
    policy.requires_grad_(False)
    needed = estimate(policy, settings(), has_reference=False, bytes_per_token=0, world_size=1)
    assert needed.gradients == needed.optimizer == needed.reference == 0 < needed.weights


def test_a_micro_batch_holds_at_least_one_episode():
    needed = estimate(
        tiny(), settings(micro_tokens=64), has_reference=False, bytes_per_token=1.0, world_size=1
    )
    assert needed.activations == 200


@pytest.mark.parametrize(
    "needed, total, checkpointing, remedy",
    [
        (memory(), 80, False, r"grpo.gradient_checkpointing: true"),
        (memory(), 80, True, r"lower grpo.micro_tokens to 768"),  # (80 − 24 − 6) / 57 of 1,000
        (memory(), 33, True, r"raise grpo.learner_ranks"),
    ],
)
def test_what_cannot_fit_is_refused_with_a_remedy(needed, total, checkpointing, remedy):
    config = settings(mode="async")
    with pytest.raises(
        InputError, match=rf"about 87 GiB \(weights 3\.0.*the GPU has {total} GiB: .*{remedy}"
    ):
        check_fits(needed, total * GIB, config, checkpointing=checkpointing)


def test_engines_that_leave_too_little_are_named():
    with pytest.raises(InputError, match=r"gpu_memory_utilization 0.8 does not fit; set it to 0.65 or less"):
        check_fits(memory(activations=0), 80 * GIB, settings(gpu_memory_utilization=0.8), checkpointing=True)
    check_fits(memory(activations=0), 80 * GIB, settings(gpu_memory_utilization=0.7), checkpointing=True)
    check_fits(memory(activations=0), 80 * GIB, settings(mode="async"), checkpointing=True)
