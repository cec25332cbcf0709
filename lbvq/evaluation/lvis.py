"""Mask AP of images as in LVIS v1 (Gupta et al., CVPR 2019): federated annotation, 300 detections per image.

An image is a video of one frame here, so tube AP does all the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lbvq.evaluation.annotations import GroundTruth, Track
from lbvq.evaluation.diagnosis.outcomes import Outcomes, outcomes
from lbvq.evaluation.overlap import TubeRuns
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_result import TubeApResult, to_percent
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.files.mask_file import MaskFile

MAX_DETECTIONS = 300  # per image
LVIS_SETTINGS = TubeApSettings(
    area_ranges={"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)},
    max_detections=(None,),
    max_per_video=MAX_DETECTIONS,
    federated=True,
    crowd_takes_many=False,
    empty_is_absent=True,
)
_GROUPS = {"r": "rare", "c": "common", "f": "frequent"}  # "frequency" of a category


class LvisScorer:
    """Scores predictions on LVIS images."""

    def __init__(self, ground_truth: str | Path | Mapping[str, Any] | MaskFile) -> None:
        """Read the annotation file (or take its content): images, categories and annotations of LVIS v1."""
        truth = GroundTruth(ground_truth, noun="image", crowd_key="ignore")  # LVIS knows no crowds
        truth.tracks = [track for track in truth.tracks if _has_area(track, truth)]
        self._ap = TubeAP(truth, LVIS_SETTINGS)

    def check_masks(self) -> None:
        """Decode every mask of the ground truth; ValueError names the first that is broken."""
        self._ap.check_masks()

    def reset(self) -> None:
        """Forget all predictions."""
        self._ap.reset()

    def update(self, predictions: str | Path | Iterable[Mapping[str, Any]], name: str = "predictions") -> LvisScorer:
        """Add predictions in COCO form [{"image_id", "category_id", "score", "segmentation"}].

        All detections of an image must come in one call. The best 300 of them count, and those of unknown categories
        and empty masks are among the 300, as published.
        """
        self._ap.update(predictions, name=name)
        return self

    def state(self) -> dict[str, Any]:
        """Small arrays for `merge`."""
        return self._ap.state()

    def merge(self, state: Mapping[str, Any]) -> LvisScorer:
        """Add what a scorer in another process has collected."""
        self._ap.merge(state)
        return self

    def outcomes(self) -> Outcomes:
        """What became of every detection."""
        return outcomes(self._ap.ground_truth, self._ap.settings, self._ap.collected())

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


def _has_area(track: Track, truth: GroundTruth) -> bool:
    """Whether an annotation exists for the metric: the area in the file decides, else the mask."""
    if track.area is not None:
        return track.area > 0
    where = f"{truth.name}: image {track.video_id}, annotation {track.id}"
    return bool(TubeRuns([track.masks], truth.videos[track.video_id].size or (1, 1), lambda *_: where).areas.any())
