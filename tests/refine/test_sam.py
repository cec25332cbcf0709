"""Our refinement against a literal application of the published procedure with the packages' own `SamPredictor`."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import segment_anything
import segment_anything_hq
import torch
from sam_models import small_sam

from lbvq.refine import Prompts
from lbvq.refine.sam import SamRefiner, build_sam_refiner, load_sam_weights

PACKAGES = {"sam": segment_anything, "hq_sam": segment_anything_hq}


@pytest.fixture(scope="module", params=list(PACKAGES))
def predictor(request):
    package = PACKAGES[request.param]
    return package.SamPredictor(small_sam(package))


def make_frame(seed=0, size_hw=(90, 121)):
    noise = np.random.RandomState(seed).randint(0, 255, (*size_hw, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


def make_masks(frame):
    """Blobs of several components, one pixel, everything, and nothing."""
    height, width = frame.shape[:2]
    noise = cv2.GaussianBlur(np.random.RandomState(1).rand(height, width, 4).astype(np.float32), (0, 0), 6)
    masks = [noise[..., k] > np.quantile(noise[..., k], q) for k, q in enumerate((0.6, 0.8, 0.9, 0.97))]
    pixel = np.zeros((height, width), dtype=bool)
    pixel[height - 1, width - 1] = True
    return np.stack([*masks, pixel, np.ones_like(pixel), np.zeros_like(pixel)])


def published_answer(predictor, mask):
    """One predictor call per component of a mask; the union of the answers."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    union = np.zeros_like(mask)
    for left, top, width, height, _ in stats[1:count]:
        box = np.array([left, top, left + width, top + height])
        answer, _, _ = predictor.predict(box=box, multimask_output=False)
        union |= answer[0]
    return union


def test_answers_equal_the_published_procedure_mask_by_mask(predictor):
    frame = make_frame()
    masks = make_masks(frame)
    ours = SamRefiner(predictor, iou_threshold=-1.0, batch_size=3).refine_frame(frame, masks)
    with torch.no_grad():
        predictor.set_image(frame)
        published = np.stack([published_answer(predictor, mask) for mask in masks])
    assert (ours.masks == published).all()
    union = (published | masks).sum((1, 2))
    overlap = ((published & masks).sum((1, 2)) + 1e-6) / (union + 1e-6)
    assert ours.ious == pytest.approx(overlap, rel=1e-12)
    assert 0.05 < published[0].mean() < 0.95  # the random model says something about the frame


def test_nothing_of_a_frame_is_left_in_the_answers_for_the_next(predictor):
    refiner = SamRefiner(predictor, iou_threshold=-1.0)
    frames = [make_frame(seed) for seed in (5, 6)]
    masks = make_masks(frames[0])[:2]
    ours = [refiner.refine(frame, masks) for frame in frames]
    for frame, answer in zip(frames, ours, strict=True):
        with torch.no_grad():
            predictor.set_image(frame)
            assert (answer == np.stack([published_answer(predictor, mask) for mask in masks])).all()
    assert (ours[0] != ours[1]).any()


def test_a_decoder_of_an_unknown_class_answers_itself():
    class Inverted(segment_anything.modeling.MaskDecoder):
        def forward(self, *args, **kwargs):
            masks, scores = super().forward(*args, **kwargs)
            return -masks, scores

    predictor = segment_anything.SamPredictor(small_sam(segment_anything))
    predictor.model.mask_decoder.__class__ = Inverted
    refiner = SamRefiner(predictor, iou_threshold=-1.0, prompt="box_point")
    refiner.set_frame(make_frame())
    prompts = Prompts(np.array([[10.0, 10, 60, 50]]), np.array([[30.0, 30]]))
    inverted = refiner.predict(prompts)
    predictor.model.mask_decoder.__class__ = segment_anything.modeling.MaskDecoder
    assert (inverted == ~refiner.predict(prompts)).all()


def test_acceptance_follows_the_published_threshold(predictor):
    frame = make_frame(2)
    masks = make_masks(frame)
    ious = SamRefiner(predictor, iou_threshold=-1.0).refine_frame(frame, masks).ious[:4]
    threshold = float(np.sort(ious)[1:3].mean())
    result = SamRefiner(predictor, iou_threshold=threshold).refine_frame(frame, masks)
    assert result.accepted[:4].tolist() == (ious > threshold).tolist()
    assert (result.masks[~result.accepted] == masks[~result.accepted]).all()


@pytest.mark.parametrize("prompt", ["box_point", "mask"])
def test_other_prompts_change_the_answer(predictor, prompt):
    frame = make_frame()
    masks = make_masks(frame)[:2]
    plain = SamRefiner(predictor, iou_threshold=-1.0).refine(frame, masks)
    other = SamRefiner(predictor, iou_threshold=-1.0, prompt=prompt).refine(frame, masks)
    assert other.shape == masks.shape and (other != plain).any()


def test_the_encoder_runs_once_for_all_objects_of_a_frame(predictor):
    calls = []
    handle = predictor.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    frame = make_frame()
    SamRefiner(predictor).refine(frame, make_masks(frame))
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", list(PACKAGES))
def test_a_published_file_is_read_without_unpickling_objects(kind, tmp_path):
    model, other = small_sam(PACKAGES[kind]), small_sam(PACKAGES[kind])
    with torch.no_grad():
        other.mask_decoder.iou_token.weight.add_(1.0)
    torch.save(other.state_dict(), tmp_path / "sam.pth")
    load_sam_weights(model, str(tmp_path / "sam.pth"), "https://example.org/sam.pth")
    assert torch.equal(model.mask_decoder.iou_token.weight, other.mask_decoder.iou_token.weight)


def test_a_file_of_another_model_and_an_incomplete_file_are_refused(tmp_path):
    model = small_sam(segment_anything)
    state = model.state_dict()
    torch.save({**state, "mask_decoder.iou_token.weight": torch.zeros(1, 7)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a file of this model"):
        load_sam_weights(model, str(tmp_path / "other.pth"), "https://example.org/sam.pth")
    state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ValueError, match="lacks 1 parameters"):
        load_sam_weights(model, str(tmp_path / "short.pth"), "https://example.org/sam.pth")


def test_a_missing_checkpoint_says_how_to_get_it(tmp_path):
    path = str(tmp_path / "sam_hq_vit_h.pth")
    with pytest.raises(FileNotFoundError, match=r"curl .*sam_hq_vit_h\.pth .*REFINE\.CHECKPOINT"):
        load_sam_weights(small_sam(segment_anything), path, "https://example.org/sam_hq_vit_h.pth")


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"hq_sam vit_tiny.*REFINE\.MODEL_TYPE"):
        build_sam_refiner("sam", model_type="vit_tiny", checkpoint="x.pth")
