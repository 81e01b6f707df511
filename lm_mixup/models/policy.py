"""The policy model: its tokenizer, its weights, and how prompts and targets become token ids.

SFT, GRPO and distillation encode through `encode_prompt` and `encode_target`, so the model is asked at
inference exactly as it was trained. Weights are read from safetensors only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.config import ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.task_types import write_output, write_prompt
from lm_mixup.models.hub import fetch_model
from lm_mixup.models.resolve import UNTRAINED_NANO, check_model_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_TEMPLATES = Path(__file__).parent / "chat_templates"
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def load_tokenizer(path: str | Path, model: ModelConfig, key: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer at a Hub name or folder, with a chat template, an end-of-sequence and a padding token.

    `key` is the config key that names the model, for messages.

    Raises:
        InputError: It cannot be loaded, or has no tokenizer, no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    folder = Path(path).expanduser()
    if folder.is_dir() and not any(any(folder.glob(files)) for files in _TOKENIZER_FILES):
        raise InputError(
            f"{key} {path}: the folder holds no tokenizer; save it beside the weights "
            "(tokenizer.save_pretrained)"
        )
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, path, key, **options)
    if model.chat_template is not None:
        tokenizer.chat_template = chat_template(model.chat_template)
    if tokenizer.chat_template is None:
        raise InputError(
            f"{key} {path}: its tokenizer has no chat template; use an instruction-tuned model, or set "
            f"{key.removesuffix('path')}chat_template"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"{key} {path}: no end-of-sequence token; set eos_token in its tokenizer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def chat_template(name: str) -> str:
    """The text of a template of the package, or of a file.

    Raises:
        InputError: There is neither.
    """
    known = sorted(path.stem for path in _TEMPLATES.glob("*.jinja"))
    path = _TEMPLATES / f"{name}.jinja" if name in known else Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"chat_template: there is no file {name}, and the package has {' and '.join(known)}")
    return path.read_text(encoding="utf-8")


def load_policy(path: str | Path, model: ModelConfig) -> PreTrainedModel:
    """The policy's weights at a Hub name or folder, from safetensors, on the CPU.

    Switches cuDNN's attention off in this process. It builds a plan for every new row length: the first call
    of each took 137 ms on an H200, and 1 ms without it (docs/training.md).

    Args:
        path: Hub name or folder.
        model: Revision, dtype and whether code that ships with the model may run.

    Raises:
        InputError: No such model, no safetensors in it, or the Hub does not answer.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.enable_cudnn_sdp(False)
    policy: PreTrainedModel = _load(
        AutoModelForCausalLM,
        path,
        "model.path",
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        dtype=policy_dtype(model),
        use_safetensors=True,
    )
    return policy


def policy_dtype(model: ModelConfig) -> torch.dtype:
    """The dtype of weights and activations: `auto` is bfloat16 on GPU and float32 on CPU."""
    import torch

    if model.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype


def _load(auto_class: Any, path: str | Path, key: str, **options: Any) -> Any:
    check_model_path(str(path), key)
    if str(path) == UNTRAINED_NANO:
        raise InputError(f"{key} {path}: has no weights before the sft stage has made them")
    folder = fetch_model(str(path), options.get("revision"), key)
    from safetensors import SafetensorError

    try:
        return auto_class.from_pretrained(folder, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{key} {path}: {reason:.300}") from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, instruction: str, inputs: Sequence[str]) -> list[int]:
    """Token ids of the policy's prompt: one user turn, then the opening of the assistant's turn.

    Args:
        tokenizer: From `load_tokenizer`.
        instruction: What to do with the inputs (`task_types.INSTRUCTIONS`).
        inputs: The 2-20 poor texts.
    """
    return _user_turn(tokenizer, write_prompt(instruction, inputs))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> tuple[list[int], list[int]]:
    """Token ids of an instruction row: the user's turn up to the opening of the assistant's, and the answer.

    The answer is the completion alone, without an end-of-sequence token.
    """
    return _user_turn(tokenizer, prompt), _ids(tokenizer, defuse(tokenizer, completion))


def _user_turn(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    messages = [{"role": "user", "content": defuse(tokenizer, content)}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return _ids(tokenizer, str(text))


def encode_target(tokenizer: PreTrainedTokenizerBase, cot: str, answer: str) -> list[int]:
    """Token ids of the policy's output; the last one is the end-of-sequence token, so it learns to stop."""
    text = defuse(tokenizer, write_output(cot, answer))
    return [*_ids(tokenizer, text), int(tokenizer.eos_token_id)]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def defuse(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Breaks control tokens that stand in a row's text: data must not end a turn or open another."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and len(token.content) > 1 and token.content in text:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def save_model(
    folder: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Writes a model and its tokenizer as safetensors into a folder that appears whole.

    Args:
        folder: Where to.
        policy: The model.
        tokenizer: Its tokenizer.
        weights: The weights by name, where they do not lie whole in `policy` (ZeRO-3).
    """
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # whole models, of writers that were killed
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    policy.save_pretrained(scratch, state_dict=weights)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return folder
