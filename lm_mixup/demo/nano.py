"""Makes the untrained `nano`: a small Qwen2-shaped model with an induction circuit, and its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.models.policy import END_OF_TEXT, IM_END, IM_START, TAGS, chat_template, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM


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

    The weights are random but for an induction circuit (`induction_heads`), where the shape has room for one,
    so that a few minutes of training teach it to copy. The vocabulary is small on purpose: names stay in
    pieces, and a name that training never saw is copied piece by piece.

    Args:
        folder: Where to; appears whole or not at all. Loads with Hugging Face's auto classes and with vLLM.
        texts: What the byte-level BPE is trained on.
        vocab_size: Tokens, special ones included.
        hidden_size: Width of the model; `hidden_size / num_heads` must be 32 or a multiple of it.
        num_heads: Attention heads (as many key-value heads).
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

    from lm_mixup.demo.induction_heads import write_induction

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Qwen2ForCausalLM(config)
    if config.num_hidden_layers >= 2 and config.num_attention_heads >= 3:
        write_induction(policy, seed)
    return policy


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
        chat_template=chat_template("chatml"),
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
