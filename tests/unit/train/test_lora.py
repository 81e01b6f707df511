"""Adapters merged by name against PEFT's own merge."""

from __future__ import annotations

import pytest
import torch

from lm_mixup.config import LoraConfig, ModelConfig
from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import load_policy
from lm_mixup.train.lora import merge, with_adapter

LORA = LoraConfig(r=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("adapter") / "nano"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 96}
    return str(create_nano(path, ["some text to merge"] * 9, 0, vocab_size=300, **sizes))


def test_merged_weights_are_peft_s_own(folder: str):
    torch.manual_seed(0)
    model = with_adapter(load_policy(folder, ModelConfig()), LORA)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    given = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours = merge(given, LORA)
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in given.items())
    theirs = dict(model.merge_and_unload().named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=1e-6)
    plain = dict(load_policy(folder, ModelConfig()).named_parameters())
    moved = [name for name in plain if not torch.equal(plain[name], ours[name])]
    assert len(moved) == 2 * 7  # q, k, v, o, gate, up, down of each layer; biases, norms and embeddings stay


def test_without_adapters_weights_come_back_as_they_are(folder: str):
    plain = dict(load_policy(folder, ModelConfig()).named_parameters())
    assert merge(plain, None) == plain
    assert with_adapter("policy", None) == "policy"
