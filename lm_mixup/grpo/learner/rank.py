"""One process of the learner: a DeepSpeed rank that trains on its share of the episodes."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.core.run_dir import StageDir
from lm_mixup.core.run_log import log, open_from_environment
from lm_mixup.grpo.learner.collate import collate, collate_shared
from lm_mixup.grpo.learner.schedule import OptimizerStep
from lm_mixup.grpo.types import Episode
from lm_mixup.grpo.weights import ipc, nccl
from lm_mixup.grpo.weights.object_store import HostTensor, to_host
from lm_mixup.grpo.weights.stream import describe, gather, stream
from lm_mixup.grpo.weights.verify import WeightDigest
from lm_mixup.train.remote_checkpoint import fetch_checkpoint, upload_model, upload_shares

if TYPE_CHECKING:
    import torch

    from lm_mixup.grpo.learner.collate import MicroBatch
    from lm_mixup.grpo.losses import LossOptions


class LearnerRank:
    """One DeepSpeed rank: policy, optimizer, and a frozen reference model if there is a KL term.

    With `lora` only the adapters are trained, and the reference is the policy with its adapters disabled.
    """

    def __init__(self, model_path: str, model: ModelConfig, config: GrpoConfig, seed: int) -> None:
        import torch
        from torch import nn

        from lm_mixup.grpo.learner.forward import use_shared_prompts
        from lm_mixup.models.policy import load_policy, load_tokenizer
        from lm_mixup.train.lora import with_adapter

        open_from_environment()
        log("learner rank starts")
        torch.manual_seed(seed)
        self._config, self._seed = config, seed
        self._device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(model_path, model)
        policy: Any = load_policy(model_path, model)
        self._policy = policy.to(self._device)
        self._policy.config.use_cache = False
        if config.shared_prompt:
            use_shared_prompts(policy)
        asked = config.gradient_checkpointing
        self._checkpointing = self._device.type == "cuda" if asked is None else asked
        if self._checkpointing:
            self._policy.gradient_checkpointing_enable()
            if (
                config.lora is not None
            ):  # without it, checkpointed layers after frozen embeddings get no gradient
                self._policy.enable_input_require_grads()
        self._trained = with_adapter(self._policy, config.lora)
        self._nccl_group: Any = None  # with the engines
        self._chunks: Iterator[dict[str, Any]] | None = None
        self._reference: nn.Module | None = None
        if config.beta > 0 and config.lora is None:
            reference: Any = load_policy(model_path, model)
            if config.shared_prompt:
                use_shared_prompts(reference)
            self._reference = reference.to(self._device).eval().requires_grad_(False)

    def open_port(self) -> tuple[str, int]:
        """This rank's address and a free port, for the rendezvous of a process group."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, rank: int, world_size: int, address: str, port: int) -> None:
        """Joins the process group and hands the policy to DeepSpeed.

        Raises:
            InputError: An update would not fit the GPU.
        """
        import deepspeed
        import torch

        from lm_mixup.train.deepspeed import deepspeed_config, leave_out_shared_memory_op

        leave_out_shared_memory_op()
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        if self._device.type == "cuda":
            self._check_memory(world_size)
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
        optimizer = torch.optim.AdamW(
            [p for p in self._trained.parameters() if p.requires_grad],
            lr=self._config.learning_rate,
            weight_decay=self._config.weight_decay,
            # Without it a step holds temporaries as large as the float32 weights.
            fused=self._device.type == "cuda",
        )
        settings = deepspeed_config(
            zero_stage=self._config.zero_stage,
            offload=False,
            bf16=self._policy.dtype == torch.bfloat16,
            max_grad_norm=self._config.max_grad_norm,
            micro_batch_size=1,
            world_size=world_size,
        )
        # The number of micro-batches differs from step to step, so DeepSpeed cannot know the boundary:
        # `backward` only accumulates, `step` reduces and updates.
        settings["managed_gradient_accumulation"] = False
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self._trained, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self._rank, self._world_size = rank, world_size

    def _check_memory(self, world_size: int) -> None:
        import torch

        from lm_mixup.grpo.learner.memory import activation_bytes, check_fits, estimate

        needed = estimate(
            self._trained,
            self._config,
            has_reference=self._reference is not None,
            bytes_per_token=activation_bytes(self._trained),
            world_size=world_size,
        )
        log(f"an update needs about {needed}")
        _, total = torch.cuda.mem_get_info(self._device)
        check_fits(needed, total, self._config, checkpointing=self._checkpointing)

    def update(self, episodes: Sequence[Episode], steps: Sequence[OptimizerStep]) -> list[dict[str, float]]:
        """Runs this rank's share of the optimizer steps on one rollout batch.

        Returns:
            For each optimizer step, sums over this rank's tokens (`loss, kl, clipped, ratio, entropy,
            logp_difference`), the largest `logp_difference_max`, and `grad_norm` over all ranks.
        """
        import torch

        from lm_mixup.grpo.losses import LossOptions

        config = self._config
        options = LossOptions(
            loss=config.loss,
            beta=config.beta if config.kl_in == "loss" else 0.0,
            kl_estimator=config.kl_estimator,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            dual_clip=config.dual_clip,
            importance_correction=config.importance_correction,
            importance_cap=config.importance_cap,
            importance_limit=config.importance_limit,
        )
        self._seed_dropout()
        self._policy.train()
        # With a single update per batch, the old log-probs are those of the update's own forward pass.
        before = self._logps_before(episodes, steps) if len(steps) > 1 else {}
        sums = [self._optimizer_step(episodes, step, options, before) for step in steps]
        if self._config.mode == "colocated" and self._device.type == "cuda":
            torch.cuda.empty_cache()  # the engine that wakes up on this GPU needs the memory
        return sums

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
                ref_logp=self._reference_logps(micro) if options.beta > 0 else None,
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

    def _seed_dropout(self) -> None:
        """Makes the dropout of an update a function of seed, step and rank, so that a resume repeats it."""
        import torch

        key = [self._seed, self._engine.global_steps, self._rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def kl(self, episodes: Sequence[Episode], micro_batches: Sequence[list[int]]) -> dict[int, float]:
        """The KL estimate to the reference model, summed over each episode's sampled tokens.

        Args:
            episodes: Those of all ranks.
            micro_batches: This rank's share, as in `OptimizerStep`.

        Returns:
            KL by episode index.
        """
        from lm_mixup.grpo.losses import kl_estimate

        sums: dict[int, float] = {}
        for indices in micro_batches:
            micro = self._collate(episodes, indices)
            reference = self._reference_logps(micro)
            kl = kl_estimate(micro.engine_logp, reference, self._config.kl_estimator) * micro.mask
            sums |= zip(indices, kl.sum(-1).tolist(), strict=bool(indices))
        return sums

    def _collate(self, episodes: Sequence[Episode], indices: list[int]) -> MicroBatch:
        """The micro-batch on this rank's device; for an empty one, an episode with zero loss."""
        chosen = [episodes[i] for i in indices] or [min(episodes, key=lambda e: e.length)]
        if self._config.shared_prompt:
            micro = collate_shared(chosen)
        else:
            micro = collate(chosen, self._tokenizer.pad_token_id)
        return (micro if indices else micro.zero_loss()).to(self._device)

    def _forward(self, model: Any, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of the completion tokens, [B, T] each."""
        from lm_mixup.grpo.learner.forward import completion_logps

        return completion_logps(model, micro, self._config.temperature)

    def _reference_logps(self, micro: MicroBatch) -> torch.Tensor:
        import torch

        with torch.no_grad():
            if self._reference is not None:
                return self._forward(self._reference, micro)[0]
            with self._trained.disable_adapter():
                return self._forward(self._engine, micro)[0]

    def _logps_before(
        self, episodes: Sequence[Episode], steps: Sequence[OptimizerStep]
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """Log π_learner of every micro-batch before the first update, the denominator of the ratios."""
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
        """Norm of the gradient averaged over ranks; DeepSpeed reports it only for ZeRO 1 to 3."""
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

    def weights(self) -> tuple[dict[str, HostTensor] | None, str]:
        """The current weights by Hugging Face name, adapters merged, on the CPU; None except on rank 0.

        The second result is their digest, which can be fetched without the first. Tied weights appear under
        all of their names: vLLM keeps a packed copy of a tied output layer and updates it only if that layer
        is named.
        """
        from lm_mixup.train.lora import merge

        gathered = {name: tensor.cpu() for name, tensor in self._gather()}
        if self._rank != 0:
            return None, ""
        digest = WeightDigest()
        merged = digest.of(merge(gathered, self._config.lora).items())
        weights = {name: to_host(value) for name, value in merged}
        first_name: dict[int, str] = {}
        for name, parameter in self._policy.named_parameters(remove_duplicate=False):
            first = first_name.setdefault(id(parameter), name)
            if first != name:
                weights[name] = weights[first]
        return weights, digest.hexdigest()

    def _gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Full parameters by PEFT's names, in the same order on every rank; none except on rank 0."""
        for bucket in gather(
            dict(self._policy.named_parameters()), sharded=self._sharded, keep=self._rank == 0
        ):
            yield from bucket.items()

    def describe(self) -> dict[str, list[Any]]:
        """Names, dtypes and shapes of the tensors sent from GPU to GPU, in order."""
        return describe(self._sent_parameters(), self._config.lora)

    def join_engines(self, address: str, port: int, world_size: int) -> None:
        """Forms an NCCL group with the engines, as its rank 0, and destroys the previous one."""
        if self._nccl_group is not None:
            self._nccl_group.destroy()
        self._nccl_group = nccl.join(address, port, world_size)

    def broadcast(self, buffer_bytes: int) -> str:
        """Sends the weights to the engines of the NCCL group. A collective call; rank 0 is the sender.

        Returns:
            The digest of what this rank sent.
        """
        parameters = self._stream(keep=self._rank == 0)
        if self._rank == 0:
            nccl.broadcast(self._nccl_group, parameters, buffer_bytes)
        else:
            deque(parameters, maxlen=0)  # only takes part in gathering
        return self._sent.hexdigest()

    def next_chunk(self, buffer_bytes: int) -> dict[str, Any] | None:
        """The next buffer for the engine on this GPU; None after the last. A collective call."""
        if self._chunks is None:
            self._chunks = ipc.chunks(self._stream(keep=True), buffer_bytes)
        chunk = next(self._chunks, None)
        if chunk is None:
            self._chunks = None
        return chunk

    def free_chunks(self) -> str:
        """Frees the buffers the engine had mapped; returns the digest of everything sent."""
        import torch

        torch.cuda.ipc_collect()
        return self._sent.hexdigest()

    def _stream(self, *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        self._sent = WeightDigest()
        return self._sent.of(
            stream(self._sent_parameters(), self._config.lora, sharded=self._sharded, keep=keep)
        )

    def _sent_parameters(self) -> dict[str, Any]:
        """The policy's parameters, tied ones under all of their names, as in `weights`."""
        return dict(self._policy.named_parameters(remove_duplicate=False))

    @property
    def _sharded(self) -> bool:
        return self._config.zero_stage == 3

    def save(self, out: StageDir, tag: str) -> None:
        """Writes a DeepSpeed checkpoint: weights and optimizer state of every rank."""
        self._engine.save_checkpoint(str(out.local / "checkpoints"), tag=tag)
        upload_shares(out, tag)

    def load(self, out: StageDir, tag: str) -> None:
        """Reads a DeepSpeed checkpoint that this run wrote."""
        fetch_checkpoint(out, tag)
        folder = str(out.local / "checkpoints")
        loaded, _ = self._engine.load_checkpoint(folder, tag=tag)
        if loaded is None:
            raise RuntimeError(f"checkpoint {folder}/{tag} could not be loaded")

    def save_model(self, out: StageDir, name: str) -> None:
        """Writes policy and tokenizer into a folder of a stage, as safetensors; adapters beside it."""
        from lm_mixup.models.policy import save_model
        from lm_mixup.train.lora import merge, save_adapter

        weights = {
            name: tensor.cpu() for name, tensor in self._gather()
        }  # a GPU may not have room for all of them
        if self._rank == 0:
            folder = out.local / name
            if self._config.lora is not None:
                out.upload(save_adapter(self._trained, weights, folder).name)
            merged = merge(weights, self._config.lora)
            save_model(folder, self._policy, self._tokenizer, merged)
            upload_model(out, name)
