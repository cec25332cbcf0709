"""Tube AP written down plainly, on dense masks and with loops: what the fast one must equal, and random small cases."""

from __future__ import annotations

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = [(0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10)]


def tube_iou(a, b):
    """Two lists with one (H, W) bool mask or None per frame -> IoU pooled over all frames."""
    intersection = union = 0
    for x, y in zip(a, b, strict=True):
        x, y = (np.zeros((1, 1), bool) if each is None else each for each in (x, y))
        intersection += int((x & y).sum())
        union += int((x | y).sum())
    return intersection / union if union else 0.0


def boundary(mask, ratio=0.02):
    """(H, W) mask minus what is left of it after d erosions by a 3 x 3 square, outside the image counting as 0."""
    height, width = mask.shape
    distance = max(1, round(ratio * np.sqrt(height * height + width * width)))
    inner = mask.copy()
    for _ in range(distance):
        padded = np.pad(inner, 1)
        inner = np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask & ~inner


def mean_area(masks):
    areas = [int(mask.sum()) for mask in masks if mask is not None and mask.any()]
    return sum(areas) / len(areas) if areas else 0.0


def evaluate(case, *, boundary_ratio=None, crowd_is_ignored=True, max_detections=(1, 10, 100), area_ranges=None):
    """Case as `random_case` makes it -> precision (S, R, K, A, M) and recall (S, K, A, M)."""
    area_ranges = AREA_RANGES if area_ranges is None else area_ranges
    shape = (len(IOU_THRESHOLDS), len(case["categories"]), len(area_ranges), len(max_detections))
    precision, recall = -np.ones((shape[0], 101, *shape[1:])), -np.ones(shape)
    for k, category in enumerate(case["categories"]):
        for a, (low, high) in enumerate(area_ranges):
            videos = [
                _match_video(case, v, category, low, high, boundary_ratio, crowd_is_ignored)
                for v in sorted(case["videos"])
            ]
            num_tracks = sum(each[3] for each in videos)
            if num_tracks == 0:
                continue
            for m, limit in enumerate(max_detections):
                score = np.concatenate([each[0][:limit] for each in videos])
                order = np.argsort(-score, kind="mergesort")
                hit = np.concatenate([each[1][:, :limit] for each in videos], axis=1)[:, order]
                skip = np.concatenate([each[2][:, :limit] for each in videos], axis=1)[:, order]
                for s in range(len(IOU_THRESHOLDS)):
                    tp = np.cumsum(hit[s] & ~skip[s]).astype(float)
                    fp = np.cumsum(~hit[s] & ~skip[s]).astype(float)
                    rate = tp / num_tracks
                    value = np.maximum.accumulate((tp / (tp + fp + np.spacing(1)))[::-1])[::-1]
                    recall[s, k, a, m] = rate[-1] if len(rate) else 0
                    place = np.searchsorted(rate, RECALL_THRESHOLDS, side="left")
                    precision[s, :, k, a, m] = [value[p] if p < len(value) else 0 for p in place]
    return precision, recall


def _match_video(case, video, category, low, high, boundary_ratio, crowd_is_ignored):
    """Scores, hits (S, D), skips (S, D) of the best 100 detections, and the number of tracks that count."""
    tracks = [each for each in case["tracks"] if (each["video"], each["category"]) == (video, category)]
    found = [each for each in case["detections"] if (each["video"], each["category"]) == (video, category)]
    found = sorted(found, key=lambda each: -each["score"])[:100]
    ignored = [(crowd_is_ignored and each["crowd"]) or not low <= mean_area(each["masks"]) <= high for each in tracks]
    order = sorted(range(len(tracks)), key=lambda index: ignored[index])
    hit, skip = (np.zeros((len(IOU_THRESHOLDS), len(found)), bool) for _ in range(2))
    overlap = [[_overlap(d, g, boundary_ratio) for g in tracks] for d in found]
    for s, threshold in enumerate(IOU_THRESHOLDS):
        taken = set()
        for i, detection in enumerate(found):
            best, match = min(threshold, 1 - 1e-10), None
            for j in order:
                if j in taken and not tracks[j]["crowd"]:
                    continue
                if match is not None and not ignored[match] and ignored[j]:
                    break
                if overlap[i][j] >= best:
                    best, match = overlap[i][j], j
            if match is None:
                skip[s, i] = not low <= mean_area(detection["masks"]) <= high
            else:
                taken.add(match)
                hit[s, i], skip[s, i] = True, ignored[match]
    return np.array([each["score"] for each in found]), hit, skip, sum(not each for each in ignored)


