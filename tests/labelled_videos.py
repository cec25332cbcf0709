"""Short videos with labels as a tool writes them, and settings of a network that trains on them in seconds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from lbvq.data.formats import FORMATS, WriteOptions
from lbvq.data.formats.labels import Frame, Labels, Track, Video
from lbvq.masks.rle import encode
from lbvq.video.writer import write_video

TINY = [  # a network that takes little time; it learns nothing in a few steps
    *("MODEL.MASK_FORMER.DEC_LAYERS=2", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS=64", "SOLVER.IMS_PER_BATCH=2"),
    *("INPUT.MIN_SIZE_TRAIN=(48,)", "INPUT.MAX_SIZE_TRAIN=64", "INPUT.MIN_SIZE_TEST=48"),
]


def write_labelled_videos(folder: Path) -> None:
    """Five short videos in videos/, their labels as a project of CVAT writes them in annotations.zip, and new.mp4."""
    labels = Labels({1: "cat", 2: "dog"}, [])
    (folder / "videos").mkdir()
    for number in range(6):
        video, frames = Video(f"clip{number}", [Frame("", t) for t in range(4)], size=(48, 64), num_source_frames=4), []
        tracks = [Track(1, 1), Track(2, 2)]
        for t in range(4):
            picture = np.full((48, 64, 3), 60 + 10 * number, np.uint8)
            for track, (top, left) in zip(tracks, ((4, 4 + 8 * t), (26, 44 - 8 * t)), strict=True):
                mask = np.zeros((48, 64), bool)
                mask[top : top + 16, left : left + 16] = True
                picture[mask] = (220, 40, 40) if track.id == 1 else (40, 40, 220)
                track.masks[t] = encode(mask)
            frames.append(picture)
        video.tracks = tracks
        if number < 5:
            labels.videos.append(video)
        write_video(folder / ("new.mp4" if number == 5 else f"videos/clip{number}.mp4"), frames, 10)
    (folder / "xml").mkdir()
    FORMATS["cvat"].write(labels, folder / "xml", WriteOptions())
    with zipfile.ZipFile(folder / "annotations.zip", "w") as archive:
        for path in (folder / "xml").iterdir():
            archive.write(path, path.name)
