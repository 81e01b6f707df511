"""The learner: DeepSpeed ranks that turn episodes into weight updates.

`LearnerRank` is one process of the data-parallel group; `Learner` is the driver's handle on all of them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.grpo.episodes import Episode, collate, micro_batches, spread, update_slices
from lm_mixup.grpo.waiting import wait_for

if TYPE_CHECKING:
    import torch

    from lm_mixup.grpo.episodes import MicroBatch
    from lm_mixup.grpo.losses import GlobalCounts, LossOptions
    from lm_mixup.grpo.placement import Placement

_GATHER_BYTES = 256 << 20  # parameters gathered at a time under ZeRO-3


@dataclass(frozen=True)
class OptimizerStep:
    """One rank's share of one optimizer step."""

    micro_batches: list[list[int]]
    counts: GlobalCounts
    learning_rate: float


class LearnerRank:
    """One DeepSpeed rank: policy, optimizer, and a frozen reference model where the loss has a KL term."""

    def __init__(self, model_path: str, model: ModelConfig, config: GrpoConfig, seed: int) -> None:
        import torch
        from torch import nn

        from lm_mixup.backends.policy import load_policy, load_tokenizer

        torch.manual_seed(seed)
        self._config = config
        self._model_config = model
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(model_path, model)
        self._policy = load_policy(model_path, model).to(self._device)
        self._policy.config.use_cache = False
        if config.gradient_checkpointing:
            self._policy.gradient_checkpointing_enable()
        self._reference: nn.Module | None = None
        if config.beta > 0:
            self._reference = load_policy(model_path, model).to(self._device).eval().requires_grad_(False)

    def open_port(self) -> tuple[str, int]:
        """This rank's address and a free port, for the group's rendezvous."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, rank: int, world_size: int, address: str, port: int) -> None:
        """Joins the process group and hands the policy to DeepSpeed."""
        import deepspeed
        import torch

        from lm_mixup.train.deepspeed import deepspeed_config

        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(world_size),
            "LOCAL_SIZE": "1",
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
        optimizer = torch.optim.AdamW(
            self._policy.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay
        )
        settings = deepspeed_config(
            zero_stage=self._config.zero_stage,
            offload=False,
            bf16=self._policy.dtype == torch.bfloat16,
            max_grad_norm=self._config.max_grad_norm,
            micro_batch_size=1,
        )
        # The number of micro-batches differs from step to step, so the boundary is ours: backward
        # accumulates, step reduces and updates.
        settings["managed_gradient_accumulation"] = False
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self._policy, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self._rank, self._world_size = rank, world_size

    def update(self, episodes: Sequence[Episode], steps: Sequence[OptimizerStep]) -> list[dict[str, float]]:
        """Runs this rank's share of the optimizer steps on one rollout batch.

        Returns:
            For each optimizer step, sums over this rank's tokens (`loss, kl, clipped, ratio, entropy,
            logp_difference`), the largest `logp_difference_max`, and `grad_norm` of the whole group.
        """
        from lm_mixup.grpo.losses import LossOptions

        config = self._config
        options = LossOptions(
            loss=config.loss,
            beta=config.beta,
            kl_estimator=config.kl_estimator,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            importance_correction=config.importance_correction,
            importance_cap=config.importance_cap,
        )
        self._policy.train()
        # With one update a batch the learner's log-probs before it are those of the update's own forward
        # pass.
        before = self._logps_before(episodes, steps) if len(steps) > 1 else {}
        return [self._optimizer_step(episodes, step, options, before) for step in steps]

    def _optimizer_step(
        self,
        episodes: Sequence[Episode],
        step: OptimizerStep,
        options: LossOptions,
        before: dict[tuple[int, ...], torch.Tensor],
    ) -> dict[str, float]:
        from lm_mixup.grpo.losses import LossInputs, policy_loss

        sums = dict.fromkeys(("loss", "kl", "clipped", "ratio", "entropy", "logp_difference"), 0.0)
        largest = 0.0
        for indices in step.micro_batches:
            micro = self._collate(episodes, indices)
            logp, entropy = self._forward(self._engine, micro)
            old_logp = before.get(tuple(indices), logp.detach())
            inputs = LossInputs(
                logp=logp,
                old_logp=old_logp,
                engine_logp=micro.engine_logp,
                ref_logp=self._reference_logps(micro),
                advantages=micro.advantages,
                mask=micro.mask,
            )
            loss, counted = policy_loss(inputs, options, step.counts)
            # DeepSpeed averages gradients over ranks; the loss is already divided by global counts.
            self._engine.backward(loss * self._world_size)
            difference = ((old_logp - micro.engine_logp).abs() * micro.mask).detach()
            largest = max(largest, float(difference.max()))
            counted |= {
                "loss": float(loss.detach()),
                "entropy": float((entropy * micro.mask).sum()),
                "logp_difference": float(difference.sum()),
            }
            for key, value in counted.items():
                sums[key] += value
        for group in self._optimizer.param_groups:
            group["lr"] = step.learning_rate
        grad_norm = self._stage0_grad_norm() if self._config.zero_stage == 0 else None
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if grad_norm is None else grad_norm
        return sums | {"logp_difference_max": largest, "grad_norm": float(norm)}

    def _collate(self, episodes: Sequence[Episode], indices: list[int]) -> MicroBatch:
        """The micro-batch on this rank's device; for an empty one, an episode that weighs nothing."""
        import dataclasses

        chosen = [episodes[i] for i in indices] or [min(episodes, key=lambda e: e.length)]
        micro = collate(chosen, self._tokenizer.pad_token_id)
        if not indices:
            micro = dataclasses.replace(micro, mask=micro.mask * 0)
        return dataclasses.replace(
            micro, **{f.name: getattr(micro, f.name).to(self._device) for f in dataclasses.fields(micro)}
        )

    def _forward(self, model: Any, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of the completion tokens, [B, T] each; the prompt gets no logits."""
        from lm_mixup.grpo.losses import token_logps_and_entropy

        keep = micro.completion_ids.shape[1] + 1
        logits = model(
            input_ids=micro.input_ids,
            attention_mask=micro.attention_mask,
            position_ids=micro.position_ids,
            logits_to_keep=keep,
            use_cache=False,
        ).logits[:, :-1]
        return token_logps_and_entropy(logits, micro.completion_ids, self._config.temperature)

    def _reference_logps(self, micro: MicroBatch) -> torch.Tensor | None:
        import torch

        if self._reference is None:
            return None
        with torch.no_grad():
            return self._forward(self._reference, micro)[0]

    def _logps_before(
        self, episodes: Sequence[Episode], steps: Sequence[OptimizerStep]
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """Log π_learner of every micro-batch before the first update: what ratios are taken against."""
        import torch

        before: dict[tuple[int, ...], torch.Tensor] = {}
        with torch.no_grad():
            for step in steps:
                for indices in step.micro_batches:
                    if tuple(indices) not in before:
                        before[tuple(indices)] = self._forward(
                            self._engine, self._collate(episodes, indices)
                        )[0]
        return before

    def _stage0_grad_norm(self) -> float:
        """Norm of the group's mean gradient; DeepSpeed tells it only for ZeRO 1 to 3."""
        import torch
        import torch.distributed as dist

        total = torch.zeros((), device=self._device)
        for parameter in self._policy.parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.detach().float()
                if self._world_size > 1:
                    gradient = gradient.clone()
                    dist.all_reduce(gradient)
                    gradient /= self._world_size
                total += gradient.square().sum()
        return float(total.sqrt())

    def logps(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log π of each token given those before it, at temperature 1: float32 [T − 1]. A collective call."""
        import torch

        tokens = torch.tensor([list(token_ids)], device=self._device)
        self._policy.eval()
        with torch.no_grad():
            logits = self._engine(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
        return chosen.cpu().numpy().astype(np.float32)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The current weights by Hugging Face name, on the CPU; None on ranks other than 0."""
        gathered = {name: tensor.cpu() for name, tensor in self._gather()}
        return gathered if self._rank == 0 else None

    def _gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Full parameters in the same order on every rank, bucket by bucket under ZeRO-3."""
        if self._config.zero_stage < 3:
            yield from ((name, p.detach()) for name, p in self._policy.named_parameters())
            return
        import deepspeed

        bucket: list[tuple[str, Any]] = []
        size = 0
        named = list(self._policy.named_parameters())
        for position, (name, parameter) in enumerate(named):
            bucket.append((name, parameter))
            size += parameter.ds_numel * parameter.element_size()
            if size < _GATHER_BYTES and position + 1 < len(named):
                continue
            with deepspeed.zero.GatheredParameters([p for _, p in bucket]):
                full = [(n, p.detach().clone()) for n, p in bucket] if self._rank == 0 else []
            yield from full
            bucket, size = [], 0

    def save(self, folder: str, tag: str) -> None:
        """Writes a DeepSpeed checkpoint: weights and optimizer state of every rank."""
        self._engine.save_checkpoint(folder, tag=tag)

    def load(self, folder: str, tag: str) -> None:
        """Reads a DeepSpeed checkpoint that this run wrote."""
        loaded, _ = self._engine.load_checkpoint(folder, tag=tag)
        if loaded is None:
            raise RuntimeError(f"checkpoint {folder}/{tag} could not be loaded")

    def save_model(self, folder: str) -> None:
        """Writes the policy in Hugging Face format (safetensors) with its tokenizer."""
        from lm_mixup.backends.policy import save_model

        weights = self.weights()
        if weights is not None:
            save_model(Path(folder), self._policy, self._tokenizer, weights)


class Learner:
    """The driver's handle on all learner ranks."""

    def __init__(
        self,
        model_path: str,
        model: ModelConfig,
        config: GrpoConfig,
        seed: int,
        placement: Placement,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._config = config
        rank_class = ray.remote(LearnerRank)
        self.ranks = [
            rank_class.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement.group, placement_group_bundle_index=rank
                ),
                **placement.learner_options,
            ).remote(model_path, model, config, seed)
            for rank in range(config.learner_ranks)
        ]
        address, port = self._wait(
            [self.ranks[0].open_port.remote()], "the first learner rank to load its model"
        )[0]
        size = len(self.ranks)
        self._wait(
            [rank.join.remote(i, size, address, port) for i, rank in enumerate(self.ranks)],
            "the learner ranks to form their process group",
        )

    def _wait(self, refs: list[Any], what: str) -> list[Any]:
        return wait_for(refs, what, self._config.timeout_s)

    def update(self, episodes: Sequence[Episode], learning_rate: float) -> dict[str, float]:
        """Learns from one rollout batch.

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
        return summarise_update(per_rank, tokens) | {"seconds": time.perf_counter() - started}

    def logps(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log π of each token of a sequence given those before it: float32 [T − 1]."""
        logps: np.ndarray = self._wait(
            [rank.logps.remote(list(token_ids)) for rank in self.ranks], "the learner to score the probe"
        )[0]
        return logps

    def weights(self) -> Any:
        """A Ray object reference to the weights by name: gathered by all ranks, held by rank 0."""
        import ray

        refs = [rank.weights.remote() for rank in self.ranks]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=self._config.timeout_s, fetch_local=False)
        if len(ready) < len(refs):
            wait_for(refs, "the learner to gather its weights", 1.0)
        return refs[0]

    def save(self, folder: Path, tag: str) -> None:
        """Writes a checkpoint of all ranks."""
        self._wait([r.save.remote(str(folder), tag) for r in self.ranks], "the learner to write a checkpoint")

    def load(self, folder: Path, tag: str) -> None:
        """Reads a checkpoint of all ranks."""
        self._wait(
            [r.load.remote(str(folder), tag) for r in self.ranks], "the learner to read its checkpoint"
        )

    def save_model(self, folder: Path) -> None:
        """Writes the policy in Hugging Face format."""
        self._wait([r.save_model.remote(str(folder)) for r in self.ranks], "the learner to write the model")

    def shutdown(self) -> None:
        """Ends the actors."""
        import ray

        for rank in self.ranks:
            ray.kill(rank)


def plan_steps(
    episodes: Sequence[Episode], config: GrpoConfig, learning_rate: float
) -> list[list[OptimizerStep]]:
    """Which micro-batches each rank runs in each optimizer step of one rollout batch: [steps][ranks]."""
    from lm_mixup.grpo.losses import GlobalCounts

    plans = []
    for _ in range(config.num_iterations):
        for chosen in update_slices(len(episodes), config.update_batch_size):
            batches = micro_batches([episodes[i].length for i in chosen], config.micro_tokens)
            dealt = spread([[chosen[i] for i in batch] for batch in batches], config.learner_ranks)
            counts = GlobalCounts(
                tokens=sum(len(episodes[i].completion_ids) for i in chosen),
                sequences=len(chosen),
                max_completion_length=config.max_completion_length,
            )
            plans.append([OptimizerStep(share, counts, learning_rate) for share in dealt])
    return plans


def summarise_update(
    per_rank: Sequence[Sequence[dict[str, float]]], tokens: Sequence[int]
) -> dict[str, float]:
    """Metrics of an update from the ranks' sums: [ranks][steps] dicts and the tokens of each step."""
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
