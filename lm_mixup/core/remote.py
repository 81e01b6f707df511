"""Run directories at a URI: opening their file system, its errors, and each node's scratch folder.

Trainers write files through libraries that know local folders alone. So a stage of a remote run has a scratch
folder on every node, and what has to last is copied to the URI. A scratch folder belongs to one driver: the
next driver fetches what it needs from the URI, whether it runs on the same machine or on another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec

from lm_mixup.core.errors import InputError

SCRATCH_VARIABLE = "LM_MIXUP_SCRATCH"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# Errors of cloud libraries that are no OSError, looked up only where the library is loaded.
_CLOUD_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("aiohttp", "ClientError"),
)


def open_file_system(uri: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path in it.

    Listings are not cached: other nodes write what this process waits for.

    Raises:
        InputError: The URI's scheme is unknown, or its package is not installed.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        fix = f"pip install 'lm-mixup[{extra}]'" if extra else str(error)
        raise InputError(f"{uri}: {scheme}:// needs a package that is not installed; {fix}") from None
    except ValueError as error:
        raise InputError(f"{uri}: cannot be opened ({' '.join(str(error).split()):.200})") from None
    return fs, str(path)


def storage_errors() -> tuple[type[Exception], ...]:
    """What a file system raises when it cannot be read or written, local or remote."""
    found: list[type[Exception]] = [OSError]
    for module, name in _CLOUD_ERRORS:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def scratch_folder(uri: str, session: str, stage: str) -> Path:
    """This node's folder for a stage of a remote run; those of earlier drivers of the run are removed.

    Args:
        uri: The run directory.
        session: Of the driver.
        stage: The stage's name.
    """
    root = Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir()).expanduser().absolute()
    of_run = root / f"lm_mixup-{os.getuid()}" / hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()
    if not (of_run / session).is_dir():
        (of_run / session).mkdir(parents=True, exist_ok=True)
        for other in of_run.iterdir():
            if other.name != session:
                shutil.rmtree(other, ignore_errors=True)
    folder = of_run / session / uri.rpartition("/")[2] / stage  # as the run directory ends, for trackers
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_scratch(uri: str, session: str) -> None:
    """Removes this node's scratch folders of a driver."""
    shutil.rmtree(scratch_folder(uri, session, "none").parents[1], ignore_errors=True)


def upload(fs: Any, source: Path, target: str, last: Sequence[str] = ()) -> None:
    """Copies a file, or a folder with all in it, to a remote path; files there that are not here stay.

    Args:
        last: Names of files that are written after all others: with them the copy counts as whole.
    """
    if source.is_file():
        fs.put_file(str(source), target)
        return
    files = sorted(file for file in source.rglob("*") if file.is_file())
    early = [file for file in files if file.name not in last]
    for group in (early, [file for file in files if file.name in last]):
        if group:
            paths = [f"{target}/{file.relative_to(source).as_posix()}" for file in group]
            fs.put([str(file) for file in group], paths)


def download(fs: Any, source: str, target: Path) -> None:
    """Copies a remote file or folder into a local one, which appears when the copy is whole.

    Raises:
        FileNotFoundError: There is nothing at `source`.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    if fs.isfile(source):
        fs.get_file(source, str(scratch))
        scratch.replace(target)
        return
    files = fs.find(source)
    if not files:
        raise FileNotFoundError(source)
    shutil.rmtree(scratch, ignore_errors=True)
    places = [scratch / path.removeprefix(f"{source}/") for path in files]
    for folder in {place.parent for place in places}:
        folder.mkdir(parents=True, exist_ok=True)
    fs.get(files, [str(place) for place in places])
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def versions(fs: Any, paths: Iterable[str]) -> list[str]:
    """What changes when a remote file does, one entry for each."""
    return [f"{path} {fs.ukey(path)}" for path in sorted(paths)]
