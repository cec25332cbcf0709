"""The masks of one video: readable, of the right size, not empty, and one object per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from lbvq.data.doctor.findings import VideoFacts
from lbvq.data.doctor.structure import Entry, VideoEntry
from lbvq.masks.rle import area, to_bbox, to_rle

Rle = dict[str, Any]

WHOLE = 0.97  # share of the frame above which a mask is suspicious
SAME = 0.9  # overlap (intersection over union) above which two masks are the same
COVERED = 0.1  # share of the smaller mask above which an overlap is told
MOVED = 0.3  # overlap with the other object's former mask above which an identity was switched
BOX_TOLERANCE = 2.0  # pixels


def examine_masks(video: VideoEntry, facts: VideoFacts) -> dict[int, dict[int, Rle]]:
    """Examine every mask; returns position of the frame -> object -> mask of what can be read and has pixels."""
    by_frame: dict[int, dict[int, Rle]] = {t: {} for t in range(len(video.files))}
    for entry in video.objects:
        masks = entry.get("segmentations")
        if not isinstance(masks, list) or len(masks) != len(video.files):
            got = len(masks) if isinstance(masks, list) else "no"
            facts.add("entry", f"{got} segmentations for {len(video.files)} frames", track=entry["id"])
            continue
        found = {}
        for t in range(len(video.files)):
            mask = _readable(masks[t], video, facts, frame=t, track=entry["id"]) if masks[t] else None
            if mask is not None:
                found[t] = by_frame[t][entry["id"]] = mask
                _judge_mask(mask, entry, video, facts, frame=t, track=entry["id"])
        facts.num_masks += len(found)
        if not found:
            facts.add("object_empty", track=entry["id"])
        elif len(found) == 1 and len(video.files) > 1:
            facts.add("object_brief", track=entry["id"], frame=next(iter(found)))
    facts.num_objects = len(video.objects)
    facts.most_objects = max((len(masks) for masks in by_frame.values()), default=0)
    return by_frame


def _readable(segmentation: Any, video: VideoEntry, facts: VideoFacts, **place: Any) -> Rle | None:
    """The mask, if it can be read and has a pixel."""
    if isinstance(segmentation, dict) and list(segmentation.get("size") or video.size) != list(video.size):
        facts.add("mask_size", f"{segmentation['size']}, the video has {list(video.size)}", **place)
        return None
    if isinstance(segmentation, list):
        _judge_polygons(segmentation, video.size, facts, **place)
        segmentation = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
    try:
        mask = to_rle(segmentation, *video.size)
    except (ValueError, TypeError) as error:
        facts.add("mask_broken", str(error), **place)
        return None
    if area(mask) == 0:
        facts.add("mask_empty", **place)
        return None
    return mask


def _judge_polygons(polygons: Sequence[Any], size: tuple[int, int], facts: VideoFacts, **place: Any) -> None:
    for polygon in polygons:
        try:
            x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        except (ValueError, TypeError):
            facts.add("mask_broken", "a polygon is a list of numbers x, y, x, y, ...", **place)
            continue
        out = max(-x.min(initial=0), -y.min(initial=0), x.max(initial=0) - size[1], y.max(initial=0) - size[0])
        if out > 1:
            facts.add("mask_outside", f"by {out:.0f} pixels", weight=float(out), **place)


def _judge_mask(mask: Rle, entry: Entry, video: VideoEntry, facts: VideoFacts, **place: Any) -> None:
    left, top, width, height = to_bbox(mask)
    pixels = area(mask)
    if min(width, height) <= 1:
        facts.add("mask_flat", f"{height:.0f} x {width:.0f} pixels", weight=max(width, height), **place)
    if pixels > WHOLE * video.size[0] * video.size[1]:
        facts.add("mask_whole", f"{pixels / (video.size[0] * video.size[1]):.0%}", weight=pixels, **place)
    boxes = entry.get("bboxes")
    box = boxes[place["frame"]] if isinstance(boxes, list) and len(boxes) > place["frame"] else None
    if box and not _agrees(box, (left, top, width, height)):
        facts.add("box_differs", f"box {box}, mask {[left, top, width, height]}", weight=pixels, **place)


def _agrees(box: Any, tight: tuple[float, ...]) -> bool:
    """Whether every side of a box is where the mask's is, to two pixels or a twentieth of its length."""
    try:
        given = np.array(box, dtype=np.float64).reshape(4)
    except (ValueError, TypeError):
        return False
    sides = [np.array([x, y, x + w, y + h]) for x, y, w, h in (given, tight)]
    return bool(np.abs(sides[0] - sides[1]).max() <= max(BOX_TOLERANCE, 0.05 * max(tight[2:])))


def examine_overlaps(by_frame: dict[int, dict[int, Rle]], facts: VideoFacts) -> None:
    """Objects of one frame that share pixels, and objects that change places from one frame to the next."""
    told: set[tuple[int, int]] = set()
    switched: set[tuple[int, int]] = set()
    before: dict[int, Rle] = {}
    for t, masks in sorted(by_frame.items()):
        _judge_pairs(masks, t, facts, told)
        _judge_switches(before, masks, t, facts, switched)
        before = masks


def _judge_pairs(masks: dict[int, Rle], t: int, facts: VideoFacts, told: set[tuple[int, int]]) -> None:
    """Tell each pair of objects once, in the frame in which it is seen first."""
    numbers = list(masks)
    if len(numbers) < 2:
        return
    coded = list(masks.values())
    overlap = np.array(coco_mask.iou(coded, coded, [0] * len(coded)))
    areas = np.array([area(mask) for mask in coded], dtype=np.float64)
    shared = overlap * (areas[:, None] + areas[None]) / (1 + overlap)
    for row, column in zip(*np.nonzero(np.triu(shared, 1)), strict=True):
        pair = (numbers[row], numbers[column])
        share = shared[row, column] / min(areas[row], areas[column])
        if pair in told or share <= COVERED:
            continue
        told.add(pair)
        kind = "masks_same" if overlap[row, column] >= SAME else "masks_overlap"
        detail = f"with object {pair[1]}, {share:.0%} of the smaller one"
        facts.add(kind, detail, weight=float(shared[row, column]), frame=t, track=pair[0])


def _judge_switches(
    before: dict[int, Rle], after: dict[int, Rle], t: int, facts: VideoFacts, switched: set[tuple[int, int]]
) -> None:
    """Two objects of which each lies now where the other one was."""
    both = [number for number in before if number in after]
    if len(both) < 2:
        return
    overlap = np.array(coco_mask.iou([after[n] for n in both], [before[n] for n in both], [0] * len(both)))
    for row, column in zip(*np.nonzero(np.triu(np.minimum(overlap, overlap.T) >= MOVED, 1)), strict=True):
        pair = (both[row], both[column])
        if pair not in switched and max(overlap[row, row], overlap[column, column]) < overlap[row, column]:
            switched.add(pair)
            detail, weight = f"with object {pair[1]}, from frame {t - 1}", float(overlap[row, column])
            facts.add("object_jumps", detail, weight=weight, frame=t, track=pair[0])
