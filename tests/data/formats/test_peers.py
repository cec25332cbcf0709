"""Files that other programs have written (tests/peers), and our files read by other programs."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from label_cases import PEERS, classes, dense, note, read
from pycocotools.coco import COCO

from lbvq.data.formats import FORMATS, WriteOptions
from lbvq.data.formats.labels import Frame, Labels, Video
from lbvq.data.formats.shapes import polygon_mask
from lbvq.masks.rle import decode

sys.path.insert(0, str(PEERS))
import scene

SIZE = (scene.HEIGHT, scene.WIDTH)


def assert_is_scene(labels: Labels, shown: dict | None = None) -> None:
    """The labels are the scene's: classes, ids and every pixel."""
    (video,) = labels.videos
    want = {t: scene.masks(t) for t in range(scene.NUM_FRAMES)} if shown is None else shown
    assert video.size == SIZE and len(video.frames) == scene.NUM_FRAMES
    for number, name in scene.TRACKS.items():
        assert classes(labels)[number] == name
        found = dense(video, number)
        assert set(found) == {t for t in want if number in want[t]}
        assert all(np.array_equal(mask, want[t][number]) for t, mask in found.items())


def polygons() -> dict[int, dict[int, np.ndarray]]:
    frames = range(scene.NUM_FRAMES)
    return {t: {n: decode(polygon_mask(c, SIZE, "")) for n, c in scene.corners(t).items()} for t in frames}


# ---- what they wrote


def test_masks_in_tracks_of_cvat_as_datumaro_writes_them():
    labels = read(PEERS / "cvat_masks.zip", "cvat")
    assert_is_scene(labels)
    assert list(labels.categories.values()) == list(scene.CLASSES) and not labels.notes


def test_polygons_in_groups_of_cvat_images_as_datumaro_writes_them():
    labels = read(PEERS / "cvat_images.zip", "cvat")
    assert_is_scene(labels, polygons())
    assert note(labels, "do not say whose") == note(labels, "boxes") == scene.NUM_FRAMES  # the box, in every frame


def test_keyframes_of_cvat_as_datumaro_writes_them_are_interpolated():
    labels = read(PEERS / "cvat_keyframes.zip", "cvat")
    (video,) = labels.videos
    moved = dense(video, 1)
    assert all(np.array_equal(moved[t], polygons()[t][1]) for t in range(scene.NUM_FRAMES))  # it moves steadily
    assert sorted(dense(video, 2)) == [1, 2] and sorted(dense(video, 9)) == [2, 3, 4]
    box = dense(video, 9)[4]
    assert box.sum() == 24 and box[30:34, 2:8].all()
    assert note(labels, "interpolated") == 4 and note(labels, "after the last keyframe") == 2


def test_mots_pngs_as_datumaro_writes_them():
    labels = read(PEERS / "mots.zip", "mots")
    assert_is_scene(labels)
    assert [frame.number for frame in labels.videos[0].frames] == list(range(scene.NUM_FRAMES))


def test_masks_in_the_colours_of_a_palette_as_datumaro_writes_them():
    labels = read(PEERS / "palette.zip", "davis")
    for track in labels.videos[0].tracks:  # numbers are places in the frame, there are no classes
        track.id, track.category_id = {1: (1, 2), 2: (2, 3), 3: (7, 2)}[track.id]
    labels.categories = {2: "cat", 3: "dog"}
    assert_is_scene(labels)


def test_coco_with_tracks_as_datumaro_writes_it_and_what_it_calls_crowds_are_objects():
    labels = read(PEERS / "coco.zip", "coco")
    assert_is_scene(labels)
    assert not any(track.is_crowd for track in labels.videos[0].tracks) and note(labels, "crowds") == 12


def test_labelme_files_as_labelme_writes_them():
    labels = read(PEERS / "labelme.zip", "labelme")
    assert_is_scene(labels)
    assert note(labels, "do not say whose") == 3 and note(labels, "point") == 1 and note(labels, "boxes") == 1
    assert labels.videos[0].frames[1].name == "1.png"
    others = sorted(
        mask.sum() for n in classes(labels) if n not in scene.TRACKS for mask in dense(labels.videos[0], n).values()
    )
    polygon = polygons()[0][2].sum()
    circle = [area for area in others if area not in (polygon, 24)]
    assert len(others) == 3 and abs(circle[0] - np.pi * 25) < 8


def test_the_picture_inside_a_labelme_file_is_the_frame(tmp_path):
    from lbvq.data.formats.frames import FrameFinder

    with zipfile.ZipFile(PEERS / "labelme.zip") as archive:
        archive.extractall(tmp_path)
    video = read(tmp_path, "labelme").videos[0]
    assert FrameFinder([tmp_path]).find(video).images == (None,) * scene.NUM_FRAMES
    (tmp_path / "frame.png").write_bytes(video.frames[3].pixels())
    from lbvq.files.images import read_image

    assert np.array_equal(read_image(tmp_path / "frame.png"), scene.image(3))


def test_brushes_as_label_studio_encodes_them():
    labels = read(PEERS / "label_studio.json", "label_studio")
    assert_is_scene(labels)
    assert [frame.name for frame in labels.videos[0].frames] == [f"frame{t}.png" for t in range(scene.NUM_FRAMES)]


