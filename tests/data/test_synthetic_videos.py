"""The built-in data set: what its videos hold, and what lies on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lbvq.data.categories import class_names
from lbvq.data.synthetic import SyntheticSettings, make_video, video_annotations, write_dataset
from lbvq.masks.rle import decode

SMALL = SyntheticSettings(height=48, width=64, num_frames=4, min_radius=6, max_radius=10, max_speed=3)


@pytest.fixture(scope="module")
def videos():
    return [make_video([7, number]) for number in range(24)]


def test_a_seed_gives_one_video():
    first, again, other = make_video(3), make_video(3), make_video(4)
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.frames, other.frames)


def test_a_video_has_the_promised_form(videos):
    for video in videos:
        assert video.frames.shape == (10, 96, 128, 3) and video.frames.dtype == np.uint8
        assert 2 <= len(video.classes) <= 4 and video.masks.shape == (len(video.classes), 10, 96, 128)
    assert {label for video in videos for label in video.classes} == set(range(len(class_names("synthetic"))))


def test_masks_are_visible_parts_so_they_never_overlap(videos):
    assert all(video.masks.sum(0).max() <= 1 for video in videos)


def test_objects_cover_each_other_enter_late_leave_and_return(videos):
    presence = [present for video in videos for present in video.masks.any((2, 3))]
    late = [present for present in presence if not present[0] and present.any()]
    gone_and_back = [p for p in presence if (np.diff(p.astype(int)) == -1).any() and _returns(p)]
    assert late and gone_and_back
    areas = np.concatenate([video.masks.sum((2, 3)) for video in videos])
    assert ((areas > 0) & (areas < 0.5 * areas.max(1, keepdims=True))).any()  # half hidden


def _returns(present: np.ndarray) -> bool:
    """Present, absent, present again."""
    gone = np.flatnonzero(np.diff(present.astype(int)) == -1)
    return bool(len(gone)) and bool(present[gone[0] + 1 :].any())


def test_colour_does_not_tell_the_class(videos):
    """The mean colours of the classes differ by no more than chance allows."""
    colours: dict[int, list[np.ndarray]] = {}
    for video in videos:
        for masks, label in zip(video.masks, video.classes, strict=True):
            if masks.any():
                colours.setdefault(label, []).append(video.frames[masks].mean(0))
    within = np.mean([np.std(values, axis=0).mean() for values in colours.values()])
    between = np.std([np.mean(values, axis=0) for values in colours.values()], axis=0).mean()
    assert between < 0.7 * within


def test_a_video_may_be_without_objects():
    video = make_video(0, SyntheticSettings(min_objects=0, max_objects=0))
    assert video.masks.shape == (0, 10, 96, 128) and video_annotations(video) == []


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="min_objects"):
        SyntheticSettings(min_objects=3, max_objects=2)
    with pytest.raises(ValueError, match="16 x 16"):
        SyntheticSettings(height=8)
    with pytest.raises(ValueError, match="num_train"):
        write_dataset("unused", num_train=-1)


def test_the_written_data_set_is_what_was_drawn(tmp_path):
    files = write_dataset(tmp_path, num_train=2, num_val=1, seed=5, settings=SMALL)
    content = json.loads(files["train"].read_text())
    assert [video["id"] for video in content["videos"]] == [1, 2]
    assert [category["name"] for category in content["categories"]] == class_names("synthetic")
    assert [annotation["id"] for annotation in content["annotations"]] == [
        *range(1, len(content["annotations"]) + 1),
    ]
    video = make_video([5, 0, 2], SMALL)
    annotations = [annotation for annotation in content["annotations"] if annotation["video_id"] == 2]
    shown = [masks for masks in video.masks if masks.any()]
    for annotation, masks in zip(annotations, shown, strict=True):
        for t, rle in enumerate(annotation["segmentations"]):
            if rle is None:
                assert not masks[t].any() and annotation["bboxes"][t] is None and annotation["areas"][t] is None
                continue
            assert np.array_equal(decode(rle), masks[t]) and annotation["areas"][t] == masks[t].sum()
            y, x = np.nonzero(masks[t])
            assert annotation["bboxes"][t] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
    frame = np.asarray(Image.open(tmp_path / "synthetic/train/JPEGImages" / content["videos"][1]["file_names"][3]))
    assert np.abs(frame.astype(int) - video.frames[3]).mean() < 8  # JPEG


def test_no_video_is_in_both_splits(tmp_path):
    files = write_dataset(tmp_path, num_train=1, num_val=1, settings=SMALL)
    train, val = (json.loads(file.read_text())["annotations"] for file in files.values())
    assert train[0]["segmentations"] != val[0]["segmentations"]


def test_a_finished_split_is_kept_and_another_one_is_not_overwritten_silently(tmp_path):
    file = write_dataset(tmp_path, num_train=1, num_val=0, settings=SMALL)["train"]
    before = file.stat().st_mtime_ns
    write_dataset(tmp_path, num_train=1, num_val=0, settings=SMALL)
    assert file.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"'num_videos': \(2, 1\)"):
        write_dataset(tmp_path, num_train=2, num_val=0, settings=SMALL)
    write_dataset(tmp_path, num_train=2, num_val=0, settings=SMALL, overwrite=True)
    assert len(json.loads(file.read_text())["videos"]) == 2


def test_an_interrupted_run_is_done_again(tmp_path):
    file = write_dataset(tmp_path, num_train=1, num_val=0, settings=SMALL)["train"]
    file.unlink()
    (tmp_path / "synthetic/train/JPEGImages/leftover").mkdir()
    write_dataset(tmp_path, num_train=1, num_val=0, settings=SMALL)
    assert file.exists() and not (tmp_path / "synthetic/train/JPEGImages/leftover").exists()
