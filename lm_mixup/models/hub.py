"""Language models of the Hugging Face Hub: fetched once to each node, with patience while the Hub is busy.

Sixteen ranks of a node that ask at once take turns, so that the first one downloads and the others find the
files. `huggingface_hub` repeats a request five times within half a minute; a limit on requests lasts longer
(five minutes, as the Hub counts them), and a job of a cluster should outlast it.
"""

from __future__ import annotations

import time
from pathlib import Path

from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.models.model_cache import cache_root, take_turns
from lm_mixup.models.resolve import model_folder

_WAITS_S = (10.0, 30.0, 60.0, 120.0, 240.0)
_BUSY = (408, 429, 500, 502, 503, 504)
# What no loader of ours reads: weights in other formats, and pickles.
_LEFT = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot", "onnx/*", "original/*"]


def fetch_model(path: str, revision: str | None = None, key: str = "model.path") -> str:
    """The folder of a language model on this machine; one of the Hub is downloaded if it is not cached.

    Args:
        path: Folder, URI, name of the package, or Hub name.
        revision: Branch, tag or commit of a Hub name.
        key: The config key that names the model, for messages.

    Raises:
        InputError: The Hub does not have it, does not let it be read, or is not reached.
    """
    folder = model_folder(path)
    if Path(folder).is_dir():
        return folder
    with take_turns(path, cache_root() / f"hub-{path.replace('/', '--')}"):
        return _download(path, revision, key)


def _download(name: str, revision: str | None, key: str) -> str:
    from huggingface_hub import snapshot_download

    for wait in (*_WAITS_S, None):
        try:
            return str(snapshot_download(name, revision=revision, ignore_patterns=_LEFT))
        except (OSError, ValueError) as error:
            status = _status(error)
            if wait is None or status not in _BUSY:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{key} {name} (no such folder here, and not loaded from the Hub): {reason:.300}"
                ) from error
            say(f"  the Hub answers {status} for {name}; asking again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError  # the last wait is None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error or its causes bear: a cache that lacks the files wraps it."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None