def test_boxes_of_a_video_move_as_label_studio_moves_them(tmp_path):
    content = json.loads((PEERS / "label_studio_video.json").read_text())
    (tmp_path / "tasks.json").write_text(json.dumps(content["tasks"]))
    labels = read(tmp_path / "tasks.json", "label_studio", size_of=lambda *_: (100, 200))
    (video,) = labels.videos
    found = dense(video, 1)
    numbers = {video.frames[t].number + 1: mask for t, mask in found.items()}
    assert sorted(numbers) == [frame["frame"] for frame in content["frames"]]
    for frame in content["frames"]:
        mask = numbers[frame["frame"]]
        assert abs(mask.sum() - frame["width"] * 2 * frame["height"]) <= 0.03 * mask.sum()
        if not frame["rotation"]:
            left = np.flatnonzero(mask.any(axis=0))[0]
            assert abs(left - 2 * frame["x"]) <= 1
    assert video.num_source_frames == 12 and classes(labels) == {1: "dog"} and video.name == "clips/run"


def test_run_lengths_and_polygons_as_scalabel_writes_them():
    labels = read(PEERS / "scalabel.json", "scalabel")
    (crowd,) = [track for track in labels.videos[0].tracks if track.is_crowd]
    assert np.array_equal(decode(crowd.masks[4]), polygons()[4][2])
    assert note(labels, "box2d") == scene.NUM_FRAMES
    assert_is_scene(labels)


# ---- what they read of ours


def our_scene() -> Labels:
    labels = read(PEERS / "mots.zip", "mots")
    labels.videos[0].name = "clip"
    labels.videos[0].frames = [Frame(f"clip/{t:06d}.png", t) for t in range(scene.NUM_FRAMES)]
    return labels


def write(name: str, folder: Path) -> Path:
    FORMATS[name].write(our_scene(), folder, WriteOptions())
    return folder


def test_a_youtube_vis_file_that_labelformat_writes_is_read_and_what_it_calls_crowds_are_objects(tmp_path):
    formats = pytest.importorskip("labelformat.formats.youtubevis")
    from labelformat.model import binary_mask_segmentation, bounding_box, category, instance_segmentation_track, video

    clip = video.Video(id=4, filename="clip", width=scene.WIDTH, height=scene.HEIGHT, number_of_frames=scene.NUM_FRAMES)
    names = {name: category.Category(id=index, name=name) for index, name in enumerate(scene.CLASSES)}

    def segmentation(mask: np.ndarray) -> binary_mask_segmentation.BinaryMaskSegmentation:
        box = bounding_box.BoundingBox(*map(float, (0, 0, scene.WIDTH, scene.HEIGHT)))  # not looked at
        return binary_mask_segmentation.BinaryMaskSegmentation.from_binary_mask(mask.astype(np.uint8), box)

    def track(number: int, name: str) -> instance_segmentation_track.SingleInstanceSegmentationTrack:
        shown = [scene.masks(t).get(number) for t in range(scene.NUM_FRAMES)]
        masks = [None if mask is None else segmentation(mask) for mask in shown]
        return instance_segmentation_track.SingleInstanceSegmentationTrack(names[name], masks, number)

    class Given(instance_segmentation_track.InstanceSegmentationTrackInput):
        add_cli_arguments = staticmethod(lambda parser: None)
        get_categories = lambda self: names.values()  # noqa: E731
        get_videos = lambda self: [clip]  # noqa: E731

        def get_labels(self):
            objects = [track(*pair) for pair in scene.TRACKS.items()]
            yield instance_segmentation_track.VideoInstanceSegmentationTrack(clip, objects)

    formats.YouTubeVISInstanceSegmentationTrackOutput(tmp_path / "theirs.json").save(Given())
    labels = read(tmp_path / "theirs.json", "ytvis")
    assert note(labels, "crowds") == len(scene.TRACKS) and labels.categories == {0: "cat", 1: "dog"}
    assert_is_scene(labels)


def test_trackeval_reads_our_mots_text_and_finds_it_perfect(tmp_path):
    trackeval = pytest.importorskip("trackeval")
    truth = tmp_path / "gt" / "label_02"
    tracker = tmp_path / "trackers" / "ours" / "data"
    for folder in (truth, tracker):
        folder.mkdir(parents=True)
        write("mots_text", folder)
    dataset = trackeval.datasets.KittiMOTS(
        {
            "GT_FOLDER": str(tmp_path / "gt"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "GT_LOC_FORMAT": "{gt_folder}/label_02/{seq}.txt",
            "SEQ_INFO": {"clip": scene.NUM_FRAMES},
            "PRINT_CONFIG": False,
        }
    )
    raw = dataset.get_raw_seq_data("ours", "clip")
    data = dataset.get_preprocessed_seq_data(raw, "pedestrian")
    assert data["num_timesteps"] == scene.NUM_FRAMES and data["num_gt_dets"] == 5  # class 2 is their pedestrian
    hota = trackeval.metrics.HOTA({"PRINT_CONFIG": False}).eval_sequence(data)
    assert np.allclose(hota["HOTA"], 1)


def test_pycocotools_reads_our_coco_file(tmp_path, capsys):
    coco = COCO(str(write("coco", tmp_path) / "instances.json"))
    assert len(coco.imgs) == scene.NUM_FRAMES and {each["name"] for each in coco.cats.values()} == set(scene.CLASSES)
    for annotation in coco.anns.values():
        want = scene.masks(coco.imgs[annotation["image_id"]]["frame_id"])[annotation["track_id"]]
        assert np.array_equal(coco.annToMask(annotation).astype(bool), want)
        assert annotation["area"] == want.sum()
        assert np.allclose(annotation["bbox"], coco_mask.toBbox(annotation["segmentation"]))


def test_labels_of_a_video_without_objects_are_read_too(tmp_path):
    labels = Labels({1: "cat"}, [Video("v", [Frame("v/0")], size=(2, 2))])
    FORMATS["ytvis"].write(labels, tmp_path, WriteOptions())
    assert read(tmp_path, "ytvis").videos[0].tracks == []
