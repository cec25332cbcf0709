"""Two results side by side: is the difference noise, and which classes and videos make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lbvq.evaluation.annotations import GroundTruth, Video
from lbvq.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    draw_videos,
    mean_over_categories,
    summaries,
    weighted_ap,
)
from lbvq.evaluation.diagnosis.outcomes import Outcomes, outcomes
from lbvq.evaluation.image_metrics import IMAGE_JUDGES
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.video_metrics import metric_settings, read_ground_truth
from lbvq.files.mask_file import MaskFile

NUM_CHANGED = 20  # videos that are shown


def judge_files(
    metric: str, ground_truth: MaskFile, files: Sequence[MaskFile], *, reference: bool = False
) -> tuple[dict[int, str], list[dict[str, Outcomes]]]:
    """What became of every detection under the rules of a metric of videos or images.

    Args:
        metric: one of VIDEO_METRICS or IMAGE_METRICS.
        ground_truth: annotation file.
        files: results.
        reference: with the defects of the published evaluator.

    Returns:
        id -> name of all videos (images), and of every file: task -> outcomes.
    """
    if metric in IMAGE_JUDGES:
        images = GroundTruth(ground_truth, noun="image").videos
        return _names(images), [IMAGE_JUDGES[metric](ground_truth, file) for file in files]
    truth = read_ground_truth(metric, ground_truth, reference=reference)
    if not truth.has_annotations:
        raise ValueError(f"{truth.name} has no annotations to score with")
    found = [
        {
            task: outcomes(truth, settings, TubeAP(truth, settings).update(file, name=file.name).collected())
            for task, settings in metric_settings(metric, reference=reference).items()
        }
        for file in files
    ]
    return _names(truth.videos), found


def _names(videos: Mapping[int, Video]) -> dict[int, str]:
    return {video.id: video.name for video in videos.values()}


def compare_files(
    metric: str, ground_truth: MaskFile, a: MaskFile, b: MaskFile, *, reference: bool = False, **options: Any
) -> dict[str, Comparison]:
    """Task that both files can be scored on -> comparison; `options` are those of `Comparison`."""
    videos, (first, second) = judge_files(metric, ground_truth, (a, b), reference=reference)
    if not set(first) & set(second):
        raise ValueError(f"{a.name} ({', '.join(first)}) and {b.name} ({', '.join(second)}) have nothing in common")
    return {task: Comparison(videos, first[task], second[task], **options) for task in first if task in second}


@dataclass(frozen=True)
class Comparison:
    """Results a and b on the same videos.

    Attributes:
        videos: id -> name of all videos.
        a, b: their judged detections.
        resamples, seed: of the bootstrap.
        confidence: share of the resamples inside the intervals.
    """

    videos: dict[int, str]
    a: Outcomes
    b: Outcomes
    resamples: int = RESAMPLES
    seed: int = SEED
    confidence: float = CONFIDENCE

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.array(sorted(self.videos), np.int64)

    def _score(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, S, K) of both."""
        return weighted_ap(self.a, self._ids, weights), weighted_ap(self.b, self._ids, weights)

    @cached_property
    def _all(self) -> tuple[np.ndarray, np.ndarray]:
        return self._score(np.ones((1, len(self._ids)), np.int32))

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        return self._score(draw_videos(len(self._ids), self.resamples, self.seed))

    def _row(self, values: Sequence[np.ndarray], samples: Sequence[np.ndarray]) -> dict[str, Any]:
        """Intervals of a, b, and b - a, from (1,) values and (B,) resamples of both."""
        values, samples = ([*each, each[1] - each[0]] for each in (values, samples))
        names = ("a", "b", "difference")
        return {
            name: Interval.of(float(value[0]), sample, self.confidence).to_dict()
            for name, value, sample in zip(names, values, samples, strict=True)
        }

    def scores(self) -> dict[str, dict[str, Any]]:
        """AP, AP50 and AP75 -> intervals of "a", "b" and "difference" (b - a), in percent."""
        whole = [summaries(self.a, each) for each in self._all]
        drawn = [summaries(self.a, each) for each in self._drawn]
        return {name: self._row([each[name] for each in whole], [each[name] for each in drawn]) for name in whole[0]}

    def per_class(self) -> list[dict[str, Any]]:
        """One row per category with tracks, those that changed most first."""
        rows = []
        for k in np.flatnonzero(self.a.num_tracks).tolist():
            values, samples = ([100 * each[..., k].mean(1) for each in side] for side in (self._all, self._drawn))
            about = {"class": self.a.names[k], "tracks": int(self.a.num_tracks[k])}
            rows.append(about | self._row(values, samples))
        return sorted(rows, key=lambda row: -abs(row["difference"]["value"]))

    def per_video(self) -> list[dict[str, Any]]:
        """One row per video with tracks that count, those that changed most first: AP of the video alone, in percent.

        `influence` is what the difference of AP over all videos would lack without the video.
        """
        one = np.eye(len(self._ids), dtype=np.int32)
        alone = [100 * mean_over_categories(each.mean(1)) for each in self._score(one)]
        others = [100 * mean_over_categories(each.mean(1)) for each in self._score(1 - one)]
        whole = [100 * float(mean_over_categories(each.mean(1))[0]) for each in self._all]
        rows = []
        for place in np.flatnonzero(~np.isnan(alone[0])).tolist():
            a, b = (float(each[place]) for each in alone)
            without = float(np.nan_to_num(others[1][place] - others[0][place]))
            video = int(self._ids[place])
            row = {"video_id": video, "name": self.videos[video], "a": a, "b": b, "difference": b - a}
            rows.append(row | {"influence": whole[1] - whole[0] - without})
        return sorted(rows, key=lambda row: (-abs(row["difference"]), -abs(row["influence"]), row["video_id"]))

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; docs/evaluation.md describes it."""
        per_video = self.per_video()
        return {
            "resamples": self.resamples,
            "seed": self.seed,
            "confidence": self.confidence,
            "scores": self.scores(),
            "per_class": self.per_class(),
            "per_video": per_video,
            "changed_most": [row["video_id"] for row in per_video[:NUM_CHANGED] if row["difference"]],
        }


def format_comparison(content: dict[str, Any]) -> str:
    """What `Comparison.to_dict` returns, as text."""
    share = round(100 * content["confidence"])
    draws = f"{content['resamples']} draws of the videos"
    lines = [f"{'':24}{'a':>10}{'b':>10}{'b - a':>10}   {share} % of {draws}"]
    lines += [_line(name, row) for name, row in content["scores"].items()]
    sure = content["scores"]["AP"]["difference"]["above_zero"]
    lines.append(f"b is better than a in {100 * sure:.1f} % of them" if sure == sure else "there is no track to find")
    lines += ["", "classes that changed most"]
    lines += [_line(row["class"], row) for row in content["per_class"][:NUM_CHANGED] if row["difference"]["value"]]
    lines += ["", f"videos that changed most{'':26}      (what the difference would lack without each)"]
    for row in content["per_video"][:NUM_CHANGED]:
        if row["difference"]:
            name = f"{row['video_id']} {row['name']}"
            numbers = f"{row['a']:10.3f}{row['b']:10.3f}{row['difference']:+10.3f}   {row['influence']:+.3f}"
            lines.append(f"{name:24.24}{numbers}")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    a, b, difference = (row[key]["value"] for key in ("a", "b", "difference"))
    interval = f"{row['difference']['low']:+.3f} to {row['difference']['high']:+.3f}"
    return f"{name:24.24}{a:10.3f}{b:10.3f}{difference:+10.3f}   {interval}"
