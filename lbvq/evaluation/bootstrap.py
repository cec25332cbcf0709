"""How much of a score is chance: AP of videos drawn anew with replacement (the bootstrap; Efron, 1979).

Matching never crosses videos, so drawing a video twice only counts its tracks and its judged detections twice: a
resample is one weight per video, and AP follows from weighted sums over the detections that were sorted and matched
once. This equals the evaluation of files in which the drawn videos are repeated, as long as no two detections of a
video and category have the same score (copies of a video are counted together where they tie).

The same draws serve two results, so that what is hard for both does not blur their difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lbvq.evaluation.diagnosis.outcomes import Outcomes

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
_CELLS_AT_ONCE = 1 << 22  # weights of detections that are held together
_EPS = np.spacing(1)  # as in `precision_and_recall`


@dataclass(frozen=True)
class Interval:
    """Where a score would lie had other videos of the same kind been drawn.

    Attributes:
        value: of all videos.
        low, high: quantiles of the resamples; widened to the value where all quantiles lie on one side of it, as may
            happen with few videos. nan where no resample has a track.
        above: share of the resamples above zero, ties counted half; of a difference, how sure its sign is.
    """

    value: float
    low: float
    high: float
    above: float

    @classmethod
    def of(cls, value: float, samples: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
        """From (B,) resamples; nan among them are left out."""
        samples = samples[~np.isnan(samples)]
        if not len(samples) or np.isnan(value):
            return cls(value, np.nan, np.nan, np.nan)
        low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
        above = float(np.mean((samples > 0) + 0.5 * (samples == 0)))
        return cls(value, min(low, value), max(high, value), above)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "above_zero": self.above}


def draw_videos(num_videos: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """(B, V) int32 how often each video is drawn; the same arguments always give the same draws."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, num_videos), np.int32)
    for row in weights if num_videos else ():
        row += np.bincount(rng.integers(num_videos, size=num_videos), minlength=num_videos).astype(np.int32)
    return weights


def weighted_ap(judged: Outcomes, videos: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AP of every category when videos count as often as their weights say.

    Args:
        judged: detections and tracks of one result.
        videos: (V,) ids, ascending.
        weights: (B, V) whole numbers.

    Returns:
        (B, S, K) in [0, 1], nan for a category without a track.
    """
    ap = np.full((len(weights), len(judged.thresholds), len(judged.names)), np.nan)
    for k in np.flatnonzero(judged.num_tracks).tolist():
        tracks = np.searchsorted(videos, judged.track_video[judged.counted & (judged.track_place == k)])
        counts = weights[:, tracks].sum(1)
        rows = np.flatnonzero(judged.place == k)
        own = np.flatnonzero(judged.true[rows].any(1))
        rows = rows[: own[-1] + 1 if len(own) else 0]  # what comes after the last true one does not matter
        place = np.searchsorted(videos, judged.video[rows])
        step = max(1, _CELLS_AT_ONCE // max(1, len(rows), 4 * len(judged.recalls)))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            own_weights = weights[part][:, place]
            needed = _needed(counts[part], judged.recalls)
            for s in range(len(judged.thresholds)):
                found = _weighted_ap(own_weights, judged.true[rows, s], judged.false[rows, s], needed)
                ap[part, s, k] = np.where(counts[part] > 0, found, np.nan)
    return ap


def _needed(counts: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """(B, R) true detections that are needed for each recall, at least one."""
    unique, inverse = np.unique(counts, return_inverse=True)
    table = [np.searchsorted(np.arange(count + 1) / max(1, count), recalls, side="left") for count in unique.tolist()]
    return np.maximum(np.array(table, np.int64), 1)[inverse.ravel()]


def _weighted_ap(weights: np.ndarray, true: np.ndarray, false: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(B,) AP of one category at one threshold.

    Args:
        weights: (B, n) of detections in descending order of their score.
        true, false: (n,) outcomes.
        needed: (B, R) see `_needed`.
    """
    places = np.flatnonzero(true)
    if not len(places):
        return np.zeros(len(weights))
    num_true = np.cumsum(weights[:, places], axis=1, dtype=np.int64)
    num_false = np.cumsum(weights * false, axis=1, dtype=np.int64)[:, places]
    precision = num_true / (num_true + num_false + _EPS)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate((best, np.zeros((len(best), 1))), axis=1)  # a recall that is not reached
    # One search for all: every row of the counts is lifted above the one before.
    lift = np.arange(len(weights))[:, None] * (max(int(num_true[:, -1].max()), int(needed.max())) + 1)
    column = np.searchsorted((num_true + lift).ravel(), (needed + lift).ravel()).reshape(needed.shape)
    column = np.minimum(column - np.arange(len(weights))[:, None] * len(places), len(places))
    return np.take_along_axis(best, column, 1).mean(1)


def mean_over_categories(ap: np.ndarray) -> np.ndarray:
    """(B, ..., K) with nan -> (B, ...), nan where no category has a track."""
    counted = ~np.isnan(ap)
    total = np.where(counted, ap, 0).sum(-1)
    return np.where(counted.any(-1), total / np.maximum(counted.sum(-1), 1), np.nan)


def summaries(judged: Outcomes, ap: np.ndarray) -> Mapping[str, np.ndarray]:
    """Name -> (B,) percent of AP, and of AP50 and AP75 where the thresholds have them, from (B, S, K)."""
    rows = {"AP": np.ones(len(judged.thresholds), bool)}
    rows |= {f"AP{round(100 * iou)}": np.isclose(judged.thresholds, iou) for iou in (0.5, 0.75)}
    return {name: 100 * mean_over_categories(ap[:, own].mean(1)) for name, own in rows.items() if own.any()}
