"""Published models by name: configuration, weight file (`lbvq/engine/known_weights.py`), scores; where our YAMLs are.

Scores are the publishers', not measured here: AP, AP50, AP75, AR1, AR10 on the validation set, or as the metric says.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbvq.engine.known_weights import ADDRESSES, DRIVE_IDS, MASK2FORMER_VIS, how_to_get, licence_of
from lbvq.files.hub import fetch_folder, is_repo_id

if TYPE_CHECKING:
    from lbvq.config import CfgNode

logger = logging.getLogger(__name__)

# In a folder with a `config.yaml` the first of these that exists is the model's weights.
WEIGHT_FILES = ("model.safetensors", "model_best.pth", "model_final.pth")
AP_METRICS = ("AP", "AP50", "AP75", "AR1", "AR10")
BOUNDARY_METRICS = ("AP_B", "AP_B75", "AR_B1", "AP_M", "AP_M75")  # tube-boundary and mask scores of HQ-YTVIS


@dataclass(frozen=True)
class ZooModel:
    """One published model.

    Attributes:
        name: what `load_model` accepts.
        config: file below the folder `configs`.
        weights: name of the weight file.
        dataset: data set of the scores.
        scores: metric to percent, as published; {} when nothing is published.
        size_mb: about how large the weight file is, computed from the number of parameters; None when not known.
    """

    name: str
    config: str
    weights: str
    dataset: str
    scores: Mapping[str, float] = field(default_factory=dict)
    size_mb: int | None = None

    @property
    def downloads(self) -> bool:
        """Whether the weight file is fetched by itself."""
        return self.weights in ADDRESSES

    @property
    def is_on_drive(self) -> bool:
        """Whether `lbvq download` can fetch the weight file from Google Drive."""
        return self.weights in DRIVE_IDS

    @property
    def licence(self) -> str:
        """What may be done with the weight file, "" when that is not known."""
        return licence_of(ADDRESSES.get(self.weights, ""))

    @property
    def source(self) -> str:
        """How to get the weight file."""
        return how_to_get(self.weights)


def configs_folder() -> Path:
    """Folder of our YAML files: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"No folder configs in {package} or {package.parent}; the installation is incomplete. Give the path of a YAML "
        "file instead of a name."
    )


def find_config(name: str | os.PathLike) -> Path:
    """Return the YAML file of a name.

    Args:
        name: a path; a file below our folder `configs`, with or without `configs/` and `.yaml`; a model of the zoo; or
            a path in the repository of a method, such as `configs/genvis/ovis/genvis_R50_bs8_online.yaml`, whose last
            parts are those of a file of ours.
    """
    text = os.fspath(name)
    if Path(text).expanduser().is_file():
        return Path(text).expanduser()
    if text in MODELS:
        return configs_folder() / MODELS[text].config
    below = text.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if not Path(below).is_absolute() and (configs_folder() / below).is_file():
        return configs_folder() / below
    by_parts = _by_last_parts(text)
    if by_parts:
        return configs_folder() / by_parts
    known = [*MODELS, *list_configs()]
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.4)
    hint = f" Near it: {', '.join(near)}." if near else ""
    raise FileNotFoundError(f"{text} is no file, no file below {configs_folder()}, and no published model.{hint}")


@functools.cache  # it is said once
def _by_last_parts(text: str) -> str:
    """The one file of ours whose folder and name end a path of a published command, "" when there is none."""
    parts = [_PUBLISHED_FOLDERS.get(part, part) for part in Path(text.removesuffix(".yaml")).parts]
    known = {name: list(Path(name).with_suffix("").parts) for name in list_configs()}
    for length in range(len(parts), min(len(parts), 2) - 1, -1):  # a name alone says nothing about the data
        found = [name for name, own in known.items() if own[-length:] == parts[-length:]]
        if len(found) == 1:
            logger.warning("There is no file %s; our own %s is used.", text, found[0])
            return found[0]
    return ""


