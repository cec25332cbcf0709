"""From class probabilities and streamed mask logits to the published output dictionary of a video.

Nothing here holds mask logits of more than the frames it is given: masks leave as bits (dense output) or as RLE
(`MaskTubes`), and the mask quality of each object is two running sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from lbvq.masks.tubes import MaskTubes
from mask2former.structures import ImageList
from mask2former.transfer import to_device, to_host


class FrameSizes(TypedDict):
    """(height, width) of the network input without padding, and with it."""

    image_size: tuple[int, int]
    padded_size: tuple[int, int]


def sizes_of(images: ImageList) -> FrameSizes:
    """Sizes of the frames of a video, of which `images` are some."""
    return {"image_size": images.image_sizes[0], "padded_size": images.padded_size}


Chosen = tuple[Tensor, Tensor, Tensor]  # of k (query, class) pairs: scores (k,), labels (k,) and query rows (k,)


def select_top(probabilities: Tensor, count: int) -> Chosen:
    """Take the best (query, class) pairs; a query may be taken several times with different classes.

    Args:
        probabilities: (N, K) of the real classes, without "no object".
        count: how many pairs; all of them when there are fewer.

    Returns:
        scores, labels and query indices, each (k,), in descending order of score.
    """
    num_classes = probabilities.shape[1]
    scores, index = probabilities.flatten().topk(min(count, probabilities.numel()))
    return scores, index % num_classes, torch.div(index, num_classes, rounding_mode="floor")


def select_objects(probabilities: Tensor, count: int) -> Chosen:
    """Take the best queries, each with its best class alone; as `select_top` otherwise."""
    best, labels = probabilities.max(dim=1)
    scores, rows = best.topk(min(count, len(best)))
    return scores, labels[rows], rows


PIXELS_AT_ONCE = 2**24  # of full-size mask logits; bounds memory when there are many masks


class MaskStream:
    """Turn the mask logits of a video, given frame after frame, into output masks and mask qualities.

    As published, logits are resized to the padded network input, cropped to the network input, measured there, and
    resized once more to the output size.
    """

    def __init__(
        self,
        num_masks: int,
        *,
        padded_size: tuple[int, int],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
        dense_frames: int | None = None,
        quality_of_output: bool = False,
        quality_of_maps: bool = False,
    ) -> None:
        """Args:
        num_masks: N masks per frame; with RLE `reserve` makes it more.
        padded_size: (height, width) of the padded network input.
        image_size: (height, width) of the network input without padding.
        output_size: (height, width) of the masks to make.
        dense_frames: number of frames T to keep as one bool tensor; None keeps RLE.
        quality_of_output: measure the quality at the output size instead.
        quality_of_maps: measure it on the logits as they are given.
        """
        self.quality_of_output, self.quality_of_maps = quality_of_output, quality_of_maps
        self.padded_size, self.image_size, self.output_size = padded_size, image_size, output_size
        self.num_frames = 0  # seen so far
        self._tubes = MaskTubes(output_size) if dense_frames is None else None
        with torch.inference_mode(False):  # tensors made in inference mode could not be changed later
            self._dense = torch.zeros(num_masks, dense_frames or 0, *output_size, dtype=torch.bool)
        # float64: the sums run over every pixel of the video and must not depend on how it is cut into chunks
        self._inside_sum = torch.zeros(num_masks, dtype=torch.float64)
        self._inside_count = torch.zeros(num_masks, dtype=torch.float64)

    def reserve(self, num_masks: int) -> None:
        """Make room for more masks, which are nowhere in the frames so far."""
        more = num_masks - len(self._inside_sum)
        if more <= 0:
            return
        if self._tubes is None:
            raise ValueError(f"dense masks are of {len(self._inside_sum)} objects from the start, got {num_masks}.")
        if self._tubes.num_frames:  # else the first masks decide
            self._tubes.add_objects(more)
        self._inside_sum = F.pad(self._inside_sum, (0, more))
        self._inside_count = F.pad(self._inside_count, (0, more))

    def add(self, logits: Tensor, rows: Tensor | None = None) -> None:
        """Take the mask logits (n, t, h, w) of the next t frames: of all N, or of `rows` (n,); others are not there."""
        found = self._visible(logits)
        masks = []
        for few in found:
            shown, sized = self._sized(logits, few)
            here = resize(sized, self.output_size) > 0
            *sums, mask = to_host([*self._sums(shown, sized), here])
            self._count(sums, self._named(few, rows))
            masks.append(mask)
        self._keep(torch.cat(masks), self._named(torch.cat(found), rows), logits.shape[1])

    def measure(self, logits: Tensor, rows: Tensor | None = None) -> None:
        """As `add`, for the quality alone; the masks are not kept."""
        for few in self._visible(logits):
            self._count(to_host(self._sums(*self._sized(logits, few))), self._named(few, rows))
        self.num_frames += logits.shape[1]

    def as_measured(self, logits: Tensor) -> Tensor:
        """Mask logits (N, t, h, w) at the size at which their quality is measured."""
        logits = upsample_and_crop(logits.float(), self.padded_size, self.image_size)
        return resize(logits, self.output_size) if self.quality_of_output else logits

    @staticmethod
    def _named(few: Tensor, rows: Tensor | None) -> Tensor:
        """Numbers of some of the masks given, on the CPU."""
        return few.cpu() if rows is None else rows.cpu()[few.cpu()]

    def quality(self) -> Tensor:
        """Mean foreground probability inside each mask over the whole video, (N,); 0 for a mask that is never there."""
        return mask_quality(*self.sums())

    def sums(self) -> tuple[Tensor, Tensor]:
        """What `inside_sums` gives for all frames so far, two (N,) float64."""
        return self._inside_sum, self._inside_count

    def masks(self, rows: Tensor) -> Tensor | MaskTubes:
        """Return the masks of the given rows, (k, T, H, W) bool or `MaskTubes`; a row may be asked for repeatedly."""
        if self._tubes is not None:
            return self._tubes[rows]
        with torch.inference_mode(False):
            return self._dense[rows.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """What was taken so far, for `load_state_dict`; only of a stream that keeps RLE."""
        if self._tubes is None:
            raise ValueError("dense masks are not saved; leave dense_frames out to keep RLE.")
        return {
            "num_frames": self.num_frames,
            "kept_frames": self._tubes.num_frames,
            "quality_of_output": self.quality_of_output,
            "sizes": [list(size) for size in (self.padded_size, self.image_size, self.output_size)],
            "masks": [
                [None if mask is None else mask["counts"] for mask in self._tubes.rles(n)]
                for n in range(len(self._tubes))
            ],
            "inside_sum": self._inside_sum.clone(),
            "inside_count": self._inside_count.clone(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> MaskStream:
        """Build a stream that goes on where the saved one was; every mask is checked."""
        padded_size, image_size, output_size = (tuple(size) for size in state["sizes"])
        stream = cls(
            len(state["inside_sum"]),
            padded_size=padded_size,
            image_size=image_size,
            output_size=output_size,
            quality_of_output=state.get("quality_of_output", False),  # not in files of version 0.1
        )
        stream.num_frames = int(state["num_frames"])
        segmentations = [
            [None if counts is None else {"size": list(output_size), "counts": counts} for counts in row]
            for row in state["masks"]
        ]
        kept_frames = state.get("kept_frames", stream.num_frames if segmentations else 0)
        if kept_frames:
            stream._tubes = MaskTubes.from_rle(segmentations, output_size, kept_frames, where="saved masks")
        stream._inside_sum.copy_(state["inside_sum"])
        stream._inside_count.copy_(state["inside_count"])
        return stream

    def _visible(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Rows with a positive logit, on the CPU, a few at a time: where none is, there is none after resizing."""
        pixels = logits.shape[1] * self.padded_size[0] * self.padded_size[1]
        (visible,) = to_host([logits.amax(dim=(1, 2, 3)) > 0])
        return visible.nonzero().flatten().split(max(1, PIXELS_AT_ONCE // max(pixels, 1)))

    def _sized(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (n, t, h, w) of some rows, and the same at the size of `as_measured`."""
        shown = logits[to_device(rows, logits.device)]
        return shown, self.as_measured(shown)

    def _sums(self, shown: Tensor, sized: Tensor) -> tuple[Tensor, Tensor]:
        return inside_sums(shown.float() if self.quality_of_maps else sized)

    def _count(self, sums: Sequence[Tensor], rows: Tensor) -> None:
        """Add what `inside_sums` gives for some rows."""
        self._inside_sum[rows] += over_frames(sums[0])
        self._inside_count[rows] += over_frames(sums[1])

    def _keep(self, masks: Tensor, rows: Tensor, num_frames: int) -> None:
        """Keep the masks (n, t, H, W) of some rows; the others are not visible in these frames."""
        stop = self.num_frames + num_frames
        if self._tubes is not None:
            nothing = torch.zeros(1, num_frames, *self.output_size, dtype=torch.bool)
            index = torch.zeros(len(self._inside_sum), dtype=torch.int64)
            index[rows] = torch.arange(1, len(rows) + 1)
            self._tubes.append(torch.cat((nothing, masks)), rows=index)
        else:
            self._dense[rows, self.num_frames : stop] = masks
        self.num_frames = stop


def inside_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the foreground probability over the pixels inside each mask of each frame, and their number.

    Args:
        logits: (N, t, H, W) at the size of the network input.

    Returns:
        Two (N, t); `mask_quality` of what they are `over_frames` is the quality of a mask.
    """
    inside = F.threshold(logits.sigmoid(), 0.5, 0.0)  # (N, t, H, W), 0 outside the mask
    return inside.sum(dim=(2, 3)), inside.count_nonzero(dim=(2, 3))


def over_frames(sums: Tensor) -> Tensor:
    """(N, t) -> (N,) float64 on the CPU; not every device has it."""
    return sums.cpu().double().sum(dim=1)


def mask_quality(total: Tensor, count: Tensor) -> Tensor:
    """Mean foreground probability inside each mask, (N,); 0 for a mask without a pixel."""
    return (total / (count + 1e-6)).float()


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, t, h, w) maps bilinearly (align_corners False); untouched when they have that size already."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def upsample_and_crop(logits: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Resize (N, t, h, w) logits to the padded network input and cut the padding off: (N, t, *image_size)."""
    return resize(logits, padded_size)[..., : image_size[0], : image_size[1]]


def output_size(video: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) of the masks to return: the sample's `height` and `width`, else the network input's."""
    return (int(video.get("height", image_size[0])), int(video.get("width", image_size[1])))


def second_pass(
    video: Mapping[str, Any],
    chosen: Chosen,
    make_masks: Callable[[Tensor], Iterable[Tensor]],
    *,
    num_frames: int,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    use_quality: bool = True,
    quality_of_output: bool = False,
    quality_of_maps: bool = False,
    keep: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Make the masks of the pairs that were chosen when all frames had been seen, and assemble the output of the video.

    Args:
        video: the sample; `height` and `width` are the size of the masks, `dense_masks` False keeps them as RLE.
        chosen: what `select_top` returns.
        make_masks: called with n different rows, for a mask is made once however many labels it has; yields mask
            logits (n, t, h, w), the frames in order.
        num_frames: T.
        image_size, padded_size: see `MaskStream`.
        use_quality: multiply the class scores by the mask quality; where it is measured, see `MaskStream`.
        keep: called with scores, labels, and whether there is any pixel of the mask, (k,) each; returns which pairs
            are reported, (k,) bool. None reports them all.
    """
    scores, labels, rows = chosen
    rows, positions = rows.unique(return_inverse=True)
    stream = MaskStream(
        len(rows),
        padded_size=padded_size,
        image_size=image_size,
        output_size=output_size(video, image_size),
        dense_frames=num_frames if video.get("dense_masks", True) else None,
        quality_of_output=quality_of_output,
        quality_of_maps=quality_of_maps,
    )
    for logits in make_masks(rows):
        stream.add(logits)
    if keep is not None:
        is_visible = (stream.sums()[1] > 0).to(positions.device)[positions]
        kept = keep(scores, labels, is_visible)
        scores, labels, positions = scores[kept], labels[kept], positions[kept]
    return video_output(scores, labels, positions, stream, use_quality=use_quality)


def video_output(
    scores: Tensor, labels: Tensor, rows: Tensor, stream: MaskStream, *, use_quality: bool = True
) -> dict[str, Any]:
    """Assemble the published output of a video, best score first.

    Args:
        scores: (k,) class scores.
        labels: (k,) contiguous class indices.
        rows: (k,) row of `stream` that holds each prediction's mask.
        stream: the masks of the whole video.
        use_quality: multiply the class scores by the mask quality.

    Returns:
        `image_size` (H, W), `pred_scores` and `pred_labels` lists of k numbers, `pred_masks` (k, T, H, W) bool on the
        CPU or `MaskTubes`.
    """
    scores, labels, rows = scores.float().cpu(), labels.cpu(), rows.cpu()
    if use_quality:
        scores = scores * stream.quality()[rows]
    order = scores.argsort(descending=True, stable=True)
    return {
        "image_size": stream.output_size,
        "pred_scores": scores[order].tolist(),
        "pred_labels": labels[order].tolist(),
        "pred_masks": stream.masks(rows[order]),
    }
