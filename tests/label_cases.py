"""Labelled videos for the tests of labelling formats, and the way to read and write them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lbvq.data.formats import FORMATS, ReadOptions, WriteOptions, recognised
from lbvq.data.formats.labels import Frame, Labels, Notes, Track, Video
from lbvq.data.formats.source import open_source
from lbvq.masks.rle import decode, encode

PEERS = Path(__file__).resolve().parent / "peers"  # files that other programs have written

FULL = encode(np.ones((2, 3), bool))
EMPTY = encode(np.zeros((2, 3), bool))

NAMES = st.text(st.sampled_from("aB ä猫&<\"'-_1"), min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def labels(draw: st.DrawFn, overlap: bool = True, max_id: int = 5000) -> Labels:
    """Labels of one or two videos whose first and last frames show something."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower))
    videos = []
    for name in draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=2, unique=True)):
        size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        num_frames = draw(st.integers(1, 4))
        video = Video(name, [Frame(f"{name}/{t:05d}", t) for t in range(num_frames)], size=size)
        owner = draw(st.integers(0, 2**32 - 1))
        ids = draw(st.lists(st.integers(0, max_id), min_size=1, max_size=3, unique=True))
        rng = np.random.default_rng(owner)
        pixels = rng.integers(0, len(ids) + 1, (num_frames, *size))
        pixels[[0, -1], 0, 0] = 1
        for index, track_id in enumerate(ids, start=1):
            mask = (pixels == index) | (overlap & (rng.random(pixels.shape) < 0.3))
            found = {t: encode(mask[t]) for t in range(num_frames) if mask[t].any()}
            if found:
                video.tracks.append(Track(track_id, int(rng.integers(1, len(names) + 1)), found))
        videos.append(video)
    return Labels(dict(enumerate(names, start=1)), videos)


def round_trip(name: str, given: Labels) -> tuple[Labels, Notes]:
    """Write labels in a format and read them again, without saying which format it is."""
    with tempfile.TemporaryDirectory() as folder:
        notes = FORMATS[name].write(given, Path(folder), WriteOptions())
        with open_source(folder) as source:
            assert list(recognised(source)) == [name]
            return FORMATS[name].read(source, ReadOptions()), notes


def read(path: Path, name: str, **options: object) -> Labels:
    """Read a file or folder that must look like this format and like no other."""
    with open_source(path) as source:
        assert list(recognised(source)) == [name]
        found = FORMATS[name].read(source, ReadOptions(**options))
    found.check(str(path))
    return found


def dense(video: Video, track_id: int) -> dict[int, np.ndarray]:
    """Position of the frame -> (H, W) bool mask of an object."""
    (track,) = [track for track in video.tracks if track.id == track_id]
    return {t: decode(mask, video.size) for t, mask in track.masks.items()}


def classes(found: Labels, video: int = 0) -> dict[int, str]:
    """Track id -> name of the class."""
    return {track.id: found.categories[track.category_id] for track in found.videos[video].tracks}


def note(found: Labels | Notes, word: str) -> int:
    """How often something was noted whose text holds the word."""
    notes = found if isinstance(found, Notes) else found.notes
    return sum(entry["count"] for entry in notes.entries() if word in entry["what"])


def burst() -> dict:
    sequence = {
        "id": 0,
        "dataset": "YFCC",
        "seq_name": "abc",
        "height": 2,
        "width": 3,
        "all_image_paths": ["0.jpg", "1.jpg", "2.jpg"],
        "annotated_image_paths": ["0.jpg", "2.jpg"],
        "track_category_ids": {"3": 805},
        "segmentations": [{"3": {"rle": FULL["counts"]}}, {"3": {"bbox": [0, 0, 1, 1]}}],
    }
    return {"sequences": [sequence], "categories": [{"id": 805, "name": "person"}]}


def ytvis(**more: Any) -> dict:
    video = {"id": 1, "height": 2, "width": 3, "length": 2, "file_names": ["d/0.jpg", "d/1.jpg"], **more}
    annotation = {"id": 8, "video_id": 1, "category_id": 1, "segmentations": [FULL, None], "iscrowd": 0}
    return {"videos": [video], "annotations": [annotation], "categories": [{"id": 1, "name": "dog"}]}
