"""The two ends of the IPC transport on CPU: a file that both map stands for the memory of a shared GPU.

One buffer is filled again and again, so an engine that is still reading when the next one is packed holds
wrong weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lm_mixup.grpo.learner.rank import LearnerRank
from lm_mixup.grpo.weights import ipc
from lm_mixup.grpo.weights.stream import describe, stream


class Rank:
    """A learner rank without a model: its parameters are told apart by their values."""

    next_chunk = LearnerRank.next_chunk

    def __init__(self, rank: int, path: str, tensors: int) -> None:
        self._chunks: Iterator[dict[str, Any]] | None = None
        self._parameters = {
            f"layers.{i}.weight": torch.full((10 + i, 3), 100.0 * rank + i) for i in range(tensors)
        }
        self._path, self.freed = path, 0
        ipc.chunks = self._pack

    def describe(self) -> dict[str, list[Any]]:
        return describe(self._parameters, None)

    def _stream(self, *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        return stream(self._parameters, None, sharded=False, keep=keep, limit=300)

    def _pack(self, parameters: Iterator[tuple[str, torch.Tensor]], buffer: int) -> Iterator[dict[str, Any]]:
        """As vLLM's `packed_ipc_producer` cuts: a tensor that would not fit waits for the next buffer."""
        shared = np.memmap(self._path, np.uint8, "w+", shape=(buffer,))
        chunk: dict[str, Any] = {"names": [], "shapes": [], "at": []}
        filled = 0
        for name, tensor in parameters:
            flat = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            if filled + len(flat) > buffer:
                yield chunk
                chunk, filled = {"names": [], "shapes": [], "at": []}, 0
            shared[filled : filled + len(flat)] = flat
            chunk["names"].append(name)
            chunk["shapes"].append(list(tensor.shape))
            chunk["at"].append(filled)
            filled += len(flat)
        yield chunk

    def free_chunks(self) -> None:
        self.freed += 1

    def change(self) -> int:
        """An update; returns how often the buffer was taken back."""
        for tensor in self._parameters.values():
            tensor += 0.5
        return self.freed


class Engine:
    """A rollout actor without an engine; it takes its time, and minds the order of calls."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.weights: dict[str, np.ndarray] = {}
        self.version: int | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        assert init_info == {"packed": True}

    def start_weight_update(self) -> None:
        self.weights, self.version = {}, None

    def update_weights(self, chunk: dict[str, Any]) -> None:
        assert self.version is None
        shared = np.memmap(self._path, np.uint8, "r")
        for name, shape, at in zip(chunk["names"], chunk["shapes"], chunk["at"], strict=True):
            time.sleep(0.01)
            held = np.array(shared[at : at + 4 * math.prod(shape)])
            self.weights[name] = held.view(np.float32).reshape(shape)

    def finish_weight_update(self, version: int) -> None:
        self.version = version

    def holds(self) -> tuple[int | None, list[tuple[str, float]]]:
        """The version, and every tensor's one value."""
        values = [(name, np.unique(w)) for name, w in self.weights.items()]
        assert all(len(value) == 1 for _, value in values)
        return self.version, [(name, float(value[0])) for name, value in values]
