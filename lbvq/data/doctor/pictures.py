"""Pictures of the worst findings: the frame, its masks, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lbvq.data.doctor.findings import KINDS, LEVELS, Finding, Report, VideoFacts
from lbvq.data.doctor.masks import examine_masks
from lbvq.data.doctor.structure import VideoEntry, read_structure
from lbvq.files.images import read_image
from lbvq.files.writing import atomic_path
from lbvq.masks.rle import decode
from lbvq.video.draw import contact_sheet, draw_objects

SMALLEST_WIDTH = 480  # pixels of a drawn frame
MOST_OF_A_KIND = 3
_WITHOUT = ("frame_missing", "frame_damaged", "frame_repeated", "object_brief")  # nothing is to be seen of them


def worst(report: Report, limit: int) -> list[Finding]:
    """The findings to draw: errors first, the heaviest of each kind, a few of each."""
    found = [each for each in report.findings if each.frame is not None and each.kind not in _WITHOUT]
    found.sort(key=lambda each: (LEVELS.index(KINDS[each.kind].level), -each.weight))
    count: Counter[str] = Counter()
    chosen = []
    for each in found:
        count[each.kind] += 1
        if count[each.kind] <= MOST_OF_A_KIND:
            chosen.append(each)
    return chosen[:limit]


def draw_worst(file: Path, frames: Path, report: Report, folder: Path, limit: int = 12) -> list[Path]:
    """Write one picture for each of the worst findings into a new folder; returns their paths, [] without any."""
    chosen = worst(report, limit)
    videos = {video.id: video for video in read_structure(file, frames, Report(""))} if chosen else {}
    pictures = [(each, picture) for each in chosen if (picture := _draw(each, videos)) is not None]
    if not pictures:
        return []
    names = [f"{index:02d}_{each.kind}.png" for index, (each, _) in enumerate(pictures)]
    with atomic_path(folder) as part:
        part.mkdir()
        for name, (_, picture) in zip(names, pictures, strict=True):
            Image.fromarray(picture).save(part / name)
    return [folder / name for name in names]


def _draw(finding: Finding, videos: dict[int, VideoEntry]) -> np.ndarray | None:
    """(H, W, 3) picture of a finding; None when its frame cannot be read."""
    video = videos.get(finding.video) if finding.video is not None else None
    if video is None or finding.frame is None:
        return None
    shown = [finding.frame - 1, finding.frame] if finding.kind == "object_jumps" else [finding.frame]
    masks = examine_masks(video, VideoFacts(video.id, video.name))
    try:
        drawn = [_draw_frame(read_image(video.files[t]), masks[t], finding.track, video.size) for t in shown]
    except OSError:
        return None
    titles = [f"frame {t}" for t in shown]
    text = ": ".join(filter(None, (KINDS[finding.kind].title, finding.where, finding.detail)))
    return contact_sheet(drawn, columns=len(drawn), titles=titles, heading=text, width=960)


def _draw_frame(pixels: np.ndarray, masks: dict[int, dict], track: int | None, size: Sequence[int]) -> np.ndarray:
    """The frame with its objects, the one in question on top and named; enlarged where it is small."""
    order = sorted(masks, key=lambda number: number != track)
    order = order if pixels.shape[:2] == tuple(size) else []
    dense = np.array([decode(masks[number]) for number in order]).reshape(-1, *pixels.shape[:2])
    enlarge = max(1, SMALLEST_WIDTH // pixels.shape[1])
    pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    dense = dense.astype(bool).repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    captions = [f"object {number}" if number == track else str(number) for number in order]
    return draw_objects(pixels, dense, [number + 1 for number in order], captions)
