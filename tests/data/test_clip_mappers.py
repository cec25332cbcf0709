"""Training clips and test videos: equal to the recorded ones, and correct where nothing was recorded."""

from __future__ import annotations

import pickle
import random
import re

import numpy as np
import pytest
import torch
from data_cases import (
    CLASS_MAP,
    crop_options,
    expect_opencv_4_to_differ,
    recorded,
    small_cfg,
    square,
    write_video_file,
)
from helpers import GOLDEN
from PIL import Image
from synth_vis_dataset import make

from lbvq.data.clip_mapper import VideoClipMapper, VideoTestMapper
from lbvq.data.coco import load_coco_json
from lbvq.data.pseudo_mapper import ImageAsClipTestMapper, PseudoClipMapper
from lbvq.data.ytvis import load_ytvis_json
from mask2former.structures import BitMasks

SEEDED = [name for name in recorded()["mapper"] if "seed" in name]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def videos(root):
    return load_ytvis_json(root / "vis/train.json", root / "vis/images")


@pytest.fixture(scope="module")
def images(root):
    return load_coco_json(root / "coco/train.json", root / "coco/images")


def make_sample(name, videos, images):
    """The sample of a recorded case, and the next numbers of both generators."""
    kind, crop, _, seed, which = re.fullmatch(r"(\w+?)_(no)?crop(_shuffle)?_seed(\d)_\w+?(\d)", name).groups()
    cfg = small_cfg("INPUT.SAMPLING_FRAME_SHUFFLE", "shuffle" in name, *crop_options(crop != "no"))
    random.seed(int(seed))
    np.random.seed(int(seed))
    if kind == "ytvis":
        sample = VideoClipMapper.from_config(cfg)(videos[int(which)])
    else:
        sample = PseudoClipMapper.from_config(cfg, CLASS_MAP)(images[int(which)])
    return sample, random.random(), np.random.random_sample()


def row_order(sample, want):
    """Our row -> recorded row: the recorded rows of a video follow the order of a Python set."""
    rows = range(len(want["instances"][0]["gt_ids"]))
    theirs = [{frame["gt_ids"][row] for frame in want["instances"]} - {-1} for row in rows]
    ours = [{int(frame.gt_ids[row]) for frame in sample["instances"]} - {-1} for row in rows]
    return [theirs.index(ids) for ids in ours]


@pytest.mark.parametrize("name", SEEDED)
def test_clips_equal_the_recorded_ones(name, videos, images, root):
    want = recorded()["mapper"][name]
    sample, next_random, next_np = make_sample(name, videos, images)
    assert (next_random, next_np) == (want["next_random"], want["next_np"])
    assert sorted(sample) == want["keys"]
    for key in ("video_len", "frame_idx", "height", "width"):
        assert sample[key] == want[key]
    assert [each.replace(str(root), "ROOT") for each in sample["file_names"]] == want["file_names"]
    assert [list(image.shape) for image in sample["image"]] == want["image_shapes"]
    assert all(image.dtype == torch.uint8 for image in sample["image"])
    means = [float(image.float().mean()) for image in sample["image"]]
    assert np.allclose(means, want["image_means"], atol=0.5)
    order = row_order(sample, want)
    for objects, recorded_objects in zip(sample["instances"], want["instances"], strict=True):
        assert list(objects.image_size) == recorded_objects["image_size"]
        assert sorted(objects.get_fields()) == recorded_objects["fields"] and isinstance(objects.gt_masks, BitMasks)
        columns = {
            "gt_ids": objects.gt_ids.tolist(),
            "gt_classes": objects.gt_classes.tolist(),
            "mask_area": objects.gt_masks.tensor.sum((1, 2)).tolist(),
        }
        for key, values in columns.items():
            assert values == [recorded_objects[key][row] for row in order], key
        boxes = np.array([recorded_objects["boxes"][row] for row in order])
        assert np.allclose(objects.gt_boxes.tensor.numpy(), boxes, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SEEDED if "shuffle" not in name and re.search("seed[02]", name)])
def test_pixels_equal_the_recorded_ones(name, videos, images):
    golden = np.load(GOLDEN / "vis_data.npz")
    kind, crop, seed, which = re.fullmatch(r"(\w+?)_(\w+)_seed(\d)_\w+?(\d)", name).groups()
    tag = f"{kind}_{crop}_s{seed}" + (f"_v{which}" if kind == "ytvis" else "")
    sample, *_ = make_sample(name, videos, images)
    order = row_order(sample, recorded()["mapper"][name])
    levels = 2 if kind == "coco" else 1  # rotated by cv2, resized by Pillow
    for t, (image, objects) in enumerate(zip(sample["image"], sample["instances"], strict=True)):
        assert np.array_equal(objects.gt_masks.tensor.numpy(), golden[f"{tag}/mask{t}"][order])
        difference = np.abs(image[:, ::4, ::4].numpy().astype(int) - golden[f"{tag}/image{t}"]).max()
        expect_opencv_4_to_differ(difference, levels, kind == "coco")
        assert difference <= levels


