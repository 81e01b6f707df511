"""Weights on their way through Ray's object store: arrays, which Ray copies once and engines read in place.

A torch tensor is pickled through its storage, byte string and all: seconds where this takes milliseconds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class HostTensor:
    """A tensor of one dimension or more as Ray's object store holds it.

    Attributes:
        data: uint8 [..., last dimension × bytes of an element].
        dtype: The tensor's.
    """

    data: np.ndarray
    dtype: torch.dtype


def to_host(tensor: torch.Tensor) -> HostTensor:
    """The tensor's own memory where it is contiguous and on the CPU, else a copy there."""
    import torch

    whole = tensor.detach().cpu().contiguous()
    return HostTensor(whole.view(torch.uint8).numpy(), whole.dtype)


def from_host(held: HostTensor) -> torch.Tensor:
    """The tensor over the same memory. Out of the object store it is for reading only."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(held.data).view(held.dtype)
