"""The NCCL transport's wire on CPU: gloo in NCCL's place, everything else as it runs on GPUs.

The engine's half is registered with vLLM as a weight transfer backend of its own, which is how vLLM lets
others add one. It takes vLLM's NCCL messages, cuts the stream as vLLM's NCCL consumer cuts it, and unpacks
with vLLM's own function.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.grpo.learner.rank import LearnerRank
from lm_mixup.grpo.rollout.actor import RolloutActor

LIMIT = timedelta(seconds=120)
BUCKET = 20_000  # bytes: the tiny model goes in many


class Group:
    """A gloo group beside whatever groups a process is in already."""

    def __init__(self, address: str, port: int, rank: int, world_size: int) -> None:
        store = dist.TCPStore(address, port, world_size, is_master=rank == 0, timeout=LIMIT)
        self._group = dist.ProcessGroupGloo(store, rank, world_size, LIMIT)
        self.disabled = False

    def broadcast(self, tensor: torch.Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        del self._group


def send(group: Group, parameters: Iterator[tuple[str, torch.Tensor]], buffer: int) -> None:
    """In place of `nccl.broadcast`."""
    from vllm.distributed.weight_transfer.packed_tensor import pack_tensors

    while chunk := pack_tensors(parameters, lambda item: item[1], buffer):
        group.broadcast(chunk.packed_tensor)


class GlooRank(LearnerRank):
    """A learner rank, small buckets and gloo in place of NCCL."""

    def __init__(self, *args: Any) -> None:
        from lm_mixup.grpo.weights import nccl, stream

        nccl.join = lambda address, port, world_size: Group(address, port, 0, world_size)  # type: ignore[assignment]
        nccl.broadcast = send  # type: ignore[assignment]
        stream.gather.__kwdefaults__["limit"] = BUCKET
        stream.stream.__kwdefaults__["limit"] = BUCKET
        super().__init__(*args)


class GlooActor(RolloutActor):
    """A rollout actor whose engine receives by gloo."""

    def __init__(self, model_path: str, model: ModelConfig, config: GrpoConfig) -> None:
        register()
        super().__init__(model_path, model, config.model_copy(update={"weight_transport": "gloo"}))


def register() -> None:
    """Makes the backend `gloo` known to vLLM in this process."""
    from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    class GlooEngine(WeightTransferEngine):  # type: ignore[type-arg]
        init_info_cls = NCCLWeightTransferInitInfo
        update_info_cls = NCCLWeightTransferUpdateInfo
        group: Group | None = None

        def init_transfer_engine(self, info: NCCLWeightTransferInitInfo) -> None:
            assert info.packed and info.master_address and info.master_port
            self.buffer = info.packed_buffer_size_bytes
            self.group = Group(info.master_address, info.master_port, info.rank_offset, info.world_size)

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))  # no accelerator to wait for

        def receive_weights(self, info: NCCLWeightTransferUpdateInfo) -> None:
            assert self.group is not None
            if die_here(self.model_config.model):
                os._exit(1)
            waiting: list[tuple[str, list[int], torch.dtype, int]] = []
            for name, dtype_name, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
                dtype = getattr(torch, dtype_name)
                waiting.append((name, shape, dtype, math.prod(shape) * dtype.itemsize))
                if sum(item[3] for item in waiting) > self.buffer or name == info.names[-1]:
                    packed = torch.empty(sum(item[3] for item in waiting), dtype=torch.uint8)
                    self.group.broadcast(packed)
                    names, shapes, dtypes, sizes = (list(part) for part in zip(*waiting, strict=True))
                    self.model.load_weights(unpack_tensor(packed, names, shapes, dtypes, sizes))
                    waiting = []

        def shutdown(self) -> None:
            if self.group is not None:
                self.group.destroy()
                self.group = None

    WeightTransferEngineFactory.register_engine("gloo", GlooEngine)


def die_here(model: str) -> bool:
    """Whether one engine is to die in the midst of an update: the first to see the mark, which it takes."""
    try:
        (Path(model) / "die").unlink()
    except FileNotFoundError:
        return False
    return True