def test_a_clip_without_objects_has_empty_rows(videos):
    sample = VideoClipMapper.from_config(small_cfg())(videos[2])
    assert len(sample["image"]) == 3
    for objects in sample["instances"]:
        assert len(objects) == 0 and objects.gt_ids.dtype == torch.int64
        assert tuple(objects.gt_masks.tensor.shape) == (0, *objects.image_size)


def test_a_video_of_one_frame_repeats_it(tmp_path):
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square()]}
    path = write_video_file(tmp_path, [annotation], file_names=["a/0.png"])
    sample = VideoClipMapper([], num_frames=4)(load_ytvis_json(path, tmp_path)[0])
    assert sample["frame_idx"] == [0, 0, 0, 0] and len(sample["image"]) == 4
    assert [objects.gt_ids.tolist() for objects in sample["instances"]] == [[3]] * 4


def test_rows_mean_the_same_object_in_every_frame_and_absent_ones_have_no_class(tmp_path):
    annotations = [
        {"id": 8, "video_id": 1, "category_id": 1, "segmentations": [square(), None]},
        {"id": 5, "video_id": 1, "category_id": 1, "segmentations": [square(3), square(2)]},
        {"id": 6, "video_id": 1, "category_id": 1, "iscrowd": 1, "segmentations": [square(), square()]},
    ]
    record = load_ytvis_json(write_video_file(tmp_path, annotations), tmp_path)[0]
    sample = VideoClipMapper([], num_frames=2)(record)
    first, second = sample["instances"]
    assert first.gt_ids.tolist() == [5, -1, 8] and second.gt_ids.tolist() == [5, -1, -1]
    assert second.gt_classes.tolist() == [0, -1, -1]
    assert first.gt_boxes.tensor.tolist() == [[1, 1, 4, 4], [0, 0, 0, 0], [1, 1, 5, 5]]  # boxes made from masks


def test_frames_are_decoded_only_where_they_are_used(videos, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "lbvq.data.clip_mapper.read_image",
        lambda name, *_: opened.append(name) or np.zeros((60, 90, 3), np.uint8),
    )
    random.seed(5)
    np.random.seed(5)
    sample = VideoClipMapper([], num_frames=5, frame_range=1)(videos[1])
    assert sorted(opened) == sorted(set(sample["file_names"])) and len(opened) < 5


def test_the_channel_order_is_the_configured_one(videos):
    rgb, bgr = (VideoTestMapper.from_config(small_cfg("INPUT.FORMAT", form))(videos[0]) for form in ("RGB", "BGR"))
    assert torch.equal(rgb["image"][0], bgr["image"][0].flip(0)) and not torch.equal(rgb["image"][0], bgr["image"][0])


def test_a_test_video_equals_the_recorded_one_and_asks_for_compact_masks(videos, root):
    want, golden = recorded()["mapper"]["ytvis_test"], np.load(GOLDEN / "vis_data.npz")
    sample = VideoTestMapper.from_config(small_cfg())(videos[0])
    assert sample["dense_masks"] is False and sample["instances"] == [] and sample["frame_idx"] == want["frame_idx"]
    assert sorted(set(sample) - {"dense_masks"}) == want["keys"]
    assert [list(frame.shape) for frame in sample["image"]] == want["image_shapes"]
    for t, frame in enumerate(sample["image"]):
        assert np.abs(frame[:, ::4, ::4].numpy().astype(int) - golden[f"ytvis_test/image{t}"]).max() <= 1


def test_drawing_a_test_video_takes_no_random_number(videos):
    np.random.seed(0)
    before = np.random.get_state()[2]
    list(VideoTestMapper.from_config(small_cfg())(videos[0])["image"])
    assert np.random.get_state()[2] == before


@pytest.mark.parametrize("prefetch", [0, 2])
def test_lazy_frames_are_a_sequence_that_decodes_on_demand(prefetch, videos):
    cfg = small_cfg("DATALOADER.NUM_WORKERS", prefetch)
    frames = VideoTestMapper.from_config(cfg)(videos[1])["image"]
    dense = list(frames)
    assert len(frames) == len(dense) == 6
    assert torch.equal(frames[-1], dense[5]) and torch.equal(frames[3], dense[3])
    assert all(torch.equal(a, b) for a, b in zip(frames[1:6:2], dense[1:6:2], strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(frames))[2], dense[2])
    with pytest.raises(IndexError, match="6 frames"):
        frames[6]


def test_lazy_frames_read_no_more_than_a_few_ahead(videos):
    from lbvq.data.frames import LazyFrames

    read = []
    frames = LazyFrames([str(t) for t in range(50)], lambda name: read.append(name) or torch.zeros(1), prefetch=3)
    frames[10]
    frames._pool().shutdown(wait=True)
    assert sorted(read) == ["10", "11", "12", "13"]


