"""Segmenting frame by frame: the same as the whole video, whatever the grouping, with a state that can be saved."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from golden_fill import frames
from video_models import small_cfg, small_model

from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.results import FramePrediction, VideoPrediction
from lbvq.inference.stream import StreamPredictor

VIDEO = frames(7, 50, 70, seed=1).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
METHODS = {
    "online": {"method": "genvis"},
    "semi_online": {"method": "genvis", "MODEL__GENVIS__LEN_CLIP_WINDOW": 3, "INPUT__SAMPLING_FRAME_NUM": 6},
    "matched": {"method": "lbvq", "TEST__MATCH_FRAMES": True},
}
FEW = {"TEST__DETECTIONS_PER_IMAGE": 6}


@pytest.fixture(scope="module", params=list(METHODS))
def pair(request):
    """A model and its configuration; frames keep their size."""
    settings = {**METHODS[request.param], **FEW}
    cfg = small_cfg(**settings, INPUT__MIN_SIZE_TEST=0)
    return small_model(**settings), cfg


def stream_of(pair, **settings) -> StreamPredictor:
    return StreamPredictor(pair[0], cfg=pair[1], **settings)


def same_frame(one: FramePrediction, other: FramePrediction) -> None:
    for name in ("masks", "scores", "labels", "ids"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def same_video(one: VideoPrediction, other: VideoPrediction) -> None:
    assert one.masks == other.masks
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.ids, other.ids)


def saved_and_loaded(state):
    """Through a file, without free unpickling."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_end_of_a_stream_is_what_the_whole_video_gives(pair):
    want = VideoPredictor(pair[0], cfg=pair[1])(VIDEO)
    stream = stream_of(pair)
    stream.steps(VIDEO)
    got = stream.finish()
    assert got.labels.tolist() == want.labels.tolist()
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    assert got.masks.shape == want.masks.shape == (6, 7, 50, 70)
    assert (got.masks.to_dense() != want.masks.to_dense()).float().mean() < 1e-4


def test_frames_taken_ahead_of_the_network_give_the_same_and_an_error_comes_at_its_frame(pair, monkeypatch):
    def damaged():
        yield from VIDEO[:3]
        raise ValueError("damaged frame 3")

    want = stream_of(pair).steps(VIDEO[:3])
    monkeypatch.setattr(type(pair[0]), "reads_ahead", True)
    for got, wanted in zip(stream_of(pair).steps(iter(VIDEO[:3])), want, strict=True):
        same_frame(got, wanted)
    stream = stream_of(pair)
    with pytest.raises(ValueError, match="damaged frame 3"):
        stream.steps(damaged())
    assert stream.num_frames == 3
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_each_frame_is_answered_by_objects_with_masks_of_its_size(pair):
    stream = stream_of(pair)
    for count, frame in enumerate(VIDEO, start=1):
        objects = stream.step(frame)
        assert isinstance(objects, FramePrediction)
        assert objects.masks.shape == (6, 50, 70) and objects.masks.dtype == bool
        assert objects.scores.tolist() == sorted(objects.scores.tolist(), reverse=True)
        assert len(set(objects.ids.tolist())) == 6 and objects.ids.min() >= 1
        assert stream.num_frames == count


def test_the_answer_is_what_would_be_found_if_the_video_ended_here(pair):
    stream = stream_of(pair)
    for length in range(1, 6):
        objects = stream.step(VIDEO[length - 1])
        ended = stream_of(pair)
        ended.steps(VIDEO[:length])
        prediction = ended.finish(pairs=False)
        assert objects.labels.tolist() == prediction.labels.tolist()
        assert objects.ids.tolist() == prediction.ids.tolist()
        np.testing.assert_allclose(objects.scores, prediction.scores, rtol=1e-5)
        assert (objects.masks != prediction.masks.frame(-1).numpy()).mean() < 1e-4


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_saved_stream_goes_on_in_another_predictor(pair, cut):
    whole, first, second = stream_of(pair), stream_of(pair), stream_of(pair)
    want = whole.steps(VIDEO)
    first.steps(VIDEO[:cut])
    state = saved_and_loaded(first.state_dict())
    first.step(VIDEO[0])  # what is saved does not change any more
    second.step(VIDEO[3])  # and what was there before is forgotten
    second.load_state_dict(state)
    for one, other in zip(second.steps(VIDEO[cut:]), want[cut:], strict=True):
        same_frame(one, other)
    same_video(second.finish(), whole.finish())


