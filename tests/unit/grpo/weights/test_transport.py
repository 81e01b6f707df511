"""Weights as a stream of buckets, and the refusal of transports that this place cannot carry."""

from __future__ import annotations

import pickle
import re
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from lm_mixup.cli import app
from lm_mixup.config import GrpoConfig, LoraConfig, ModelConfig, RayConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.demo.nano import create_nano
from lm_mixup.grpo.placement import plan_bundles
from lm_mixup.grpo.weights.nccl import init_infos
from lm_mixup.grpo.weights.object_store import from_host, to_host
from lm_mixup.grpo.weights.stream import BUCKET_BYTES, buckets, buffer_bytes, describe, gather, stream
from lm_mixup.grpo.weights.transport import check_transport
from lm_mixup.models.policy import load_policy
from lm_mixup.train.lora import merge, with_adapter

ROOT = Path(__file__).resolve().parents[4]
LORA = LoraConfig(r=4, alpha=8)

plain = st.lists(st.integers(0, 50), max_size=30).map(
    lambda sizes: {f"layers.{i}.weight": size for i, size in enumerate(sizes)}
)


@st.composite
def adapted(draw: st.DrawFn) -> dict[str, int]:
    """Layers as PEFT names them, some with adapters, some of those with a bias."""
    sizes: dict[str, int] = {}
    for layer, kind in enumerate(draw(st.lists(st.sampled_from(["plain", "lora", "bias"]), max_size=12))):
        leaves = {
            "plain": ["weight"],
            "lora": ["base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"],
            "bias": [
                "base_layer.weight",
                "base_layer.bias",
                "lora_A.default.weight",
                "lora_B.default.weight",
            ],
        }[kind]
        sizes |= {f"layers.{layer}.proj.{leaf}": draw(st.integers(0, 50)) for leaf in leaves}
    return sizes


def layer_of(name: str) -> str:
    return re.split(r"\.(?:base_layer|lora_.|weight)", name)[0]


@given(st.one_of(plain, adapted()), st.integers(1, 80))
def test_buckets_hold_every_parameter_once_in_order_and_within_bounds(sizes: dict[str, int], limit: int):
    cut = buckets(sizes, limit)
    assert list(chain.from_iterable(cut)) == list(sizes)
    assert all(cut)
    for bucket in cut:
        layers = {layer_of(name) for name in bucket}
        assert sum(sizes[name] for name in bucket) <= limit or len(layers) == 1
    for bucket, following in pairwise(cut):
        first = [name for name in following if layer_of(name) == layer_of(following[0])]
        assert layer_of(bucket[-1]) != layer_of(following[0]), "a layer was parted from its adapters"
        assert sum(sizes[name] for name in [*bucket, *first]) > limit, "a bucket was closed too early"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stream") / "nano"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 96}
    return str(create_nano(path, ["some text to stream"] * 9, 0, vocab_size=300, **sizes))


@pytest.fixture(params=[None, LORA], ids=["full", "lora"])
def policy(folder: str, request: pytest.FixtureRequest) -> tuple[Any, LoraConfig | None]:
    torch.manual_seed(0)
    model: Any = load_policy(folder, ModelConfig())
    with_adapter(model, request.param)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, request.param


@pytest.mark.parametrize("limit", [1, 20_000, BUCKET_BYTES])
def test_the_stream_is_what_was_described_and_merged_as_a_whole(policy, folder: str, limit: int):
    model, lora = policy
    parameters = dict(model.named_parameters(remove_duplicate=False))
    streamed = list(stream(parameters, lora, sharded=False, keep=True, limit=limit))
    told = describe(parameters, lora)
    assert [name for name, _ in streamed] == told["names"]
    assert [list(t.shape) for _, t in streamed] == told["shapes"]
    assert [str(t.dtype) for _, t in streamed] == [f"torch.{name}" for name in told["dtype_names"]]
    whole = merge({name: p.detach() for name, p in parameters.items()}, lora)
    for name, tensor in streamed:
        assert not tensor.requires_grad
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)
    original: Any = load_policy(folder, ModelConfig())
    assert {name for name, _ in original.named_parameters(remove_duplicate=False)} == set(told["names"])
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(told["names"])  # tied, and sent by both


def test_no_bucket_is_gathered_before_it_is_asked_for(policy):
    model, _ = policy
    parameters = dict(model.named_parameters())
    largest = max(p.numel() * p.element_size() for p in parameters.values())
    whole = sum(p.numel() * p.element_size() for p in parameters.values())
    seen = [
        sum(t.numel() * 4 for t in b.values()) for b in gather(parameters, sharded=False, keep=True, limit=1)
    ]
    assert sum(seen) == whole
    assert max(seen) < 2 * largest < whole
    assert not any(gather(parameters, sharded=False, keep=False))  # a rank that only helps holds nothing


