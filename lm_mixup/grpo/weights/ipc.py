"""Weights by CUDA IPC: learner rank i hands engine i, on the same GPU, one buffer after another.

The learner packs parameters into a buffer that it exports once per transfer. The engine maps it and loads its
contents; only then is it filled again. All ranks move from buffer to buffer together, because gathering under
ZeRO-3 is a collective call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_mixup.config import GrpoConfig
from lm_mixup.distributed.ray_wait import wait_for
from lm_mixup.grpo.weights.stream import buffer_bytes

if TYPE_CHECKING:
    import torch


class IpcSender:
    """The driver's side of the transfer."""

    def __init__(self, config: GrpoConfig) -> None:
        self._config = config

    def send(self, version: int, actors: Sequence[Any], ranks: Sequence[Any]) -> str:
        """Sends the learner's weights to every engine.

        Args:
            version: Of the weights.
            actors: Ray handles of the rollout actors, all awake.
            ranks: Ray handles of the learner ranks, rank i on the GPU of actor i.

        Returns:
            The digest of what was sent (`WeightDigest`).

        Raises:
            RayError: One of them failed or died.
            TimeoutError: One of them did not answer within `grpo.timeout_s`.
        """
        limit = self._config.timeout_s
        described, *_ = wait_for(
            [
                ranks[0].describe.remote(),
                *(actor.init_weight_transfer_engine.remote({"packed": True}) for actor in actors),
                *(actor.start_weight_update.remote() for actor in actors),
            ],
            f"the engines to prepare for weights {version}",
            limit,
        )
        buffer = buffer_bytes(described)
        while True:
            chunks = wait_for(
                [rank.next_chunk.remote(buffer) for rank in ranks],
                f"the learner to pack weights {version} for its engines (CUDA IPC)",
                limit,
            )
            if chunks[0] is None:
                break
            wait_for(
                [actor.update_weights.remote(chunk) for actor, chunk in zip(actors, chunks, strict=True)],
                f"the engines to load weights {version} from the learner's buffers (CUDA IPC)",
                limit,
            )
        wait_for(
            [actor.finish_weight_update.remote(version) for actor in actors],
            f"the engines to activate weights {version}",
            limit,
        )
        digests = wait_for(
            [rank.free_chunks.remote() for rank in ranks], "the learner to free its buffers", limit
        )
        return str(digests[0])


def chunks(parameters: Iterator[tuple[str, torch.Tensor]], buffer: int) -> Iterator[dict[str, Any]]:
    """One full buffer after another, each as the fields of vLLM's `IPCWeightTransferUpdateInfo`.

    The engine must be done with a buffer before the next one is requested.
    """
    import torch
    from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    for chunk in packed_ipc_producer(parameters, str(gpu.uuid), lambda item: item[1], buffer):
        yield {
            "names": chunk.names,
            "dtype_names": chunk.dtype_names,
            "shapes": chunk.shapes,
            "tensor_sizes": chunk.tensor_sizes,
            "ipc_handles": chunk.ipc_handle,
        }
