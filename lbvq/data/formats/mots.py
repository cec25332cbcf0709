"""MOTS as images: 16-bit PNG files whose pixels are class * 1000 + object, as CVAT, KITTI MOTS and Datumaro have them.

    [<subset>/]instances/[<video>/]<frame>.png and instances/labels.txt, whose lines name the classes from 1

A pixel belongs to one object only, so where masks overlap the later object is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from lbvq.data.formats.base import CROWDS, Format, ReadOptions, TrackBook, WriteOptions, flat_names
from lbvq.data.formats.labels import Frame, Labels, Notes, Video
from lbvq.data.formats.shapes import masks_by_number, paint_numbers, read_numbers
from lbvq.data.formats.source import Source, natural_key

FOLDER = "instances"
NAMES_FILE = "labels.txt"
PER_CLASS = 1000  # objects of a class
KITTI = ("car", "pedestrian")  # classes of files without names
IGNORED = 10  # class of regions that nobody has looked at, in files with fewer classes
MAX_CLASSES = 64  # that fit into 16 bits


def recognise(source: Source) -> str | None:
    """PNG files in a folder `instances`, or a folder of PNG files beside a labels.txt."""
    files = _mask_files(source)
    return f"PNG files in {files[0].parent}/" if files else None


def _mask_files(source: Source) -> list[PurePosixPath]:
    images = source.named(".png")
    found = [file for file in images if FOLDER in file.parts[:-1]]
    if found or FOLDER != source.root.name:
        return found
    return images  # the folder itself was given


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every folder of masks as one video."""
    files = _mask_files(source)
    if not files:
        raise ValueError(f"{source.name} holds no PNG files in a folder '{FOLDER}'.")
    names = class_names(source, options.classes)
    labels = Labels(dict(enumerate(names, start=1)), [], mask_files=frozenset(source.path(file) for file in files))
    folders = source.folders(files)
    for folder, members in folders.items():
        name = _video_name(folder, [_inside(each) for each in folders], source)
        labels.videos.append(_read_video(source, name, members, labels))
    return labels


def _inside(folder: PurePosixPath) -> str:
    """Part of a path below `instances`."""
    parts = folder.parts
    return "/".join(parts[parts.index(FOLDER) + 1 :]) if FOLDER in parts else str(folder)


def _video_name(folder: PurePosixPath, all_inside: Sequence[str], source: Source) -> str:
    """Folder below `instances`; where that says nothing, or not enough, the folder above."""
    inside = _inside(folder)
    parts = folder.parts[: folder.parts.index(FOLDER)] if FOLDER in folder.parts else ()
    if inside in ("", "."):
        return "/".join(parts) or Path(source.name).stem
    return inside if all_inside.count(inside) == 1 else "/".join([*parts, inside])


def class_names(source: Source, given: Sequence[str]) -> list[str]:
    """Names on the command line, else those of the first labels.txt, else those of KITTI MOTS."""
    if given:
        return list(given)
    for file in source.named(".txt"):
        if file.name == NAMES_FILE:
            lines = source.path(file).read_text(encoding="utf-8-sig").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return list(KITTI)


def _read_video(source: Source, name: str, files: list[PurePosixPath], labels: Labels) -> Video:
    video, book = Video(name, []), None
    for t, file in enumerate(files):
        where = source.where(file)
        numbers = read_numbers(source.path(file), where)
        if book is None:
            video.size = (numbers.shape[0], numbers.shape[1])
            book = TrackBook(video.size, labels.notes)
        if numbers.shape != video.size:
            raise ValueError(f"{where} has {numbers.shape} pixels, the first of its folder {video.size}.")
        video.frames.append(frame_of(name, file.stem))
        for value, mask in masks_by_number(numbers).items():
            label, number = divmod(value, PER_CLASS)
            if label == IGNORED and IGNORED not in labels.categories:
                labels.notes.left_out("regions to be ignored", where)
            elif label not in labels.categories:
                raise ValueError(
                    f"{where}: the value {value} means class {label}, but there are only {labels.categories}; name the "
                    f"classes in {FOLDER}/{NAMES_FILE} or with --classes."
                )
            else:
                book.add(t, mask, label, value, where, track_id=number)
    video.tracks = book.tracks() if book else []
    return video


