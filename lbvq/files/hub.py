"""Folders of models on the Hugging Face Hub: fetched, and sent. The package huggingface_hub does the transfer."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.yaml", "model.safetensors", "README.md"
_WANTED = [CONFIG_FILE, "*.safetensors", "*.safetensors.index.json"]
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repo_id(name: str) -> bool:
    """Whether a text has the form "organisation/model" of the Hub."""
    return REPO_ID.fullmatch(name) is not None and not name.endswith((".yaml", ".yml"))


def fetch_folder(repo_id: str) -> Path:
    """Local folder of a model of the Hub, fetched when it is not in the cache yet.

    Raises:
        FileNotFoundError: the Hub has no such model, or cannot be reached and the cache has none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_WANTED))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is no file and no published model here, and not in the cache of the Hugging Face Hub, which "
            "cannot be reached; fetch the model's folder by other means and give that instead."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        text = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{repo_id} is no file and no published model here, and the Hugging Face Hub gave no such model: {text}"
        ) from error


def push_folder(folder: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Send a folder of a model to the Hub; returns the address. The token is that of `hf auth login` or $HF_TOKEN."""
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Model of lbvq")
    return f"{api.endpoint}/{repo_id}"


def check_repo_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise ValueError(f"a model of the Hub is called 'organisation/name', got {repo_id!r}.")
