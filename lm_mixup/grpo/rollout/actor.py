"""One vLLM engine as a Ray actor."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.core.run_log import flush_log, log, open_from_environment
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.grpo.weights.object_store import HostTensor, from_host
from lm_mixup.grpo.weights.verify import EngineState, model_digest
from lm_mixup.models.engine import Engine, Sampling


class RolloutActor:
    """One engine. It refuses to generate until it has loaded published weights."""

    def __init__(self, model_path: str, model: ModelConfig, config: GrpoConfig) -> None:
        import torch

        open_from_environment()
        log("engine starts")
        self._shares_gpu = config.mode == "colocated" and torch.cuda.is_available()
        self._engine = Engine.from_config(
            model_path,
            model,
            max_model_len=config.max_prompt_length + config.max_completion_length,
            kv_cache_gib=config.kv_cache_gib,
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=config.tensor_parallel_size,
            sleep_mode=self._shares_gpu,
            weight_transfer=None if config.weight_transport == "object_store" else config.weight_transport,
        )
        self._version: int | None = None

    def node_id(self) -> str:
        """The node that it runs on."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def load_weights(self, version: int, weights: dict[str, HostTensor]) -> None:
        """Loads the weights of a version from the object store."""
        with self._exit_if_dead():
            self._engine.load_weights({name: from_host(tensor) for name, tensor in weights.items()})
        self._loaded(version)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Joins the learner that sends weights from GPU to GPU."""
        self._engine.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        """Prepares for weights from GPU to GPU; the actor cannot generate until `finish_weight_update`."""
        self._version = None
        self._engine.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives weights, or the next buffer of them."""
        self._engine.update_weights(update_info)

    def finish_weight_update(self, version: int) -> None:
        """Activates the received weights of a version."""
        self._engine.finish_weight_update()
        self._loaded(version)

    def _loaded(self, version: int) -> None:
        if self._shares_gpu:
            self._engine.wake("kv_cache")
        self._version = version
        log("weights %d loaded", version)

    def state(self, probe: list[int]) -> EngineState:
        """The engine's log-probs of the probe and the digest of its weights, to verify a weight sync."""
        with self._exit_if_dead():
            parts = self._engine.apply(model_digest)
            logps = self._engine.score(probe)
        digest, whole = " ".join(part for part, _ in parts), all(whole for _, whole in parts)
        return EngineState(logps, digest, whole, self._engine.dtype)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling) -> list[Group]:
        """Draws one group per prompt."""
        if self._version is None:
            raise RuntimeError("this rollout actor has not received weights yet")
        with self._exit_if_dead():
            drawn = self._engine.generate([p.token_ids for p in prompts], sampling, seeds)
        return [Group(p, c, self._version) for p, c in zip(prompts, drawn, strict=True)]

    @contextmanager
    def _exit_if_dead(self) -> Iterator[None]:
        """Exits the process if its engine is dead: the pool replaces dead actors, not failing ones."""
        try:
            yield
        except Exception as error:
            if self._engine.works():
                raise
            traceback.print_exc()
            log("the engine is dead", level=logging.ERROR, error=error)
            flush_log()
            os._exit(1)

    def sleep(self) -> None:
        """Frees the GPU if the learner shares it; no generation until weights are loaded again."""
        if self._shares_gpu:
            self._version = None
            self._engine.sleep()

    def wake(self) -> None:
        """Reclaims the GPU, before weights are loaded."""
        if self._shares_gpu:
            self._engine.wake("weights")
