"""Mask AP of images as in LVIS v1 (Gupta et al., CVPR 2019): federated annotation, 300 detections per image.

An image is a video of one frame here, so tube AP does all the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.mask_file import MaskFile, read_mask_file
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_result import TubeApResult, to_percent
from lbvq.evaluation.tube_ap_settings import TubeApSettings

MAX_DETECTIONS = 300  # per image
LVIS_SETTINGS = TubeApSettings(
    area_ranges={"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)},
    max_detections=(None,),
    max_per_video=MAX_DETECTIONS,
    federated=True,
)
_GROUPS = {"r": "rare", "c": "common", "f": "frequent"}  # "frequency" of a category


class LvisScorer:
    """Scores predictions on LVIS images."""

    def __init__(self, ground_truth: str | Path | Mapping[str, Any] | MaskFile) -> None:
        """Read the annotation file (or take its content): images, categories and annotations of LVIS v1."""
        file = images_as_videos(ground_truth)
        self._ap = TubeAP(GroundTruth(file), LVIS_SETTINGS)

    def reset(self) -> None:
        """Forget all predictions."""
        self._ap.reset()

    def update(self, predictions: str | Path | Iterable[Mapping[str, Any]], name: str = "predictions") -> LvisScorer:
        """Add predictions in COCO form [{"image_id", "category_id", "score", "segmentation"}].

        All detections of an image must come in one call, best 300 of which count.
        """
        if not isinstance(predictions, (str, Path)):
            predictions = list(predictions)
        self._ap.update(results_as_videos(predictions, name), name)
        return self

    def state(self) -> dict[str, Any]:
        """Small arrays for `merge`."""
        return self._ap.state()

    def merge(self, state: Mapping[str, Any]) -> LvisScorer:
        """Add what a scorer in another process has collected."""
        self._ap.merge(state)
        return self

    def result(self) -> TubeApResult:
        """Arrays of precision and recall."""
        return self._ap.compute()

    def compute(self) -> dict[str, float]:
        """Name -> number in percent: AP, AP50, AP75, by size (s, m, l), by frequency (r, c, f), and AR@300."""
        result = self.result()
        frequency = {each: entry.get("frequency") for each, entry in self._ap.ground_truth.categories.items()}
        table = {name: result.average(**chosen) for name, chosen in result.lines().items() if name.startswith("AP")}
        for letter in _GROUPS:
            members = [each for each, own in frequency.items() if own == letter]
            table[f"AP{letter}"] = result.average(category_ids=members)
        for letter, area in {"": "all", "s": "small", "m": "medium", "l": "large"}.items():
            table[f"AR{letter}@{MAX_DETECTIONS}"] = result.average("AR", area=area)
        table = {name: to_percent(value) for name, value in table.items()}
        return table | {f"AP-{name}": value for name, value in result.per_category().items()}


def images_as_videos(source: str | Path | Mapping[str, Any] | MaskFile) -> MaskFile:
    """Turn annotations of images (COCO form) into annotations of videos of one frame."""
    if isinstance(source, MaskFile):
        file = source
    else:
        file = read_mask_file(source) if isinstance(source, (str, Path)) else MaskFile("ground truth", source, [], [])
    content = file.document
    if not isinstance(content, Mapping) or not isinstance(content.get("images"), list):
        raise ValueError(f"{file.name}: expected annotations of images, an object with a list 'images'")
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        annotations = [_as_track(entry) for entry in annotations]
    videos = [{**image, "length": 1, "file_names": ()} for image in content["images"]]
    document = {"videos": videos, "categories": content.get("categories"), "annotations": annotations}
    return file._replace(document=document)


def results_as_videos(source: str | Path | list[Mapping[str, Any]] | MaskFile, name: str) -> MaskFile:
    """Turn results on images (COCO form) into results on videos of one frame."""
    if isinstance(source, MaskFile):
        file = source
    else:
        file = read_mask_file(source) if isinstance(source, (str, Path)) else MaskFile(name, source, [], [])
    if not isinstance(file.document, list):
        raise ValueError(f"{file.name}: results must be a list of objects, got {type(file.document).__name__}")
    return file._replace(document=[_as_track(entry) for entry in file.document])


def _as_track(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry  # reported when the masks are read
    track = {key: value for key, value in entry.items() if key not in ("image_id", "segmentation", "area")}
    track["video_id"] = entry.get("image_id")
    track["segmentations"] = [entry.get("segmentation")]
    if "area" in entry:
        track["areas"] = [entry["area"]]
    return track