def _overlap(detection, track, boundary_ratio):
    iou = tube_iou(detection["masks"], track["masks"])
    if boundary_ratio is None or track["crowd"]:
        return iou
    edges = [
        [None if mask is None else boundary(mask, boundary_ratio) for mask in each["masks"]]
        for each in (detection, track)
    ]
    return min(iou, tube_iou(*edges))


def random_case(seed, num_videos=3, num_categories=2):
    """Small random world with everything that occurs: crowds, gaps, empty masks, ties, noise, several sizes."""
    rng = np.random.RandomState(seed)
    case = {"videos": {}, "categories": list(range(1, num_categories + 1)), "tracks": [], "detections": []}
    for video in rng.permutation(50)[:num_videos].tolist():
        height, width, length = rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, 5)
        case["videos"][video] = (height, width, length)
        for _ in range(rng.randint(0, 4)):
            masks = [_random_mask(rng, height, width) for _ in range(length)]
            category = int(rng.randint(1, num_categories + 1))
            crowd = bool(rng.rand() < 0.2)
            case["tracks"].append({"video": video, "category": category, "masks": masks, "crowd": crowd})
            for _ in range(rng.randint(0, 4)):
                near = [mask if rng.rand() < 0.7 else _random_mask(rng, height, width) for mask in masks]
                own = category if rng.rand() < 0.8 else int(rng.randint(1, num_categories + 1))
                score = float(rng.randint(1, 6)) / 5
                case["detections"].append({"video": video, "category": own, "masks": near, "score": score})
    return case


def sparse_case(seed, num_detections=40):
    """One wide video: small objects that rarely meet, frames without any, and a class that no track has."""
    rng = np.random.RandomState(seed)
    height, width, length = 6, 40, 5

    def tube(x):
        masks = [np.zeros((height, width), bool) for _ in range(length)]
        for mask in masks:
            left = max(0, x + rng.randint(-1, 2))
            mask[rng.randint(0, 3) : rng.randint(4, 7), left : left + rng.randint(1, 5)] = rng.rand() < 0.8
        return [None if rng.rand() < 0.2 else mask for mask in masks]

    places = rng.randint(0, width, 4)
    tracks = [
        {"video": 1, "category": 1 + index % 2, "masks": tube(x), "crowd": index == 3} for index, x in enumerate(places)
    ]
    detections = []
    for _ in range(num_detections):
        near = rng.randint(len(tracks))
        moved = [None if rng.rand() < 0.1 else mask for mask in tracks[near]["masks"]]
        masks = moved if rng.rand() < 0.4 else tube(rng.randint(0, width))
        score = float(rng.randint(1, 9)) / 8
        detections.append({"video": 1, "category": int(rng.randint(1, 4)), "masks": masks, "score": score})
    shape = {1: (height, width, length)}
    return {"videos": shape, "categories": [1, 2, 3], "tracks": tracks, "detections": detections}


def _random_mask(rng, height, width):
    kind = rng.rand()
    if kind < 0.15:
        return None
    if kind < 0.25:
        return np.zeros((height, width), bool)
    if kind < 0.5:
        return rng.rand(height, width) < 0.5  # many runs in a column
    mask = np.zeros((height, width), bool)
    y, x = rng.randint(0, height), rng.randint(0, width)
    mask[y : y + rng.randint(1, height + 1), x : x + rng.randint(1, width + 1)] = True
    return mask


def as_files(case, encode):
    """Case -> content of an annotation file and of a results file; `encode(mask)` writes a mask."""
    videos = [
        {"id": each, "height": h, "width": w, "length": length, "file_names": []}
        for each, (h, w, length) in case["videos"].items()
    ]
    write = lambda masks: [None if mask is None else encode(mask) for mask in masks]  # noqa: E731
    tracks = [
        {"id": index, "video_id": each["video"], "category_id": each["category"], "iscrowd": int(each["crowd"])}
        | {"segmentations": write(each["masks"])}
        for index, each in enumerate(case["tracks"], start=1)
    ]
    results = [
        {"video_id": each["video"], "category_id": each["category"], "score": each["score"]}
        | {"segmentations": write(each["masks"])}
        for each in case["detections"]
    ]
    categories = [{"id": each, "name": f"class {each}"} for each in case["categories"]]
    return {"videos": videos, "categories": categories, "annotations": tracks}, results
