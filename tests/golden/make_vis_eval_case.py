"""Deterministic videos with ground truth and detections in YouTube-VIS form: the golden case and the benchmark cases.

`build_golden()` is the content of vis_eval_case.json.gz; another seed gives another case of the same kind.
`build_bench(...)` gives cases of any size.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as M


def blob(h, w, cy, cx, ry, rx, kind, ang, hole):
    """Boolean mask: kind 0 ellipse, 1 rotated box, 2 flower; hole removes the centre."""
    r = int(np.ceil(1.5 * max(ry, rx))) + 2
    y0, y1 = max(0, int(cy) - r), min(h, int(cy) + r + 1)
    x0, x1 = max(0, int(cx) - r), min(w, int(cx) + r + 1)
    out = np.zeros((h, w), bool)
    if y0 >= y1 or x0 >= x1:
        return out
    yy, xx = np.mgrid[y0:y1, x0:x1].astype(np.float64)
    dy, dx = yy - cy, xx - cx
    u = (np.cos(ang) * dx + np.sin(ang) * dy) / rx
    v = (-np.sin(ang) * dx + np.cos(ang) * dy) / ry
    if kind == 1:
        m = np.maximum(np.abs(u), np.abs(v)) <= 0.9
    else:
        rad = np.hypot(u, v)
        m = rad <= (1.0 if kind == 0 else 0.75 + 0.25 * np.cos(5 * np.arctan2(v, u)))
        if hole:
            m &= rad > 0.35
    out[y0:y1, x0:x1] = m
    return out


def rle(m):
    r = M.encode(np.asfortranarray(m.astype(np.uint8)))
    return {"size": [int(v) for v in r["size"]], "counts": r["counts"].decode()}


def uncompressed(m):
    """Column-major run lengths, first run counts zeros (the form used in the YouTube-VIS annotation files)."""
    f = m.ravel(order="F").astype(np.int8)
    cut = np.flatnonzero(np.diff(f)) + 1
    runs = np.diff(np.concatenate([[0], cut, [f.size]])).tolist()
    if f[0]:
        runs = [0, *runs]
    return {"size": list(m.shape), "counts": runs}


def bbox(m):
    ys, xs = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]


class Track:
    def __init__(self, rng, h, w, T, scale):
        self.kind, self.hole, self.ang, self.spin = (
            rng.randint(3),
            rng.rand() < 0.25,
            rng.rand() * 3,
            rng.randn() * 0.05,
        )
        self.ry, self.rx = scale * rng.uniform(0.7, 1.3, 2)
        self.cy, self.cx = rng.uniform(0.1, 0.9) * h, rng.uniform(0.1, 0.9) * w
        self.vy, self.vx = rng.randn(2) * (h / 90.0)
        self.seen = np.ones(T, bool)

    def draw(self, h, w, t, dy=0.0, dx=0.0, s=1.0):
        return blob(
            h,
            w,
            self.cy + self.vy * t + dy,
            self.cx + self.vx * t + dx,
            self.ry * s,
            self.rx * s,
            self.kind,
            self.ang + self.spin * t,
            self.hole,
        )


CATEGORY_IDS = [1, 2, 4, 7, 9]  # 9 never appears in the ground truth
OCCLUSION = ["no_occlusion", "slight_occlusion", "severe_occlusion"]


def build_golden(seed=20240607):
    rng = np.random.RandomState(seed)
    categories = [{"id": c, "name": f"cat{c}", "supercategory": "object"} for c in CATEGORY_IDS]
    videos, annotations, detections = [], [], []
    for index in range(24):
        video = GoldenVideo(rng, index)
        videos.append(video.entry)
        video.annotate(annotations)
        if index != 17:  # this one has ground truth but no detection
            video.detect(detections)
    order = rng.permutation(len(detections))
    ground_truth = {"info": {"description": "synthetic"}, "licenses": [], "categories": categories, "videos": videos}
    return ground_truth | {"annotations": annotations}, [detections[i] for i in order]


def coarse(score):
    """Score on a coarse grid, so that there are many ties."""
    return float(np.round(np.clip(score, 0.002, 1.0) * 20) / 20 or 0.01)


class GoldenVideo:
    """One video of the golden case; the order of the random draws is part of the case."""

    def __init__(self, rng, index):
        self.rng, self.index, self.big = rng, index, index >= 18
        self.size = (90, 160) if not self.big else ((240, 320) if index < 21 else (360, 480))
        self.length = int(rng.randint(6, 21)) if not self.big else int(rng.randint(6, 10))
        self.entry = {
            "id": 3 * index + 2,
            "width": self.size[1],
            "height": self.size[0],
            "length": self.length,
            "date_captured": "",
            "license": 1,
            "flickr_url": "",
            "coco_url": "",
            "file_names": [f"v{index:03d}/{5 * t:05d}.jpg" for t in range(self.length)],
        }
        number = 0 if index in (5, 11) else int(rng.randint(2, 8))
        self.tracks, self.categories = [], []
        for k in range(number):
            self.tracks.append(self._new_track())
            other = k == 0 or rng.rand() < 0.5
            self.categories.append(int(CATEGORY_IDS[rng.randint(4)]) if other else self.categories[0])

    def _new_track(self):
        rng, length = self.rng, self.length
        roll = rng.rand()
        scale = rng.uniform(2, 4) if roll < 0.2 else (rng.uniform(8, 22) if roll < 0.75 else rng.uniform(24, 40))
        if self.big:
            scale = rng.uniform(70, 130) if self.size[0] == 240 else rng.uniform(140, 300)
        track = Track(rng, *self.size, length, scale)
        if rng.rand() < 0.35 and length > 6:  # gap
            a = int(rng.randint(1, length - 3))
            track.seen[a : a + int(rng.randint(1, 4))] = False
        if rng.rand() < 0.2:  # late start
            track.seen[: int(rng.randint(1, 4))] = False
        return track

    def _visible(self, k, t):
        """Mask of track k behind the earlier ones, or None."""
        if not self.tracks[k].seen[t]:
            return None
        mask = self.tracks[k].draw(*self.size, t)
        for front in self.tracks[:k]:
            if front.seen[t] and self.rng.rand() < 0.999:
                mask &= ~front.draw(*self.size, t)
        return mask if mask.any() else None

    def annotate(self, annotations):
        rng = self.rng
        self.masks, self.crowd = [], []
        for k, category in enumerate(self.categories):
            masks = [self._visible(k, t) for t in range(self.length)]
            if all(mask is None for mask in masks):
                masks[0] = np.zeros(self.size, bool)
                masks[0][:2, :2] = True
            self.masks.append(masks)
            self.crowd.append(int(rng.rand() < 0.16))
            areas = [None if mask is None else int(mask.sum()) for mask in masks]
            if rng.rand() < (0.4 if self.big else 0.15):  # the areas of the file are what counts, not the masks
                areas = [None if a is None else int(a * (3 if self.big else 1.5)) for a in areas]
            levels = [None if mask is None else OCCLUSION[int(rng.choice(3, p=[0.5, 0.3, 0.2]))] for mask in masks]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": self.entry["id"],
                    "category_id": category,
                    "iscrowd": self.crowd[-1],
                    "height": self.size[0],
                    "width": self.size[1],
                    "length": self.length,
                    "segmentations": [None if mask is None else uncompressed(mask) for mask in masks],
                    "bboxes": [None if mask is None else bbox(mask) for mask in masks],
                    "areas": areas,
                    "occlusion": levels,
                }
            )

    def _add(self, detections, masks, category, score):
        detections.append(
            {
                "video_id": self.entry["id"],
                "category_id": int(category),
                "score": float(score),
                "height": self.size[0],
                "width": self.size[1],
                "segmentations": [None if mask is None else rle(mask) for mask in masks],
            }
        )

    def detect(self, detections):
        rng, frames = self.rng, range(self.length)
        for k in range(len(self.tracks)):
            copies = 0 if rng.rand() < 0.1 else (1 if rng.rand() < 0.65 else 2)
            for c in range(copies):
                self._imitate(detections, k, c)
        for k, category in enumerate(self.categories):  # several good detections on the same crowd object
            for _ in range(3 if self.crowd[k] else 0):
                near = [None if m is None else np.roll(m, int(rng.randint(-1, 2)), 1) for m in self.masks[k]]
                self._add(detections, near, category, coarse(rng.rand()))
        if len(self.tracks) >= 2 and rng.rand() < 0.5:  # identity switch half way
            a, b = rng.choice(len(self.tracks), 2, replace=False)
            switched = [self.tracks[a if t < self.length // 2 else b].draw(*self.size, t) for t in frames]
            self._add(detections, switched, self.categories[a], coarse(rng.rand()))
        for _ in range(int(rng.randint(0, 4))):  # clutter
            track = Track(rng, *self.size, self.length, rng.uniform(3, 30) if not self.big else rng.uniform(30, 120))
            masks = [track.draw(*self.size, t) for t in frames]
            self._add(detections, masks, CATEGORY_IDS[rng.randint(5)], coarse(0.6 * rng.rand()))
        self._detect_many(detections)
        if self.index in (6, 14):  # nothing at all
            self._add(detections, [None] * self.length, self.categories[0] if self.tracks else 1, 0.0005)

    def _imitate(self, detections, k, c):
        """Copy number c of track k: jittered, with missing frames, sometimes of another category."""
        rng, track = self.rng, self.tracks[k]
        jitter = abs(rng.randn()) * (0.04 if c == 0 else 0.15)
        grow = 1 + rng.randn() * jitter
        masks = []
        for t in range(self.length):
            if rng.rand() < 0.05:
                masks.append(None)
                continue
            if not track.seen[t]:
                masks.append(None if rng.rand() < 0.7 else np.zeros(self.size, bool))
                continue
            dy, dx = rng.randn() * jitter * track.ry, rng.randn() * jitter * track.rx
            mask = track.draw(*self.size, t, dy, dx, max(0.3, grow))
            for front in self.tracks[:k]:
                if front.seen[t]:
                    mask &= ~front.draw(*self.size, t)
            masks.append(mask)
        category = self.categories[k] if rng.rand() < 0.9 else CATEGORY_IDS[rng.randint(5)]
        self._add(detections, masks, category, coarse(0.9 - 2 * jitter - 0.3 * c + 0.1 * rng.randn()))

    def _detect_many(self, detections):
        rng, frames = self.rng, range(self.length)
        if self.index == 3:  # more than ten detections of one category
            for _ in range(14):
                masks = [self.tracks[0].draw(*self.size, t, rng.randn() * 2, rng.randn() * 2) for t in frames]
                self._add(detections, masks, self.categories[0], coarse(rng.rand()))
        if self.index == 8:  # more than a hundred of one category
            for _ in range(108):
                track = Track(rng, *self.size, self.length, 5)
                masks = [track.draw(*self.size, t) if t < 2 else None for t in frames]
                self._add(detections, masks, self.categories[0], coarse(0.5 + 0.5 * rng.rand()))
            perfect = [self.tracks[0].draw(*self.size, t) for t in frames]
            self._add(detections, perfect, self.categories[0], 0.01)  # but ranked past the limit


def build_bench(videos=300, frames=30, h=180, w=320, categories=40, dets=10, seed=1, scale=1):
    rng = np.random.RandomState(seed)
    cats = [{"id": c + 1, "name": f"c{c + 1}", "supercategory": "object"} for c in range(categories)]
    V, A, D = [], [], []
    for vi in range(videos):
        V.append(
            {
                "id": vi + 1,
                "width": w,
                "height": h,
                "length": frames,
                "file_names": [f"b{vi:04d}/{t:05d}.jpg" for t in range(frames)],
            }
        )
        n = int(rng.randint(1, 5))
        tracks = [Track(rng, h, w, frames, rng.uniform(10, 50) * scale) for _ in range(n)]
        tc = [int(rng.randint(1, categories + 1))]
        tc += [tc[0] if rng.rand() < 0.6 else int(rng.randint(1, categories + 1)) for _ in range(n - 1)]
        for k, tr in enumerate(tracks):
            ms = [tr.draw(h, w, t) for t in range(frames)]
            ms = [m if m.any() else None for m in ms]
            A.append(
                {
                    "id": len(A) + 1,
                    "video_id": vi + 1,
                    "category_id": tc[k],
                    "iscrowd": 0,
                    "height": h,
                    "width": w,
                    "length": frames,
                    "segmentations": [None if m is None else uncompressed(m) for m in ms],
                    "bboxes": [None if m is None else bbox(m) for m in ms],
                    "areas": [None if m is None else int(m.sum()) for m in ms],
                }
            )
        for _d in range(dets):
            k = int(rng.randint(n))
            jit = rng.rand() * 0.3
            tr = tracks[k]
            s = 1 + rng.randn() * jit
            D.append(
                {
                    "video_id": vi + 1,
                    "category_id": tc[k] if rng.rand() < 0.7 else int(rng.randint(1, categories + 1)),
                    "score": float(np.clip(0.9 - jit * 2 + 0.2 * rng.randn(), 0.01, 1)),
                    "height": h,
                    "width": w,
                    "segmentations": [
                        rle(tr.draw(h, w, t, *(rng.randn(2) * jit * 5 * scale), max(0.3, s)))
                        for t in range(frames)
                    ],
                }
            )
    return {"info": {}, "licenses": [], "categories": cats, "videos": V, "annotations": A}, D
