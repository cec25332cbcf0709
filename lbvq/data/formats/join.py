"""Join objects of single frames into tracks by the overlap of their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lbvq.data.formats.labels import Labels, Track
from lbvq.masks.overlap_matching import LONGEST_GAP, match_by_overlap


def join_by_overlap(labels: Labels) -> None:
    """Replace objects that are visible in a single frame by tracks, in place; longer tracks stay as they are.

    Objects of one class in neighbouring frames are matched so that their overlap is greatest in sum, and an overlap
    of less than 0.3 is no match. An object may be hidden for `LONGEST_GAP` frames.
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
    last = [track.masks[max(track.masks)] for track in alive]
    here = [next(iter(track.masks.values())) for track in found]
    same = np.array([[a.category_id == b.category_id for b in found] for a in alive])
    return match_by_overlap(last, here, same)
