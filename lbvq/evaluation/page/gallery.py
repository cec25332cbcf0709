"""The videos of the page: frames, and objects and predictions as outlines, the most costly videos first."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbvq.evaluation.analysis import Analysis
from lbvq.evaluation.annotations import Detection, GroundTruth, Track, Video
from lbvq.evaluation.diagnosis.kinds import KINDS
from lbvq.evaluation.mask_texts import Masks
from lbvq.evaluation.page.outlines import grid_size, outline_text
from lbvq.evaluation.page.pictures import Pictures, make_pictures
from lbvq.files.json_files import to_json

logger = logging.getLogger(__name__)

MAX_FRAMES = 36  # shown of a video
MAX_PREDICTIONS = 20  # drawn of a video, best first
MAX_DRAWN = 400  # videos that are drawn; the page lists all
_PICTURE_BYTES, _OUTLINE_BYTES = 18_000_000, 7_000_000  # of all videos together, so that a page stays below 30 MB
_MOST_PICTURE_BYTES = 1_500_000  # of one video


def make_gallery(analysis: Analysis, ranking: Sequence[Mapping[str, Any]], frames: Path | None) -> list[dict[str, Any]]:
    """One entry per video, in the order of the ranking.

    Args:
        analysis: of the results.
        ranking: `per_video` of analysis.json.
        frames: folder to which `file_names` of the videos are relative; None draws masks on grey.
    """
    truth = analysis.ground_truth
    tracks: dict[int, list[Track]] = defaultdict(list)
    for track in truth.tracks:
        tracks[track.video_id].append(track)
    found: dict[int, list[Detection]] = defaultdict(list)
    for detection in sorted(analysis.detections, key=lambda each: -each.score):
        found[detection.video_id].append(detection)
    fates = _fates(analysis)
    share = max(1, min(len(ranking), MAX_DRAWN))
    entries = []
    for place, row in enumerate(ranking):
        video = truth.videos[row["video_id"]]
        entry: dict[str, Any] = {"id": video.id, "name": video.name, "length": _length(video, tracks[video.id])}
        entry |= {"frames": [], "images": [], "problem": "", "objects": [], "predictions": []}
        entry |= {"size": None if video.size is None else grid_size(video.size), "drawn": place < MAX_DRAWN}
        paths = [] if frames is None else [frames / name for name in video.file_names]
        pictures = Pictures([], [])
        if entry["drawn"]:
            budget = min(_MOST_PICTURE_BYTES, _PICTURE_BYTES // share)
            pictures = make_pictures(paths, entry["length"], MAX_FRAMES, budget)
        entry |= {"frames": pictures.frames, "images": pictures.images, "problem": pictures.problem}
        entry["objects"] = _objects(truth, video, tracks[video.id], pictures.frames)
        left = _OUTLINE_BYTES // share - len(to_json(entry["objects"]))
        entry["predictions"] = _predictions(truth, video, found[video.id], pictures.frames, fates, left)
        entries.append(entry)
    if frames is not None and entries and not any(entry["images"] for entry in entries):
        logger.warning("%s: none of the videos' frames was found there; the page shows masks on grey", frames)
    return entries


def _length(video: Video, tracks: Sequence[Track]) -> int:
    return video.length or len(video.file_names) or max((len(each.masks) for each in tracks), default=0)


def _fates(analysis: Analysis) -> dict[int, tuple[str, int | None]]:
    """Place in the results file -> what became of it at the least IoU threshold, and the id of its track."""
    judged, errors, tracks = analysis.diagnosis.judged, analysis.diagnosis.errors, analysis.ground_truth.tracks
    fates: dict[int, tuple[str, int | None]] = {}
    for row, position in enumerate(judged.order.tolist()):
        index = analysis.detections[position].index
        kind = int(errors.kind[row, 0])
        is_true = bool(judged.true[row, 0])
        track = int((judged.track if is_true else errors.target)[row, 0])
        name = "found" if is_true else KINDS[kind] if kind >= 0 else "ignored"
        fates[index] = name, tracks[track].id if track >= 0 else None
    return fates


def _objects(truth: GroundTruth, video: Video, tracks: Sequence[Track], frames: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"id": each.id, "class": truth.category_name(each.category_id), "crowd": each.is_crowd}
        | {"outlines": _outlines(each.masks, video, frames)}
        for each in tracks
    ]


def _predictions(
    truth: GroundTruth,
    video: Video,
    found: Sequence[Detection],
    frames: Sequence[int],
    fates: Mapping[int, tuple[str, int | None]],
    max_bytes: int,
) -> list[dict[str, Any]]:
    """All predictions, best first; as many of them with outlines as fit."""
    predictions: list[dict[str, Any]] = []
    for place, each in enumerate(found):
        outlines: list[str | None] = []
        if place < MAX_PREDICTIONS and max_bytes > 0:
            outlines = _outlines(each.masks, video, frames)
            max_bytes -= sum(len(text or "") + 5 for text in outlines)
        fate, track = fates.get(each.index, ("ignored", None))
        head = {"index": each.index, "class": truth.category_name(each.category_id), "score": each.score}
        predictions.append(head | {"fate": fate, "track": track, "outlines": outlines})
    return predictions


def _outlines(masks: Masks, video: Video, frames: Sequence[int]) -> list[str | None]:
    """One text per frame shown."""
    if video.size is None:
        return []
    texts = [masks[frame] if frame < len(masks) else None for frame in frames]
    return [None if text is None else outline_text(text, video.size) for text in texts]
