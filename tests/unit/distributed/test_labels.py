"""What stands for a run in Ray is plain ASCII, whatever its directory is called."""

from __future__ import annotations

import pytest

from lm_mixup.distributed.labels import label, name_run, run_name


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("runs/demo", "demo"),
        ("s3://bucket/a/run-1.2_x/", "run-1.2_x"),
        ("/tmp/run [a]#1 \u00fc", "run-a-1-u"),
        ("/tmp/u\u0308ber", "uber"),
        ("/tmp/\u65e5\u672c", "run"),
        ("/tmp/..", "run"),
        ("", "run"),
    ],
)
def test_a_run_is_named_in_ascii_by_the_last_part_of_its_directory(uri: str, name: str):
    before = run_name()
    try:
        name_run(uri)
        assert run_name() == name and label("rate", "actor").startswith(f"{name}/rate/actor.")
    finally:
        name_run(before)
