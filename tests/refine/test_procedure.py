"""The refinement procedure with a segmenter whose answers can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lbvq.masks.tubes import MaskTubes
from lbvq.refine import PromptRefiner, Prompts, mask_ious, refine_tubes, split_components

FRAME = np.zeros((40, 60, 3), dtype=np.uint8)


class BoxFiller(PromptRefiner):
    """Answers every prompt with its whole box, and counts what it is asked."""

    def __init__(self, **options):
        super().__init__(**options)
        self.frames, self.batches, self.prompts = 0, [], []

    def set_frame(self, frame):
        self.frames += 1
        self.size = frame.shape[:2]

    def predict(self, prompts: Prompts):
        self.batches.append(len(prompts))
        self.prompts.append(prompts)
        answers = np.zeros((len(prompts), *self.size), dtype=bool)
        for answer, (left, top, right, bottom) in zip(answers, prompts.boxes_xyxy.astype(int), strict=True):
            answer[top:bottom, left:right] = True
        return answers


def box_mask(left, top, right, bottom):
    mask = np.zeros(FRAME.shape[:2], dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def notched(left, top, right, bottom, missing):
    """A box without its first `missing` pixels of the first row; its bounding box stays the same."""
    mask = box_mask(left, top, right, bottom)
    mask[top, left : left + missing] = False
    return mask


def test_an_answer_above_the_threshold_replaces_the_mask_and_one_below_does_not():
    masks = np.stack([notched(0, 0, 20, 10, 10), notched(30, 0, 50, 4, 19)])  # IoU 190/200 and 61/80
    result = BoxFiller().refine_frame(FRAME, masks)
    assert result.accepted.tolist() == [True, False]
    assert result.ious == pytest.approx([190 / 200, 61 / 80])
    assert (result.masks[0] == box_mask(0, 0, 20, 10)).all()
    assert (result.masks[1] == masks[1]).all()


def test_an_iou_equal_to_the_threshold_is_not_enough():
    masks = notched(0, 0, 20, 10, 20)[None]
    masks[0, 0, 19] = True  # 181 of 200 pixels; the box of the mask stays 20 x 10
    exact = float(mask_ious(masks, box_mask(0, 0, 20, 10)[None])[0])
    assert not BoxFiller(iou_threshold=exact).refine_frame(FRAME, masks).accepted[0]


def test_components_are_prompted_one_by_one_and_joined():
    mask = box_mask(0, 0, 10, 10) | box_mask(20, 20, 30, 30)
    refiner = BoxFiller()
    assert (refiner.refine(FRAME, mask[None])[0] == mask).all()
    assert refiner.prompts[0].boxes_xyxy.tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]


@pytest.mark.parametrize("connectivity, count", [(4, 2), (8, 1)])
def test_diagonal_neighbours_are_one_component_only_with_eight_neighbours(connectivity, count):
    mask = np.eye(2, dtype=bool)
    assert len(split_components(mask, connectivity)) == count


def test_components_paint_back_to_the_mask():
    mask = np.random.RandomState(0).rand(30, 50) > 0.6
    painted = np.zeros_like(mask)
    for component in split_components(mask):
        assert component.area == component.crop.sum()
        painted |= component.paint(mask.shape)
    assert (painted == mask).all()


def test_an_empty_mask_stays_empty_and_a_frame_without_masks_is_not_encoded():
    refiner = BoxFiller()
    result = refiner.refine_frame(FRAME, np.zeros((2, 40, 60), dtype=bool))
    assert not result.masks.any() and not result.accepted.any() and result.ious.tolist() == [1, 1]
    assert refiner.refine(FRAME, np.zeros((0, 40, 60), dtype=bool)).shape == (0, 40, 60)
    assert refiner.frames == 0


def test_a_frame_is_encoded_once_and_its_prompts_share_batches():
    masks = np.stack([box_mask(10 * n, 0, 10 * n + 5, 5) for n in range(5)])
    refiner = BoxFiller(batch_size=2)
    refiner.refine(FRAME, masks)
    assert refiner.frames == 1 and refiner.batches == [2, 2, 1]


def test_batch_size_does_not_change_the_result():
    masks = np.random.RandomState(1).rand(6, 40, 60) > 0.7
    results = [BoxFiller(batch_size=size, iou_threshold=0.0).refine(FRAME, masks) for size in (1, 7, 10_000)]
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_components_below_min_area_are_kept_and_not_prompted():
    mask = box_mask(0, 0, 10, 10) | box_mask(30, 30, 31, 31)
    refiner = BoxFiller(min_area=2)
    assert (refiner.refine(FRAME, mask[None])[0] == mask).all()
    assert refiner.batches == [1]


def test_the_inner_point_of_a_ring_lies_on_the_ring():
    ring = box_mask(5, 5, 25, 25) & ~box_mask(8, 8, 22, 22)
    refiner = BoxFiller(prompt="box_point")
    refiner.refine(FRAME, ring[None])
    (x, y), *_ = refiner.prompts[0].points_xy.astype(int)
    assert ring[y, x]


def test_mask_prompts_hold_one_component_each():
    mask = box_mask(0, 0, 10, 10) | box_mask(20, 20, 30, 30)
    refiner = BoxFiller(prompt="mask")
    refiner.refine(FRAME, mask[None])
    assert refiner.prompts[0].masks.shape == (2, 40, 60)
    assert (refiner.prompts[0].masks.any(axis=0) == mask).all()


@pytest.mark.parametrize(
    "option, match",
    [({"prompt": "text"}, "REFINE.PROMPT"), ({"connectivity": 6}, "CONNECTIVITY"), ({"batch_size": 0}, "BATCH_SIZE")],
)
def test_wrong_settings_are_refused_by_name(option, match):
    with pytest.raises(ValueError, match=match):
        BoxFiller(**option)


def test_a_frame_of_another_size_is_refused():
    with pytest.raises(ValueError, match="masks must be"):
        BoxFiller().refine(FRAME, np.zeros((1, 20, 20), dtype=bool))


def tubes_of(masks):
    return MaskTubes.from_dense(np.asarray(masks))


def test_tubes_are_refined_frame_by_frame():
    masks = np.zeros((2, 3, 40, 60), dtype=bool)
    masks[0, 0] = masks[0, 2] = notched(0, 0, 20, 10, 10)
    masks[1, 2] = notched(30, 0, 50, 4, 19)
    refiner = BoxFiller()
    refined, report = refine_tubes(tubes_of(masks), [FRAME] * 3, refiner)
    want = masks.copy()
    want[0, 0] = want[0, 2] = box_mask(0, 0, 20, 10)
    assert refined == tubes_of(want)
    assert (report.frames, report.masks, report.accepted, report.changed) == (3, 3, 2, 2)
    assert refiner.frames == 2  # nothing to prompt in the second frame


def test_objects_that_share_a_mask_are_refined_once():
    mask = notched(0, 0, 20, 10, 10)
    refiner = BoxFiller()
    refined, report = refine_tubes(tubes_of([[mask], [mask]]), [FRAME], refiner)
    assert refiner.batches == [1] and report.accepted == 2
    assert refined == tubes_of([[box_mask(0, 0, 20, 10)]] * 2)


def test_only_confident_objects_are_refined():
    mask = notched(0, 0, 20, 10, 10)
    tubes = tubes_of([[mask], [mask]])
    refined, report = refine_tubes(tubes, [FRAME], BoxFiller(), confident=[False, True])
    assert refined[0] == tubes[0] and refined[1] != tubes[1]
    assert report.masks == 1


def test_tubes_without_objects_or_frames_come_back_as_they_are():
    empty = MaskTubes((40, 60), num_frames=2, num_objects=0)
    assert refine_tubes(empty, [FRAME] * 2, BoxFiller())[0] == empty
    assert refine_tubes(MaskTubes((40, 60), num_objects=1), [], BoxFiller())[0].shape == (1, 0, 40, 60)


def test_a_wrong_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="3 frames, got 2"):
        refine_tubes(MaskTubes((40, 60), 3, 1), [FRAME] * 2, BoxFiller())


def test_the_inner_point_of_an_odd_square_is_its_middle_pixel():
    refiner = BoxFiller(prompt="box_point")
    refiner.refine(FRAME, np.stack([box_mask(10, 20, 15, 25), box_mask(0, 0, 3, 3)]))
    assert refiner.prompts[0].points_xy.tolist() == [[12, 22], [1, 1]]


@pytest.mark.parametrize("min_area, count", [(4, 1), (5, 0)])
def test_a_component_of_exactly_the_least_area_is_prompted(min_area, count):
    refiner = BoxFiller(min_area=min_area)
    refiner.refine(FRAME, box_mask(4, 4, 6, 6)[None])
    assert sum(refiner.batches) == count
