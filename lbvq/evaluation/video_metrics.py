"""The video metrics by name: which settings, masks and groups of categories each published benchmark uses.

    scorer = VideoScorer("ovis", "annotations_valid.json")
    scorer.update("results.json").compute().tables["segm"]

Published evaluators have defects. By default they are corrected; `reference=True` reproduces the published numbers:

- all: detections or tracks with too many or too few frames are cut to the shorter one, and a track with id 0 is never
  found.
- hq_ytvis: the boundary comes from "segmentations_refined", the mask IoU from "segmentations"; corrected: both from
  the refined masks, where the file has them.
- lvvis: crowd tracks count as objects and may be found any number of times, so that recall can exceed 1; the areas of
  the file lose their fractions.
- burst: any number of detections may find the same track, and all areas are 0; published numbers are computed so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.boundary import DILATION_RATIO
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_result import TubeApResult
from lbvq.evaluation.tube_ap_settings import OCCLUSION_RANGES, TubeApSettings
from lbvq.files.mask_file import MaskFile, read_mask_file

_REFINED = "segmentations_refined"
# data sets whose category table says which categories are novel
_SPLIT_DATASETS = ("ytvis_2019_val", "ytvis_2021_val", "lvvis_val", "burst_val")


@dataclass(frozen=True)
class VideoMetric:
    """What one published benchmark measures.

    Attributes:
        tasks: function of `reference` that returns task -> what of `TubeApSettings` differs from the default.
        refined_masks: the masks are those under "segmentations_refined".
        whole_areas: as published, see `GroundTruth`.
        base_novel: base and novel categories are reported apart.
        base_novel_if_open: they are for models whose classes are given as text.
        own_files: annotations also come as the benchmark's own files.
    """

    tasks: Callable[[bool], dict[str, dict[str, Any]]]
    refined_masks: bool = False
    whole_areas: bool = False
    base_novel: bool = False
    base_novel_if_open: bool = False
    own_files: bool = False


def _burst_tasks(reference: bool) -> dict[str, dict[str, Any]]:
    areas = "none" if reference else "masks"
    return {"segm": {"one_to_one": not reference, "areas": areas, "crowd_is_ignored": not reference}}


VIDEO_METRICS: dict[str, VideoMetric] = {
    "ytvis": VideoMetric(lambda reference: {"segm": {}}, base_novel_if_open=True),
    "ovis": VideoMetric(lambda reference: {"segm": {"occlusion_ranges": OCCLUSION_RANGES}}),
    "hq_ytvis": VideoMetric(
        lambda reference: {"boundary": {"boundary_ratio": DILATION_RATIO}, "segm": {}}, refined_masks=True
    ),
    "lvvis": VideoMetric(
        lambda reference: {"segm": {"crowd_is_ignored": not reference}}, whole_areas=True, base_novel=True
    ),
    "burst": VideoMetric(_burst_tasks, base_novel=True, own_files=True),
}


def video_metric(name: str) -> VideoMetric:
    """Return the metric of a name; ValueError lists what there is."""
    if name not in VIDEO_METRICS:
        raise ValueError(f"unknown video metric {name!r}; there are {', '.join(VIDEO_METRICS)}")
    return VIDEO_METRICS[name]


def metric_settings(metric: str, *, reference: bool = False) -> dict[str, TubeApSettings]:
    """Task -> settings of one metric of VIDEO_METRICS."""
    common: dict[str, Any] = {"different_lengths": reference, "id_zero_is_lost": reference}
    return {task: TubeApSettings(**own, **common) for task, own in video_metric(metric).tasks(reference).items()}


def read_ground_truth(metric: str, source: Any, *, reference: bool = False) -> GroundTruth:
    """Read an annotation file the way a metric wants it."""
    facts = video_metric(metric)
    if not facts.refined_masks:
        return GroundTruth(source, whole_areas=reference and facts.whole_areas)
    if reference:
        return GroundTruth(source, boundary_key=_REFINED)
    return GroundTruth(source, segmentations_key=_REFINED)


@dataclass(frozen=True)
class Scores:
    """What one evaluation gives.

    Attributes:
        tables: task -> name -> number in percent, nan where nothing was to be measured; "AP-<class>" for classes.
        results: task -> the arrays behind them.
        groups: letter -> category ids; with them "APb" is the AP of group b.
    """

    tables: dict[str, dict[str, float]]
    results: dict[str, TubeApResult]
    groups: dict[str, list[int]]

    @property
    def main(self) -> TubeApResult:
        """The arrays of the masks; those of the only task if it is another one."""
        return self.results.get("segm") or next(iter(self.results.values()))


class VideoScorer:
    """Scores predictions of one video data set with one metric."""

    def __init__(
        self,
        metric: str,
        ground_truth: GroundTruth | str | Path | Mapping[str, Any],
        *,
        reference: bool = False,
        base_novel: bool | None = None,
        long_videos: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            metric: one of VIDEO_METRICS.
            ground_truth: path or content of an annotation file, or what `read_ground_truth` returns.
            reference: reproduce the published evaluator with its defects.
            base_novel: report base and novel categories apart; None does so for open-vocabulary data sets.
            long_videos: report videos of more than so many frames apart, see `lbvq.data.catalog.LONG_VIDEO_FRAMES`.
        """
        settings = metric_settings(metric, reference=reference)
        if not isinstance(ground_truth, GroundTruth):
            ground_truth = read_ground_truth(metric, ground_truth, reference=reference)
        self.ground_truth = ground_truth
        self.groups: dict[str, list[int]] = {}
        self._long_videos = long_videos
        if video_metric(metric).base_novel if base_novel is None else base_novel:
            self.groups = category_groups(ground_truth)
            if not self.groups:
                raise ValueError(
                    f"{ground_truth.name}: no base and novel categories known. Expected 'partition' or 'frequency' in "
                    f"every category, or exactly the categories of one of {', '.join(_SPLIT_DATASETS)}."
                )
        self._tasks = {task: TubeAP(ground_truth, chosen) for task, chosen in settings.items()}

    def check_masks(self) -> None:
        """Decode every mask of the ground truth; ValueError names the first that is broken."""
        for task in self._tasks.values():
            task.check_masks()

    def reset(self) -> None:
        """Forget all predictions."""
        for task in self._tasks.values():
            task.reset()

    def update(
        self, predictions: str | Path | Iterable[Mapping[str, Any]] | MaskFile, name: str = "predictions"
    ) -> VideoScorer:
        """Add predictions, see `TubeAP.update`."""
        if isinstance(predictions, (str, Path)):
            predictions, name = read_mask_file(predictions), str(predictions)
        elif not isinstance(predictions, MaskFile):
            predictions = list(predictions)
        for task in self._tasks.values():
            task.update(predictions, name=name)
        return self

    def state(self) -> dict[str, Any]:
        """Small arrays for `merge`."""
        return {task: each.state() for task, each in self._tasks.items()}

    def merge(self, state: Mapping[str, Any]) -> VideoScorer:
        """Add what a scorer in another process has collected."""
        for task, each in self._tasks.items():
            each.merge(state[task])
        return self

    def compute(self) -> Scores:
        """Compute all tables."""
        tables, results = {}, {}
        for task, each in self._tasks.items():
            result = results[task] = each.compute()
            table = result.summary()
            for letter, category_ids in self.groups.items():
                table |= {f"{name}{letter}": value for name, value in result.summary(category_ids).items()}
            if self._long_videos is not None:
                table |= self._short_and_long(each, self._long_videos)
            tables[task] = table | {f"AP-{name}": value for name, value in result.per_category().items()}
        return Scores(tables, results, self.groups)

    def _short_and_long(self, task: TubeAP, most_frames: int) -> dict[str, float]:
        """Summaries of the short and of the long videos, and the mean of both APs, by which YouTube-VIS 2022 ranks."""
        videos = self.ground_truth.videos.values()
        is_long = {video.id: (video.length or 0) > most_frames for video in videos}
        table: dict[str, float] = {}
        for suffix, wanted in (("_short", False), ("_long", True)):
            result = task.compute([each for each, own in is_long.items() if own is wanted])
            table |= {f"{name}{suffix}": value for name, value in result.summary().items()}
        return table | {"AP_short_long_mean": (table["AP_short"] + table["AP_long"]) / 2}