def load_config(source: str | os.PathLike, opts: Sequence[Any] = ()) -> CfgNode:
    """Read a configuration, then apply settings.

    Args:
        source: what `find_config` finds; a folder with `config.yaml` and weights, as training and `save_pretrained`
            leave it; "organisation/model" of the Hugging Face Hub; "" for the defaults alone. A folder, and models of
            the Hub and of the zoo bring their weights along in MODEL.WEIGHTS.
        opts: KEY VALUE pairs, or KEY=VALUE.
    """
    from lbvq.config import get_cfg  # a list of models needs no configuration

    name, cfg = os.fspath(source), get_cfg()
    folder = Path(name).expanduser()
    if not folder.exists() and _is_of_the_hub(name):
        folder = fetch_folder(name)
    if name and folder.is_dir():
        _merge(cfg, _in_folder(folder, "config.yaml"))
        cfg.MODEL.WEIGHTS = str(_in_folder(folder, *WEIGHT_FILES))
    elif name:
        _merge(cfg, find_config(name))
        if name in MODELS and not folder.is_file():
            cfg.MODEL.WEIGHTS = MODELS[name].weights
    cfg.merge_from_list(list(opts))
    if cfg.DATASETS.REGISTER:
        from lbvq.data.by_path import apply_own_data  # and neither do names and scores need the readers of data

        apply_own_data(cfg, opts)
    return cfg


def _merge(cfg: CfgNode, file: Path) -> None:
    """Read a file, which names its graphs by where they are beside it."""
    cfg.merge_from_file(str(file))
    if cfg.MODEL.GRAPHS:
        cfg.MODEL.GRAPHS = str(file.parent / cfg.MODEL.GRAPHS)


def _is_of_the_hub(name: str) -> bool:
    """Whether a name is a model of the Hugging Face Hub; one that begins like a file of ours is a misspelt file."""
    if not is_repo_id(name) or (configs_folder() / name.partition("/")[0]).is_dir():
        return False
    try:
        find_config(name)
    except FileNotFoundError:
        return True
    return False


def _in_folder(folder: Path, *names: str) -> Path:
    """The first of some files that a folder has."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} is no folder of a model: it has no {' or '.join(names)}.")


def list_configs() -> list[str]:
    """Every YAML file below our folder `configs` except the shared bases, sorted."""
    folder = configs_folder()
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("_base_/"))


DEFAULT_MODEL = "videomt_small_ytvis19"  # the best of its size that downloads by itself and may be used for anything


# -- the table --------------------------------------------------------------------------------------------------------

_PUBLISHED_FOLDERS = {  # of other repositories: ours
    **{f"ytvis{mark}{year % 100}": f"youtubevis_{year}" for year in (2019, 2021, 2022) for mark in ("", "_")},
    **{f"ytvis{mark}{year}": f"youtubevis_{year}" for year in (2019, 2021, 2022) for mark in ("", "_")},
}
_FOLDERS = {  # short name of a data set: folder of its configurations, registered name of the scored split
    "ytvis19": ("youtubevis_2019", "ytvis_2019_val"),
    "ytvis21": ("youtubevis_2021", "ytvis_2021_val"),
    "ytvis22": ("youtubevis_2022", "ytvis_2022_val"),
    "ovis": ("ovis", "ovis_val"),
}


def _ap(*values: float) -> dict[str, float]:
    return dict(zip(AP_METRICS, values, strict=False))


def _row(method: str, data: str, config: str, weights: str, *scores: float) -> ZooModel:
    folder, split = _FOLDERS[data]
    return ZooModel(f"{method}_{data}", f"{folder}/{config}.yaml", weights, split, _ap(*scores))


_MEGABYTES = {"r50": 176, "r101": 252, "swin_tiny": 190, "swin_small": 275, "swin_base": 428, "swin_large": 862}


def _coco() -> list[ZooModel]:
    """Image models that never saw a video: their AP is that of COCO's images."""
    rows = (
        ("swin_tiny", "mask2former_swin_tiny_coco.safetensors", 45.0),
        ("swin_small", "mask2former_swin_small_coco.safetensors", 46.3),
        ("swin_base", "mask2former_swin_base_coco.safetensors", 48.1),
        ("swin_large", "mask2former_swin_large_coco.safetensors", 50.1),
        ("r50", "model_final_3c8ec9.pkl", 43.7),
        ("r101", "model_final_eba159.pkl", 44.2),
    )
    return [
        ZooModel(
            f"mask2former_{size}_coco",
            f"coco/mask2former_{size}_video.yaml",
            weights,
            "coco_2017_val",
            {"AP": score},
            _MEGABYTES[size],
        )
        for size, weights, score in rows
    ]


