"""SAM 2 through transformers' own classes, small and with random weights."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from sam_models import small_sam2

from lbvq.masks.tubes import MaskTubes
from lbvq.refine import refine_tubes
from lbvq.refine.base import RefinedFrame
from lbvq.refine.sam2 import Sam2Refiner, Sam2VideoRefiner, build_sam2_refiner


@pytest.fixture(scope="module")
def models():
    return small_sam2()


def make_video(num_frames=4, size_hw=(90, 120)):
    """Frames (T, H, W, 3) uint8 and masks (2, T, H, W) of two boxes that move; the second leaves after two frames."""
    noise = np.random.RandomState(0).randint(0, 255, (*size_hw, 3)).astype(np.uint8)
    frame = cv2.GaussianBlur(noise, (0, 0), 4)
    masks = np.zeros((2, num_frames, *size_hw), dtype=bool)
    for t in range(num_frames):
        masks[0, t, 10:40, 10 + 3 * t : 50 + 3 * t] = True
        if t < 2:
            masks[1, t, 60:80, 80:100] = True
    return [np.roll(frame, 3 * t, axis=1) for t in range(num_frames)], masks


def test_batched_boxes_equal_one_call_of_the_package_per_box(models):
    model, _, image_processor, _ = models
    frames, masks = make_video()
    ours = Sam2Refiner(model, image_processor, iou_threshold=-1.0).refine(frames[0], masks[:, 0])
    import transformers

    processor = transformers.Sam2Processor(image_processor)
    for mask, box in zip(ours, ([10, 10, 50, 40], [80, 60, 100, 80]), strict=True):
        inputs = processor(images=frames[0], input_boxes=[[box]], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs, multimask_output=False)
        want = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0][0, 0].numpy()
        assert (mask == want).all()


@pytest.mark.parametrize("prompt", ["box_point", "mask"])
def test_points_and_masks_can_prompt(models, prompt):
    model, _, image_processor, _ = models
    frames, masks = make_video()
    plain = Sam2Refiner(model, image_processor, iou_threshold=-1.0).refine(frames[0], masks[:, 0])
    other = Sam2Refiner(model, image_processor, iou_threshold=-1.0, prompt=prompt).refine(frames[0], masks[:, 0])
    assert other.shape == masks[:, 0].shape and (other != plain).any()


def test_video_mode_keeps_originals_unless_the_followed_mask_agrees(models):
    model, video_model, image_processor, video_processor = models
    frames, masks = make_video()
    frame_refiner = Sam2Refiner(model, image_processor, iou_threshold=0.9)
    strict = Sam2VideoRefiner(video_model, video_processor, frame_refiner, window=4).refine_window(frames, masks)
    for t, result in enumerate(strict):
        kept = ~result.accepted
        assert (result.masks[kept] == masks[kept, t]).all()
        assert (result.accepted == ((result.ious > 0.9) & masks[:, t].any((1, 2)))).all()
    frame_refiner = Sam2Refiner(model, image_processor, iou_threshold=-1.0)
    loose = Sam2VideoRefiner(video_model, video_processor, frame_refiner, window=4).refine_window(frames, masks)
    assert any((result.masks != masks[:, t]).any() for t, result in enumerate(loose))
    assert not any(result.masks[1].any() for result in loose[2:])  # an object that left is not brought back


def test_windows_cover_a_video_that_is_no_multiple_of_them(models):
    model, video_model, image_processor, video_processor = models
    frames, masks = make_video(5)
    frame_refiner = Sam2Refiner(model, image_processor, iou_threshold=0.9)
    refiner = Sam2VideoRefiner(video_model, video_processor, frame_refiner, window=2)
    refined, report = refine_tubes(MaskTubes.from_dense(masks), frames, refiner)
    assert refined.shape == (2, 5, 90, 120)
    assert report.frames == 5 and report.masks == 7


def test_a_saved_folder_is_read_back(models, tmp_path):
    model, _, image_processor, _ = models
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    frames, masks = make_video()
    want = Sam2Refiner(model, image_processor, iou_threshold=-1.0).refine(frames[0], masks[:, 0])
    refiner = build_sam2_refiner(checkpoint=str(tmp_path), iou_threshold=-1.0)
    assert (refiner.refine(frames[0], masks[:, 0]) == want).all()


def test_a_missing_folder_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"hf download facebook/sam2.*REFINE\.CHECKPOINT"):
        build_sam2_refiner(checkpoint=str(tmp_path / "nothing"))


def test_a_window_without_frames_is_refused(models):
    with pytest.raises(ValueError, match=r"REFINE\.WINDOW"):
        Sam2VideoRefiner(models[1], models[3], Sam2Refiner(models[0], models[2]), window=0)


class RecordingFollower:
    """Stands for the video model and its processor: every mask it is shown is found in every frame, one pixel wider."""

    config = None
    device, dtype = "cpu", torch.float32

    def __init__(self, num_frames):
        self.num_frames, self.shown, self.passes = num_frames, [], []

    def init_video_session(self, *, video, **options):
        return self

    def reset_tracking_data(self):
        pass

    def add_inputs_to_inference_session(self, session, *, frame_idx, obj_ids, input_masks):
        self.shown.append(frame_idx)
        self.mask = input_masks

    def propagate_in_video_iterator(self, session, *, start_frame_idx, reverse):
        self.passes.append((start_frame_idx, reverse))
        frames = range(start_frame_idx, -1, -1) if reverse else range(start_frame_idx, self.num_frames)
        for t in frames:
            yield SimpleNamespace(frame_idx=t, pred_masks=torch.where(self.mask, 1.0, -1.0)[None, None])


class KnowingRefiner:
    """Says how far it trusts each object in each frame."""

    iou_threshold = 0.0

    def __init__(self, trust):
        self.trust, self.t = trust, -1

    def refine_frame(self, frame, masks):
        self.t += 1
        return RefinedFrame(masks, np.ones(len(masks), bool), self.trust[:, self.t])


def test_an_object_is_followed_both_ways_from_the_frame_where_it_is_trusted_most():
    masks = np.zeros((2, 4, 8, 8), bool)
    for t in range(4):
        masks[0, t, 1:5, t : t + 4] = True
    masks[1, 1:3, 6:8, 6:8] = True  # absent in the first and last frame
    trust = np.array([[0.5, 0.6, 0.9, 0.7], [1.0, 0.4, 0.8, 1.0]])  # an absent object is not to be trusted
    follower = RecordingFollower(4)
    refiner = Sam2VideoRefiner(follower, follower, KnowingRefiner(trust), window=4)
    frames = refiner.refine_window([np.zeros((8, 8, 3), np.uint8)] * 4, masks)
    assert follower.shown == [2, 2]
    assert follower.passes == [(2, False), (2, True)] * 2
    for t in (0, 1, 3):  # what was seen in frame 2 is found before and after it
        assert (frames[t].masks[0] == masks[0, 2]).all() and frames[t].accepted[0]
    assert not frames[0].accepted[1] and not frames[0].masks[1].any()