def test_two_streams_of_one_model_do_not_touch_each_other(pair):
    alone, one, other = stream_of(pair), stream_of(pair), stream_of(pair)
    want = alone.steps(VIDEO)
    for t, frame in enumerate(VIDEO):
        same_frame(one.step(frame), want[t])
        other.step(VIDEO[-1 - t])


def test_grouping_of_frames_does_not_matter(pair):
    single, grouped = stream_of(pair), stream_of(pair)
    for frame in VIDEO:
        single.step(frame)
    for group in (VIDEO[:2], VIDEO[2:3], VIDEO[3:]):
        grouped.steps(group)
    same_video(single.finish(), grouped.finish())


def test_frames_may_be_tensors_with_channels_first(pair):
    one, other = stream_of(pair), stream_of(pair)
    same_frame(one.step(VIDEO[0]), other.step(torch.from_numpy(VIDEO[0]).permute(2, 0, 1)))


def test_after_finish_a_new_stream_starts(pair):
    stream = stream_of(pair)
    stream.steps(VIDEO[:3])
    first = stream.finish()
    assert stream.num_frames == 0
    stream.steps(VIDEO[:3])
    same_video(stream.finish(), first)


def test_without_masks_the_answers_are_the_same_and_there_is_no_end(pair):
    keeping, light = stream_of(pair), stream_of(pair, keep_masks=False)
    for frame in VIDEO[:4]:
        same_frame(light.step(frame), keeping.step(frame))
    other = stream_of(pair, keep_masks=False)
    other.load_state_dict(saved_and_loaded(light.state_dict()))
    same_frame(other.step(VIDEO[4]), keeping.step(VIDEO[4]))
    with pytest.raises(ValueError, match="keep_masks=True"):
        light.finish()


def test_a_stream_without_frames_has_no_end(pair):
    with pytest.raises(ValueError, match="no frames"):
        stream_of(pair).finish()


@pytest.mark.parametrize(
    "frame", [np.zeros((50, 60, 3), np.uint8), np.zeros((50, 70, 3)), np.zeros((50, 70), np.uint8)]
)
def test_a_wrong_frame_is_refused_and_changes_nothing(pair, frame):
    stream, other = stream_of(pair), stream_of(pair)
    stream.step(VIDEO[0])
    other.step(VIDEO[0])
    with pytest.raises(ValueError, match="frame 1"):
        stream.step(frame)
    same_frame(stream.step(VIDEO[1]), other.step(VIDEO[1]))


def test_frames_are_resized_as_for_whole_videos():
    settings = {**METHODS["online"], **FEW}
    model, cfg = small_model(**settings), small_cfg(**settings, INPUT__MIN_SIZE_TEST=96)
    stream = StreamPredictor(model, cfg=cfg)
    assert stream.step(VIDEO[0]).masks.shape == (6, 50, 70)
    want, got = VideoPredictor(model, cfg=cfg)(VIDEO[:1]), stream.finish()
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)


def test_a_stream_of_another_model_is_refused():
    one, other = (
        StreamPredictor(small_model("genvis", MODEL__GENVIS__LEN_CLIP_WINDOW=1, **more))
        for more in ({}, {"MODEL__VITA__DEC_LAYERS": 1})
    )
    one.step(VIDEO[0])
    with pytest.raises(ValueError, match="saved with model 'Genvis"):
        other.load_state_dict(one.state_dict())


def test_an_offline_method_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"Lbvq needs all frames .* TEST.MATCH_FRAMES"):
        StreamPredictor(small_model())


def test_refinement_is_announced_as_ignored(caplog):
    stream = StreamPredictor(small_model("genvis"), cfg=small_cfg("genvis", SAM=True))
    assert "not refined" in caplog.text
    assert len(stream.step(VIDEO[0])) > 0


def test_a_configuration_without_weights_is_untrained():
    assert not StreamPredictor(small_cfg("genvis")).is_trained
