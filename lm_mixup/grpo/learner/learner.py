"""The driver's handle on the learner ranks, and how a rollout batch is split into optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.core.run_dir import StageDir
from lm_mixup.distributed.labels import label
from lm_mixup.distributed.ray_wait import lost, wait_for
from lm_mixup.grpo.learner.rank import LearnerRank
from lm_mixup.grpo.learner.schedule import (
    OptimizerStep,
    assign_to_ranks,
    micro_batches,
    shared_micro_batches,
    update_slices,
)
from lm_mixup.grpo.losses import GlobalCounts
from lm_mixup.grpo.types import Episode
from lm_mixup.grpo.weights.transport import DeviceWeights, StoredWeights, sender

if TYPE_CHECKING:
    from lm_mixup.grpo.placement import Placement


class Learner:
    """The driver's handle on all learner ranks.

    If a rank dies during its first start, the first call fails as after any later death, and `restart`
    recovers from it.
    """

    def __init__(
        self,
        model_path: str,
        model: ModelConfig,
        config: GrpoConfig,
        seed: int,
        placement: Placement,
    ) -> None:
        import ray

        self._make_args = (model_path, model, config, seed)
        self._config = config
        self._placement = placement
        self._sender = sender(config)
        try:
            self._start()
        except ray.exceptions.RayError:
            if not self.dead_ranks():
                raise

    def _start(self) -> None:
        """Starts the ranks, each in its own bundle, and forms their process group."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        rank_class: Any = ray.remote(LearnerRank)
        self.ranks: list[Any] = [
            rank_class.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._placement.group, placement_group_bundle_index=rank
                ),
                name=label("grpo", f"learner-{rank}"),
                **self._placement.learner_options,
            ).remote(*self._make_args)
            for rank in range(self._config.learner_ranks)
        ]
        address, port = self._wait([self.ranks[0].open_port.remote()], "learner rank 0 to load its model")[0]
        size = len(self.ranks)
        self._wait(
            [rank.join.remote(i, size, address, port) for i, rank in enumerate(self.ranks)],
            "the learner ranks to form their process group",
        )

    def dead_ranks(self) -> list[int]:
        """The ranks whose process is gone; a rank that hangs, waiting for another, is not among them."""
        return lost(self.ranks)

    def restart(self) -> None:
        """Replaces all ranks, in the same bundles; the new ones hold the initial weights."""
        self.shutdown()
        self._start()

    def _wait(self, refs: list[Any], what: str) -> list[Any]:
        return wait_for(refs, what, self._config.timeout_s)

    def update(self, episodes: Sequence[Episode], learning_rate: float) -> dict[str, float]:
        """Trains on one rollout batch.

        Returns:
            `loss, grad_norm, kl, entropy, clip_ratio/region_mean, sampling/…` as means over tokens, and
            `seconds`.
        """
        import ray

        started = time.perf_counter()
        plans = plan_steps(episodes, self._config, learning_rate)
        shared = ray.put(list(episodes))
        per_rank = self._wait(
            [rank.update.remote(shared, [step[i] for step in plans]) for i, rank in enumerate(self.ranks)],
            "the learner to update",
        )
        tokens = [step[0].counts.tokens for step in plans]
        return summarize_update(per_rank, tokens) | {"seconds": time.perf_counter() - started}

    def kl(self, episodes: Sequence[Episode]) -> np.ndarray:
        """The KL estimate to the reference model, summed over each episode's tokens: float64 [E]."""
        import ray

        one_step = self._config.model_copy(update={"num_iterations": 1, "update_batch_size": None})
        (plan,) = plan_steps(episodes, one_step, learning_rate=0.0)
        shared = ray.put(list(episodes))
        per_rank = self._wait(
            [rank.kl.remote(shared, plan[i].micro_batches) for i, rank in enumerate(self.ranks)],
            "the learner to compute the KL to its reference model",
        )
        sums = {index: value for rank in per_rank for index, value in rank.items()}
        return np.array([sums[index] for index in range(len(episodes))])

    def logps(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log π of each token of a sequence given those before it: float32 [T − 1]."""
        logps: np.ndarray = self._wait(
            [rank.logps.remote(list(token_ids)) for rank in self.ranks], "the learner to score the probe"
        )[0]
        return logps

    def weights(self) -> StoredWeights | DeviceWeights:
        """Where engines get the weights from."""
        if self._sender is None:
            return self._gathered()
        return DeviceWeights(self.ranks, self._sender, self._gathered)

    def _gathered(self) -> StoredWeights:
        """The weights in the object store: gathered by all ranks, held by rank 0."""
        # The second result reports a failure without copying the weights to the driver. An engine given a
        # reference to a failed result would look as if it had died itself.
        refs = [rank.weights.options(num_returns=2).remote() for rank in self.ranks]
        digests = self._wait([digest for _, digest in refs], "the learner to gather its weights")
        return StoredWeights(refs[0][0], digests[0])

    def save(self, out: StageDir, tag: str) -> None:
        """Writes a checkpoint into `checkpoints/` of a stage; every rank writes its share."""
        self._wait([r.save.remote(out, tag) for r in self.ranks], "the learner to write a checkpoint")

    def load(self, out: StageDir, tag: str) -> None:
        """Restores a checkpoint on all ranks."""
        self._wait([r.load.remote(out, tag) for r in self.ranks], "the learner to read its checkpoint")

    def save_model(self, out: StageDir, name: str) -> None:
        """Writes the policy in Hugging Face format into a folder of a stage."""
        self._wait([r.save_model.remote(out, name) for r in self.ranks], "the learner to write the model")

    def shutdown(self) -> None:
        """Kills the actors."""
        import ray

        for rank in self.ranks:
            ray.kill(rank)


def plan_steps(
    episodes: Sequence[Episode], config: GrpoConfig, learning_rate: float
) -> list[list[OptimizerStep]]:
    """Which micro-batches each rank runs in each optimizer step of one rollout batch: [steps][ranks]."""
    plans = []
    for _ in range(config.num_iterations):
        for chosen in update_slices(len(episodes), config.update_batch_size, config.num_generations):
            if config.shared_prompt:
                batches = shared_micro_batches(
                    [episodes[i] for i in chosen], config.micro_tokens, config.learner_ranks
                )
            else:
                batches = micro_batches([episodes[i].length for i in chosen], config.micro_tokens)
            assigned = assign_to_ranks(
                [[chosen[i] for i in batch] for batch in batches], config.learner_ranks
            )
            counts = GlobalCounts(
                tokens=sum(len(episodes[i].completion_ids) for i in chosen),
                sequences=len(chosen),
                max_completion_length=config.max_completion_length,
            )
            plans.append([OptimizerStep(share, counts, learning_rate) for share in assigned])
    return plans


def summarize_update(
    per_rank: Sequence[Sequence[dict[str, float]]], tokens: Sequence[int]
) -> dict[str, float]:
    """Metrics of an update from the ranks' sums, [ranks][steps], and the tokens of each step."""
    steps = list(zip(*per_rank, strict=True))

    def token_mean(key: str) -> float:
        return sum(rank[key] for step in steps for rank in step) / sum(tokens)

    return {
        "loss": float(np.mean([sum(rank["loss"] for rank in step) for step in steps])),
        "grad_norm": float(np.mean([step[0]["grad_norm"] for step in steps])),
        "kl": token_mean("kl"),
        "entropy": token_mean("entropy"),
        "clip_ratio/region_mean": token_mean("clipped"),
        "sampling/logp_difference/mean": token_mean("logp_difference"),
        "sampling/logp_difference/max": max(rank["logp_difference_max"] for step in steps for rank in step),
        "sampling/importance_sampling_ratio/mean": token_mean("ratio"),
    }
