"""Refining results files: interrupted runs, wrong files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lbvq.masks import rle
from lbvq.masks.tubes import MaskTubes
from lbvq.refine import refine_results

SIZE = (20, 30)


class Grow:
    """A refiner that adds the top left pixel, and can be told to fail at a frame."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def refine(self, frame, masks):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        grown = masks.copy()
        grown[:, 0, 0] = True
        return grown


def write_results(path, num_videos=3):
    """Two entries in each video of two frames; the first is not visible in the second frame."""
    masks = np.zeros((2, 2, *SIZE), dtype=bool)
    masks[0, 0, 5:9, 5:9] = masks[1, :, 10:15, 2:8] = True
    tubes = MaskTubes.from_dense(masks)
    empty = rle.to_rle([], *SIZE)
    entries = [
        {
            "video_id": video_id,
            "score": 0.9 - 0.5 * n,
            "category_id": 1 + n,
            "segmentations": [mask or empty for mask in tubes.rles(n)],
            "note": "kept",
        }
        for video_id in range(num_videos)
        for n in range(2)
    ]
    path.write_text(json.dumps(entries))
    return entries


def open_frames(_video_id):
    return [np.zeros((*SIZE, 3), dtype=np.uint8)] * 2


def test_every_visible_mask_is_refined_and_everything_else_is_kept(tmp_path):
    before = write_results(tmp_path / "results.json")
    report = refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow())
    after = json.loads((tmp_path / "out.json").read_text())
    assert (report.frames, report.masks, report.changed) == (6, 9, 9)
    for old, new in zip(before, after, strict=True):
        assert {**new, "segmentations": None} == {**old, "segmentations": None}
        for mask, grown in zip(old["segmentations"], new["segmentations"], strict=True):
            assert rle.area(grown) == rle.area(mask) + (rle.area(mask) > 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "results.json"]


def test_an_interrupted_run_goes_on_and_gives_the_same_file(tmp_path):
    write_results(tmp_path / "results.json")
    refine_results(tmp_path / "results.json", tmp_path / "whole.json", open_frames, Grow())
    with pytest.raises(KeyboardInterrupt):
        refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow(fail_at=4))
    assert not (tmp_path / "out.json").exists()
    with (tmp_path / "out.json.partial").open("a") as file:
        file.write('{"video_id": 1, "rep')  # a line cut off by a kill
    second = Grow()
    report = refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, second)
    assert (tmp_path / "out.json").read_text() == (tmp_path / "whole.json").read_text()
    assert second.calls == 4 and report.frames == 6


def test_an_interrupted_run_with_other_settings_is_refused(tmp_path):
    write_results(tmp_path / "results.json")
    with pytest.raises(KeyboardInterrupt):
        refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow(fail_at=4), settings="a")
    with pytest.raises(ValueError, match="other settings; delete it"):
        refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow(), settings="b")


def test_entries_below_the_score_threshold_are_kept(tmp_path):
    before = write_results(tmp_path / "results.json", 1)
    refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow(), score_threshold=0.5)
    after = json.loads((tmp_path / "out.json").read_text())
    assert after[1] == before[1] and after[0] != before[0]


def test_an_empty_results_file_gives_an_empty_one(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    assert refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow()).frames == 0
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_the_results_file_is_never_overwritten(tmp_path):
    write_results(tmp_path / "results.json")
    with pytest.raises(ValueError, match="choose another output"):
        refine_results(tmp_path / "results.json", tmp_path / "results.json", open_frames, Grow())


def test_a_broken_mask_is_named_by_file_video_and_frame(tmp_path):
    entries = write_results(tmp_path / "results.json")
    entries[3]["segmentations"][1]["counts"] = "~~"
    (tmp_path / "results.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"results\.json, video 1, object 1, frame 1"):
        refine_results(tmp_path / "results.json", tmp_path / "out.json", open_frames, Grow())
