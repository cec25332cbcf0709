"""MOTS as text: lines "frame object class height width counts", one file per video, as KITTI MOTS and MOTSChallenge.

KITTI counts frames from 0, MOTSChallenge from 1; both mean the number in the name of the image file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lbvq.data.formats.base import Format, ReadOptions, TrackBook, WriteOptions, flat_names
from lbvq.data.formats.labels import Frame, Labels, Notes, Video
from lbvq.data.formats.mots import IGNORED, NAMES_FILE, PER_CLASS, class_names, paint_frame, short_ids
from lbvq.data.formats.shapes import masks_by_number
from lbvq.data.formats.source import Source
from lbvq.masks.rle import to_rle

_LINE = re.compile(r"(\d{1,9}) (\d{1,9}) (\d{1,9}) (\d{1,9}) (\d{1,9}) (\S+)")

Line = tuple[int, int, int, tuple[int, int], str]  # frame, object, class, (height, width), counts


def recognise(source: Source) -> str | None:
    """A text file whose first line has five numbers and a mask."""
    for file in _files(source)[:20]:
        with open(source.path(file), encoding="utf-8-sig", errors="replace") as lines:
            if _LINE.fullmatch(lines.readline().strip()):
                return f"{file.name}, whose lines are 'frame object class height width mask'"
    return None


def _files(source: Source) -> list[PurePosixPath]:
    return [file for file in source.named(".txt") if file.name not in (NAMES_FILE, "seqmap.txt")]


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every text file as one video; frames between the first and the last line that have none are empty."""
    labels = Labels(dict(enumerate(class_names(source, options.classes), start=1)), [])
    for file in _files(source):
        lines = _lines(source.path(file), source.where(file))
        if lines:
            labels.videos.append(_video(_name(file, source), lines, labels, source.where(file)))
        else:
            labels.notes.left_out("files without a line", source.where(file))
    return labels


def _name(file: PurePosixPath, source: Source) -> str:
    """Name of the file, or the folder of MOTSChallenge's <video>/gt/gt.txt."""
    if file.name != "gt.txt":
        return file.stem
    folder = file.parent.parent if file.parent.name == "gt" else file.parent
    return folder.name or Path(source.name).stem


def _lines(path: Path, where: str) -> list[Line]:
    found = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no text in UTF-8: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line.strip())
        if match:
            frame, item, label, height, width = (int(each) for each in match.groups()[:5])
            found.append((frame, item, label, (height, width), match.group(6)))
        elif line.strip():
            raise ValueError(
                f"{where}, line {number}: expected 'frame object class height width mask', got {line[:60]!r}."
            )
    return found


def _video(name: str, lines: list[Line], labels: Labels, where: str) -> Video:
    size = lines[0][3]
    first, last = min(line[0] for line in lines), max(line[0] for line in lines)
    book = TrackBook(size, labels.notes)
    for frame, item, label, own, counts in lines:
        place = f"{where}: frame {frame}, object {item}"
        if label == IGNORED and IGNORED not in labels.categories:
            labels.notes.left_out("regions to be ignored", place)
            continue
        if label not in labels.categories:
            raise ValueError(
                f"{place}: there is no class {label} in {labels.categories}; name the classes with --classes."
            )
        mask = to_rle({"size": list(own), "counts": counts}, *size, where=place)
        book.add(
            frame - first, mask, label, item, place, track_id=item % PER_CLASS if item // PER_CLASS == label else item
        )
    frames = [Frame(f"{name}/{number:06d}") for number in range(first, last + 1)]
    return Video(name, frames, book.tracks(), size)


def write(labels: Labels, folder: Path, options: WriteOptions) -> Notes:
    """Write `<video>.txt` and labels.txt; frames are numbered as in the video, else by their position."""
    labels.check("the labels")
    notes = Notes()
    classes = {category: index for index, category in enumerate(sorted(labels.categories), start=1)}
    for video, name in zip(labels.videos, flat_names(labels.videos), strict=True):
        numbers = short_ids(video, notes)
        lines = [line for t in range(len(video.frames)) for line in _lines_of(video, t, classes, numbers, notes)]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        visible = {t for track in video.tracks for t in track.masks}
        if not {0, len(video.frames) - 1} <= visible:
            notes.left_out("frames without an object at the start or the end of a video", video.name)
    text = "".join(f"{labels.categories[category]}\n" for category in classes)
    (folder / NAMES_FILE).write_text(text, encoding="utf-8")
    return notes


def _lines_of(video: Video, t: int, classes: dict[int, int], numbers: dict[int, int], notes: Notes) -> Iterator[str]:
    number = t if video.frames[t].number is None else video.frames[t].number
    for value, mask in masks_by_number(paint_frame(video, t, classes, numbers, notes)).items():
        yield f"{number} {value} {value // PER_CLASS} {mask['size'][0]} {mask['size'][1]} {mask['counts']}\n"


FORMAT = Format("mots_text", "MOTS text", recognise, read, write)
