"""How Ray is started: what is tried again, and what is not."""

from __future__ import annotations

import pytest
import ray

from lm_mixup.config import RayConfig
from lm_mixup.distributed.ray_cluster import start_ray

SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet …")


@pytest.mark.parametrize(
    ("errors", "calls"), [([], 1), ([SLOW, SLOW], 3), ([SLOW] * 3, 3), ([ValueError("no CPU")], 1)]
)
def test_a_start_that_took_too_long_is_tried_again(monkeypatch, errors: list[Exception], calls: int):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    made, left = [], list(errors)

    def init(**options):
        made.append(options)
        if left:
            raise left.pop(0)

    monkeypatch.setattr(ray, "init", init)
    if len(errors) == calls:  # all that were made
        with pytest.raises(Exception, match=str(errors[-1])[:20]):
            start_ray(RayConfig())
    else:
        start_ray(RayConfig())
    assert len(made) == calls
    assert all(options["address"] == "local" for options in made)
