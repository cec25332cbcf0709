"""A trained model as a folder that others can use, on disk or on the Hugging Face Hub.

The folder holds `config.yaml` with the names and ids of the categories, `model.safetensors`, and a model card.
`VideoPredictor.from_pretrained` reads it back; nothing in it is ever unpickled.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lbvq.files.writing import atomic_path, write_text

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.yaml", "model.safetensors", "README.md"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

logger = logging.getLogger(__name__)


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    cfg: Cfg | None = None,
    names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    score: str = "",
    licence: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a folder from which the model can be loaded again.

    Args:
        model: the network.
        folder: is made; it must not hold a model already unless `overwrite`.
        cfg: the configuration it was built from; `build_model` has left it with the model.
        names: of the classes, by class index; by default those of the configuration.
        category_ids: id of every class in results files; by default those of the configuration, or class index + 1.
        score: how good it is and on what, for the model card, such as "AP 43.5 on my validation set".
        licence: name of the licence for the model card, as the Hub writes them: "mit", "cc-by-nc-4.0".

    Raises:
        FileExistsError: there is a model in the folder.
        ValueError: numbers of names and ids differ.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    there = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(f"{folder} holds {' and '.join(there)}; choose another folder, or pass overwrite=True.")
    cfg = _configuration_of(model) if cfg is None else cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", ""
    categories = cfg.MODEL.CATEGORIES
    if names is not None:
        categories.NAMES = list(names)
    if category_ids is not None:
        categories.IDS = [int(each) for each in category_ids]
    if categories.IDS and len(categories.IDS) != len(categories.NAMES):
        raise ValueError(f"{len(categories.NAMES)} names and {len(categories.IDS)} category ids were given.")
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as part:
        save_file(state, part, metadata={"format": "pt"})
    write_text(folder / CONFIG_FILE, cfg.dump())
    write_text(folder / CARD_FILE, model_card(cfg, folder.name, score, licence))
    return folder


def _configuration_of(model: nn.Module) -> Cfg:
    cfg = getattr(model, "config", None)
    if cfg is None:
        raise ValueError("the model was not made by build_model; pass the configuration it was built from as `cfg`.")
    return cfg.clone()


def model_card(cfg: Cfg, name: str, score: str, licence: str) -> str:
    """Text of the model card: what it is, how good, and the commands to use it."""
    front = ["library_name: lbvq", "pipeline_tag: image-segmentation", "tags: [video-instance-segmentation]"]
    front += [f"license: {licence}"] if licence else []
    names = cfg.MODEL.CATEGORIES.NAMES
    classes = ", ".join(names) if names else f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes without names"
    return "\n".join(
        [
            "---",
            *front,
            "---",
            f"# {name}",
            "",
            f"Video instance segmentation with {cfg.MODEL.META_ARCHITECTURE}.",
            "",
            f"Classes: {classes}.",
            "",
            f"Score: {score or 'not stated'}.",
            "",
            "```",
            f"lbvq predict video.mp4 --config-file {name}",
            "```",
            "",
            "```python",
            "from lbvq import VideoPredictor",
            "",
            f'prediction = VideoPredictor.from_pretrained("{name}")("video.mp4")',
            "```",
            "",
        ]
    )


def push_folder(folder: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Send a folder of a model to the Hub; returns the address. The token is that of `hf auth login` or $HF_TOKEN."""
    from huggingface_hub import HfApi

    _check_repo_id(repo_id)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    card = folder / CARD_FILE
    write_text(card, card.read_text(encoding="utf-8").replace(folder.name, repo_id))
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Model of lbvq")
    return f"{api.endpoint}/{repo_id}"


def push_to_hub(model: nn.Module, repo_id: str, *, private: bool = False, **saved: Any) -> str:
    """`save_pretrained` to a folder that is thrown away, then `push_folder`."""
    _check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        own = save_pretrained(model, Path(folder) / repo_id.rpartition("/")[2], **saved)
        return push_folder(own, repo_id, private=private)


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
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, "*.safetensors", "*.safetensors.index.json"]))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is not in the cache of the Hugging Face Hub, and the Hub cannot be reached; fetch it elsewhere and "
            "give the folder instead of the name."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(f"the Hugging Face Hub gave no model {repo_id}: {str(error).splitlines()[0]}") from error


def _check_repo_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise ValueError(f"a model of the Hub is called 'organisation/name', got {repo_id!r}.")
