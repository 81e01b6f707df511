"""Model folders that are made once on a machine and kept: of packaged models in another format.

A folder appears whole or not at all, with a list of its files and their digests, which is compared the first
time that a process asks. Processes that ask at once make it once: an `flock` is held meanwhile, which the
system takes back when its holder dies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say

VARIABLE = "LM_MIXUP_CACHE"
_LISTING = "files.json"
_LONGEST_WAIT_S = 1800.0
_READ_BYTES = 1 << 22

_compared: set[tuple[Path, str]] = set()


def cache_root() -> Path:
    """`$LM_MIXUP_CACHE`, else `lm_mixup` under `$XDG_CACHE_HOME` or `~/.cache`. Each node has its own."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "lm_mixup"


def kept_folder(model: str, name: str, needed_bytes: int, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made now if it is not there.

    One that is not whole (a file is missing or differs from what was written) is made anew.

    Args:
        model: What messages call it.
        name: Of the folder. It must change with whatever decides the contents.
        needed_bytes: Free space that making it takes.
        make: Writes the files into a folder that is there and empty.

    Raises:
        InputError: The cache cannot be written, or has no room; or `make` raised it.
    """
    folder = cache_root() / name
    if is_whole(folder):
        return folder
    with _space_and_rights(model, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with take_turns(model, folder):
            if is_whole(folder):
                return folder
            if folder.exists():
                say(f"{model}: {folder} is not as it was written; making it anew")
            _check_room(model, folder.parent, needed_bytes)
            for left in folder.parent.glob(f".{name}.*.tmp"):  # of processes that were killed
                shutil.rmtree(left)
            scratch = folder.with_name(f".{name}.{os.getpid()}.tmp")
            scratch.mkdir()
            try:
                make(scratch)
                for file in scratch.iterdir():
                    file.chmod(0o644)  # safetensors makes files that no other user can read
                digests = {file.name: file_digest(file) for file in sorted(scratch.iterdir())}
                (scratch / _LISTING).write_text(json.dumps(digests, indent=1), encoding="utf-8")
                if folder.exists():  # who has its files open keeps them
                    broken = folder.with_name(f".{name}.broken.tmp")
                    folder.rename(broken)
                    shutil.rmtree(broken)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether all files of a folder are as they were written."""
    try:
        listing = (folder / _LISTING).read_text(encoding="utf-8")
        if (folder, listing) in _compared:
            return True
        whole = all(file_digest(folder / name) == digest for name, digest in json.loads(listing).items())
    except (OSError, ValueError, AttributeError):
        return False
    if whole:
        _compared.add((folder, listing))
    return whole


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def take_turns(model: str, folder: Path) -> Iterator[None]:
    """Lets one process of this machine at a time into the block, for a folder of the cache.

    Raises:
        InputError: Another one has been in it for half an hour.
    """
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with FileLock(lock, timeout=_LONGEST_WAIT_S):
            yield
    except Timeout:
        raise InputError(
            f"{model}: another process holds {lock} for more than {_LONGEST_WAIT_S / 60:.0f} minutes; end it"
        ) from None


def _check_room(model: str, place: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise InputError(
            f"{model}: {free / 1e6:.0f} MB are free in {place}, {needed_bytes / 1e6:.0f} MB are needed; free "
            f"some, or set {VARIABLE} to a folder elsewhere"
        )


@contextmanager
def _space_and_rights(model: str, place: Path) -> Iterator[None]:
    """Turns what the file system refuses into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        trouble = "has no space left" if full else f"cannot be written ({' '.join(str(error).split()):.200})"
        raise InputError(
            f"{model}: the cache {place} {trouble}; set {VARIABLE} to a folder that can hold it"
        ) from error
