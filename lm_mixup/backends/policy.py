"""The policy model: its tokenizer, its weights, and how prompts and targets become token ids.

SFT, GRPO and distillation encode through `encode_prompt` and `encode_target`, so the model is asked at
inference exactly as it was trained. Weights are read from safetensors only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.config import ModelConfig
from lm_mixup.errors import InputError
from lm_mixup.tasks import write_output, write_prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

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


def create_nano(
    folder: Path,
    texts: Iterable[str],
    seed: int,
    *,
    vocab_size: int = 768,
    hidden_size: int = 256,
    num_layers: int = 3,
    num_heads: int = 4,
    intermediate_size: int = 640,
    max_positions: int = 4096,
    rope_theta: float = 1e6,
) -> Path:
    """Writes a small untrained Qwen2-architecture model and a tokenizer trained on the texts.

    The weights are random but for an induction circuit (`induction.py`), where the shape has room for one, so
    that a few minutes of training teach it to copy. The vocabulary is small on purpose: names stay in pieces,
    and a name that training never saw is copied piece by piece.

    Args:
        folder: Where to; appears whole or not at all. Loads with Hugging Face's auto classes and with vLLM.
        texts: What the byte-level BPE is trained on.
        seed: Of the weights.
        vocab_size: Tokens, special ones included.
        hidden_size: Width of the model; `hidden_size / num_heads` must be 32 or a multiple of it.
        num_layers: Transformer layers.
        num_heads: Attention heads (as many key-value heads).
        intermediate_size: Width of the feed-forward layers.
        max_positions: Longest sequence.
        rope_theta: Base of the rotary position embedding.

    Returns:
        The folder.
    """
    from transformers import GenerationConfig, Qwen2Config

    tokenizer = _train_tokenizer(texts, vocab_size, max_positions)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    # Kept by what is trained from it: the program says what it cannot do.
    config.update({"lm_mixup_demonstration": True})
    policy = _with_first_weights(config, seed)
    policy.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return save_model(folder, policy, tokenizer)


def _with_first_weights(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """A model of random weights, with an induction circuit where its shape has room for one."""
    import torch
    from transformers import Qwen2ForCausalLM

    from lm_mixup.backends.induction import write_induction

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Qwen2ForCausalLM(config)
    if config.num_hidden_layers >= 2 and config.num_attention_heads >= 3:
        write_induction(policy, seed)
    return policy


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


def _train_tokenizer(texts: Iterable[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with Qwen2's splitting rules (digits stand alone), trained without dropout.

    The rules must be Qwen2's: the auto classes apply them to every tokenizer beside a Qwen2 model.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    rules = Qwen2Tokenizer().backend_tokenizer
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_without_tags(texts), trainer)
    trained = json.loads(backend.to_str())["model"]
    vocab, merges = _names_alike(trained["vocab"], [tuple(pair) for pair in trained["merges"]])
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[IM_START],
        chat_template=CHATML,
        model_max_length=max_positions,
    )
    # Not special: `decode(skip_special_tokens=True)` must keep the tags that the answer is parsed by.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def _names_alike(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tuple[dict[str, int], Any]:
    """Drops the tokens that join a space with a capital letter, and what is merged from them.

    Then a name is the same tokens at the start of a line and behind a space, and can be copied from the one
    to the other.
    """
    space = "\u0120"  # as byte-level BPE writes it
    dropped = {token for token in vocab if token[:1] == space and token[1:2].isupper()}
    kept = [(left, right) for left, right in merges if not dropped & {left, right, left + right}]
    made = {left + right for left, right in kept}
    unmade = {left + right for left, right in merges} - made
    tokens = [token for token in sorted(vocab, key=vocab.__getitem__) if token not in unmade]
    return {token: index for index, token in enumerate(tokens)}, kept


def _without_tags(texts: Iterable[str]) -> Iterator[str]:
    marks = re.compile("|".join(map(re.escape, (*TAGS, IM_START, IM_END, END_OF_TEXT))))
    for text in texts:
        yield from filter(None, marks.split(text))
