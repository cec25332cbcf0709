"""MinVIS and VISAGE frame by frame through `StreamPredictor`, and in pieces of several frames, as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from frame_models import SMALL, sharp_model
from golden_fill import frames
from video_models import load_cfg

from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.stream import StreamPredictor
from lbvq.modeling.online.segmenter import OnlineSegmenter

VIDEO = frames(9, 48, 64, seed=1).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)


@pytest.fixture(scope="module", params=["minvis", "visage"])
def pair(request):
    """A model and its configuration; frames keep their size."""
    file = f"synthetic/{request.param}_R18_tiny.yaml"
    return sharp_model(file, **SMALL), load_cfg(file, **SMALL, INPUT__MIN_SIZE_TEST=0)


def test_a_stream_finds_what_the_whole_video_gives(pair):
    model, cfg = pair
    want = VideoPredictor(model, cfg=cfg)(VIDEO)
    stream = StreamPredictor(model, cfg=cfg)
    stream.steps(VIDEO)
    got = stream.finish()
    assert got.labels.tolist() == want.labels.tolist()
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    assert got.masks == want.masks


def test_answers_to_the_first_frames_do_not_depend_on_what_follows(pair):
    model, cfg = pair
    answers = StreamPredictor(model, cfg=cfg).steps(VIDEO)
    others = StreamPredictor(model, cfg=cfg).steps([*VIDEO[:5], *VIDEO[:3]])
    for one, other in zip(answers[:5], others[:5], strict=True):
        for name in ("masks", "scores", "labels", "ids"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(answers[5].masks, others[5].masks)


def test_a_stream_goes_on_elsewhere_from_a_saved_state(pair):
    """Saved after 7 frames, when the memory of 5 has rolled over."""
    model, cfg = pair
    first, second = StreamPredictor(model, cfg=cfg), StreamPredictor(model, cfg=cfg)
    first.steps(VIDEO[:7])
    second.load_state_dict(first.state_dict())
    first.steps(VIDEO[7:])
    second.steps(VIDEO[7:])
    one, other = first.finish(), second.finish()
    assert one.masks == other.masks and np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize("step", [2, 4, 30])
def test_results_do_not_depend_on_the_window(pair, monkeypatch, step):
    """Up to rounding, which libraries do otherwise for other batch sizes."""
    model, _ = pair
    video = [torch.from_numpy(frame).permute(2, 0, 1) for frame in VIDEO]
    want = model([{"image": video}])
    monkeypatch.setattr(OnlineSegmenter, "encode_step", step)
    got = model([{"image": video}])
    assert got["pred_labels"] == want["pred_labels"]
    assert got["pred_scores"] == pytest.approx(want["pred_scores"], rel=1e-4)
    assert (got["pred_masks"] != want["pred_masks"]).float().mean() < 1e-3
