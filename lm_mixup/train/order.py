"""The order of training rows: a function of the seed and the epoch, not of ranks or micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_POOL = 16  # batches among which rows are sorted by length


def epoch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch, whole batches of rows of like length, in random order.

    Rows are shuffled, sorted by length within pools of 16 batches, and the batches are shuffled. The rows
    that do not fill a last batch wait for another epoch (others each epoch); fewer rows than one
    batch are repeated until they fill it. So every optimizer step sees the same rows, however they are spread
    over ranks and micro-batches.

    Args:
        lengths: Tokens of each row, int [N].
        batch_size: Rows of an optimizer step, over all ranks.
        seed: Of the run.
        epoch: Counted from 0.

    Returns:
        int64 [max(1, N // batch_size) · batch_size].
    """
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(len(lengths))
    count = max(1, len(rows) // batch_size)
    rows = np.resize(rows, count * batch_size)
    pools = np.array_split(rows, range(_POOL * batch_size, len(rows), _POOL * batch_size))
    by_length = np.concatenate([pool[np.argsort(-lengths[pool], kind="stable")] for pool in pools])
    batches: np.ndarray = by_length.reshape(count, batch_size)[rng.permutation(count)]
    return batches.reshape(-1).astype(np.int64)


class EpochSampler(Sampler[int]):
    """Gives the data loader `epoch_order`; the trainer sets the epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = np.asarray(lengths), batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from epoch_order(self._lengths, self._batch_size, self._seed, self._epoch).tolist()

    def __len__(self) -> int:
        return max(1, len(self._lengths) // self._batch_size) * self._batch_size
