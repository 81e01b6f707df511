"""Checkpoints of SFT: which ones count, and which ones go."""

from __future__ import annotations

import resource

import pytest

from lm_mixup.train.checkpoint import (
    drop_incomplete,
    drop_oldest,
    last_checkpoint,
    mark_complete,
    ranks_of,
    step_of,
)


def test_only_whole_checkpoints_count(tmp_path):
    assert last_checkpoint(tmp_path) is None and step_of(None) == 0
    for step in (90, 100, 110):
        (tmp_path / f"checkpoint-{step}").mkdir()
    mark_complete(tmp_path, 90, ranks=1)
    mark_complete(tmp_path, 100, ranks=2)
    last = last_checkpoint(tmp_path)
    assert last is not None and (step_of(last), ranks_of(last)) == (100, 2)
    drop_incomplete(tmp_path, last)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-90"]
    drop_oldest(tmp_path, limit=1)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-100"]


def test_a_mark_that_could_not_be_written_does_not_count(tmp_path):
    """As after a kill between its creation and its first byte: here no file may have one."""
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            mark_complete(tmp_path, 5, ranks=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert last_checkpoint(tmp_path) is None
    mark_complete(tmp_path, 5, ranks=3)
    assert last_checkpoint(tmp_path) == folder and ranks_of(folder) == 3