def _mask2former_vis() -> list[ZooModel]:
    scores = ((46.4, 40.6), (49.2, 42.4), (51.5, 45.9), (54.3, 48.6), (59.5, 52.0), (60.4, 52.6))
    models = []
    for (size, *files), row in zip(MASK2FORMER_VIS, scores, strict=True):
        short = size.lower().removesuffix("_in21k_384")
        for data, md5, score in zip(("ytvis19", "ytvis21"), files, row, strict=True):
            folder, split = _FOLDERS[data]
            file = f"{'swin/' if short.startswith('swin') else ''}video_maskformer2_{size}_bs16_8ep.yaml"
            name, weights = f"mask2former_vis_{short}_{data}", f"model_final_{md5}.pkl"
            models.append(ZooModel(name, f"{folder}/{file}", weights, split, {"AP": score}, _MEGABYTES[short]))
    return models


def _lbvq() -> list[ZooModel]:
    rows = (
        ("r50", "R50", "ytvis19", (52.2, 74.8, 57.7, 49.9, 59.8)),
        ("r101", "R101", "ytvis19", (53.1, 76.3, 60.2, 50.0, 59.2)),
        ("r50", "R50", "ytvis21", (44.8, 67.4, 46.0, 41.6, 52.3)),
        ("r50", "R50", "ovis", (22.2, 45.3, 19.0, 12.4, 27.5)),
    )
    return [
        _row(f"lbvq_{short}", data, f"lbvq_{size}_bs8", f"lbvq_{short}_{data}.pth", *scores)
        for short, size, data, scores in rows
    ]


def _vita() -> list[ZooModel]:
    rows = (
        ("r50", "R50", "ytvis19", "ytvis2019", (49.8, 72.6, 54.5, 49.4, 61.0)),
        ("swin", "SWIN", "ytvis19", "ytvis2019", (63.0, 86.9, 67.9, 56.3, 68.1)),
        ("r50", "R50", "ytvis21", "ytvis2021", (45.7, 67.4, 49.5, 40.9, 53.6)),
        ("swin", "SWIN", "ytvis21", "ytvis2021", (57.5, 80.6, 61.0, 47.7, 62.6)),
        ("r50", "R50", "ovis", "ovis", (19.6, 41.2, 17.4, 11.7, 26.0)),
        ("swin", "SWIN", "ovis", "ovis", (27.7, 51.9, 24.9, 14.9, 33.0)),
    )
    return [
        _row(f"vita_{short}", data, f"vita_{size}_bs8", f"vita_{short}_{file}.pth", *scores)
        for short, size, data, file, scores in rows
    ]


