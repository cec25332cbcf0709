"""Random policies draw the recorded numbers and treat the frames of a clip alike."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from data_cases import recorded, small_cfg
from helpers import GOLDEN

from lbvq.data.augment import (
    ClipAugmenter,
    FixedSizeCrop,
    RandomApply,
    RandomColorJitter,
    RandomCrop,
    RandomFlip,
    RandomPhotometric,
    RandomRotation,
    ResizeScale,
    ResizeShortestEdge,
)
from lbvq.data.augment_lists import clip_augmentations, image_augmentations, pseudo_augmentations

CENTER = ((0.4, 0.4), (0.6, 0.6))
NUM_FRAMES = 3
POLICIES = {
    "flip": RandomFlip(),
    "flip_v": RandomFlip(vertical=True, coherent=False),
    "short_choice_by_clip": ResizeShortestEdge((48, 64, 80), 100, "choice"),
    "short_range_by_clip": ResizeShortestEdge((48, 80), 1333, "range"),
    "short_choice_per_frame": ResizeShortestEdge((48, 64, 80), 1333, "choice", coherent=False),
    "crop_absolute_range": RandomCrop("absolute_range", (40, 70)),
    "crop_absolute_range_large": RandomCrop("absolute_range", (384, 600)),
    "crop_absolute": RandomCrop("absolute", (40, 70)),
    "crop_relative": RandomCrop("relative", (0.5, 0.7)),
    "crop_relative_range": RandomCrop("relative_range", (0.5, 0.7)),
    "rotation": RandomRotation((-15, 15), CENTER, expand=False),
    "rotation_no_center": RandomRotation((-15, 15)),
    "resize_scale": ResizeScale(0.1, 2.0, 64, 64),
    "fixed_crop": FixedSizeCrop((64, 200)),
    "fixed_crop_no_pad": FixedSizeCrop((64, 200), pad=False),
    "apply_crop": RandomApply(
        (ResizeShortestEdge((120, 150, 180), 1333, "choice"), RandomCrop("absolute_range", (40, 70)))
    ),
}


def flatten(described):
    """Nested lists of described transforms -> flat list without those that do nothing."""
    if isinstance(described, list):
        return [each for inner in described for each in flatten(inner)]
    return [] if described["class"] == "NoOpTransform" else [described]


def matches(transform, described):
    """The transform has the recorded class and numbers; sizes of the input are not kept by all of ours."""
    assert type(transform).__name__ == described["class"]
    for key, want in described.items():
        if key == "class" or want is None or key.startswith("orig"):
            continue
        got = getattr(transform, key)
        if key == "center" and got is None:
            got = (transform.w / 2, transform.h / 2)
        assert np.allclose(got, want, rtol=1e-12), key


def test_every_recorded_policy_is_tested():
    assert set(POLICIES) == set(recorded()["policies"])


@pytest.mark.parametrize("name", POLICIES)
def test_draws_equal_the_recorded_ones(name):
    image = (np.random.RandomState(0).random_sample((100, 160, 3)) * 255).astype(np.uint8)
    for case in recorded()["policies"][name]:
        np.random.seed(case["np_seed"])
        for number, (described, size) in enumerate(case["frames"]):
            if number % NUM_FRAMES == 0:
                augment = ClipAugmenter([POLICIES[name]], NUM_FRAMES)
            result, done = augment(image)
            assert list(result.shape[:2]) == size
            for transform, want in zip(done.transforms, flatten(described), strict=True):
                matches(transform, want)
        assert np.random.random_sample() == case["next_np"]  # not one number too many


def engine_golden():
    arrays = np.load(GOLDEN / "engine_transforms.npz")
    return arrays, json.loads((GOLDEN / "engine_transforms.json").read_text())


@pytest.mark.parametrize("number, name", [(0, "Brightness"), (1, "Contrast"), (2, "Saturation")])
def test_photometric_pixels_equal_the_recorded_ones(number, name):
    arrays, _ = engine_golden()
    np.random.seed(2)
    for _ in range(number):
        np.random.uniform()
    result, _ = ClipAugmenter([RandomPhotometric(name.lower(), 0.5, 1.5)], 1)(arrays["img"])
    assert np.array_equal(result, arrays[f"photo.Random{name}"])


@pytest.mark.parametrize("seed", range(6))
def test_colour_jitter_pixels_equal_the_recorded_ones(seed):
    arrays, _ = engine_golden()
    random.seed(seed)
    result, _ = ClipAugmenter([RandomColorJitter("RGB")], 1)(arrays["img"])
    assert np.abs(result.astype(int) - arrays[f"ssd.{seed}"]).max() <= 2


SINGLE = {
    "RandomFlip": RandomFlip(coherent=False),
    "ResizeShortestEdge_choice": ResizeShortestEdge((20, 30, 40), 50, "choice", coherent=False),
    "ResizeShortestEdge_range": ResizeShortestEdge((20, 40), 50, "range", coherent=False),
    "ResizeScale": ResizeScale(0.1, 2.0, 64, 64),
    "FixedSizeCrop_32": FixedSizeCrop((32, 32)),
    "FixedSizeCrop_64": FixedSizeCrop((64, 64)),
    "RandomRotation": RandomRotation((-15, 15), CENTER, expand=False, coherent=False),
    "RandomBrightness": RandomPhotometric("brightness"),
    "RandomContrast": RandomPhotometric("contrast"),
}
KEYS = ("x0", "y0", "x1", "y1", "w", "h", "new_h", "new_w", "angle", "width", "src_weight", "dst_weight")


@pytest.mark.parametrize("name", SINGLE)
def test_draws_for_single_images_equal_the_recorded_ones(name):
    arrays, numbers = engine_golden()
    case = numbers["draws"][name]
    np.random.seed(case["seed"])
    for want in case["draws"]:
        _, done = ClipAugmenter([SINGLE[name]], 1)(arrays["img"])
        want = [each for each in want if each[0] != "NoOpTransform"]
        assert [type(each).__name__ for each in done.transforms] == [each[0] for each in want]
        for transform, (_, *values) in zip(done.transforms, want, strict=True):
            assert np.allclose([getattr(transform, key) for key in KEYS if hasattr(transform, key)], values)


def image_of(height, width):
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_coherent_policies_serve_a_whole_clip_and_start_anew_with_the_next():
    np.random.seed(0)
    policy = ResizeShortestEdge(tuple(range(20, 60)), style="choice")
    heights = []
    for _ in range(4):
        augment = ClipAugmenter([policy], 3)
        clip = {augment(image_of(30, 40))[0].shape[0] for _ in range(3)}
        assert len(clip) == 1
        heights.append(clip.pop())
    assert len(set(heights)) > 1


def test_a_clip_that_stops_half_way_does_not_disturb_the_next():
    np.random.seed(0)
    ClipAugmenter([RandomFlip()], 3)(image_of(4, 5))
    state = np.random.get_state()[2]
    augment = ClipAugmenter([RandomFlip()], 3)
    augment(image_of(4, 5))
    assert np.random.get_state()[2] == state + 2  # one fresh double


def test_a_clip_has_no_more_frames_than_it_said():
    augment = ClipAugmenter([], 1)
    augment(image_of(4, 5))
    with pytest.raises(RuntimeError, match="1 frames"):
        augment(image_of(4, 5))


def test_the_moving_crop_drifts_in_one_direction():
    np.random.seed(3)
    augment = ClipAugmenter([RandomCrop("absolute", (20, 20))], 6)
    crops = [augment(image_of(100, 100))[1].transforms[0] for _ in range(6)]
    for values in ([crop.x0 for crop in crops], [crop.y0 for crop in crops]):
        assert values in (sorted(values), sorted(values, reverse=True))


def test_the_lists_equal_those_of_the_published_configurations():
    """As text: class and numbers of every policy of OVIS' LBVQ file, in order."""
    want = recorded()["built"]["LBVQ/ovis/lbvq_R50_bs8.yaml"]
    cfg = small_cfg("INPUT.CROP.ENABLED", True, "INPUT.PSEUDO.CROP.ENABLED", True, "INPUT.SAMPLING_FRAME_NUM", 6)
    for node in (cfg.INPUT, cfg.INPUT.PSEUDO):
        node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN = (288, 320, 352, 384, 416, 448, 480, 512), 768
    cfg.INPUT.PSEUDO.CROP.SIZE = (384, 600)
    crop = RandomApply((ResizeShortestEdge((400, 500, 600), 1333, "choice"), RandomCrop("absolute_range", (384, 600))))
    resize = ResizeShortestEdge((288, 320, 352, 384, 416, 448, 480, 512), 768, "choice")
    assert clip_augmentations(cfg) == [crop, resize, RandomFlip()]
    rotation = RandomRotation((-15, 15), CENTER, expand=False)
    assert pseudo_augmentations(cfg) == [crop, resize, RandomFlip(), rotation]
    assert len(want["train"]) == 3 and "RandomRotationClip(angle=[-15, 15], expand=False" in want["pseudo"][3]