def frame_of(video: str, stem: str) -> Frame:
    """A frame by the name of its file; CVAT's names of frames of a video are numbers."""
    match = re.fullmatch(r"frame_(\d{6,})", stem)
    return Frame(f"{video}/{stem}", int(match.group(1)) if match else None)


def write(labels: Labels, folder: Path, options: WriteOptions) -> Notes:
    """Write `<video>/instances/<frame>.png`; each video's folder, zipped, is what CVAT reads as "MOTS PNG 1.0"."""
    labels.check("the labels")
    notes = Notes()
    classes = {category: index for index, category in enumerate(sorted(labels.categories), start=1)}
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"MOTS has room for {MAX_CLASSES} classes, these labels have {len(classes)}; use another format."
        )
    moved = [category for category, index in classes.items() if category != index]
    if moved:
        notes.changed("category ids, which count from 1 here", f"category {moved[0]}", len(moved))
    for video, name in zip(labels.videos, flat_names(labels.videos), strict=True):
        target = folder / name / FOLDER
        target.mkdir(parents=True)
        text = "\n".join(labels.categories[category] for category in classes)
        (target / NAMES_FILE).write_text(text, encoding="utf-8")
        _write_video(video, classes, target, notes)
    return notes


def _write_video(video: Video, classes: dict[int, int], target: Path, notes: Notes) -> None:
    numbers = short_ids(video, notes)
    for t, stem in enumerate(frame_stems(video)):
        painted = paint_frame(video, t, classes, numbers, notes)
        Image.fromarray(painted.astype(np.uint16)).save(target / f"{stem}.png")


def paint_frame(video: Video, t: int, classes: dict[int, int], numbers: dict[int, int], notes: Notes) -> np.ndarray:
    """(H, W) int64 image of frame `t`: class * 1000 + object, later objects over earlier ones, 0 where nothing is.

    Args:
        classes: category id -> class.
        numbers: track id -> number below 1000.
        notes: gets what is covered.
    """
    found = [track for track in video.tracks if t in track.masks]
    values = [classes[track.category_id] * PER_CLASS + numbers[track.id] for track in found]
    masks = [track.masks[t] for track in found]
    painted, covered = paint_numbers(list(zip(values, masks, strict=True)), video.known_size)
    where = f"{video.name}, {video.frames[t]}"
    notes.left_out("pixels covered by another object", where, covered)
    notes.left_out("masks wholly covered by others", where, len(set(values) - set(np.unique(painted).tolist())))
    return painted


def frame_stems(video: Video) -> list[str]:
    """File name of each frame, without folder and suffix: that of its image, else CVAT's name of a frame of a video."""
    named = [PurePosixPath(frame.name).stem for frame in video.frames]
    numbered = [f"frame_{t if frame.number is None else frame.number:06d}" for t, frame in enumerate(video.frames)]
    stems = [name or number for name, number in zip(named, numbered, strict=True)]
    if len(set(stems)) < len(stems) or stems != sorted(stems, key=natural_key):
        return [f"frame_{t:06d}" for t in range(len(stems))]
    return stems


def short_ids(video: Video, notes: Notes) -> dict[int, int]:
    """Track id -> number from 0 to 999: its own where all are short enough."""
    ids = [track.id for track in video.tracks]
    for track in video.tracks:
        if track.is_crowd:
            notes.changed(CROWDS, f"{video.name}, track {track.id}")
    if all(isinstance(each, int) and 0 <= each < PER_CLASS for each in ids):
        return {each: each for each in ids}
    if len(ids) > PER_CLASS:
        raise ValueError(f"video {video.name} has {len(ids)} objects, MOTS has room for {PER_CLASS} of each class.")
    notes.changed(f"track ids above {PER_CLASS - 1}: the video's objects are numbered anew", video.name, len(ids))
    return {each: index for index, each in enumerate(ids)}


FORMAT = Format("mots", "MOTS PNG, 16 bits", recognise, read, write)
