"""Containers behave as detectron2's do; the recorded numbers are in engine_transforms.json."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from mask2former.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    ShapeSpec,
    polygons_to_bitmask,
)

RECORDED = json.loads((GOLDEN / "engine_transforms.json").read_text())


def three_objects() -> Instances:
    return Instances(
        (20, 30),
        gt_classes=torch.tensor([4, 5, 6]),
        gt_boxes=Boxes([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]),
        gt_masks=BitMasks(torch.eye(3)[:, None].expand(3, 2, 3)),
        names=["a", "b", "c"],
    )


# ---- boxes


def test_box_conversion_of_a_list_goes_through_float32_and_keeps_integers():
    floats = BoxMode.convert([0.1, 0.2, 0.3, 0.4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    integers = BoxMode.convert([1, 2, 3, 4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert [floats, integers] == RECORDED["boxmode_list"]
    assert all(isinstance(number, int) for number in integers)


@pytest.mark.parametrize("make", [lambda x: x, tuple, lambda x: np.array([x], np.float64), lambda x: torch.tensor([x])])
def test_box_conversion_returns_the_type_it_was_given_and_leaves_the_input_alone(make):
    box = make([10, 20, 5, 6])
    before = copy.deepcopy(box)
    corners = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(corners) is type(box)
    assert getattr(corners, "dtype", None) == getattr(box, "dtype", None)
    assert np.asarray(corners).ravel().tolist() == [10, 20, 15, 26]
    assert np.asarray(BoxMode.convert(corners, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)).ravel().tolist() == [10, 20, 5, 6]
    assert np.array_equal(np.asarray(box), np.asarray(before))


def test_a_box_has_four_numbers():
    with pytest.raises(ValueError, match="4 numbers"):
        BoxMode.convert([0, 0, 1], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


def test_boxes_clip_and_area_equal_the_recorded_numbers():
    boxes = Boxes([[1.5, 2.5, 200, 9], [-3, 1, 4, 50]])
    boxes.clip((20, 30))
    assert boxes.tensor.tolist() == RECORDED["boxes_clip_20x30"]
    assert Boxes(RECORDED["boxes_scale_2_0.5"]).area().tolist() == RECORDED["boxes_area"]


def test_boxes_are_nonempty_when_both_sides_are_longer_than_the_threshold():
    boxes = Boxes([[0, 0, 2, 2], [0, 0, 0, 2], [3, 0, 1, 2]])
    assert boxes.nonempty().tolist() == [True, False, False]
    assert boxes.nonempty(threshold=2).tolist() == [False, False, False]


def test_boxes_index_like_a_tensor_but_keep_two_axes():
    boxes = Boxes([[0, 0, 1, 1], [0, 0, 2, 4]])
    assert boxes[1].tensor.tolist() == [[0, 0, 2, 4]]
    assert boxes[torch.tensor([False, True])].tensor.tolist() == [[0, 0, 2, 4]]
    assert [box.tolist() for box in boxes] == boxes.tensor.tolist()
    assert len(Boxes.cat([boxes, boxes[:1]])) == 3


@pytest.mark.parametrize("empty", [[], torch.zeros(0), torch.zeros(0, 4), np.zeros((0, 4))])
def test_no_boxes_have_shape_0_by_4(empty):
    boxes = Boxes(empty)
    boxes.clip((4, 4))
    assert boxes.tensor.shape == (0, 4) and boxes.area().shape == (0,) and len(Boxes.cat([])) == 0


def test_bad_boxes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Boxes([[1, 2, 3]])
    with pytest.raises(ValueError, match="NaN"):
        Boxes([[0, 0, float("nan"), 1]]).clip((4, 4))


# ---- images


def test_image_list_pads_right_and_bottom_like_the_recorded_one():
    images = ImageList.from_tensors([torch.ones(3, 45, 61), torch.ones(3, 33, 70)], 32)
    shape, sizes, total = RECORDED["imagelist_32"]
    assert list(images.tensor.shape) == shape
    assert [list(size) for size in images.image_sizes] == sizes
    assert float(images.tensor.sum()) == total
    assert images.tensor[1, :, :33, :70].all() and len(images) == 2
    assert images[0].shape == (3, 45, 61) and images[0].all()


def test_image_list_without_divisor_keeps_the_size():
    images = ImageList.from_tensors([torch.ones(3, 45, 61)], 0)
    assert list(images.tensor.shape) == RECORDED["imagelist_0"]


def test_image_list_pads_masks_with_the_given_value_and_keeps_their_type():
    images = ImageList.from_tensors([torch.zeros(2, 3, dtype=torch.uint8)], 4, pad_value=255)
    assert images.tensor.dtype == torch.uint8 and images.tensor.shape == (1, 4, 4)
    assert images.tensor.sum() == 255 * 10
    assert images.to(torch.float32).tensor.dtype == torch.float32


def test_image_list_of_nothing_or_of_different_channels_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match="agree"):
        ImageList.from_tensors([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])


# ---- masks


def test_bounding_boxes_of_masks_end_after_the_last_pixel_and_are_zero_for_empty_masks():
    masks = torch.zeros(3, 6, 8)
    masks[0, 2:4, 1:7] = 1
    masks[2, 5, 7] = 1
    boxes = BitMasks(masks).get_bounding_boxes().tensor
    assert boxes.tolist() == [[1, 2, 7, 4], [0, 0, 0, 0], [7, 5, 8, 6]]
    assert boxes.dtype == torch.float32
    assert BitMasks(masks).nonempty().tolist() == [True, False, True]


def test_no_masks_have_no_boxes():
    empty = BitMasks(torch.zeros(0, 6, 8))
    assert len(empty) == 0 and len(empty.get_bounding_boxes()) == 0 and empty.nonempty().shape == (0,)
    assert empty.image_size == (6, 8)


def test_bitmasks_index_like_a_tensor():
    masks = BitMasks(np.stack([np.zeros((2, 3)), np.ones((2, 3))]))
    assert masks.tensor.dtype == torch.bool
    assert masks[1].tensor.shape == (1, 2, 3) and masks[1].tensor.all()
    assert masks[[1, 0, 1]].nonempty().tolist() == [True, False, True]
    assert [mask.any().item() for mask in masks] == [False, True]
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        BitMasks(torch.zeros(2, 3))


def test_polygons_rasterise_to_their_union():
    square, other = [1, 1, 4, 1, 4, 4, 1, 4], [3, 3, 6, 3, 6, 6, 3, 6]
    mask = polygons_to_bitmask([square, other], 8, 8)
    want = np.zeros((8, 8), bool)
    want[1:4, 1:4] = want[3:6, 3:6] = True
    assert mask.dtype == bool and np.array_equal(mask, want)
    assert not polygons_to_bitmask([], 8, 8).any()


@pytest.mark.parametrize(
    "polygon", [[0, 0, 1, 1], [0, 0, 1, 1, 2], [0, 0, 1, 1, 2, float("nan")], [[0, 0, 1, 1, 2, 2]]]
)
def test_a_broken_polygon_never_reaches_compiled_code(polygon):
    with pytest.raises(ValueError, match="polygon"):
        polygons_to_bitmask([polygon], 4, 4)


# ---- Instances


@pytest.mark.parametrize(
    "index, want",
    [
        (torch.tensor([True, False, True]), ["a", "c"]),
        (np.array([True, False, True]), ["a", "c"]),
        (torch.tensor([2, 0]), ["c", "a"]),
        ([2, 0], ["c", "a"]),
        (slice(1, None), ["b", "c"]),
        (1, ["b"]),
        (-1, ["c"]),
        (np.int64(1), ["b"]),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_indexing_selects_objects_in_every_field(index, want):
    objects = three_objects()[index]
    assert objects.names == want
    assert objects.gt_classes.tolist() == ["abc".index(name) + 4 for name in want]
    assert len(objects.gt_boxes) == len(objects.gt_masks) == len(objects) == len(want)
    assert objects.image_size == (20, 30)


@pytest.mark.parametrize("index", [3, -4])
def test_an_object_that_does_not_exist_is_an_index_error(index):
    with pytest.raises(IndexError, match="there are 3"):
        three_objects()[index]


def test_a_mask_of_the_wrong_length_is_an_index_error():
    with pytest.raises(IndexError):
        Instances((1, 1), names=["a", "b"])[torch.tensor([True])]


def test_fields_are_set_read_and_removed_by_name():
    objects = Instances((4, 5))
    objects.scores = torch.ones(2)
    objects.set("labels", [1, 2])
    assert objects.has("scores") and objects.get("labels") == [1, 2] and len(objects) == 2
    assert list(objects.get_fields()) == ["scores", "labels"]
    objects.remove("scores")
    assert not objects.has("scores")
    with pytest.raises(AttributeError, match="labels"):
        _ = objects.scores
    with pytest.raises(AttributeError, match="image_size"):
        objects.image_size = (1, 1)


def test_fields_of_different_length_are_refused():
    with pytest.raises(ValueError, match="'labels' has 3 entries, but these Instances have 2"):
        Instances((4, 5), scores=torch.ones(2), labels=[1, 2, 3])


def test_instances_without_fields_have_no_length_and_are_not_iterable():
    with pytest.raises(NotImplementedError):
        len(Instances((4, 5)))
    with pytest.raises(TypeError):
        iter(three_objects())


def test_instances_move_what_can_be_moved_and_survive_copies():
    moved = three_objects().to("cpu")
    assert moved.names == ["a", "b", "c"] and moved.gt_masks.device.type == "cpu"
    for clone in (copy.deepcopy(moved), pickle.loads(pickle.dumps(moved))):
        assert clone.gt_classes.tolist() == [4, 5, 6] and clone.image_size == (20, 30)


def test_a_shape_spec_knows_only_what_it_is_told():
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None)
