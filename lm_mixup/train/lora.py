"""LoRA adapters: adding them to a policy, and merging them into plain weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.config import LoraConfig as LoraSection

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

_PREFIX = "base_model.model."
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def adapter(lora: LoraSection | None) -> LoraConfig | None:
    """PEFT's configuration of the adapters, on every linear layer except the head."""
    from peft import LoraConfig, TaskType

    if lora is None:
        return None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type=TaskType.CAUSAL_LM,
    )


def with_adapter(policy: Any, lora: LoraSection | None) -> Any:
    """The policy as a PEFT model with only its adapters trainable; unchanged if `lora` is None."""
    from peft import get_peft_model

    config = adapter(lora)
    return policy if config is None else get_peft_model(policy, config)


def merge(weights: Mapping[str, torch.Tensor], lora: LoraSection | None) -> dict[str, torch.Tensor]:
    """Plain weights by the base model's own names: W + (α / r) · B A (LoRA, arXiv 2106.09685, section 4.1).

    The sum is computed in float32 and returned in W's dtype. No input tensor is changed.

    Args:
        weights: Full tensors by the PEFT model's names, adapters included; or by plain names.
        lora: The `lora` section; if None, the weights are returned unchanged.
    """
    if lora is None:
        return dict(weights)
    merged: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if ".lora_" in name:
            continue
        layer, base, leaf = name.partition(_BASE)
        if base and leaf == "weight":
            change = weights[layer + _UP].float() @ weights[layer + _DOWN].float()
            value = (value.float() + lora.alpha / lora.r * change).to(value.dtype)
        merged[(f"{layer}.{leaf}" if base else name).removeprefix(_PREFIX)] = value
    return merged


def adapter_of(model: Path) -> Path:
    """Folder of a model's adapters; the model folder itself holds merged weights."""
    return model.with_name(f"{model.name}_adapter")


def save_adapter(trained: Any, weights: Mapping[str, torch.Tensor], model: Path) -> Path:
    """Writes the adapters alone beside a model's folder, as PEFT does; returns their folder.

    Args:
        trained: The PEFT model.
        weights: Full tensors by the PEFT model's names, or by those of the model inside it.
        model: The model's folder.
    """
    named = {f"{_PREFIX}{name.removeprefix(_PREFIX)}": value for name, value in weights.items()}
    trained.save_pretrained(adapter_of(model), state_dict=named, save_embedding_layers=False)
    return adapter_of(model)
