"""A development split of a training file, by video, so that methods can be compared without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.files import rules
from lbvq.files.mask_file import MaskFile, read_mask_file, write_mask_file


@dataclass(frozen=True)
class Split:
    """Video ids of the two parts, ascending, and how many tracks of each category they have."""

    train: list[int]
    dev: list[int]
    tracks: dict[int, tuple[int, int]]  # category id -> tracks in train, in dev


def split_videos(content: Mapping[str, Any], share: float = 0.1, seed: int = 0, name: str = "the file") -> Split:
    """Draw videos so that every category has about the same share of its videos in the development split.

    Categories are served rarest first: each gets the videos it still lacks, drawn among its videos that no rarer
    category has decided about (iterative stratification, Sechidis et al. 2011). A category with a single video keeps it
    for training. The same file, share and seed always give the same split, whatever the order of the file.

    Args:
        content: annotation file in YouTube-VIS form.
        share: of the videos that go to the development split, in (0, 1).
        seed: of the draw.
        name: of the file, for messages.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    parents = rules.by_id(content, "videos", "video", name)
    videos = list(parents)
    if len(videos) < 2:
        raise ValueError(f"a split needs at least two videos, {name} has {len(videos)}")
    videos_of: dict[int, set[int]] = {category: set() for category in rules.categories(content, name)}
    annotations = rules.entries(content, "annotations", name) if content.get("annotations") is not None else []
    tracks = list(rules.linked(annotations, parents, videos_of, "video", name))
    if not tracks:
        raise ValueError(f"{name} has no annotations; split a training file")
    for track in tracks:
        videos_of[track.category_id].add(track.parent_id)
    rng = np.random.RandomState(seed)
    place = {video: rank for rank, video in enumerate(rng.permutation(videos).tolist())}
    dev: set[int] = set()
    decided: set[int] = set()
    for category in sorted(videos_of, key=lambda each: (len(videos_of[each]), each)):
        own = videos_of[category]
        wanted = min(round(share * len(own)), len(own) - 1)
        lacking = wanted - len(own & dev)
        free = sorted(own - decided, key=place.__getitem__)
        dev.update(free[: max(0, lacking)])
        decided |= own
    rest = sorted(set(videos) - decided, key=place.__getitem__)  # videos without any object
    dev.update(rest[: max(0, round(share * len(videos)) - len(dev))])
    if not dev:
        dev = {min(videos, key=place.__getitem__)}
    return Split(sorted(set(videos) - dev), sorted(dev), _count_tracks(tracks, videos_of, dev))


def _count_tracks(
    tracks: Iterable[rules.Linked], categories: Iterable[int], dev: set[int]
) -> dict[int, tuple[int, int]]:
    counts = {category: [0, 0] for category in sorted(categories)}
    for track in tracks:
        counts[track.category_id][track.parent_id in dev] += 1
    return {category: (train, held_out) for category, (train, held_out) in counts.items()}


def part_of(file: MaskFile, video_ids: Iterable[int]) -> dict[str, Any]:
    """Content of the file with only some videos; everything else is kept, categories too."""
    chosen = set(video_ids)
    content = dict(file.document)
    content["videos"] = [video for video in content["videos"] if video["id"] in chosen]
    content["annotations"] = [entry for entry in content["annotations"] if entry["video_id"] in chosen]
    return content


def write_split(
    annotations: Path, targets: Mapping[str, Path], share: float, seed: int, *, overwrite: bool = False
) -> list[str]:
    """Write the two parts of an annotation file, which stays as it is.

    Args:
        annotations: a training file in YouTube-VIS form.
        targets: where "train" and "dev" go.
        share, seed: see `split_videos`.
        overwrite: replace files that exist.

    Returns:
        Lines to print: the files, and a table of the tracks of every category.
    """
    existing = [str(path) for path in targets.values() if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{', '.join(existing)} exist already; choose another place or --overwrite them")
    file = read_mask_file(annotations)
    for key in ("videos", "categories", "annotations"):
        if not isinstance(file.document, dict) or not isinstance(file.document.get(key), list):
            raise ValueError(f"{annotations}: expected an annotation file in YouTube-VIS form with a list '{key}'")
    split = split_videos(file.document, share, seed, file.name)
    lines = []
    for part, path in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask_file(path, part_of(file, getattr(split, part)), file)
        lines.append(f"{path}: {len(getattr(split, part))} videos")
    return [*lines, *_table(file.document["categories"], split)]


def _table(categories: Iterable[Mapping[str, Any]], split: Split) -> Iterator[str]:
    names = {category["id"]: category.get("name", category["id"]) for category in categories}
    yield f"{'category':24s}{'train':>8s}{'dev':>8s}{'share':>8s}   tracks"
    for category, (train, dev) in split.tracks.items():
        share = f"{dev / (train + dev):8.1%}" if train + dev else f"{'-':>8s}"
        yield f"{names.get(category, category)!s:24.24s}{train:8d}{dev:8d}{share}"
