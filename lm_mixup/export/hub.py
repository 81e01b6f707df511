"""Uploads an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lm_mixup.core.errors import InputError
from lm_mixup.export.folder import SUBSETS

TOKEN: Final = "HF_TOKEN"  # noqa: S105


def check_token() -> str:
    """The Hub's token: of the environment (`HF_TOKEN`), or else of `hf auth login`.

    Raises:
        InputError: There is none.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise InputError(
            "--push-to-hub: no token; run `hf auth login`, or put one that may write into the environment as "
            f"{TOKEN}"
        )
    return token


def push(folder: Path, name: str, *, public: bool) -> str:
    """Uploads a folder in one commit, which also takes away Parquet files of an earlier export.

    Args:
        folder: Written by `folder.export`.
        name: `ORG/NAME` on the Hub; made if it is not there, private unless `public`.

    Returns:
        Its address.

    Raises:
        InputError: There is no token, the Hub refuses it or the name, or the data set is public and `public`
            was not said.
    """
    token = check_token()
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        made = api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        if not public and not api.repo_info(name, repo_type="dataset").private:
            raise InputError(f"--push-to-hub {name}: is public; add --public, or give another name")
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Data and card of a run of lm_mixup",
            delete_patterns=[f"{subset}/*.parquet" for subset in SUBSETS],
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).replace(token, "…")[:200]
        raise InputError(f"--push-to-hub {name}: {reason}; check name, token and network") from None
    return str(made)
