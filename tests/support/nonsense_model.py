"""A model that writes nonsense in good form: for roads that a real engine is to go, to their end.

A random model never ends a JSON string. This one is a table of which token may follow which, written into the
weights of a Qwen2: the embedding of a token says which row is its own, the layer adds nothing, and the head
holds the rows. Held to a JSON schema it fills every string with a few of a dozen words, so that one text
tells about half of what another does, and rates at random, every other row well. Drawn greedily, each string
is the same dozen words.
"""

from __future__ import annotations

import math
from pathlib import Path

from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import save_model

WORDS = ("river", "stone", "bridge", "market", "castle", "garden", "winter", "harbour", "mountain", "village")
OPTIONS = {"option_a": "north", "option_b": "south", "option_c": "east", "option_d": "west"}
CLOSING = 0.1  # of the tokens that follow a word
WELL = {"8": 3.5, "9": 3.5}  # weight of a rating; the others have 1
_WISHED = (
    30.0  # what a row adds to the logits of its tokens; 0 means never, unless the schema leaves no other
)


def create_nonsense(folder: Path, texts: list[str], *, vocab_size: int = 1024) -> Path:
    """Writes the model.

    Args:
        folder: Where to.
        texts: What the tokenizer is trained on, beside the words that the model writes.
        vocab_size: Of the tokenizer.
    """
    import torch
    from tokenizers import AddedToken
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    words = [*WORDS, *OPTIONS.values()]
    taught = [" ".join(["", *words]), "\n".join(words)] * 500  # each a token, behind a space and without one
    create_nano(folder, [*texts, *taught], 0, vocab_size=vocab_size, hidden_size=32, num_heads=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(f'{key}":"', special=False, normalized=False) for key in OPTIONS])
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    config.update({"lm_mixup_demonstration": True})
    rows, row_of = _table(tokenizer.get_vocab())
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.zero_()
        embedding[torch.arange(len(row_of)), torch.tensor(row_of)] = 1.0
        head.zero_()
        # A unit vector leaves the last normalisation with length √d.
        head[:, : len(rows)] = torch.tensor(rows).T / math.sqrt(config.hidden_size)
    return save_model(folder, model, tokenizer)


def _table(vocab: dict[str, int]) -> tuple[list[list[float]], list[int]]:
    """The rows of logits, and for each token the row of what follows it."""
    space = "\u0120"  # as byte-level BPE writes it
    always = {f'{key}":"': _WISHED for key in OPTIONS}
    opens = {word: _WISHED - place / 100 for place, word in enumerate(WORDS)}
    rated = {digit: _WISHED + math.log(WELL.get(digit, 1.0)) for digit in "123456789"}
    opens["A"] = 5.0  # the letter of the right option, where nothing but letters may follow
    follows = [opens, rated | {'"': _WISHED}]
    row_of = [0] * len(vocab)
    for token, number in vocab.items():
        row_of[number] = int(
            token.endswith(":")
        )  # a rating or the opening of a string; behind the rest, words
    for place, word in enumerate(WORDS):
        last = place == len(WORDS) - 1
        share = math.log((1 - CLOSING) / (len(WORDS) - 1))
        following = {f"{space}{other}": _WISHED + share for other in WORDS if other != word}
        following['"'] = _WISHED + math.log(CLOSING)
        likeliest = '"' if last else f"{space}{WORDS[place + 1]}"
        following[likeliest] += 0.5
        if last:
            following['"'] = _WISHED
        follows.append(following)
        row_of[vocab[word]] = row_of[vocab[f"{space}{word}"]] = len(follows) - 1
    for key, option in OPTIONS.items():
        follows += [{option: _WISHED}, {'"': _WISHED}]
        row_of[vocab[f'{key}":"']], row_of[vocab[option]] = len(follows) - 2, len(follows) - 1
    rows = []
    for following in follows:
        row = [0.0] * len(vocab)
        for token, logit in (always | following).items():
            row[vocab[token]] = logit
        rows.append(row)
    return rows, row_of
