"""Transforms equal the recorded pixels, boxes and polygons."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from data_cases import expect_opencv_4_to_differ
from helpers import GOLDEN

from lbvq.data.objects import make_instances, transform_object
from lbvq.data.transforms import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ResizeTransform,
    RotationTransform,
    TransformList,
    VFlipTransform,
    clip_polygon,
    resized_shape,
)

TRANSFORMS = {
    **{f"resize_{h}x{w}": ResizeTransform(46, 61, h, w) for h, w in ((23, 30), (92, 122), (31, 80), (46, 61))},
    "hflip": HFlipTransform(61),
    "vflip": VFlipTransform(46),
    "crop": CropTransform(7, 3, 40, 30),
    "pad": PadTransform(0, 0, 9, 4, 128.0, 255),
    "rot": RotationTransform(46, 61, 12.5, expand=False, center=(30.0, 25.0)),
    "blend": BlendTransform(0, 0.1, 0.9),
}
LEVELS = {"rot": 2}  # grey levels that libraries of other versions may differ by; 1 for the rest


@cache
def arrays():
    return dict(np.load(GOLDEN / "engine_transforms.npz"))


@cache
def numbers():
    return json.loads((GOLDEN / "engine_transforms.json").read_text())


def difference(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(float) - second.astype(float)).max()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pixels_equal_the_recorded_ones(name):
    transform, golden = TRANSFORMS[name], arrays()
    levels = difference(transform.apply_image(golden["img"]), golden[f"{name}.img"])
    expect_opencv_4_to_differ(levels, LEVELS["rot"], name == "rot")
    assert levels <= LEVELS.get(name, 1)
    wrong = (transform.apply_mask(golden["mask"]) != golden[f"{name}.mask"]).sum()
    assert wrong <= (4 if name == "rot" else 0)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name.startswith("resize")])
def test_resizing_noise_and_float_images_equals_the_recorded_pixels(name):
    transform, golden = TRANSFORMS[name], arrays()
    assert difference(transform.apply_image(golden["noise"]), golden[f"{name}.noise"]) <= 1
    assert difference(transform.apply_image(golden["img"].astype("float32")), golden[f"{name}.float"]) <= 1e-4


@pytest.mark.parametrize("name", TRANSFORMS)
def test_boxes_and_polygons_equal_the_recorded_ones(name):
    transform, golden = TRANSFORMS[name], numbers()
    box = transform.apply_box(np.array(golden["box"]))
    assert np.allclose(box, golden[name]["box"], atol=1e-9)
    got = transform.apply_polygon(np.array(golden["poly"]).reshape(-1, 2))
    want = np.array(golden[name]["poly"][0]).reshape(-1, 2)
    assert np.allclose(sorted(got.tolist()), sorted(want.tolist()), atol=1e-9)  # any corner may be the first


def test_resized_shapes_equal_the_recorded_ones():
    rows = json.loads((GOLDEN / "resize_sizes.json").read_text())["rows"]
    assert [(h, w, s, m) for h, w, s, m, *want in rows if resized_shape(h, w, s, m) != tuple(want)] == []


def test_a_chain_on_annotations_equals_the_recorded_one():
    chain = TransformList([ResizeTransform(46, 61, 30, 40), HFlipTransform(40), CropTransform(4, 2, 30, 25)])
    annotations, golden = numbers()["anns"], arrays()
    found = [transform_object(each, chain, (46, 61), (25, 30), "case") for each in annotations]
    classes = [each["category_id"] for each in annotations]
    objects = make_instances((25, 30), classes, range(3), [box for box, _ in found], [mask for _, mask in found])
    assert np.allclose(objects.gt_boxes.tensor, golden["ann.boxes"], atol=1e-4)
    assert np.array_equal(objects.gt_classes, golden["ann.classes"])
    assert np.array_equal(objects.gt_masks.tensor, golden["ann.masks"])
    assert np.array_equal(objects.gt_ids >= 0, golden["ann.keep"])


def test_masks_move_alike_one_step_at_a_time_and_all_at_once():
    rng = np.random.RandomState(0)
    steps = [
        ResizeTransform(37, 53, 61, 90),
        HFlipTransform(90),
        CropTransform(5, 7, 70, 80),  # higher than the image
        PadTransform(3, 1, 2, 4, 128.0),
        ResizeTransform(59, 75, 23, 20),
        VFlipTransform(23),
    ]
    masks = [rng.rand(37, 53) > 0.5, rng.randint(0, 2, (37, 53)).astype(np.uint8)]
    for extra in ([], [RotationTransform(23, 20, 10.0, expand=False), ResizeTransform(23, 20, 40, 30)]):
        chain = TransformList(steps + extra)
        for mask in masks:
            want = mask.astype(np.uint8)
            for step in steps + extra:
                want = step.apply_mask(want)
            assert np.array_equal(chain.apply_mask(mask).astype(np.uint8), want)
    assert masks[0].any()


@pytest.mark.parametrize("size", [(480, 853), (721, 1281), (33, 7)])
@pytest.mark.parametrize("short", [1, 100, 288, 479, 500])
def test_rows_and_columns_are_followed_exactly_as_pillow_samples_them(size, short):
    transform = ResizeTransform(*size, *resized_shape(*size, short, 2000))
    mask = (np.random.RandomState(1).rand(*size) > 0.5).astype(np.uint8)
    assert np.array_equal(TransformList([transform]).apply_mask(mask), transform.apply_mask(mask))


def test_whole_numbers_stay_whole_when_resized_as_published():
    resize = ResizeTransform(10, 10, 8, 8)
    assert resize.apply_coords(np.array([[3, 9]])).tolist() == [[2, 7]]
    assert np.allclose(resize.apply_coords(np.array([[3.0, 9.0]])), [[2.4, 7.2]])


def test_cutting_keeps_what_is_inside():
    inside = np.array([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0]])
    assert clip_polygon(inside, 4, 4) is inside or np.array_equal(clip_polygon(inside, 4, 4), inside)
    square = np.array([[-2.0, -2.0], [2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]])
    assert sorted(clip_polygon(square, 4, 4).tolist()) == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert clip_polygon(square + 50, 4, 4).shape == (0, 2)
    assert clip_polygon(square + np.array([-2.0, 0.0]), 4, 4).shape == (0, 2)  # touches the border only


def test_a_polygon_that_is_cropped_away_does_not_come_back():
    chain = TransformList([CropTransform(0, 0, 10, 10), RotationTransform(10, 10, 45.0, expand=False)])
    assert chain.apply_polygon(np.array([[11.0, 4.0], [14.0, 4.0], [14.0, 6.0]])).shape == (0, 2)


def test_doing_nothing_leaves_no_trace():
    assert TransformList([NoOpTransform(), TransformList([NoOpTransform()])]).transforms == []
    image = np.zeros((3, 4, 3), np.uint8)
    assert RotationTransform(3, 4, 360.0, expand=False).apply_image(image) is image


def test_a_transform_for_another_size_is_refused():
    with pytest.raises(ValueError, match="Expected an image of 46 x 61 pixels, got 5 x 6"):
        TRANSFORMS["resize_23x30"].apply_image(np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="got 5 x 6"):
        TRANSFORMS["rot"].apply_mask(np.zeros((5, 6), np.uint8))


def test_rotation_with_expansion_keeps_every_corner():
    turn = RotationTransform(10, 20, 30.0)
    corners = turn.apply_coords(np.array([[0.0, 0.0], [20.0, 0.0], [20.0, 10.0], [0.0, 10.0]]))
    height, width = turn.size_hw
    assert corners.min() > -0.6 and corners[:, 0].max() < width + 0.6 and corners[:, 1].max() < height + 0.6
    assert turn.apply_image(np.zeros((10, 20, 3), np.uint8)).shape[:2] == (height, width)
