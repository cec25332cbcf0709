"""Targets of clips and frames from annotated samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_samples import training_sample
from helpers import GOLDEN
from synth_targets import clips, empty_clips

from lbvq.modeling.targets import first_known_class, frames_with_all, prepare_targets, shift_ids, valid_ids
from mask2former.transfer import to_device

CPU = torch.device("cpu")


def test_targets_of_the_recorded_clips():
    """Recorded from the published code: class -1 in frame 0, a never visible object, an id -1 with a mask, id shift."""
    recorded = np.load(GOLDEN / "lbvq_r50_train.npz")
    frame_targets, clip_targets = prepare_targets([training_sample(clip) for clip in clips(3)], (96, 128), CPU)
    assert len(clip_targets) == 2 and len(frame_targets) == 6
    for kind, targets, axes in (("clip", clip_targets, (2, 3)), ("frame", frame_targets, (1, 2))):
        for i, target in enumerate(targets):
            name = f"{kind}_target{i}"
            assert target["labels"].tolist() == recorded[f"{name}/labels"].tolist()
            assert target["ids"].tolist() == recorded[f"{name}/ids"].tolist()
            assert target["masks"].sum(axes).tolist() == recorded[f"{name}/mask_area"].tolist()
    assert clip_targets[0]["masks"].shape == (3, 3, 96, 128)
    assert clip_targets[0]["masks"].dtype == torch.bool
    assert clip_targets[0]["video_len"] == 36 and clip_targets[0]["frame_idx"] == [4, 9, 9]


def test_clips_without_objects_give_empty_targets():
    frame_targets, clip_targets = prepare_targets([training_sample(clip) for clip in empty_clips(3)], (96, 128), CPU)
    assert [len(target["labels"]) for target in clip_targets] == [0, 0]
    assert clip_targets[0]["masks"].shape == (0, 3, 96, 128)
    assert all(target["masks"].shape == (0, 96, 128) for target in frame_targets)


def test_the_sample_is_not_changed():
    sample = training_sample(clips(3)[0])
    before = [frame.gt_classes.clone() for frame in sample["instances"]]
    prepare_targets([sample], (96, 128), CPU)
    assert all(torch.equal(frame.gt_classes, old) for frame, old in zip(sample["instances"], before, strict=True))


def test_nothing_is_read_back_from_the_device():
    """A tensor without storage has no numbers to read, so every selection that waits for the device would fail."""
    samples, meta = [training_sample(clip) for clip in clips(3)], torch.device("meta")
    frames, whole = prepare_targets(samples, (96, 128), meta, num_classes=40)
    for got, want in zip((frames, whole), prepare_targets(samples, (96, 128), CPU), strict=True):
        assert [target["masks"].shape for target in got] == [target["masks"].shape for target in want]
        assert all(target["masks"].device == meta for target in got)
        assert all(target[name].device == CPU for target in got for name in ("labels", "ids"))
    assert frames_with_all(samples[0], (96, 128), meta, 40)[0]["masks"].device == meta


@pytest.mark.parametrize("kind, pinned", [("cuda", True), ("cpu", False)])
def test_copies_to_a_gpu_are_pinned_and_do_not_wait(kind, pinned):
    calls, device = [], torch.device(kind)

    class Tensor:
        device, dtype = CPU, torch.float32

        def pin_memory(self):
            calls.append("pin")
            return self

        def to(self, device, non_blocking=False):
            calls.append((device, non_blocking))
            return "there"

    assert to_device(Tensor(), device) == "there"
    assert calls == (["pin"] * pinned + [(device, pinned)])


def test_class_comes_from_the_first_frame_that_has_one():
    classes = [torch.tensor([-1, 3, -1]), torch.tensor([7, 9, -1]), torch.tensor([8, 3, 5])]
    assert first_known_class(classes).tolist() == [7, 3, 5]


def test_an_empty_mask_makes_the_object_absent_in_that_frame():
    masks = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    masks[0, 1, 2, 2] = True
    assert valid_ids(torch.tensor([[6, 6, 6]]), masks).tolist() == [[-1, 6, -1]]


@pytest.mark.parametrize(
    "ids, want",
    [([[17, -1], [19, 19]], [[0, -1], [2, 2]]), ([[0, 3]], [[0, 3]]), ([[-1, -1]], [[-1, -1]])],
)
def test_ids_are_shifted_to_start_at_zero(ids, want):
    assert shift_ids(torch.tensor(ids)).tolist() == want


def test_frames_with_different_rows_are_refused():
    sample = training_sample(clips(3)[0])
    sample["instances"][1] = sample["instances"][1][[0, 1]]
    with pytest.raises(ValueError, match=r"same instances in the same order, got \[4, 2, 4\]"):
        prepare_targets([sample], (96, 128), CPU)


def test_masks_of_another_size_than_the_frame_are_refused():
    sample = training_sample(clips(3)[1])
    sample["instances"][2].gt_masks = torch.zeros(3, 10, 10, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"gt_masks of frame 2 must have shape \(3, 96, 104\), got \(3, 10, 10\)"):
        prepare_targets([sample], (96, 128), CPU)


def test_an_object_with_an_id_but_no_class_is_refused():
    sample = training_sample(clips(3)[1])
    for frame in sample["instances"]:
        frame.gt_classes[0] = -1
    sample["video_id"] = 12
    with pytest.raises(ValueError, match=r"video 12.*no class in any frame"):
        prepare_targets([sample], (96, 128), CPU)


def test_a_class_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"class 12 does not exist, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 12"):
        prepare_targets([training_sample(clip) for clip in clips(3)], (96, 128), CPU, num_classes=12)
