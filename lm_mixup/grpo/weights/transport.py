"""How weights get from the learner to the engines (`grpo.weight_transport`).

`object_store`: gathered on learner rank 0, through Ray's object store to every engine; runs anywhere.
`nccl`: streamed bucket by bucket in a broadcast from learner rank 0 (`nccl.py`). `ipc`: streamed bucket by
bucket inside each GPU that a learner rank and an engine share (`ipc.py`). The last two go through vLLM's
weight transfer (vllm.distributed.weight_transfer); what they stream is in `stream.py`.
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
class InStore:
    """Weights in Ray's object store.

    Attributes:
        reference: Ray object reference to `HostTensor`s by name.
        digest: Of the weights (`WeightDigest`).
    """

    reference: Any
    digest: str


@dataclass(frozen=True)
class OnDevice:
    """Weights that stay on the learner's GPUs until an engine takes them from there.

    Attributes:
        ranks: Ray handles of the learner ranks.
        sender: Brings rollout actors to these weights.
        fetch: Gathers the weights into the object store, for an engine that starts between two publications.
    """

    ranks: Sequence[Any]
    sender: NcclSender | IpcSender
    fetch: Callable[[], InStore]


def sender(config: GrpoConfig) -> NcclSender | IpcSender | None:
    """What sends weights from GPU to GPU; None where they go through the object store."""
    match config.weight_transport:
        case "nccl":
            return NcclSender(config)
        case "ipc":
            return IpcSender(config)
        case _:
            return None


def check_transport(config: GrpoConfig, ray: RayConfig) -> None:
    """Refuses a transport between GPUs where there is none, before anything is started.

    Raises:
        InputError: The machine, or the cluster that the config names, has no GPU.
    """
    if config.weight_transport != "object_store" and not sees_gpu(ray):
        raise InputError(no_gpu(config))


def no_gpu(config: GrpoConfig) -> str:
    """What is said where a transport between GPUs meets none."""
    return (
        f"grpo.weight_transport {config.weight_transport} sends weights from GPU to GPU, and there is no GPU "
        "here that torch can use; set it to object_store"
    )


def end(members: Sequence[Any]) -> None:
    """Ends actors that may wait for ever for one that died while weights were under way."""
    import ray

    for member in members:
        ray.kill(member)