def category_groups(ground_truth: GroundTruth) -> dict[str, list[int]]:
    """Groups that open-vocabulary work reports apart: b(ase), n(ovel), and in BURST c(ommon), u(ncommon).

    They come from the file ("partition" of LV-VIS, "frequency" and "split" of BURST), else from the category table
    whose names and ids are exactly those of the file. Empty if there is none.
    """
    categories = ground_truth.categories
    novel: list[int] | None
    if categories and all("partition" in entry for entry in categories.values()):
        novel = [each for each, entry in categories.items() if entry["partition"] in (2, 3)]
    elif categories and all("frequency" in entry for entry in categories.values()):
        novel = [each for each, entry in categories.items() if entry["frequency"] == "r"]
    else:
        novel = _published_novel_ids(ground_truth)
        if novel is None:
            return {}
    groups = {"b": [each for each in categories if each not in set(novel)], "n": novel}
    for split in ("common", "uncommon"):
        members = [each for each, entry in categories.items() if entry.get("split") == split]
        if members:
            groups[split[0]] = members
    return groups


def _published_novel_ids(ground_truth: GroundTruth) -> list[int] | None:
    from lbvq.data.catalog import MetadataCatalog  # importing the data package takes seconds

    names = {each: ground_truth.category_name(each) for each in ground_truth.categories}
    for dataset in _SPLIT_DATASETS:
        metadata = MetadataCatalog.get(dataset)
        if {entry["id"]: entry["name"] for entry in metadata.categories} == names:
            return sorted(metadata.novel_dataset_ids)
    return None
