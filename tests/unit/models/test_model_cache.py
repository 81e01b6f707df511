"""The cache of models: whole or absent, made once, and one line where the file system refuses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lm_mixup.core.errors import InputError
from lm_mixup.models import model_cache
from lm_mixup.models.model_cache import cache_root, is_whole, kept_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(model_cache, "_compared", set())
    monkeypatch.setenv("LM_MIXUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path) -> None:
    (folder / "a.txt").write_text("alpha")
    (folder / "b.txt").write_text("beta")


def make_slowly(folder: Path) -> None:
    with (folder.parent / "makers").open("a") as log:
        log.write(f"{os.getpid()}\n")
    write(folder)
    time.sleep(0.5)


def ask_slowly(queue) -> None:
    queue.put(str(kept_folder("m", "model", 1, make_slowly)))


def never_end(folder: Path) -> None:
    write(folder)
    (folder.parent / "begun").touch()
    time.sleep(600)


def ask_for_ever() -> None:
    kept_folder("m", "model", 1, never_end)


def refuse(folder: Path) -> None:
    raise AssertionError("must not be made")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LM_MIXUP_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/lm_mixup"),
        ({"HOME": "/c"}, "/c/.cache/lm_mixup"),
        ({"LM_MIXUP_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/lm_mixup"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("LM_MIXUP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache_root()) == expected


def test_processes_that_ask_at_once_make_it_once(cache):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=ask_slowly, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    folders = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert folders == {str(cache / "model")}
    assert len((cache / "makers").read_text().splitlines()) == 1
    assert is_whole(cache / "model")


def test_what_a_killed_process_left_is_cleared_and_its_lock_is_free(cache):
    process = multiprocessing.get_context("spawn").Process(target=ask_for_ever)
    process.start()
    end = time.monotonic() + 60
    while not (cache / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (cache / "model").exists()
    assert kept_folder("m", "model", 1, write) == cache / "model"
    assert not list(cache.glob("*.tmp")) and not list(cache.glob(".*.tmp"))


def damage_by_truncation(folder: Path) -> None:
    (folder / "a.txt").write_text("alph")


def damage_by_a_byte(folder: Path) -> None:
    (folder / "a.txt").write_text("alphb")


def damage_by_absence(folder: Path) -> None:
    (folder / "b.txt").unlink()


def damage_of_the_listing(folder: Path) -> None:
    (folder / "files.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [damage_by_truncation, damage_by_a_byte, damage_by_absence, damage_of_the_listing]
)
def test_a_damaged_folder_is_made_anew(cache, monkeypatch, capsys, damage):
    folder = kept_folder("m", "model", 1, write)
    damage(folder)
    monkeypatch.setattr(model_cache, "_compared", set())  # as in another process
    assert not is_whole(folder)
    assert kept_folder("m", "model", 1, write) == folder
    assert (folder / "a.txt").read_text() == "alpha" and (folder / "b.txt").read_text() == "beta"
    assert "not as it was written" in capsys.readouterr().err


def test_a_whole_folder_needs_neither_a_lock_nor_rights(cache):
    folder = kept_folder("m", "model", 1, write)
    for lock in cache.glob(".*.lock"):
        lock.unlink()
    assert kept_folder("m", "model", 1, refuse) == folder
    assert sorted(path.name for path in cache.iterdir()) == ["model"]
    assert (folder / "a.txt").stat().st_mode & 0o444 == 0o444


def refused(make, needed_bytes: int = 1) -> str:
    with pytest.raises(InputError) as error:
        kept_folder("smollm2", "model", needed_bytes, make)
    assert "\n" not in str(error.value) and "LM_MIXUP_CACHE" in str(error.value)
    return str(error.value)


def test_too_little_room_is_said_before_anything_is_made(cache):
    assert "MB are free in" in refused(refuse, needed_bytes=1 << 60)


def test_a_disk_that_fills_up_is_told_on_one_line_and_nothing_is_left(cache):
    def fill_up(folder: Path) -> None:
        write(folder)
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    assert "has no space left" in refused(fill_up)
    assert [path.name for path in cache.iterdir()] == [".model.lock"]


def test_a_cache_that_cannot_be_written_is_told_on_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LM_MIXUP_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be written" in refused(write)
