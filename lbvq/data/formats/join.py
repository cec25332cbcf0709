"""Join objects of single frames into tracks by the overlap of their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as coco_mask
from scipy.optimize import linear_sum_assignment

from lbvq.data.formats.labels import Labels, Track

LEAST_OVERLAP = 0.3  # intersection over union of an object in two frames
LONGEST_GAP = 2  # frames in which it may be hidden between them


def join_by_overlap(labels: Labels) -> None:
    """Replace objects that are visible in a single frame by tracks, in place; longer tracks stay as they are.

    Objects of one class in neighbouring frames are matched so that their overlap is greatest in sum, and an overlap
    of less than `LEAST_OVERLAP` is no match. An object may be hidden for `LONGEST_GAP` frames.
    """
    for video in labels.videos:
        single = [track for track in video.tracks if len(track.masks) == 1 and not track.is_crowd]
        joined = _joined(single, len(video.frames))
        labels.notes.changed(
            "objects of one frame, joined with others by overlap", video.name, len(single) - len(joined)
        )
        alone = {track.id for track in single}
        video.tracks = [track for track in video.tracks if track.id not in alone] + joined


def _joined(single: Sequence[Track], num_frames: int) -> list[Track]:
    """Tracks of the objects; a track has the id of its first one."""
    by_frame: dict[int, list[Track]] = {}
    for track in single:
        by_frame.setdefault(next(iter(track.masks)), []).append(track)
    done: list[Track] = []
    alive: list[Track] = []
    for t in range(num_frames):
        alive = [track for track in alive if t - max(track.masks) <= LONGEST_GAP + 1]
        found = by_frame.get(t, [])
        matched = set()
        for row, column in _matches(alive, found):
            alive[row].masks[t] = found[column].masks[t]
            matched.add(column)
        new = [Track(each.id, each.category_id, dict(each.masks)) for k, each in enumerate(found) if k not in matched]
        done += new
        alive += new
    return done


def _matches(alive: Sequence[Track], found: Sequence[Track]) -> list[tuple[int, int]]:
    if not alive or not found:
        return []
    last = [track.masks[max(track.masks)] for track in alive]
    here = [next(iter(track.masks.values())) for track in found]
    overlap = np.array(coco_mask.iou(here, last, [0] * len(last))).T.reshape(len(last), len(here))
    same = np.array([[a.category_id == b.category_id for b in found] for a in alive])
    overlap = np.where(same & (overlap >= LEAST_OVERLAP), overlap, 0.0)
    rows, columns = linear_sum_assignment(-overlap)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if overlap[r, c] > 0]
