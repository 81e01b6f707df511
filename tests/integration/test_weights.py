"""Both transports between GPUs, as far as they go on CPU.

NCCL: the real vLLM, DeepSpeed and Ray, with gloo in NCCL's place (see `gloo_transfer.py`). IPC: the driver's
half on real Ray actors, between ends of our own (see `shared_buffer.py`). What a GPU alone can tell is left:
NCCL, CUDA streams, and CUDA IPC with vLLM at its other end.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import gloo_transfer
import numpy as np
import pytest
import shared_buffer
from grpo_parts import make_model

from lm_mixup.config import GrpoConfig, LoraConfig, ModelConfig, RewardsConfig
from lm_mixup.grpo.learner import learner
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.placement import reserve
from lm_mixup.grpo.rollout import pool as rollout_pool
from lm_mixup.grpo.rollout.pool import RolloutPool
from lm_mixup.grpo.types import Episode, Prompt
from lm_mixup.grpo.weights import ipc, nccl
from lm_mixup.grpo.weights.stream import BUCKET_BYTES
from lm_mixup.grpo.weights.verify import WeightSyncError

CONFIG = GrpoConfig(
    num_generations=2,
    prompts_per_step=4,
    max_prompt_length=64,
    max_completion_length=8,
    learning_rate=1e-2,
    beta=0.0,
    lora=LoraConfig(r=4, alpha=8),
    zero_stage=3,
    learner_ranks=2,
    rollout_actors=2,
    mode="disaggregated",
    micro_tokens=2048,
    cpus_per_actor=0.2,
    placement_timeout_s=60,
    timeout_s=240,
)
PROBE = list(range(20, 60))
PROMPTS = [Prompt(str(i), "qa", list(range(20 + i, 40 + i)), "Q: a\nA: b") for i in range(4)]


def episodes() -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(p.token_ids, [50 + i, 60], np.full(2, -6.0, np.float32), float(rng.normal()), i)
        for i, p in enumerate(PROMPTS)
        for _ in range(2)
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(make_model(tmp_path / "nano"))


def test_vllm_takes_the_messages_that_are_sent():
    from vllm.distributed.weight_transfer.ipc_engine import (
        IPCWeightTransferInitInfo,
        IPCWeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLWeightTransferInitInfo,
        NCCLWeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk

    told = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2, 3]]}
    NCCLWeightTransferUpdateInfo(**told)
    IPCWeightTransferUpdateInfo(**told, tensor_sizes=[24], ipc_handles={"GPU-0": ()})
    assert IPCWeightTransferInitInfo(packed=True).packed
    (info,) = nccl.init_infos("10.0.0.1", 29500, 1, 1, BUCKET_BYTES)
    assert NCCLWeightTransferInitInfo(**info).packed_buffer_size_bytes == BUCKET_BYTES
    assert {f.name for f in fields(PackedIpcChunk)} >= {"ipc_handle", "tensor_sizes", *told}


def test_every_engine_is_handed_the_weights_of_its_own_rank(
    ray_session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ray_session.cloudpickle.register_pickle_by_value(shared_buffer)
    monkeypatch.setattr(ipc, "buffer_bytes", lambda told: 1000)
    tensors = 20
    paths = [str(tmp_path / f"gpu-{gpu}") for gpu in range(2)]
    few = {"num_cpus": 0.1}
    ranks = [
        ray_session.remote(shared_buffer.Rank).options(**few).remote(i, path, tensors)
        for i, path in enumerate(paths)
    ]
    engines = [ray_session.remote(shared_buffer.Engine).options(**few).remote(path) for path in paths]
    sender = ipc.IpcSender(CONFIG)
    for version in range(2):
        sender.send(version, engines, ranks)
        for rank, engine in enumerate(engines):
            values = [(f"layers.{i}.weight", 100.0 * rank + i + 0.5 * version) for i in range(tensors)]
            assert ray_session.get(engine.holds.remote()) == (version, values)
        assert ray_session.get([rank.change.remote() for rank in ranks]) == [version + 1] * 2
    for actor in [*ranks, *engines]:
        ray_session.kill(actor)


def test_engines_hold_what_was_broadcast_through_deaths_of_any_of_them(
    ray_session, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ray_session.cloudpickle.register_pickle_by_value(gloo_transfer)
    monkeypatch.setattr(rollout_pool, "RolloutActor", gloo_transfer.GlooActor)
    monkeypatch.setattr(learner, "LearnerRank", gloo_transfer.GlooRank)
    monkeypatch.setattr(nccl, "buffer_bytes", lambda told: gloo_transfer.BUCKET)
    placement = reserve(CONFIG, RewardsConfig())
    config = CONFIG.model_copy(update={"weight_transport": "nccl"})
    pool = RolloutPool(str(model), ModelConfig(), config, placement)
    policy = Learner(str(model), ModelConfig(), config, 0, placement)

    def publish(version: int, error: float = 0.0) -> float:
        return pool.publish(version, policy.weights(), PROBE, policy.logps(PROBE) + np.float32(error))

    def drawn() -> list[int]:
        return [group.weight_version for group in pool.generate(PROMPTS, [0, 1, 2, 3])]

    assert publish(0) <= 1e-4
    at_first = policy.logps(PROBE)
    policy.update(episodes(), 1e-2)
    assert np.abs(policy.logps(PROBE) - at_first).max() > 1e-2
    with pytest.raises(WeightSyncError):
        publish(1, error=0.01)
    assert publish(1) <= 1e-4
    assert drawn() == [1] * 4

    # Between two publications: another takes the dead one's place, and the group is formed anew with it.
    doomed = pool.actors[0]
    ray_session.kill(doomed)
    assert drawn() == [1] * 4
    assert pool.actors[0] is not doomed
    policy.update(episodes(), 1e-2)
    assert publish(2) <= 1e-4

    # In the midst of a broadcast: nobody is left waiting, and the learner starts again as after a death. One
    # engine will do, and takes half the time to start again.
    ray_session.kill(pool.actors.pop())
    before, ranks = list(pool.actors), list(policy.ranks)
    (model / "die").touch()
    with pytest.raises(ray_session.exceptions.RayError):
        publish(3)
    assert "died during the transfer of weights 3" in capsys.readouterr().err
    assert policy.dead_ranks() == [0, 1]
    assert not set(map(id, before)) & set(map(id, pool.actors))
    policy.restart()
    assert policy.ranks != ranks
    assert publish(0) <= 1e-4
    np.testing.assert_array_equal(policy.logps(PROBE), at_first)
    assert drawn() == [0] * 4
    policy.shutdown()
    pool.shutdown()
    placement.release()
