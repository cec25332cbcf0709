"""What a method offers to be run frame by frame, and the inference over a whole video that follows from it.

An online method tracks N objects: a row stands for the same object from the first frame to the last, and new objects
get new rows. It is a `VideoModel` that derives from `OnlineSegmenter` and writes four functions: how a stream starts
(`start_stream`), what it needs to know of frames, each by itself (`observe`), how it moves on by one step (`advance`),
and how good every class is for every object so far (`class_scores`). Everything it remembers is in the state it is
handed, so a stream can be stopped, saved, and gone on with; the module itself remembers nothing.
`lbvq.inference.stream.StreamPredictor` and `inference` drive every method through these four functions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mask2former.structures import ImageList
from mask2former.transfer import to_device

from ..base import VideoModel
from ..feature_store import FeatureStore
from ..postprocess import Chosen, second_pass, select_objects, select_top, sizes_of

# What a stream remembers: a dict of tensors, numbers, and lists or dicts of them, so that `torch.save` can keep it.
StreamState = dict[str, Any]

# What is kept of t encoded frames until they are used: tensors whose first axis is the frame.
Evidence = dict[str, Tensor]


@dataclass
class StepMasks:
    """Mask logits of objects in the t frames of a step, made only where they are asked for.

    Attributes:
        features: (t, c, h, w) maps of the frames.
        mixing: (n, c) weights of the maps for each object, or (n,) int64: the map that is the object's mask.
        rows: (n,) int64, which of the objects these are; the others are not in these frames. None: all, in order.
        num_objects: N so far, which may grow from step to step; None: n.
        enlarge: makes the maps that are mixed from `features`, where those are smaller and take less to keep.
    """

    features: Tensor
    mixing: Tensor
    rows: Tensor | None = None
    num_objects: int | None = None
    enlarge: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.mixing) if self.num_objects is None else self.num_objects

    @cached_property
    def maps(self) -> Tensor:
        """What is mixed: (t, c, H, W)."""
        return self.features if self.enlarge is None else self.enlarge(self.features)

    def logits(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Mask logits of some objects: (n, t, h, w); zeros for those that are not in these frames."""
        if self.rows is None:
            return self._made(rows)
        wanted = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        places, entries = (wanted.to(self.rows.device)[:, None] == self.rows).nonzero(as_tuple=True)
        made = self._made(entries)
        logits = made.new_zeros(len(wanted), *made.shape[1:])
        logits[to_device(places, made.device)] = made
        return logits

    def of_frames(self) -> tuple[Tensor, Tensor | None]:
        """Mask logits (n, t, h, w) of the objects that are in these frames, and `rows`."""
        return self._made(slice(None)), self.rows

    def _made(self, entries: Tensor | slice) -> Tensor:
        if not isinstance(entries, slice):
            entries = to_device(entries, self.mixing.device)
        if self.mixing.dim() == 1:
            return self.maps[:, to_device(self.mixing[entries], self.maps.device)].transpose(0, 1)
        return torch.einsum("nc,tchw->nthw", self.mixing[entries], self.maps)


class StepStore:
    """The masks of the steps of a video until it is known whose are wanted; maps beyond the budget wait in a file.

    Use it in a `with` statement, as `FeatureStore`.
    """

    def __init__(self, budget_mib: float) -> None:
        self._features, self._mixings = FeatureStore(0.9 * budget_mib), FeatureStore(0.1 * budget_mib)
        self._steps: list[StepMasks | None] = []  # without maps; None: the mixing is in the store
        self._enlarge: Callable[[Tensor], Tensor] | None = None
        self._lengths: list[int] = []

    def append(self, masks: StepMasks) -> None:
        """Keep the masks of the next step."""
        self._features.append(masks.features)
        self._lengths.append(len(masks.features))
        if masks.rows is None:
            self._mixings.append(masks.mixing[None])
            self._steps.append(None)
            self._enlarge = masks.enlarge
        else:  # few numbers, and not as many in every step
            self._steps.append(replace(masks, features=masks.features[:0]))

    @property
    def num_frames(self) -> int:
        return len(self._features)

    def logits(self, rows: Tensor) -> Iterator[Tensor]:
        """Mask logits (n, t, h, w) of some objects, step after step."""
        mixings = self._mixings.runs([1] * len(self._mixings))
        for maps, step in zip(self._features.runs(self._lengths), self._steps, strict=True):
            if step is None:
                masks = StepMasks(maps, next(mixings)[0], enlarge=self._enlarge)
            else:
                masks = replace(step, features=maps)
            yield masks.logits(rows)

    def __enter__(self) -> StepStore:
        return self

    def __exit__(self, *error: Any) -> None:
        self._features.close()
        self._mixings.close()


class OnlineSegmenter(VideoModel):
    """A video model that can be run frame by frame.

    Attributes:
        clip_length: frames of one step; the last step of a video may be shorter.
        use_quality: multiply the scores by the mask quality at the end.
        quality_of_output: measure it at the size of the output masks, not at that of the network input.
        state_on_cpu: the state is kept on the CPU; by default it is where the model is.
    """

    clip_length: int = 1
    use_quality: bool = True
    quality_of_output: bool = False
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
            The state afterwards, and the masks of the objects in these frames.
        """
        raise NotImplementedError

    def class_scores(self, state: StreamState) -> tuple[Tensor, Tensor | None]:
        """What the frames so far say of the objects.

        Returns:
            (n, K) scores of the real classes, none before the first frame; and (n,) int64, the rows in [0, N) of these
            objects, or None: all, in order. The others are not reported.
        """
        raise NotImplementedError

    def decide(self, state: StreamState, *, pairs: bool = True) -> Chosen:
        """What is reported if the video ends here: scores (k,), labels (k,) and rows (k,) in [0, N).

        Args:
            state: of the stream.
            pairs: the best (row, class) pairs, as results are evaluated, so that a row may be there with several
                classes; False: the best rows, each with its best class.
        """
        scores, rows = self.class_scores(state)
        scores, labels, entries = (select_top if pairs else select_objects)(scores, self.num_predictions)
        return scores, labels, entries if rows is None else rows[entries]

    def place(self, state: Any) -> Any:
        """Move a state, or evidence, that was loaded from a file to where it belongs."""
        if isinstance(state, Tensor):
            return to_device(state, torch.device("cpu") if self.state_on_cpu else self.device)
        if isinstance(state, dict):
            return {name: self.place(value) for name, value in state.items()}
        return [self.place(value) for value in state] if isinstance(state, list) else state

    @property
    def encode_step(self) -> int | None:
        """Frames observed at once over a whole video; one on a CPU, where results are then bit for bit a stream's."""
        return 1 if self.device.type == "cpu" else None

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length; maps beyond the memory budget wait in a temporary file."""
        state = self.start_stream()
        with StepStore(self.feature_budget_mib) as store:
            for step, images in self.steps(video["image"]):
                state, masks = self.advance(state, step)
                sizes = sizes_of(images)
                store.append(masks)
            return second_pass(
                video,
                self.decide(state),
                store.logits,
                num_frames=store.num_frames,
                use_quality=self.use_quality,
                quality_of_output=self.quality_of_output,
                **sizes,
            )

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