def _genvis() -> list[ZooModel]:
    rows = (
        ("r50", "R50", "online", "ytvis19", (50.0, 71.5, 54.6, 49.5, 59.7)),
        ("r50", "R50", "semi_online", "ytvis19", (51.3, 72.0, 57.8, 49.5, 60.0)),
        ("swin", "SWIN", "online", "ytvis19", (64.0, 84.9, 68.3, 56.1, 69.4)),
        ("swin", "SWIN", "semi_online", "ytvis19", (63.8, 85.7, 68.5, 56.3, 68.4)),
        ("r50", "R50", "online", "ytvis21", (47.1, 67.5, 51.5, 41.6, 54.7)),
        ("r50", "R50", "semi_online", "ytvis21", (46.3, 67.0, 50.2, 40.6, 53.2)),
        ("swin", "SWIN", "online", "ytvis21", (59.6, 80.9, 65.8, 48.7, 65.0)),
        ("swin", "SWIN", "semi_online", "ytvis21", (60.1, 80.9, 66.5, 49.1, 64.7)),
        ("r50", "R50", "online", "ovis", (35.8, 60.8, 36.2, 16.3, 39.6)),
        ("r50", "R50", "semi_online", "ovis", (34.5, 59.4, 35.0, 16.6, 38.3)),
        ("swin", "SWIN", "online", "ovis", (45.2, 69.1, 48.4, 19.1, 48.6)),
        ("swin", "SWIN", "semi_online", "ovis", (45.4, 69.2, 47.8, 18.9, 49.0)),
    )
    return [
        _row(f"genvis_{short}_{mode}", data, f"genvis_{size}_bs8_{mode}", f"genvis_{short}_{mode}_{data}.pth", *scores)
        for short, size, mode, data, scores in rows
    ]


def _minvis() -> list[ZooModel]:
    swin = "swin/video_maskformer2_swin_large_IN21k_384_bs32_8ep_frame"
    files = {
        "R50": "video_maskformer2_R50_bs32_8ep_frame",
        "swin_large": swin,
        "swin_large_r10": f"{swin}_r10",
        "swin_large_r5": f"{swin}_r5",
        "swin_large_r1": f"{swin}_r1",
    }
    scores = {
        "ytvis19": (47.3, 62.0, 60.9, 59.7, 58.9),
        "ytvis21": (43.9, 55.4, 54.8, 54.5, 52.6),
        "ovis": (26.7, 41.7, 37.1, 35.7, 31.8),
    }
    return [
        _row(f"minvis_{model.lower()}", data, config, f"minvis_{data}_{model}.pth", score)
        for data, row in scores.items()
        for (model, config), score in zip(files.items(), row, strict=True)
    ]


def _visage() -> list[ZooModel]:
    rows = (
        ("ytvis19", (55.1, 78.1, 60.6, 51.0, 62.3)),
        ("ytvis21", (51.6, 73.8, 56.1, 43.6, 59.3)),
        ("ovis", (36.2, 60.3, 35.3, 17.0, 40.3)),
    )
    return [_row("visage_r50", data, "visage_R50_bs16", f"visage_r50_{data}.pth", *scores) for data, scores in rows]


def _ovformer() -> list[ZooModel]:
    models = []
    zero_shot = {  # trained on LVIS images, evaluated on videos of other classes
        "ytvis19": (34.8, 44.3),
        "ytvis21": (29.8, 37.6),
        "ovis": (15.1, 21.3),
    }
    for column, (short, size, file) in enumerate(
        (("r50", "R50", "ovformer_r50_lvis.pth"), ("swin", "SwinB", "OVFormer_swin_lvis.pth"))
    ):
        config = f"ovformer_{size}_bs8"
        for data, scores in zero_shot.items():
            models.append(_row(f"ovformer_{short}", data, config, file, scores[column]))
        burst = {"AP": (6.8, 7.6)[column]}
        models.append(ZooModel(f"ovformer_{short}_burst", f"burst/{config}.yaml", file, "burst_val", burst))
        models.append(ZooModel(f"ovformer_{short}_lvis", f"lvis/{config}.yaml", file, "lvis_v1_val"))
        lvvis = {"AP": (21.9, 24.7)[column], "AP_test": (15.2, 19.5)[column]}
        file_lvvis = f"ovformer_{short}_lvvis.pth"
        name = f"ovformer_{short}_lvvis"
        models.append(ZooModel(name, f"lvvis/video_{config}.yaml", file_lvvis, "lvvis_val", lvvis))
    return models


