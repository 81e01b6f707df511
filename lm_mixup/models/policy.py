"""The policy model: its tokenizer, its weights, and how prompts and targets become token ids.

SFT, GRPO and distillation encode through `encode_prompt` and `encode_target`, so the model is asked at
inference exactly as it was trained. Weights are read from safetensors only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.config import ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.task_types import write_output, write_prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NANO, UNTRAINED_NANO = "nano", "nano-untrained"
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGED = Path(__file__).parent / "nano"


def check_model_path(path: str) -> None:
    """Refuses a path that can be neither a model folder nor a Hub name, before anything heavy starts.

    Args:
        path: Hub name, local folder, `nano` or `nano-untrained`.

    Raises:
        InputError: No such folder, or the folder holds no model.
    """
    if path in (NANO, UNTRAINED_NANO):
        return
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"model.path {path}: the folder holds no config.json; give a Hugging Face model folder"
            )
    elif not _HUB_NAME.fullmatch(path):
        raise InputError(
            f"model.path {path}: no such folder; give a model folder, a Hub name (org/name) or `{NANO}`"
        )


def context_length(model: ModelConfig) -> int | None:
    """Tokens that a model was made to read, by its config.json; None where that does not tell.

    It does not where positions are stretched (rope scaling), nor where a Hub model cannot be reached now:
    loading it will say so.
    """
    folder = Path(model_folder(model.path))
    if model.path == UNTRAINED_NANO:
        return None
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = Path(hf_hub_download(model.path, "config.json", revision=model.revision)).parent
        except (HfHubHTTPError, LocalEntryNotFoundError):
            return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None
    length: int | None = config.get("max_position_embeddings")
    return length


def check_length(model: ModelConfig, tokens: int, keys: str) -> None:
    """Refuses sequences that are longer than the model reads.

    Args:
        model: The model.
        tokens: Tokens of the longest sequence.
        keys: The config keys that ask for them.

    Raises:
        InputError: They are too many.
    """
    limit = context_length(model)
    if limit is not None and tokens > limit:
        raise InputError(f"{keys}: {tokens} tokens, but {model.path} reads {limit} at most; lower it")


def model_folder(path: str) -> str:
    """The Hub name or folder of a model: `nano` is the one that the package carries.

    A folder is made absolute, because Ray Train's workers have another working directory.
    """
    if path == NANO:
        return str(_PACKAGED)
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path


def load_tokenizer(path: str | Path, model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer at a Hub name or folder, with a chat template, an end-of-sequence and a padding token.

    Raises:
        InputError: It cannot be loaded, or lacks a chat template or an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, path, **options)
    if tokenizer.chat_template is None:
        raise InputError(
            f"model.path {path}: its tokenizer has no chat template; use an instruction-tuned model"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"model.path {path}: no end-of-sequence token; set eos_token in its tokenizer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(path: str | Path, model: ModelConfig) -> PreTrainedModel:
    """The policy's weights at a Hub name or folder, from safetensors, on the CPU.

    Args:
        path: Hub name or folder.
        model: Revision, dtype and whether code that ships with the model may run.

    Raises:
        InputError: No such model, no safetensors in it, or the Hub does not answer.
    """
    from transformers import AutoModelForCausalLM

    policy: PreTrainedModel = _load(
        AutoModelForCausalLM,
        path,
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


def _load(auto_class: Any, path: str | Path, **options: Any) -> Any:
    check_model_path(str(path))
    if str(path) == UNTRAINED_NANO:
        raise InputError(f"model.path {path}: has no weights before the sft stage has made them")
    folder = Path(model_folder(str(path)))
    try:
        return auto_class.from_pretrained(folder if folder.is_dir() else str(path), **options)
    except (OSError, ValueError) as error:
        where = "" if folder.is_dir() else " (no such folder here, and not loaded from the Hub)"
        reason = " ".join(str(error).split())
        raise InputError(f"model.path {path}{where}: {reason:.300}") from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, instruction: str, inputs: Sequence[str]) -> list[int]:
    """Token ids of the policy's prompt: one user turn, then the opening of the assistant's turn.

    Args:
        tokenizer: From `load_tokenizer`.
        instruction: What to do with the inputs (`tasks.INSTRUCTIONS`).
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
