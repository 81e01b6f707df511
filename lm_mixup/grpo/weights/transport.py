"""How weights get from the learner to the engines (`grpo.weight_transport`).

* `object_store`: gathered on learner rank 0 and sent through Ray's object store; runs anywhere.
* `nccl`: broadcast bucket by bucket from learner rank 0 (`nccl.py`).
* `ipc`: handed over bucket by bucket within each GPU that a learner rank and an engine share (`ipc.py`).

The last two use vLLM's weight transfer (vllm.distributed.weight_transfer); `stream.py` yields what they send.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_mixup.config import GrpoConfig, RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.distributed.ray_cluster import sees_gpu
from lm_mixup.grpo.weights.ipc import IpcSender
from lm_mixup.grpo.weights.nccl import NcclSender


@dataclass(frozen=True)
class StoredWeights:
    """Weights in Ray's object store.

    Attributes:
        reference: Ray object reference to `HostTensor`s by name.
        digest: Of the weights (`WeightDigest`).
    """

    reference: Any
    digest: str


@dataclass(frozen=True)
class DeviceWeights:
    """Weights that stay on the learner's GPUs until they are sent to an engine.

    Attributes:
        ranks: Ray handles of the learner ranks.
        sender: Sends the weights to rollout actors.
        fetch: Gathers the weights into the object store, for an engine that starts between two weight syncs.
    """

    ranks: Sequence[Any]
    sender: NcclSender | IpcSender
    fetch: Callable[[], StoredWeights]


def sender(config: GrpoConfig) -> NcclSender | IpcSender | None:
    """The sender of weights from GPU to GPU; None if they go through the object store."""
    match config.weight_transport:
        case "nccl":
            return NcclSender(config)
        case "ipc":
            return IpcSender(config)
        case _:
            return None


def check_transport(config: GrpoConfig, ray: RayConfig) -> None:
    """Refuses a transport between GPUs if there is no GPU, before anything is started.

    Raises:
        InputError: The machine, or the cluster that the config names, has no GPU.
    """
    if config.weight_transport != "object_store" and not sees_gpu(ray):
        raise InputError(no_gpu(config))


def no_gpu(config: GrpoConfig) -> str:
    """The error message for a transport between GPUs without a GPU."""
    return (
        f"grpo.weight_transport {config.weight_transport} sends weights from GPU to GPU, and there is no GPU "
        "here that torch can use; set it to object_store"
    )


def kill_actors(members: Sequence[Any]) -> None:
    """Kills actors that may wait forever for one that died during a weight transfer."""
    import ray

    for member in members:
        ray.kill(member)
