"""A trained model as a folder that others can use, on disk or on the Hugging Face Hub.

The folder holds `config.yaml` with the names and ids of the categories, `model.safetensors`, and a model card.
`VideoPredictor.from_pretrained` reads it back; nothing in it is ever unpickled.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lbvq.files.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, check_repo_id, push_folder
from lbvq.files.writing import atomic_path, write_text

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    cfg: Cfg | None = None,
    names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    score: str = "",
    licence: str = "",
    card_name: str = "",
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
        card_name: what the model card calls the model; by default the folder's name.
        licence: name of the licence for the model card, as the Hub writes them: "mit", "cc-by-nc-4.0".

    Raises:
        FileExistsError: there is a model in the folder.
        ValueError: numbers of names and ids differ, or the model runs exported graphs.
    """
    from safetensors.torch import save_file

    if getattr(model, "exported", None):
        raise ValueError("this model runs exported graphs; copy the folder that it was read from.")
    folder = Path(folder)
    there = [name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(f"{folder} holds {' and '.join(there)}; choose another folder, or pass overwrite=True.")
    cfg = configuration_of(model) if cfg is None else cfg.clone()
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
    write_text(folder / CARD_FILE, model_card(cfg, card_name or folder.name, type(model).__name__, score, licence))
    return folder


def configuration_of(model: nn.Module) -> Cfg:
    """A copy of the configuration that a model was built from."""
    cfg = getattr(model, "config", None)
    if cfg is None:
        raise ValueError("the model was not made by build_model; pass the configuration it was built from as `cfg`.")
    return cfg.clone()


def model_card(cfg: Cfg, name: str, method: str, score: str, licence: str) -> str:
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
            f"Video instance segmentation with {method}.",
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


def push_to_hub(model: nn.Module, repo_id: str, *, private: bool = False, **saved: Any) -> str:
    """`save_pretrained` to a folder that is thrown away, then `push_folder`."""
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        own = save_pretrained(model, Path(folder) / "model", card_name=repo_id, **saved)
        return push_folder(own, repo_id, private=private)