def test_pseudo_clips_turn_by_at_most_the_angle_that_is_set():
    options = ("INPUT.PSEUDO.AUGMENTATIONS", ["rotation"], "INPUT.PSEUDO.ROTATE_ANGLE", 30)
    assert pseudo_augmentations(small_cfg(*options))[-1] == RandomRotation((-30, 30), CENTER, expand=False)


def test_the_crop_of_real_videos_obeys_its_own_keys():
    cfg = small_cfg("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [10, 20], "INPUT.PSEUDO.CROP.SIZE", (30, 40))
    assert clip_augmentations(cfg)[0].policies[1].size == (10, 20)


def test_large_scale_jitter_replaces_crop_and_resize_and_is_coherent():
    cfg = small_cfg("INPUT.LSJ_AUG.ENABLED", True, "INPUT.LSJ_AUG.IMAGE_SIZE", 64)
    jitter = [ResizeScale(0.1, 2.0, 64, 64), FixedSizeCrop((64, 64))]
    assert clip_augmentations(cfg) == [RandomFlip(), *jitter]
    assert pseudo_augmentations(cfg)[-2:] == jitter
    augment = ClipAugmenter(clip_augmentations(cfg), 3)
    frames = [augment(image_of(30, 50))[0] for _ in range(3)]
    assert all(frame.shape == (64, 64, 3) and np.array_equal(frame, frames[0]) for frame in frames)


def test_no_flip_is_possible_everywhere():
    cfg = small_cfg("INPUT.RANDOM_FLIP", "none")
    lists = [clip_augmentations(cfg), pseudo_augmentations(cfg), image_augmentations(cfg)]
    assert not any(isinstance(policy, RandomFlip) for policies in lists for policy in policies)


def test_flips_that_tear_a_clip_apart_are_announced(caplog):
    clip_augmentations(small_cfg("INPUT.RANDOM_FLIP", "horizontal"))
    assert "mirrors every frame" in caplog.text


def test_image_models_get_large_scale_jitter_by_the_published_name():
    cfg = small_cfg(
        "INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "INPUT.IMAGE_SIZE", 128, "INPUT.COLOR_AUG_SSD", True
    )
    flip, scale, crop, color = image_augmentations(cfg)
    assert isinstance(flip, RandomFlip) and (scale.height, scale.max_scale) == (128, 2.0) and crop.size == (128, 128)
    assert isinstance(color, RandomColorJitter)


@pytest.mark.parametrize(
    "options, message",
    [
        (["INPUT.RANDOM_FLIP", "diagonal"], "INPUT.RANDOM_FLIP must be one of"),
        (["INPUT.AUGMENTATIONS", ["blur"]], r"INPUT.AUGMENTATIONS may name .* got \['blur'\]"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "all"], "MIN_SIZE_TRAIN_SAMPLING must be one of"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "a smallest and a largest size"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "round"], "INPUT.CROP.TYPE"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [2.0, 0.5]], "INPUT.CROP.SIZE"),
    ],
)
def test_a_wrong_setting_names_its_key(options, message):
    with pytest.raises(ValueError, match=message):
        clip_augmentations(small_cfg(*options))