def _vmt() -> list[ZooModel]:
    rows = (
        ("r50", "R50", "r50", (30.7, 24.2, 31.5, 50.5, 54.5)),
        ("r101", "R101", "r101", (33.0, 29.3, 33.3, 51.6, 55.8)),
        ("swin", "SwinL", "swinl", (44.8, 43.4, 43.0, 64.8, 70.1)),
    )
    return [
        ZooModel(
            f"vmt_{short}_hq_ytvis",
            f"hq_ytvis/vmt_{size}.yaml",
            f"checkpoint_{file}_final.pth",
            "hq_ytvis_test",
            dict(zip(BOUNDARY_METRICS, scores, strict=True)),
        )
        for short, size, file, scores in rows
    ]


def _plain_vits() -> list[ZooModel]:
    """VidEoMT and PMT: AP and, where it is published, AR10; of the long videos alone on YouTube-VIS 2022."""
    of_long_videos = {"ytvis22": ("AP_L", "AR_L10")}
    videomt, pmt = "videomt/{}/videomt_online_ViT{}", "pmt/pmt_online_ViTL_dinov{}"
    rows = (
        ("videomt_small", "ytvis19", videomt.format("dinov2", "S"), "yt_2019_vit_small_52.8", 96, (52.8, 62.2)),
        ("videomt_base", "ytvis19", videomt.format("dinov2", "B"), "yt_2019_vit_base_58.2", 377, (58.2, 66.5)),
        ("videomt_large", "ytvis19", videomt.format("dinov2", "L"), "yt_2019_vit_large_68.6", 1271, (68.6, 73.9)),
        ("videomt_large", "ytvis21", videomt.format("dinov2", "L"), "yt_2021_vit_large_63.1", 1271, (63.1, 68.1)),
        ("videomt_large", "ytvis22", videomt.format("dinov2", "L"), "yt_2022_vit_large_42.6", 1271, (42.6, 48.1)),
        ("videomt_large", "ovis", videomt.format("dinov2", "L"), "ovis_vit_large_52.5", 1271, (52.5, 57.5)),
        ("videomt_large_dinov3", "ytvis19", videomt.format("dinov3", "L"), "yt_2019_dinov3_68.9", 1264, (68.9,)),
        ("videomt_large_dinov3", "ytvis21", videomt.format("dinov3", "L"), "yt_2021_dinov3_63.2", 1264, (63.2,)),
        ("videomt_large_dinov3", "ytvis22", videomt.format("dinov3", "L"), "yt_2022_dinov3_42.8", 1264, (42.8,)),
        ("pmt_large", "ytvis19", pmt.format(2), "yt-2019_dinov2_online_68.8", 1439, (68.8, 73.9)),
        ("pmt_large", "ytvis21", pmt.format(2), "yt-2021_dinov2_online_63.8", 1439, (63.8, 68.1)),
        ("pmt_large_dinov3", "ytvis19", pmt.format(3), "yt-2019_dinov3_online_69.2", 1432, (69.2, 74.6)),
        ("pmt_large_dinov3", "ytvis21", pmt.format(3), "yt-2021_dinov3_online_64.3", 1432, (64.3, 69.0)),
        ("pmt_large_dinov3", "ovis", pmt.format(3), "ovis_dinov3_online_52.0", 1432, (52.0, 57.7)),
    )
    models = []
    for name, data, config, file, megabytes, numbers in rows:
        folder, split = _FOLDERS[data]
        scores = dict(zip(of_long_videos.get(data, ("AP", "AR10")), numbers, strict=False))
        models.append(ZooModel(f"{name}_{data}", f"{folder}/{config}.yaml", f"{file}.pth", split, scores, megabytes))
    return models


