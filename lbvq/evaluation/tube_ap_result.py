"""The numbers of one tube AP evaluation and their summaries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lbvq.evaluation.tube_ap_settings import TubeApSettings


@dataclass(frozen=True)
class TubeApResult:
    """Numbers of one evaluation. -1 stands for "no track of the ground truth counts here", as published.

    Letters: S IoU thresholds, R recall thresholds, K categories, A area ranges, O occlusion ranges (an axis that exists
    only if the settings have them), M detection limits.

    Attributes:
        settings: what was computed.
        categories: id -> name, ascending, one per entry of the axis K.
        precision: (S, R, K, A, [O,] M).
        recall: (S, K, A, [O,] M).
        scores: (S, R, K, A, [O,] M) score of the detection at which the recall is reached.
    """

    settings: TubeApSettings
    categories: dict[int, str]
    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray

    def average(
        self,
        kind: str = "AP",
        *,
        iou: float | None = None,
        area: str = "all",
        occlusion: str = "all",
        limit: int | None = None,
        category_ids: Iterable[int] | None = None,
    ) -> float:
        """Mean precision ("AP") or recall ("AR") over everything that is not selected; -1 when nothing is there.

        Args:
            kind: "AP" or "AR".
            iou: one of the IoU thresholds; None takes the mean over all.
            area: name of an area range.
            occlusion: name of an occlusion range.
            limit: detections per video and category, one of the settings; None takes the largest.
            category_ids: None takes all.
        """
        values = self.precision if kind == "AP" else self.recall
        ranges = [list(self.settings.area_ranges).index(area)]
        if self.settings.occlusion_ranges is not None:
            ranges.append(list(self.settings.occlusion_ranges).index(occlusion))
        limit_index = -1 if limit is None else list(self.settings.max_detections).index(limit)
        index: tuple[Any, ...] = (..., *ranges, limit_index)
        values = values[index]  # (S, [R,] K)
        if iou is not None:
            values = values[np.isclose(self.settings.iou_thresholds, iou, rtol=0, atol=1e-9)]
        if category_ids is not None:
            place = {category_id: index for index, category_id in enumerate(self.categories)}
            values = values[..., [place[category_id] for category_id in category_ids if category_id in place]]
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    def lines(self) -> dict[str, dict[str, Any]]:
        """Name of every published summary number, in the published order -> arguments for `average`."""
        names: dict[str, dict[str, Any]] = {"AP": {}, "AP50": {"iou": 0.5}, "AP75": {"iou": 0.75}}
        areas = {"s": "small", "m": "medium", "l": "large"}
        areas = {short: name for short, name in areas.items() if name in self.settings.area_ranges}
        levels = [name for name in self.settings.occlusion_ranges or () if name != "all"]
        names |= {f"AP{short}": {"area": name} for short, name in areas.items()}
        names |= {f"AP_{name}": {"occlusion": name} for name in levels}
        for limit in self.settings.max_detections:
            names[f"AR{'' if limit is None else limit}"] = {"kind": "AR", "limit": limit}
        names |= {f"AR{short}": {"kind": "AR", "area": name} for short, name in areas.items()}
        names |= {f"AR_{name}": {"kind": "AR", "occlusion": name} for name in levels}
        return names

    @property
    def stats(self) -> list[float]:
        """The published summary numbers in [0, 1] or -1: 12 of them, 18 with occlusion ranges."""
        return list(self.averages().values())

    def averages(self, category_ids: Iterable[int] | None = None) -> dict[str, float]:
        """Name -> published summary number in [0, 1] or -1, of some categories only if wanted."""
        if category_ids is not None:
            category_ids = list(category_ids)
        return {name: self.average(**chosen, category_ids=category_ids) for name, chosen in self.lines().items()}

    def summary(self, category_ids: Iterable[int] | None = None) -> dict[str, float]:
        """Name -> summary number in percent, nan where there is nothing to measure."""
        return {name: to_percent(value) for name, value in self.averages(category_ids).items()}

    def per_category(self) -> dict[str, float]:
        """Category name -> AP in percent, nan for categories without a track."""
        names = unique_names(self.categories)
        return {names[each]: to_percent(self.average(category_ids=[each])) for each in self.categories}


def to_percent(value: float) -> float:
    """0..1 -> 0..100; -1 (nothing to measure) -> nan."""
    return math.nan if value < 0 else 100 * value


def unique_names(categories: Mapping[int, str]) -> dict[int, str]:
    """Id -> name, with the id appended to names that several categories share."""
    names = list(categories.values())
    return {each: name if names.count(name) == 1 else f"{name} ({each})" for each, name in categories.items()}
