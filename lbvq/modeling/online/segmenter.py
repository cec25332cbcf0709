"""What a method offers to be run frame by frame, and the inference over a whole video that follows from it.

An online method tracks N objects, the same N rows from the first frame to the last. It is a `VideoModel` that derives
from `OnlineSegmenter` and writes four functions: how a stream starts (`start_stream`), what it needs to know of frames,
each by itself (`observe`), how it moves on by one step (`advance`), and what it would report if the video ended
now (`decide`). Everything it remembers is in the state it is handed, so a stream can be stopped, saved, and gone on
with; the module itself remembers nothing. `lbvq.inference.stream.StreamPredictor` and `inference` drive every method
through these four functions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mask2former.structures import ImageList

from ..base import VideoModel, output_size
from ..feature_store import FeatureStore
from ..postprocess import MaskStream, video_output

# What a stream remembers: a dict of tensors, numbers, and lists or dicts of them, so that `torch.save` can keep it.
StreamState = dict[str, Any]

# What is kept of t encoded frames until they are used: tensors whose first axis is the frame.
Evidence = dict[str, Tensor]


@dataclass
class StepMasks:
    """Mask logits of N objects in the t frames of a step, made only where they are asked for.

    Attributes:
        features: (t, c, h, w) maps of the frames.
        mixing: (N, c) weights of the maps for each object, or (N,) int64: the map that is the object's mask.
    """

    features: Tensor
    mixing: Tensor

    def __len__(self) -> int:
        return len(self.mixing)

    def logits(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Mask logits of some objects: (n, t, h, w)."""
        if self.mixing.dim() == 1:
            return self.features[:, self.mixing[rows]].transpose(0, 1)
        return torch.einsum("nc,tchw->nthw", self.mixing[rows], self.features)


class OnlineSegmenter(VideoModel):
    """A video model that can be run frame by frame.

    Attributes:
        clip_length: frames of one step; the last step of a video may be shorter.
        use_quality: multiply the scores by the mask quality at the end.
        state_on_cpu: the state is kept on the CPU; by default it is where the model is.
    """

    clip_length: int = 1
    use_quality: bool = True
    state_on_cpu: bool = False

    def start_stream(self) -> StreamState:
        """State before the first frame."""
        raise NotImplementedError

    def observe(self, images: ImageList, start: int) -> Evidence:
        """What `advance` needs to know about a batch of t frames from number `start` on, each by itself."""
        raise NotImplementedError

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        """Move on by one step.

        Args:
            state: of the stream before; it is left as it is, so that a step can be tried and thrown away.
            evidence: of 1 to `clip_length` frames.

        Returns:
            The state afterwards, and the masks of all N objects in these frames.
        """
        raise NotImplementedError

    def decide(self, state: StreamState) -> tuple[Tensor, Tensor, Tensor]:
        """What is reported if the video ends here: scores (k,), labels (k,) and rows (k,) in [0, N)."""
        raise NotImplementedError

    def place(self, state: Any) -> Any:
        """Move a state, or evidence, that was loaded from a file to where it belongs."""
        device = "cpu" if self.state_on_cpu else self.device
        if isinstance(state, Tensor):
            return state.to(device)
        if isinstance(state, dict):
            return {name: self.place(value) for name, value in state.items()}
        return [self.place(value) for value in state] if isinstance(state, list) else state

    @property
    def encode_step(self) -> int | None:
        """Frames observed at once over a whole video; one on a CPU, where results are then bit for bit a stream's."""
        return 1 if self.device.type == "cpu" else None

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length; maps beyond the memory budget wait in a temporary file.

        Nothing is known about the best objects before the last frame, so masks are made in a second pass.
        """
        state = self.start_stream()
        budget = self.feature_budget_mib
        with FeatureStore(0.9 * budget) as features, FeatureStore(0.1 * budget) as mixings:
            lengths, sizes = [], {}
            for step, images in self.steps(video["image"]):
                state, masks = self.advance(state, step)
                sizes = {"image_size": images.image_sizes[0], "padded_size": tuple(images.tensor.shape[-2:])}
                features.append(masks.features)
                mixings.append(masks.mixing[None])
                lengths.append(len(masks.features))
            scores, labels, rows = self.decide(state)
            rows, positions = rows.unique(return_inverse=True)  # a mask is made once, however many labels it has
            stream = MaskStream(
                len(rows),
                **sizes,
                output_size=output_size(video, sizes["image_size"]),
                dense_frames=len(features) if video.get("dense_masks", True) else None,
            )
            for maps, mixing in zip(features.runs(lengths), mixings.runs([1] * len(lengths)), strict=True):
                stream.add(StepMasks(maps, mixing[0]).logits(rows))
        return video_output(scores, labels, positions, stream, use_quality=self.use_quality)

    def steps(self, frames: Sequence[Tensor]) -> Iterator[tuple[Evidence, ImageList]]:
        """Observe a video and cut it into steps: (evidence, the batch of frames which completes the step)."""
        pending: Evidence = {}
        for start, images in self.image_batches(frames, self.encode_step):
            pending = join_evidence(pending, self.observe(images, start))
            while evidence_length(pending) >= self.clip_length:
                step, pending = split_evidence(pending, self.clip_length)
                yield step, images
        if evidence_length(pending):
            yield pending, images


def evidence_length(evidence: Evidence) -> int:
    """Number of frames; 0 when there is nothing."""
    return len(next(iter(evidence.values()))) if evidence else 0


def join_evidence(first: Evidence, second: Evidence) -> Evidence:
    """Evidence of the frames of `first`, then those of `second`."""
    if not evidence_length(first) or not evidence_length(second):
        return second if evidence_length(second) else first
    return {name: torch.cat((first[name], second[name])) for name in first}


def split_evidence(evidence: Evidence, length: int) -> tuple[Evidence, Evidence]:
    """Evidence of the first `length` frames, and of the rest."""
    head = {name: tensor[:length] for name, tensor in evidence.items()}
    return head, {name: tensor[length:] for name, tensor in evidence.items()}
