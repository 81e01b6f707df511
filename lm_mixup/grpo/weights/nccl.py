"""Weights by NCCL: learner rank 0 broadcasts them to every engine, through vLLM's weight transfer.

In the group, rank 0 is learner rank 0, and engine i has ranks 1 + i·TP to TP + i·TP. The driver makes every
call itself instead of using vLLM's trainer client: that client gives all engines the same ranks, and a sender
blocked in a broadcast with a dead engine could not report it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_mixup.config import GrpoConfig
from lm_mixup.distributed.ray_wait import wait_for
from lm_mixup.grpo.weights.stream import buffer_bytes

if TYPE_CHECKING:
    import torch

# vLLM fills each buffer on its own CUDA stream, without ordering between them: with two buffers, one stream
# could read a parameter before the other has finished gathering or merging it.
_BUFFERS = 1


class NcclSender:
    """The driver's side. The group is formed at the first transfer, and again after an actor was replaced."""

    def __init__(self, config: GrpoConfig) -> None:
        self._config = config
        self._members: list[Any] = []

    def send(self, version: int, actors: Sequence[Any], ranks: Sequence[Any]) -> str:
        """Sends the learner's weights to every engine.

        Args:
            version: Of the weights.
            actors: Ray handles of the rollout actors, all awake.
            ranks: Ray handles of the learner ranks.

        Returns:
            The digest of what was sent (`WeightDigest`).

        Raises:
            RayError: One of them failed or died; the others may wait for it inside NCCL forever.
            TimeoutError: One of them did not answer within `grpo.timeout_s`.
        """
        limit = self._config.timeout_s
        members = [*actors, *ranks]
        if len(members) != len(self._members) or any(
            new is not old for new, old in zip(members, self._members, strict=True)
        ):
            self._form(actors, ranks)
            self._members = members
        wait_for(
            [actor.start_weight_update.remote() for actor in actors],
            f"the engines to prepare for weights {version}",
            limit,
        )
        digest: str = wait_for(
            [
                *(rank.broadcast.remote(self._buffer) for rank in ranks),
                *(actor.update_weights.remote(self._described) for actor in actors),
            ],
            f"learner rank 0 to broadcast weights {version} to {len(actors)} engines by NCCL",
            limit,
        )[0]
        wait_for(
            [actor.finish_weight_update.remote(version) for actor in actors],
            f"the engines to activate weights {version}",
            limit,
        )
        return digest

    def _form(self, actors: Sequence[Any], ranks: Sequence[Any]) -> None:
        limit = self._config.timeout_s
        (address, port), self._described = wait_for(
            [ranks[0].open_port.remote(), ranks[0].describe.remote()],
            "learner rank 0 to open a port for the engines",
            limit,
        )
        self._buffer = buffer_bytes(self._described)
        infos = init_infos(address, port, len(actors), self._config.tensor_parallel_size, self._buffer)
        joining = [
            actor.init_weight_transfer_engine.remote(info) for actor, info in zip(actors, infos, strict=True)
        ]
        wait_for(
            [*joining, ranks[0].join_engines.remote(address, port, infos[0]["world_size"])],
            f"learner rank 0 and {len(actors)} engines to form an NCCL group at {address}:{port}",
            limit,
        )


def init_infos(
    address: str, port: int, engines: int, tensor_parallel_size: int, buffer: int
) -> list[dict[str, Any]]:
    """Fields of vLLM's `NCCLWeightTransferInitInfo` for every engine, with disjoint ranks."""
    return [
        {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1 + engine * tensor_parallel_size,
            "world_size": 1 + engines * tensor_parallel_size,
            "packed": True,
            "packed_buffer_size_bytes": buffer,
            "packed_num_buffers": _BUFFERS,
        }
        for engine in range(engines)
    ]


def join(address: str, port: int, world_size: int) -> Any:
    """Makes this process rank 0 of a group with the engines.

    Raises:
        RuntimeError: NCCL is not available. vLLM's communicator would then silently broadcast nothing.
    """
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    group: Any = trainer_init({"master_address": address, "master_port": port, "world_size": world_size})
    if group.disabled:
        raise RuntimeError(
            "vLLM found no NCCL library in the learner; set grpo.weight_transport object_store"
        )
    return group


def broadcast(group: Any, parameters: Iterator[tuple[str, torch.Tensor]], buffer: int) -> None:
    """Sends a stream to the group buffer by buffer; returns when everything has been sent."""
    import torch
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    torch.cuda.synchronize()  # the sender reads on other CUDA streams than the optimizer wrote on
    packed_nccl_broadcast_producer(
        iterator=parameters,
        group=group,
        src=0,
        post_iter_func=lambda item: item[1],
        buffer_size_bytes=buffer,
        num_buffers=_BUFFERS,
    )
