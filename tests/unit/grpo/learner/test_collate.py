"""Shared prompts: the packed row, and that it gives the loss and gradients of episodes in own rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lm_mixup.core.errors import InputError
from lm_mixup.grpo.learner.collate import (
    MicroBatch,
    collate,
    collate_shared,
    completion_mask,
)
from lm_mixup.grpo.learner.forward import completion_logps, packed_attention, use_shared_prompts
from lm_mixup.grpo.learner.schedule import assign_to_ranks, shared_micro_batches
from lm_mixup.grpo.losses import GlobalCounts, LossInputs, LossOptions, policy_loss
from lm_mixup.grpo.types import Episode

TOLERANCE = 1e-5
VOCABULARY = 61
GROUPS = [(7, [5, 1, 9, 3]), (1, [4, 4]), (12, [1]), (3, [2, 8, 1])]
"""Prompt tokens and completion tokens of each group."""


def tiny(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    return Qwen2ForCausalLM(config)


@pytest.fixture(scope="module")
def models() -> tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]:
    """The same weights twice: as loaded, and set up for shared prompts."""
    plain, shared = tiny(0), tiny(0)
    use_shared_prompts(shared)
    return plain, shared


@pytest.fixture(scope="module")
def references() -> tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]:
    plain, shared = tiny(1), tiny(1)
    use_shared_prompts(shared)
    return plain, shared


def episodes_of(groups: list[tuple[int, list[int]]], seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    episodes = []
    for group, (prompt, lengths) in enumerate(groups):
        prompt_ids = rng.integers(1, VOCABULARY, prompt).tolist()
        for place, length in enumerate(lengths):
            tokens = rng.integers(1, VOCABULARY, length).tolist()
            engine = rng.normal(-4, 0.3, length).astype(np.float32)
            advantage = 0.0 if place == 1 else float(rng.normal())
            episodes.append(Episode(list(prompt_ids), tokens, engine, advantage, group))
    return episodes


def gradients(model, micro: MicroBatch, options: LossOptions, counts: GlobalCounts, reference):
    model.zero_grad()
    logp, entropy = completion_logps(model, micro, temperature=0.7)
    drift = 0.3 * torch.sin(torch.arange(micro.mask.numel())).view_as(micro.mask)
    with torch.no_grad():
        ref_logp, _ = completion_logps(reference, micro, temperature=0.7)
    old_logp = logp.detach() + drift
    inputs = LossInputs(logp, old_logp, micro.engine_logp, ref_logp, micro.advantages, micro.mask)
    loss, sums = policy_loss(inputs, options, counts)
    loss.backward()
    entropy_sum = float((entropy * micro.mask).sum())
    return (
        float(loss.detach()),
        sums | {"entropy": entropy_sum},
        {n: p.grad for n, p in model.named_parameters()},
    )


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_loss_and_gradients_are_those_of_episodes_in_rows_of_their_own(models, references, name, correction):
    episodes = episodes_of(GROUPS)
    counts = GlobalCounts(sum(len(e.completion_ids) for e in episodes), len(episodes), 16)
    options = LossOptions(loss=name, beta=0.1, importance_correction=correction)
    plain = gradients(models[0], collate(episodes, 0), options, counts, references[0])
    shared = gradients(models[1], collate_shared(episodes), options, counts, references[1])
    assert shared[0] == pytest.approx(plain[0], abs=TOLERANCE)
    assert shared[1] == pytest.approx(plain[1], abs=1e-3, rel=1e-5)
    assert max(float(g.abs().max()) for g in plain[2].values()) > 0.01
    for parameter, gradient in plain[2].items():
        torch.testing.assert_close(shared[2][parameter], gradient, atol=TOLERANCE, rtol=0, msg=parameter)


@settings(deadline=None, max_examples=15)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_log_probs_of_any_groups(models, groups: list[tuple[int, list[int]]]):
    episodes = episodes_of(groups)
    with torch.no_grad():
        plain = completion_logps(models[0], collate(episodes, 0), 1.0)
        shared_micro = collate_shared(episodes)
        shared = completion_logps(models[1], shared_micro, 1.0)
    for one, other in zip(plain, shared, strict=True):
        torch.testing.assert_close(other, one * shared_micro.mask, atol=TOLERANCE, rtol=0)


def test_gradient_checkpointing_changes_nothing(models, references):
    episodes = episodes_of(GROUPS)
    counts = GlobalCounts(50, len(episodes), 16)
    checkpointed = tiny(0).train()
    use_shared_prompts(checkpointed)
    checkpointed.gradient_checkpointing_enable()
    micro = collate_shared(episodes)
    expected = gradients(models[1].train(), micro, LossOptions(), counts, references[1])
    found = gradients(checkpointed, micro, LossOptions(), counts, references[1])
    for parameter, gradient in expected[2].items():
        torch.testing.assert_close(found[2][parameter], gradient, atol=1e-6, rtol=0)


def test_micro_batches_and_ranks_add_up_to_one(models, references):
    episodes = episodes_of(GROUPS)
    counts = GlobalCounts(sum(len(e.completion_ids) for e in episodes), len(episodes), 16)
    options = LossOptions(beta=0.1, importance_correction="sequence", loss="grpo")

    def run(limit: int, ranks: int) -> dict[str, torch.Tensor]:
        total: dict[str, torch.Tensor] = {}
        for share in assign_to_ranks(shared_micro_batches(episodes, limit, ranks), ranks):
            for indices in share:
                micro = collate_shared([episodes[i] for i in indices or [0]])
                micro = micro if indices else micro.zero_loss()
                model, reference = models[1], references[1]
                model.zero_grad()
                logp, _ = completion_logps(model, micro, 1.0)
                with torch.no_grad():
                    ref, _ = completion_logps(reference, micro, 1.0)
                fields = (logp, logp.detach(), micro.engine_logp, ref, micro.advantages, micro.mask)
                policy_loss(LossInputs(*fields), options, counts)[0].backward()
                for name, parameter in model.named_parameters():
                    total[name] = total.get(name, 0) + parameter.grad
        return total

    whole = run(1000, 1)
    for limit, ranks in ((20, 1), (1000, 2), (1, 4)):
        for name, gradient in run(limit, ranks).items():
            torch.testing.assert_close(gradient, whole[name], atol=TOLERANCE, rtol=0)


def test_a_zero_loss_micro_batch_reaches_every_parameter_and_changes_none(models):
    micro = collate_shared(episodes_of([(3, [2])])).zero_loss()
    models[1].zero_grad()
    logp, _ = completion_logps(models[1], micro, 1.0)
    inputs = LossInputs(logp, logp.detach(), micro.engine_logp, None, micro.advantages, micro.mask)
    policy_loss(inputs, LossOptions(loss="gspo"), GlobalCounts(5, 1, 4))[0].backward()
    assert all(p.grad is not None and not p.grad.any() for p in models[1].parameters())


def pack(groups: list[tuple[list[int], list[list[int]]]]) -> MicroBatch:
    episodes = [
        Episode(prompt, completion, np.zeros(len(completion), dtype=np.float32), 0.0, index)
        for index, (prompt, completions) in enumerate(groups)
        for completion in completions
    ]
    return collate_shared(episodes)


def test_a_row_by_hand():
    row = pack([([1, 2], [[10, 11], [20]]), ([3], [[30, 31, 32]])])
    assert row.input_ids.tolist() == [[1, 2, 10, 11, 20, 3, 30, 31, 32]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]
    assert row.completion_ids.tolist() == [[10, 11, 20, 30, 31, 32]]
    assert row.logit_columns.tolist() == [1, 2, 1, 5, 6, 7]
    first, second = row.groups
    assert (first.prompt_length, second.prompt_length) == (2, 1)
    assert first.columns.tolist() == [0, 1, 2, 2]
    assert first.tokens.tolist() == [0, 1, 2]
    assert first.mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def block_mask(row: MicroBatch) -> torch.Tensor:
    """bool [L, L]: what each token of a packed row may see, from the definition."""
    owner, completion = [], []
    for index, group in enumerate(row.groups):
        for k, length in enumerate([group.prompt_length, *group.lengths]):
            owner += [index] * length
            completion += [k] * length
    return torch.tensor(
        [
            [
                key <= query and owner[key] == owner[query] and completion[key] in (0, completion[query])
                for key in range(len(owner))
            ]
            for query in range(len(owner))
        ]
    )


def test_attention_is_that_of_the_block_mask():
    row = pack([([1] * p, [[1] * r for r in lengths]) for p, lengths in GROUPS])
    columns = row.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, columns, 16, generator=generator, requires_grad=True) for heads in (6, 2, 2)
    )
    out = packed_attention(query, key, value, row.groups, scaling=0.2)
    dense = scaled_dot_product_attention(
        query, key, value, attn_mask=block_mask(row), scale=0.2, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(out, dense, atol=1e-6, rtol=0)
    weight = torch.randn(out.shape, generator=generator)
    for found, expected in zip(
        torch.autograd.grad((out * weight).sum(), (query, key, value)),
        torch.autograd.grad((dense * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_the_causal_bias_that_stands_in_on_cuda_is_the_same_mask():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 16, generator=generator)
    key, value = (torch.randn(2, 2, 12, 16, generator=generator) for _ in range(2))
    masks = completion_mask(7, 5, torch.device("cpu")), causal_lower_right(5, 12)
    by_mask, by_bias = (
        scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True) for mask in masks
    )
    torch.testing.assert_close(by_mask, by_bias)


def test_a_sibling_is_not_seen(models):
    episodes = episodes_of([(4, [3, 3])])
    other = dataclasses.replace(episodes[0], completion_ids=[9, 9, 9])
    with torch.no_grad():
        one, two = (
            completion_logps(models[1], collate_shared([first, episodes[1]]), 1.0)[0]
            for first in (episodes[0], other)
        )
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_a_model_set_up_for_shared_prompts_still_reads_padded_rows(models):
    micro = collate(episodes_of(GROUPS), 0)
    with torch.no_grad():
        one, other = (completion_logps(model, micro, 1.0)[0] for model in models)
    torch.testing.assert_close(one * micro.mask, other * micro.mask)


def test_episodes_of_a_group_must_share_their_prompt():
    one, other = episodes_of([(3, [2]), (3, [2])])
    with pytest.raises(ValueError, match="group 0"):
        collate_shared([one, dataclasses.replace(other, group=0)])


def test_a_model_with_sliding_windows_is_refused_on_one_line():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=8, num_key_value_heads=1, sliding_window=4, **sizes)
    with pytest.raises(InputError, match=r"sliding_attention.*shared_prompt: false"):
        use_shared_prompts(MistralForCausalLM(config))
    config.sliding_window = None
    use_shared_prompts(MistralForCausalLM(config))


def tokens(episodes: list[Episode], batch: list[int]) -> int:
    prompts = {episodes[i].group: len(episodes[i].prompt_ids) for i in batch}
    return sum(prompts.values()) + sum(len(episodes[i].completion_ids) for i in batch)


@settings(deadline=None, max_examples=40)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.integers(1, 60), min_size=1, max_size=8)),
        min_size=1,
        max_size=12,
    ),
    limit=st.integers(64, 400),
    ranks=st.integers(1, 5),
)
def test_every_episode_is_in_one_packed_micro_batch_within_the_limit(groups, limit: int, ranks: int):
    episodes = episodes_of(groups)
    batches = shared_micro_batches(episodes, limit, ranks)
    assert sorted(i for batch in batches for i in batch) == list(range(len(episodes)))
    for batch in batches:
        assert len(batch) == 1 or tokens(episodes, batch) <= limit
        assert collate_shared([episodes[i] for i in batch]).input_ids.numel() == tokens(episodes, batch)


def test_a_group_that_fits_stays_whole_and_one_that_does_not_is_split():
    episodes = episodes_of([(50, [10] * 4)])
    assert shared_micro_batches(episodes, 90) == [[0, 1, 2, 3]]
    assert sorted(map(len, shared_micro_batches(episodes, 80))) == [1, 3]
    assert sorted(map(len, shared_micro_batches(episodes, 64))) == [1, 1, 1, 1]


def test_no_rank_idles_where_splitting_a_group_pays():
    episodes = episodes_of([(1500, [600] * 4)] * 4)
    assert len(shared_micro_batches(episodes, 16384, ranks=1)) == 1
    spread_out = shared_micro_batches(episodes, 16384, ranks=8)
    assert [len(batch) for batch in spread_out] == [2] * 8
