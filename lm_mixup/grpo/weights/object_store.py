"""Weights in Ray's object store, as NumPy arrays: Ray copies them once and engines read them in place.

Torch tensors would be pickled through their storage, which takes seconds instead of milliseconds.
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
    """A tensor of at least one dimension, as it is put into Ray's object store.

    Attributes:
        data: uint8 [..., last dimension × bytes per element].
        dtype: Of the tensor.
    """

    data: np.ndarray
    dtype: torch.dtype


def to_host(tensor: torch.Tensor) -> HostTensor:
    """The tensor's own memory if it is contiguous and on the CPU, else a copy there."""
    import torch

    whole = tensor.detach().cpu().contiguous()
    return HostTensor(whole.view(torch.uint8).numpy(), whole.dtype)


def from_host(tensor: HostTensor) -> torch.Tensor:
    """The torch tensor over the same memory, which is read-only if it comes from the object store."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(tensor.data).view(tensor.dtype)
