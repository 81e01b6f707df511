"""A cluster address where nothing listens is refused at once, in one line."""

import socket
import time

import pytest

from lm_mixup.config import RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.distributed.ray_cluster import start_ray


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_dead_address_is_refused_at_once(form, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as held:  # bound and not listening: nobody else takes the port
        held.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(InputError, match=r"no Ray cluster answers at .*check the address") as told:
            start_ray(RayConfig(address=form.format(held.getsockname()[1])))
    assert "\n" not in str(told.value) and time.monotonic() - started < 25
