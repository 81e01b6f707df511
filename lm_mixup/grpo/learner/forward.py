"""The policy's forward pass over a micro-batch: log-probs and entropies of completion tokens.

Packed rows (`collate.py`) reach the model's attention layers through Hugging Face's attention interface: the
model uses the implementation registered here, and the groups are passed as a keyword argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lm_mixup.core.errors import InputError
from lm_mixup.grpo.learner.collate import PackedGroup
from lm_mixup.grpo.losses import token_logps_and_entropy

if TYPE_CHECKING:
    from lm_mixup.grpo.learner.collate import MicroBatch

IMPLEMENTATION = "shared_prompt"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")  # attention beyond plain softmax


def completion_logps(model: Any, micro: MicroBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the completion tokens; logits are computed for no other column.

    Args:
        model: A causal language model; for packed micro-batches, after `use_shared_prompts`.
        micro: The micro-batch, on the model's device.
        temperature: The sampling temperature.

    Returns:
        float32 [B, T] log-probs with gradient and [B, T] entropies without, B completions of up to T tokens.
        Values where `micro.mask` is 0 are meaningless.
    """
    packed = {} if micro.groups is None else {"packed_groups": micro.groups}
    logits = model(
        input_ids=micro.input_ids,
        attention_mask=micro.attention_mask,
        position_ids=micro.position_ids,
        logits_to_keep=micro.logit_columns,
        use_cache=False,
        **packed,
    ).logits
    logps, entropies = token_logps_and_entropy(logits, micro.completion_ids, temperature)
    return micro.by_completion(logps), micro.by_completion(entropies)


def use_shared_prompts(model: Any) -> None:
    """Makes a model accept packed rows; other inputs still use PyTorch's own attention.

    Raises:
        InputError: The model has layers other than plain causal attention over all earlier tokens.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(config, "sliding_window", None) is not None:
        kinds.add("sliding_attention")
    if kinds or not getattr(model, "_supports_attention_backend", False):
        why = (
            f"has {', '.join(sorted(kinds))} layers"
            if kinds
            else "does not support other attention implementations"
        )
        raise InputError(
            f"grpo.shared_prompt: {type(model).__name__} {why}, which shared prompts do not support; "
            "set grpo.shared_prompt: false"
        )
    AttentionInterface.register(IMPLEMENTATION, _attention_layer)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    model.set_attn_implementation(IMPLEMENTATION)


def _attention_layer(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_groups: Sequence[PackedGroup] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The function Hugging Face's attention modules call: [B, H, L, d] queries → [B, L, H, d]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_groups is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    unfit = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if unfit:
        raise InputError(
            f"grpo.shared_prompt: {type(module).__name__} uses {', '.join(unfit)}, which shared prompts "
            "do not support; set grpo.shared_prompt: false"
        )
    return packed_attention(query, key, value, packed_groups, scaling, dropout), None


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: Sequence[PackedGroup],
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention over a packed row, group by group: prompt over itself, completions over prompt and self.

    Args:
        query: [1, H, L, d].
        key: [1, K, L, d], K key-value heads, a divisor of H.
        value: [1, K, L, d].
        groups: Position of the groups; together they cover the row in order.
        scaling: Of the scores; default 1/√d.
        dropout: Probability of dropping an attention weight.

    Returns:
        [1, L, H, d].
    """
    options: dict[str, Any] = {
        "dropout_p": dropout,
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    # The row is split once: slicing per group would give each group a gradient as long as the row.
    sizes = [size for group in groups for size in (group.prompt_length, sum(group.lengths))]
    cut = [states.split(sizes, dim=2) for states in (query, key, value)]
    rows = []
    for index, group in enumerate(groups):
        q, k, v = (pieces[2 * index] for pieces in cut)
        read = scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        rows.append(read[0].transpose(0, 1))
        own_q, own_k, own_v = (_unpack(pieces[2 * index + 1], group) for pieces in cut)
        # [1, H, P, d] and [n, H, R, d] as [n, H, P + R, d]: the prompt before each completion
        keys, values = (
            torch.cat([prompt.expand(len(own), -1, -1, -1), own], dim=2)
            for prompt, own in ((k, own_k), (v, own_v))
        )
        written = scaled_dot_product_attention(own_q, keys, values, attn_mask=group.mask, **options)
        rows.append(written.transpose(1, 2).flatten(0, 1).index_select(0, group.tokens))
    return torch.cat(rows).unsqueeze(0)


def _unpack(states: torch.Tensor, group: PackedGroup) -> torch.Tensor:
    """The completions' columns of a group, [1, H, C, d], as a batch: [n, H, R, d]."""
    own = states[0].index_select(1, group.columns)
    return own.unflatten(1, (len(group.lengths), group.longest)).transpose(0, 1)
