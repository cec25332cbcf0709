"""BURST: one JSON file of sequences, each with a mask per track and annotated frame; categories are TAO's."""

from __future__ import annotations

from typing import Any

from lbvq.data.annotation_files import list_of, need
from lbvq.data.formats.base import Format, ReadOptions, TrackBook
from lbvq.data.formats.labels import Frame, Labels, Notes, Video
from lbvq.data.formats.source import Source
from lbvq.masks.rle import to_rle

Content = dict[str, Any]


def recognise(source: Source) -> str | None:
    """A JSON object with 'sequences' that have 'annotated_image_paths'."""
    content = source.first_json
    sequences = content.get("sequences") if isinstance(content, dict) else None
    if isinstance(sequences, list) and sequences and "annotated_image_paths" in sequences[0]:
        return "a JSON file with 'sequences' of 'annotated_image_paths'"
    return None


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every file with sequences."""
    labels = Labels({}, [])
    for file in source.named(".json"):
        content, where = source.json(file), source.where(file)
        if not isinstance(content, dict) or "sequences" not in content:
            continue
        for each in list_of(content, "categories", where, required=True):
            labels.categories[need(each, "id", where)] = str(need(each, "name", where))
        for sequence in list_of(content, "sequences", where, required=True):
            labels.videos.append(_video(sequence, labels.categories, labels.notes, where))
    if not labels.videos:
        raise ValueError(f"{source.name} holds no JSON file with 'sequences'.")
    labels.categories = dict(sorted(labels.categories.items()))
    return labels


def _video(sequence: Content, categories: dict[int, str], notes: Notes, where: str) -> Video:
    name = f"{need(sequence, 'dataset', where)}/{need(sequence, 'seq_name', where)}"
    where = f"{where}: {name}"
    size = (need(sequence, "height", where), need(sequence, "width", where))
    files = list_of(sequence, "annotated_image_paths", where, required=True)
    masks = list_of(sequence, "segmentations", where, required=True)
    if len(masks) != len(files):
        raise ValueError(f"{where}: {len(masks)} frames of segmentations for {len(files)} annotated images.")
    classes = need(sequence, "track_category_ids", where)
    book = TrackBook(size, notes)
    for t, found in enumerate(masks):
        for track, entry in found.items():
            spot = f"{where}, frame {t}, track {track}"
            category = classes.get(track)
            if category not in categories:
                raise ValueError(f"{spot}: there is no category {category!r}.")
            if "rle" not in entry:
                notes.left_out("tracks with a box or a point but no mask", spot)
                continue
            mask = to_rle({"size": list(size), "counts": entry["rle"]}, *size, where=spot)
            book.add(t, mask, category, track, spot, track_id=int(track) if track.isdigit() else None)
    total = len(sequence["all_image_paths"]) if sequence.get("all_image_paths") else None
    return Video(name, [Frame(f"{name}/{file}") for file in files], book.tracks(), size, total)


FORMAT = Format("burst", "BURST JSON", recognise, read)
