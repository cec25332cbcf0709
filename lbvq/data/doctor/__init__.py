"""The doctor: what is wrong with a data set, per file, with a reason and a remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lbvq.data.doctor.findings import KINDS, Finding, Report, VideoFacts
from lbvq.data.doctor.frames import examine_frames
from lbvq.data.doctor.masks import examine_masks, examine_overlaps
from lbvq.data.doctor.structure import VideoEntry, read_structure

__all__ = ["KINDS", "Finding", "Report", "examine", "examine_video"]


def examine(
    file: Path, frames: Path, *, name: str = "", jobs: int | None = None, progress: Callable[[int], None] | None = None
) -> Report:
    """Examine an annotation file and the frames it names.

    Args:
        file: in YouTube-VIS form.
        frames: folder that the names of frames are relative to.
        name: of the data, for the report.
        jobs: processes that look at videos; by default as many as the machine has cores.
        progress: called with the number of videos that are done.
    """
    report = Report(name or str(file))
    videos = read_structure(file, frames, report)
    done = []
    for facts in _examined(videos, jobs or _num_cores()):
        done.append(facts)
        if progress is not None:
            progress(len(done))
    report.extend(done)
    return report


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _examined(videos: list[VideoEntry], jobs: int) -> Iterator[VideoFacts]:
    if min(jobs, len(videos)) <= 1:
        yield from map(examine_video, videos)
        return
    with ProcessPoolExecutor(min(jobs, len(videos))) as pool:
        yield from pool.map(examine_video, videos, chunksize=max(1, min(16, len(videos) // (8 * jobs))))


def examine_video(video: VideoEntry) -> VideoFacts:
    """Look at every frame and every mask of one video."""
    facts = VideoFacts(video.id, video.name, len(video.files), size=video.size)
    examine_frames(video, facts)
    examine_overlaps(examine_masks(video, facts), facts)
    return facts