def test_a_buffer_holds_the_largest_tensor():
    told = {"names": ["a", "b"], "dtype_names": ["bfloat16", "float32"], "shapes": [[152064, 3584], [7]]}
    assert buffer_bytes(told) == 152064 * 3584 * 2 > BUCKET_BYTES
    assert buffer_bytes({"names": ["b"], "dtype_names": ["float32"], "shapes": [[]]}) == BUCKET_BYTES


@given(st.integers(1, 9), st.sampled_from([1, 2, 4, 8]))
def test_every_gpu_has_a_rank_of_its_own_and_the_learner_is_0(engines: int, tp: int):
    infos = init_infos("10.0.0.1", 29500, engines, tp, BUCKET_BYTES)
    ranks = [info["rank_offset"] + gpu for info in infos for gpu in range(tp)]
    assert ranks == list(range(1, 1 + engines * tp))
    assert {info["world_size"] for info in infos} == {len(ranks) + 1}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"weight_transport": "nccl"}, "on their own GPUs"),
        ({"weight_transport": "ipc", "mode": "disaggregated"}, "mode colocated"),
        ({"weight_transport": "ipc", "mode": "async"}, "mode colocated"),
        ({"weight_transport": "ipc", "rollout_actors": 2}, "as many rollout_actors"),
        ({"weight_transport": "ipc", "learner_ranks": 2}, "as many rollout_actors"),
        ({"weight_transport": "smoke"}, "object_store"),
    ],
)
def test_a_transport_that_cannot_reach_is_refused(keys: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        GrpoConfig.model_validate(keys)


GOOD = [
    {"weight_transport": "nccl", "mode": "disaggregated"},
    {"weight_transport": "nccl", "mode": "async", "rollout_actors": 3, "tensor_parallel_size": 2},
    {"weight_transport": "ipc", "mode": "colocated", "rollout_actors": 2, "learner_ranks": 2},
]


@pytest.mark.parametrize("keys", GOOD, ids=str)
def test_a_transport_between_gpus_is_not_laid_out_without_one(keys: dict[str, Any]):
    config = GrpoConfig.model_validate(keys)
    with pytest.raises(InputError, match=f"grpo.weight_transport {config.weight_transport}"):
        plan_bundles(config, RewardsConfig(), on_gpu=False)
    plan_bundles(config, RewardsConfig(), on_gpu=True)


def test_the_transport_does_not_make_a_run_another_one():
    default = GrpoConfig()
    assert default.weight_transport == "object_store"
    config = GrpoConfig(mode="disaggregated")
    assert config.identity() == GrpoConfig(mode="disaggregated", weight_transport="nccl").identity()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("keys", GOOD, ids=str)
def test_without_a_gpu_it_is_one_line_and_exit_code_2(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="object_store"):
        check_transport(GrpoConfig.model_validate(keys), RayConfig())
    settings = list(chain.from_iterable(("--set", f"grpo.{key}={value}") for key, value in keys.items()))
    arguments = ["run", str(ROOT / "configs" / "quickstart.yaml"), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, *settings])
    said = " ".join((result.output + (result.stderr or "")).split())
    assert result.exit_code == 2, said
    assert "grpo.weight_transport" in said and "no GPU" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "run.json").exists(), "something was started"


def test_the_object_store_asks_for_no_gpu():
    check_transport(GrpoConfig(), RayConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_out_of_the_object_store_as_they_went_in(dtype: torch.dtype):
    whole = torch.randn(6, 4, dtype=torch.float32).to(dtype)
    tied = torch.nn.Parameter(whole)
    column = whole.t()  # not contiguous: copied
    for tensor in (whole, tied, column, whole[0]):
        held = pickle.loads(pickle.dumps(to_host(tensor)))
        assert held.data.dtype == np.uint8
        assert torch.equal(from_host(held), tensor)
        assert from_host(held).dtype == dtype
    assert from_host(to_host(tied)).data_ptr() == whole.data_ptr()  # no copy where none is needed


def test_an_array_out_of_the_object_store_is_read_without_a_copy_or_a_warning(recwarn):
    held = to_host(torch.arange(4.0))
    held.data.flags.writeable = False  # as Ray hands it out
    assert from_host(held).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not recwarn.list
