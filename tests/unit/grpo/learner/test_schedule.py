"""Episodes, padding and the cutting of micro-batches."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.config import GrpoConfig
from lm_mixup.grpo.learner.collate import collate
from lm_mixup.grpo.learner.learner import plan_steps
from lm_mixup.grpo.learner.schedule import assign_to_ranks, micro_batches, update_slices
from lm_mixup.grpo.rollout.pool import assign_prompts
from lm_mixup.grpo.types import Episode


def episode(prompt: int, completion: int, advantage: float = 1.0, group: int = 0) -> Episode:
    return Episode(
        list(range(1, prompt + 1)),
        list(range(100, 100 + completion)),
        np.full(completion, -0.5, dtype=np.float32),
        advantage,
        group,
    )


def test_collate_by_hand():
    micro = collate([episode(2, 1), episode(1, 2, advantage=-3.0)], pad_id=0)
    assert micro.input_ids.tolist() == [[1, 2, 100, 0], [0, 1, 100, 101]]
    assert micro.attention_mask.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 2], [0, 0, 1, 2]]
    assert micro.completion_ids.tolist() == [[100, 0], [100, 101]]
    assert micro.logit_columns.tolist() == [1, 2]
    assert micro.mask.tolist() == [[1, 0], [1, 1]]
    assert micro.engine_logp.tolist() == [[-0.5, 0.0], [-0.5, -0.5]]
    torch.testing.assert_close(micro.advantages, torch.tensor([1.0, -3.0]))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(64, 2000))
def test_every_episode_is_in_one_micro_batch_within_the_limit(lengths: list[int], limit: int):
    batches = micro_batches(lengths, limit)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= limit


@given(st.integers(0, 20), st.integers(1, 5))
def test_every_rank_gets_the_same_number_of_micro_batches(count: int, ranks: int):
    dealt = assign_to_ranks([[i] for i in range(count)], ranks)
    assert len({len(share) for share in dealt}) == 1
    assert sorted(i for share in dealt for batch in share for i in batch) == list(range(count))


def test_update_slices_cover_the_batch_once():
    assert [list(r) for r in update_slices(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [list(r) for r in update_slices(5, None)] == [[0, 1, 2, 3, 4]]


def test_no_step_is_left_with_a_few_completions_and_groups_stay_whole():
    assert [len(r) for r in update_slices(508, 126)] == [102, 102, 101, 102, 101]
    sizes = [len(r) for r in update_slices(500, 16, group=4)]
    assert sum(sizes) == 500 and set(sizes) == {12, 16} and len(sizes) == 32
    assert [len(r) for r in update_slices(512, 16, group=4)] == [16] * 32


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_plan_counts_are_global_whatever_the_ranks(ranks: int, iterations: int, size: int, shared: bool):
    episodes = [episode(3, 1 + i % 4, group=i // 3) for i in range(9)]
    config = GrpoConfig(
        prompts_per_step=12,
        learner_ranks=ranks,
        num_iterations=iterations,
        update_batch_size=size,
        micro_tokens=64,
        shared_prompt=shared,
    )
    plans = plan_steps(episodes, config, 1e-3)
    assert len(plans) == iterations * -(-9 // size)
    for step in plans:
        learned = sorted(i for share in step for batch in share.micro_batches for i in batch)
        assert all(share.counts.sequences == len(learned) for share in step)
        assert all(
            share.counts.tokens == sum(len(episodes[i].completion_ids) for i in learned) for share in step
        )
    first_pass = plans[: len(plans) // iterations]
    covered = sorted(
        i for step in first_pass for share in step for batch in share.micro_batches for i in batch
    )
    assert covered == list(range(9))


@given(st.lists(st.integers(1, 99), min_size=1, max_size=30), st.integers(1, 4))
def test_prompts_are_dealt_once_and_evenly(cost: list[int], actors: int):
    shards = assign_prompts(range(len(cost)), cost, actors)
    assert sorted(p for shard in shards for p in shard) == list(range(len(cost)))
    loads = [sum(cost[p] for p in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(cost)