def _ctvis() -> list[ZooModel]:
    rows = (
        ("r50", "R50", "ytvis19", (55.2, 79.5, 60.2, 51.3, 63.7)),
        ("swin_large", "SwinL", "ytvis19", (65.6, 87.7, 72.2, 56.5, 70.4)),
        ("r50", "R50", "ytvis21", (50.1, 73.7, 54.7, 41.8, 59.5)),
        ("swin_large", "SwinL", "ytvis21", (61.2, 84.0, 68.8, 48.0, 65.8)),
        ("r50", "R50", "ovis", (35.5, 60.8, 34.9, 16.1, 41.9)),
        ("swin_large", "SwinL", "ovis", (46.9, 71.5, 47.5, 19.1, 52.1)),
        ("r50", "R50", "ytvis22", (44.9,)),
        ("swin_large", "SwinL", "ytvis22", (53.8,)),
    )
    models = []
    for short, size, data, scores in rows:
        trained = data.replace("22", "21")  # the long videos are for testing
        models.append(_row(f"ctvis_{short}", data, f"CTVIS_{size}", f"ctvis_{short}_{trained}.pth", *scores))
    return models


def _dvis() -> list[ZooModel]:
    """DVIS and DVIS++: of each size and form AP, AP50 and AP75 on YouTube-VIS 2019, 2021 and OVIS."""
    rows = (
        ("dvis_r50_online", "DVIS_Online_R50", (51.0, 72.8, 56.8), (46.3, 68.2, 50.6), (30.4, 54.9, 29.7)),
        ("dvis_r50_offline", "DVIS_Offline_R50", (52.1, 76.3, 57.5), (47.3, 70.6, 51.7), (33.7, 59.6, 33.7)),
        ("dvis_swin_online", "swin/DVIS_Online_SwinL", (63.7, 86.5, 70.0), (58.6, 80.8, 64.6), (46.0, 70.7, 48.6)),
        ("dvis_swin_offline", "swin/DVIS_Offline_SwinL", (64.8, 88.2, 72.6), (60.0, 82.6, 68.4), (48.8, 74.8, 50.7)),
    )
    plus = (
        ("r50_online", "DVIS_Plus_Online_R50", (55.5, 80.2, 60.1), (50.0, 72.2, 54.5), (37.2, 62.8, 37.3)),
        ("r50_offline", "DVIS_Plus_Offline_R50", (56.7, 81.4, 62.0), (52.0, 75.4, 57.8), (41.2, 68.9, 40.9)),
        ("vitl_online", "DVIS_Plus_Online_VitAdapterL", (67.7, 88.8, 75.3), (62.3, 82.7, 70.2), (49.6, 72.5, 55.0)),
        ("vitl_offline", "DVIS_Plus_Offline_VitAdapterL", (68.3, 90.3, 76.1), (63.9, 86.7, 71.5), (53.4, 78.9, 58.5)),
    )
    long_training = {"ytvis19": "_8wIter", "ytvis21": "_8wIter", "ovis": "_16wIter"}
    models = []
    for name, config, *scores in rows:
        for data, row in zip(long_training, scores, strict=True):
            models.append(_row(name, data, config, f"{name}_{data}.pth", *row))
    for name, config, *scores in plus:
        for (data, ending), row in zip(long_training.items(), scores, strict=True):
            file = f"vit_adapter/{config}" if "vitl" in name else f"{config}{ending if 'Online' in config else ''}"
            full, path = f"dvis_plus_{name}_{data}", f"dvis_Plus/{data}/{file}.yaml"
            models.append(ZooModel(full, path, f"{full}.pth", _FOLDERS[data][1], _ap(*row)))
    return models


MODELS: dict[str, ZooModel] = {
    model.name: model
    for rows in (
        *(_coco(), _mask2former_vis(), _plain_vits(), _ctvis(), _dvis()),
        *(_lbvq(), _vita(), _genvis(), _minvis(), _visage(), _ovformer(), _vmt()),
    )
    for model in rows
}
