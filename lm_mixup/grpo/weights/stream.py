"""The learner's weights as a stream: bucket by bucket, adapters merged, under the policy's own names.

All ranks go through the buckets in the same order, because gathering one under ZeRO-3 is a collective call.
No rank ever holds more than one bucket of gathered parameters.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lm_mixup.train.lora import merge

if TYPE_CHECKING:
    import torch

    from lm_mixup.config import LoraConfig

BUCKET_BYTES = 256 << 20

_PART = re.compile(r"\.(base_layer|lora_[AB])\..*")


def buckets(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Splits parameters, in order, into buckets of at most `limit` bytes.

    A layer's weight and its adapters are merged into one tensor and stay together; if they, or a single
    parameter, exceed the limit, they get their own bucket.

    Args:
        sizes: Bytes of every parameter by name.
        limit: Bytes.
    """
    filled: list[list[str]] = []
    room = 0
    for _, together in itertools.groupby(sizes, key=lambda name: _PART.sub("", name)):
        names = list(together)
        size = sum(sizes[name] for name in names)
        if not filled or size > room:
            filled.append([])
            room = limit
        filled[-1] += names
        room -= size
    return filled


def gather(
    parameters: Mapping[str, Any], *, sharded: bool, keep: bool, limit: int = BUCKET_BYTES
) -> Iterator[dict[str, torch.Tensor]]:
    """Full parameters, bucket by bucket. Under ZeRO-3 a collective call of all ranks.

    Args:
        parameters: By name; under ZeRO-3 this rank's shards.
        sharded: Whether ZeRO-3 shards them.
        keep: Whether this rank needs them; else it only takes part in gathering and yields empty buckets.
        limit: Bytes per bucket.
    """
    sizes = {name: _shape(p).numel() * p.element_size() for name, p in parameters.items()}
    for names in buckets(sizes, limit):
        bucket = {name: parameters[name] for name in names}
        if not sharded:
            yield {name: p.detach() for name, p in bucket.items()} if keep else {}
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(bucket.values())):
            whole = {name: p.detach().clone() for name, p in bucket.items()} if keep else {}
        yield whole


def stream(
    parameters: Mapping[str, Any],
    lora: LoraConfig | None,
    *,
    sharded: bool,
    keep: bool,
    limit: int = BUCKET_BYTES,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Full tensors by name, adapters merged, in the order of `describe`; arguments as for `gather`."""
    for bucket in gather(parameters, sharded=sharded, keep=keep, limit=limit):
        yield from merge(bucket, lora).items()


def describe(parameters: Mapping[str, Any], lora: LoraConfig | None) -> dict[str, list[Any]]:
    """Names, dtypes and shapes of what `stream` yields, in order, as vLLM's update info expects them."""
    import torch

    empty = {name: torch.empty(_shape(p), dtype=p.dtype, device="meta") for name, p in parameters.items()}
    merged = merge(empty, lora)
    return {
        "names": list(merged),
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in merged.values()],
        "shapes": [list(tensor.shape) for tensor in merged.values()],
    }


def buffer_bytes(described: Mapping[str, list[Any]]) -> int:
    """The size of a transfer buffer: one bucket, or the largest tensor if that is larger."""
    import torch

    sizes = (
        math.prod(shape) * getattr(torch, dtype).itemsize
        for shape, dtype in zip(described["shapes"], described["dtype_names"], strict=True)
    )
    return max(BUCKET_BYTES, *sizes)


def _shape(parameter: Any) -> torch.Size:
    """The full parameter's shape; ZeRO-3 leaves an empty placeholder on each rank."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
