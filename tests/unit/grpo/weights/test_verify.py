"""The checks of a weight sync."""

from __future__ import annotations

import numpy as np
import pytest

from lm_mixup.grpo.weights.verify import (
    Digests,
    EngineState,
    Published,
    WeightSyncError,
    check_digests,
    check_probe,
    model_digest,
)


@pytest.mark.parametrize("bad", [0.01, float("nan"), float("inf")])
def test_engines_with_other_weights_stop_the_run(bad: float):
    published = Published(7, None, [1, 2, 3], np.zeros(2, dtype=np.float32))
    assert check_probe(0, published, held([0.0, 1e-4]), None) == pytest.approx(5e-5)
    with pytest.raises(WeightSyncError, match="weights 7"):
        check_probe(0, published, held([0.0, bad]), None)


def test_bfloat16_may_differ_by_its_rounding_unless_the_config_is_stricter():
    published = Published(7, None, [1, 2, 3], np.zeros(2, dtype=np.float32))
    rounded = held([-0.5, 0.02], "bfloat16")
    with pytest.raises(WeightSyncError, match="2e-01 in bfloat16"):
        check_probe(0, published, rounded, None)
    assert check_probe(0, published, held([-0.3, 0.02], "bfloat16"), None) == pytest.approx(0.16)
    with pytest.raises(WeightSyncError):
        check_probe(0, published, held([-0.3, 0.02], "bfloat16"), 0.1)


def test_weights_that_are_not_finite_are_not_a_sync_error():
    published = Published(7, None, [1, 2], np.array([np.nan], dtype=np.float32))
    with pytest.raises(RuntimeError, match=r"weights 7 are not finite.*learning_rate"):
        check_probe(0, published, held([0.0]), None)


def test_weights_that_never_arrived_stop_the_run_however_little_they_differ():
    def check(version: int, sent: str, digests: str, before: Digests | None, whole: bool = True) -> Digests:
        return check_digests(version, sent, [held([0.0], digest=d, whole=whole) for d in digests], before)

    first = check(0, "a", "xx", None)
    assert check(1, "a", "xx", first) == first  # an update that changed nothing
    second = check(1, "b", "yy", first)
    for sent, digests, what in (
        ("c", "yy", "the same weights as before"),
        ("b", "zz", "other weights than before, although the same were sent"),
        ("c", "zy", "different weights"),
    ):
        with pytest.raises(WeightSyncError, match=what):
            check(2, sent, digests, second)
    check(2, "c", "yy", second, whole=False)  # what changed may be what cannot be seen


def test_a_digest_sees_the_smallest_step_of_one_weight():
    import torch

    layer = torch.nn.Linear(300, 200).to(torch.bfloat16)
    before = model_digest(layer)
    assert model_digest(layer) == before
    assert before[1]
    layer.bias.data = torch.empty(0)
    assert not model_digest(layer)[1]
    before = model_digest(layer)
    with torch.no_grad():
        weight = layer.weight[7, 11]
        weight.copy_(torch.nextafter(weight, weight + 1))
    assert model_digest(layer) != before


def held(logps: list[float], dtype: str = "float32", digest: str = "x", whole: bool = True) -> EngineState:
    return EngineState(np.array(logps, dtype=np.float32), digest, whole, dtype)