def test_images_as_test_clips_equal_the_recorded_ones(images):
    want = recorded()["mapper"]["coco_test"]
    sample = ImageAsClipTestMapper.from_config(small_cfg())(images[0])
    assert sorted(sample) == want["keys"] and sample["frame_idx"] == want["frame_idx"] and sample["instances"] == []
    assert [list(image.shape) for image in sample["image"]] == want["image_shapes"]
    assert np.allclose([float(image.float().mean()) for image in sample["image"]], want["image_means"], atol=0.5)


def test_pseudo_clips_take_masks_in_any_form(images):
    record = dict(images[0])  # its third object is a crowd with a compressed mask
    record["annotations"] = [{**each, "iscrowd": 0} for each in record["annotations"]]
    sample = PseudoClipMapper([], num_frames=2)(record)
    assert sample["instances"][0].gt_ids.tolist() == [0, 1, 2] and sample["instances"][0].gt_masks.nonempty().all()


def test_an_image_without_objects_makes_a_clip_without_rows(images):
    sample = PseudoClipMapper([], num_frames=2)({**images[0], "annotations": []})
    assert [len(objects) for objects in sample["instances"]] == [0, 0]


def test_only_a_fixed_share_of_each_video_is_used_when_asked(videos):
    mapper = VideoClipMapper([], num_frames=1, frame_ratio=0.3)
    assert {mapper(videos[1])["frame_idx"][0] for _ in range(20)} == {0, 3}
    with pytest.raises(ValueError, match=r"needs INPUT\.SAMPLING_FRAME_NUM 1, got 2"):
        VideoClipMapper([], num_frames=2, frame_ratio=0.3)


# -- mistakes in the data


def test_a_missing_image_names_file_and_video(videos):
    record = {**videos[0], "file_names": ["nowhere/0.png"] * 5}
    with pytest.raises(FileNotFoundError, match=r"nowhere/0.png of video 2"):
        VideoClipMapper([], num_frames=1)(record)


def test_a_broken_image_names_file_and_video(videos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    record = {**videos[0], "file_names": [str(tmp_path / "broken.jpg")] * 5}
    with pytest.raises(OSError, match=r"broken.jpg of video 2"):
        VideoTestMapper.from_config(small_cfg())(record)["image"][0]


def test_an_image_of_another_size_is_an_error(tmp_path):
    record = load_ytvis_json(write_video_file(tmp_path, height=9), tmp_path)[0]
    with pytest.raises(ValueError, match=r"0.png has 8 x 10 pixels .* 9 x 10"):
        VideoClipMapper([], num_frames=1)({**record, "file_names": record["file_names"][:1] * 2})


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [8, 11], "counts": "X2"},
        {"size": [8, 10], "counts": "X2"},
        {"size": [8, 10], "counts": "\x00\x01"},
        [[1.0, 1.0, 5.0, 1.0, float("nan"), 5.0]],
        [[1.0, 1.0, 5.0, 1.0, "five", 5.0]],
    ],
)
def test_a_broken_mask_names_video_file_and_annotation(tmp_path, segmentation):
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square(), square()]}
    record = load_ytvis_json(write_video_file(tmp_path, [annotation]), tmp_path)[0]
    for objects in record["annotations"]:
        objects[0]["segmentation"] = segmentation
    with pytest.raises(ValueError, match=r"video 1, .*a/\d.png, annotation 3"):
        VideoClipMapper([], num_frames=1)(record)


def test_sizes_that_are_known_to_be_wrong_come_from_the_image(tmp_path):
    mask = {"size": [10, 8], "counts": [0, 16, 64]}  # height and width exchanged
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [mask, mask]}
    path = write_video_file(tmp_path, [annotation], height=10, width=8)
    record = load_ytvis_json(path, tmp_path, size_from_image=True)[0]
    sample = VideoClipMapper([], num_frames=1)(record)
    assert (sample["height"], sample["width"]) == (8, 10) and "size_from_image" not in sample
    assert sample["instances"][0].gt_masks.tensor[0].sum(1).tolist() == [2] * 8  # two columns
    test_sample = VideoTestMapper.from_config(small_cfg())(record)
    assert (test_sample["height"], test_sample["width"]) == (8, 10)
    with pytest.raises(ValueError, match="8 x 10"):
        VideoClipMapper([], num_frames=1)(load_ytvis_json(path, tmp_path)[0])


def test_images_are_turned_upright(tmp_path):
    picture = Image.fromarray(np.zeros((10, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.save(tmp_path / "side.jpg", exif=exif)
    record = {"file_name": str(tmp_path / "side.jpg"), "height": 8, "width": 10, "image_id": 1, "annotations": []}
    assert PseudoClipMapper([], num_frames=1)(record)["image"][0].shape == (3, 8, 10)


def test_grey_and_transparent_images_become_colour(tmp_path):
    for mode in ("L", "P", "RGBA"):
        Image.new(mode, (10, 8)).save(tmp_path / f"{mode}.png")
        record = {
            "file_name": str(tmp_path / f"{mode}.png"),
            "height": 8,
            "width": 10,
            "image_id": 1,
            "annotations": [],
        }
        assert PseudoClipMapper([], num_frames=1)(record)["image"][0].shape == (3, 8, 10)
