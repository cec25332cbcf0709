"""What a video model found: objects with one mask per frame, checked when built, exchanged as YouTube-VIS results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lbvq.files import rules
from lbvq.files.mask_file import MaskFile, parse_size, read_mask_file
from lbvq.files.writing import write_text
from lbvq.inference.adapters import class_name, coco_video, csv_text, to_supervision
from lbvq.masks import rle
from lbvq.masks.shapes import boxes_of, polygons_of
from lbvq.masks.tubes import MaskTubes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VideoObject:
    """One object of a `VideoPrediction`; `masks` is a `MaskTubes` that holds only this object."""

    id: int
    label: int
    name: str | None
    score: float
    masks: MaskTubes


@dataclass(frozen=True, eq=False)
class FramePrediction:
    """The objects of one frame; rows belong to the same objects as in the `VideoPrediction`, also where not visible.

    Attributes:
        masks: (N, H, W) bool array.
        scores: (N,) float64 scores of the objects.
        labels: (N,) int64 class indices.
        ids: (N,) int64 identities, the same in every frame of a video.
        names: names of all classes, or None.
    """

    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def captions(self) -> list[str]:
        """One text per object: identity, class and score, e.g. ``"3 dog 0.87"``."""
        return [_caption(*row, self.names) for row in zip(self.ids, self.labels, self.scores, strict=True)]

    @property
    def visible(self) -> np.ndarray:
        """(N,) bool, whether an object has a pixel in this frame."""
        return np.asarray(self.masks.any(axis=(1, 2)))

    def boxes(self) -> np.ndarray:
        """(N, 4) float64 boxes, x and y of the first and of the last pixel; NaN where not visible."""
        return boxes_of(self.masks)

    def polygons(self) -> list[list[np.ndarray]]:
        """Outer outlines of every object, (P, 2) int32 (x, y) each; none where not visible."""
        return [polygons_of(mask) for mask in self.masks]

    def to_supervision(self, *, compact: bool = False) -> Any:
        """The visible objects as `supervision.Detections`, with their identities as `tracker_id`.

        Args:
            compact: keep masks as `supervision.CompactMask`, run lengths within their boxes.
        """
        return to_supervision(self, compact)


class VideoPrediction:
    """N objects of one video, best score first.

    ``len(prediction)`` is N. ``prediction[0]`` and iteration give `VideoObject`; a slice, a list of int or a bool mask
    gives a `VideoPrediction`. Identities (`ids`) are numbered by score at first and kept by every selection. An
    object may be listed several times with different classes, then under one identity and with the same masks.

    Attributes:
        masks: `MaskTubes` (N, T, H, W).
        scores: (N,) float64, descending; higher is better, usually in [0, 1].
        labels: (N,) int64 class indices from 0.
        ids: (N,) int64 identities from 1.
        image_size: (H, W) in pixels.
        names: names of all classes, or None.
        category_ids: their ids in results files, or None for class index + 1.
    """

    def __init__(
        self,
        masks: MaskTubes | np.ndarray | Tensor,
        scores: Sequence[float] | np.ndarray | Tensor,
        labels: Sequence[int] | np.ndarray | Tensor,
        image_size: Sequence[int],
        names: Sequence[str] | None = None,
        ids: Sequence[int] | np.ndarray | Tensor | None = None,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        """Check that everything fits together and sort by score; dense masks (N, T, H, W) are turned into tubes."""
        tubes = masks if isinstance(masks, MaskTubes) else MaskTubes.from_dense(masks)
        size = tuple(int(side) for side in image_size)
        if tubes.size != size:
            raise ValueError(f"masks must have the size of the video, {size}, got {tubes.size} (height, width)")
        scores = _column(scores, len(tubes), "scores", "fiu").astype(np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"scores must be finite, got {scores[~np.isfinite(scores)][:5].tolist()}")
        labels = _column(labels, len(tubes), "labels", "iu").astype(np.int64)
        if len(labels) and labels.min() < 0:
            raise ValueError(f"labels must be class indices from 0, got {int(labels.min())}")
        if names is not None:
            names = _check_names(names)
            if len(labels) and labels.max() >= len(names):
                raise ValueError(f"label {int(labels.max())} has no name; {len(names)} class names were given")
        order = np.argsort(-scores, kind="stable")
        numbers = np.empty(len(tubes), dtype=np.int64)
        numbers[order] = np.arange(1, len(tubes) + 1)
        ids = numbers if ids is None else _column(ids, len(tubes), "ids", "iu").astype(np.int64)
        _check_ids(ids, labels, tubes)
        self.masks = tubes[order]
        self.scores, self.labels, self.ids = scores[order], labels[order], ids[order]
        self.image_size = size
        self.names = names
        self.category_ids = None if category_ids is None else tuple(category_ids)

    @classmethod
    def from_output(
        cls, output: Mapping[str, Any], names: Sequence[str] | None = None, category_ids: Sequence[int] | None = None
    ) -> VideoPrediction:
        """Build from what a video model returns at test time: pred_masks, pred_scores and pred_labels."""
        missing = [key for key in ("pred_masks", "pred_scores", "pred_labels") if key not in output]
        if missing:
            raise ValueError(f"the model's output lacks {missing}; it has {sorted(output)}")
        masks = output["pred_masks"]
        if isinstance(masks, (list, tuple)) and len(masks) == 0:  # a model that found nothing may not know T
            masks = MaskTubes(output["image_size"], num_objects=0)
        scores, labels = output["pred_scores"], output["pred_labels"]
        return cls(masks, scores, labels, masks.shape[2:], names, category_ids=category_ids)

    @property
    def num_frames(self) -> int:
        """T."""
        return self.masks.num_frames

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"object {index} does not exist, the prediction has {len(self)}")
            label = int(self.labels[index])
            name = self.names[label] if self.names else None
            return VideoObject(int(self.ids[index]), label, name, float(self.scores[index]), self.masks[index])
        rows = np.arange(len(self))[index if isinstance(index, slice) else _as_index(index)]
        parts = self.masks[rows], self.scores[rows], self.labels[rows]
        return VideoPrediction(*parts, self.image_size, self.names, self.ids[rows], self.category_ids)

    def __iter__(self) -> Iterator[VideoObject]:
        return (self[n] for n in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Same objects in the same order: masks, scores, labels and size; identities and names are not compared."""
        if not isinstance(other, VideoPrediction):
            return NotImplemented
        return (
            self.image_size == other.image_size
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.labels, other.labels)
            and self.masks == other.masks
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"VideoPrediction(objects={len(self)}, frames={self.num_frames}, height={height}, width={width})"

    def with_masks(self, masks: MaskTubes) -> VideoPrediction:
        """The same objects with other masks (N, T, H, W)."""
        parts = self.scores, self.labels, self.image_size, self.names, self.ids, self.category_ids
        return VideoPrediction(masks, *parts)

    def keep(self, score: float) -> VideoPrediction:
        """The objects with at least this score."""
        return self[self.scores >= score]

    def distinct(self) -> VideoPrediction:
        """Drop objects whose masks equal those of a better one (a query may be listed with several classes)."""
        seen: set[tuple] = set()
        rows = []
        for n in range(len(self)):
            key = tuple(mask and mask["counts"] for mask in self.masks.rles(n))
            if key not in seen:
                rows.append(n)
            seen.add(key)
        return self[rows]

    def frame(self, t: int) -> FramePrediction:
        """All objects in frame `t`, dense."""
        return FramePrediction(self.masks.frame(t).numpy(), self.scores, self.labels, self.ids, self.names)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write a row for every object in every frame that shows it, see `adapters.CSV_COLUMNS`."""
        write_text(path, csv_text(self))

    def to_coco_video(
        self, video_id: int = 1, video_name: str = "video", file_names: Sequence[str] | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """The prediction as annotations in COCO-video form, with an image for every frame.

        Args:
            video_id: of the video.
            video_name: its name.
            file_names: T file names of its frames; by default `video_name/00000.jpg` and so on.
        """
        return coco_video(self, video_id, video_name, file_names)

    def to_json(self, video_id: int, category_ids: Sequence[int] | Mapping[int, int] | None = None) -> list[dict]:
        """Entries of a YouTube-VIS results file, best first; frames without the object hold an empty mask.

        Args:
            video_id: of the data set.
            category_ids: category id of the data set for every class index; by default those of the model, and where
                they are not known index + 1, which is right for YouTube-VIS, OVIS and LV-VIS.
        """
        category_ids = self.category_ids if category_ids is None else category_ids
        empty = rle.to_rle([], *self.image_size)
        return [
            {
                "video_id": video_id,
                "score": item.score,
                "category_id": _category_id(item.label, category_ids),
                "segmentations": [dict(empty) if mask is None else mask for mask in item.masks.rles(0)],
            }
            for item in self
        ]

    @classmethod
    def from_json(
        cls,
        entries: Sequence[dict] | str | os.PathLike,
        video_id: int | None = None,
        image_size: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        category_ids: Sequence[int] | Mapping[int, int] | None = None,
        num_frames: int | None = None,
    ) -> VideoPrediction:
        """Read one video of a YouTube-VIS results file, checking every mask.

        Args:
            entries: the list of the file, or its path.
            video_id: the video to read; may be left out when the file holds only one.
            image_size: (H, W) the masks must have; by default that of the first mask.
            names: names of all classes.
            category_ids: as in `to_json`.
            num_frames: T, needed only when the video has no entry.
        """
        where = os.fspath(entries) if isinstance(entries, (str, os.PathLike)) else "results"
        file = MaskFile.of(entries, where) if where == "results" else read_mask_file(where)
        entries = _choose_entries(file.document, video_id, where)
        try:
            if image_size is None:
                image_size = _first_size(entries, file)
            segmentations = [_masks_of(entry, file, image_size) for entry in entries]
            masks = MaskTubes.from_rle(segmentations, image_size, num_frames)
            labels = [_label(entry["category_id"], category_ids) for entry in entries]
            return cls(masks, [entry["score"] for entry in entries], labels, image_size, names)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _check_ids(ids: np.ndarray, labels: np.ndarray, masks: MaskTubes) -> None:
    """Refuse an identity of two objects, or of one that is listed twice with one class."""
    first: dict[int, int] = {}
    listed: set[tuple[int, int]] = set()
    for n, (identity, label) in enumerate(zip(ids.tolist(), labels.tolist(), strict=True)):
        place = first.setdefault(identity, n)
        if (identity, label) in listed or (place != n and masks[place] != masks[n]):
            raise ValueError(
                f"ids must differ from object to object, got {ids.tolist()!s:.80}; entries that share {identity} "
                "need the same masks and different labels."
            )
        listed.add((identity, label))


def _caption(number: int, label: int, score: float, names: Sequence[str] | None) -> str:
    return f"{number} {class_name(label, names)} {score:.2f}"


def _column(values: Any, length: int, what: str, kinds: str) -> np.ndarray:
    """List, array or tensor of `length` numbers -> 1-D array."""
    array = np.asarray(values.detach().cpu() if rle.is_tensor(values) else values)
    if array.shape != (length,):
        raise ValueError(f"{what} must hold one number for each of the {length} objects, got shape {array.shape}")
    if length and array.dtype.kind not in kinds:
        raise ValueError(f"{what} must be {'numbers' if 'f' in kinds else 'integers'}, got {array.dtype}")
    return array


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be a sequence of str, one for each class, got {names!r:.80}")
    return tuple(names)


def _as_index(index: Any) -> np.ndarray:
    array = np.asarray(index.cpu() if rle.is_tensor(index) else index)
    return array if array.size else array.astype(np.int64 if array.dtype.kind != "b" else bool)


def _category_id(label: int, category_ids: Sequence[int] | Mapping[int, int] | None) -> int:
    if category_ids is None:
        return label + 1
    try:
        return int(category_ids[label])
    except (KeyError, IndexError):
        raise ValueError(f"class index {label} has no category id; {len(category_ids)} were given") from None


def _label(category_id: int, category_ids: Sequence[int] | Mapping[int, int] | None) -> int:
    if category_ids is None:
        return int(category_id) - 1
    pairs = category_ids.items() if isinstance(category_ids, Mapping) else enumerate(category_ids)
    for label, known in pairs:
        if known == category_id:
            return int(label)
    raise ValueError(f"category_id {category_id} is not one of the {len(category_ids)} given category ids")


def _choose_entries(entries: Any, video_id: int | None, where: str) -> list[dict]:
    """Check the entries of a file, without looking into the masks, and give those of one video."""
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{where}: expected a list of entries, got {type(entries).__name__}")
    for index, entry in enumerate(entries):
        _check_entry(entry, f"{where}, entry {index}")
    found = list(dict.fromkeys(entry["video_id"] for entry in entries))
    if video_id is None and len(found) > 1:
        raise ValueError(f"{where} holds {len(found)} videos, choose one by video_id; the first are {found[:5]}")
    return [entry for entry in entries if video_id is None or entry["video_id"] == video_id]


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a dict, got {type(entry).__name__}")
    missing = [key for key in ("video_id", "score", "category_id", "segmentations") if key not in entry]
    if missing:
        raise ValueError(f"{where}: lacks {missing}")
    if not isinstance(entry["video_id"], str):  # videos of one's own may have names
        rules.whole(entry, "video_id", where, exact=True)
    rules.finite(entry, "score", where)
    rules.whole(entry, "category_id", where, exact=True)
    if not isinstance(entry["segmentations"], list):
        raise ValueError(f"{where}: segmentations must be a list, got {type(entry['segmentations']).__name__}")


def _first_size(entries: Sequence[dict], file: MaskFile) -> Sequence[int]:
    for entry in entries:
        for mask in entry["segmentations"]:
            if type(mask) is range:
                mask = file.mask(mask.start)
            if isinstance(mask, dict) and "size" in mask:
                return mask["size"]
    raise ValueError("no entry holds a mask, so the size of the video is unknown; pass image_size=(height, width)")


def _masks_of(entry: dict, file: MaskFile, size: Sequence[int]) -> list[Any]:
    """The masks of an entry; of those that the file reader took out, only the texts where their size is right."""
    wanted = repr(tuple(map(int, size)))  # 2.0 is no size
    masks: list[Any] = []
    for item in entry["segmentations"]:
        if type(item) is not range:
            masks.append(item)
        elif {repr(parse_size(each)) for each in set(file.sizes[item.start : item.stop])} == {wanted}:
            masks += file.texts[item.start : item.stop]
        else:
            masks += map(file.mask, item)
    return masks
