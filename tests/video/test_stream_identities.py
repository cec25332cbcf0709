"""Who is who in a stream: an object has one number whatever its class, and an answer lists it once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from frame_models import SMALL, sharp_model, sharpen_
from golden_fill import fill_, frames
from torch import Tensor, nn
from tracking_models import TRACKED
from video_models import load_cfg, small_cfg, small_model
from vit_models import PMT, TINY, VIDEOMT, cfg_of, tiny

from lbvq.inference.frames import Resize
from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.stream import StreamPredictor
from lbvq.modeling.online.segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from lbvq.modeling.online.tracking import add_logits, mean_probabilities
from mask2former.abilities import Abilities
from mask2former.registry import build_model
from mask2former.structures import ImageList


class TwoHalves(OnlineSegmenter):
    """Object 0 is the left half of a frame, object 1 the right; red, green and blue / 10 are the logits of a half.

    There are two classes, red and green; blue is "no object".
    """

    can = Abilities(online=True)
    use_quality = False

    def __init__(self, num_predictions: int) -> None:
        settings = {"num_predictions": num_predictions, "pixel_mean": [0.0] * 3, "pixel_std": [10.0] * 3}
        super().__init__(**settings, num_frames=1, size_divisibility=1, run_chunk_size=1, feature_budget_mib=1.0)

    def start_stream(self) -> StreamState:
        return {}

    def observe(self, images: ImageList, start: int) -> Evidence:
        return {"colours": images.tensor.unflatten(3, (2, -1)).mean(dim=(2, 4)).transpose(1, 2)}  # (t, 2, 3)

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        halves = torch.tensor([[[5.0, -5.0]], [[-5.0, 5.0]]]).expand(2, 4, 2).repeat_interleave(3, dim=2)
        return add_logits(state, evidence["colours"][0]), StepMasks(halves[None], torch.eye(2))

    def class_scores(self, state: StreamState) -> tuple[Tensor, None]:
        return mean_probabilities(state), None


def stream_of(model: TwoHalves) -> StreamPredictor:
    return StreamPredictor(model, resize=Resize(min_size=0))


def picture(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    """A frame of 4 x 6 pixels of two colours."""
    return np.array([[left] * 3 + [right] * 3] * 4, np.uint8)


def test_an_object_whose_best_class_changes_keeps_its_number():
    """Left, mean logits (3, 0, 0), then (1.5, 4.5, 0): red by 20.09 / 22.09, then green by 90.02 / 95.50."""
    stream = stream_of(TwoHalves(num_predictions=2))
    first = stream.step(picture(left=(30, 0, 0), right=(0, 20, 0)))
    second = stream.step(picture(left=(0, 90, 0), right=(0, 20, 0)))
    assert first.ids.tolist() == second.ids.tolist() == [1, 2]
    assert first.labels.tolist() == [0, 1] and second.labels.tolist() == [1, 1]
    np.testing.assert_allclose(first.scores, [20.0855 / 22.0855, 7.38906 / 9.38906], rtol=1e-5)
    np.testing.assert_allclose(second.scores, [90.0171 / 95.4988, 7.38906 / 9.38906], rtol=1e-5)
    assert second.masks[0, :, :3].all() and not second.masks[0, :, 3:].any()
    assert np.array_equal(second.masks[1], ~second.masks[0])


def test_a_second_class_of_one_object_does_not_take_the_place_of_another():
    """The two best pairs are both of the left half; as objects there are two halves."""
    frame = picture(left=(50, 49, 0), right=(10, 0, 50))
    model = TwoHalves(num_predictions=2)
    whole = VideoPredictor(model, resize=Resize(min_size=0))(frame[None])
    one, other = stream_of(model), stream_of(model)
    answer = one.step(frame)
    assert answer.ids.tolist() == [1, 2] and answer.labels.tolist() == [0, 0]
    other.step(frame)
    pairs, objects = one.finish(), other.finish(pairs=False)
    assert pairs == whole and pairs.labels.tolist() == [0, 1] and pairs.ids.tolist() == [1, 1]
    assert objects.ids.tolist() == [1, 2] and objects.labels.tolist() == [0, 0]
    np.testing.assert_array_equal(objects.scores, answer.scores)
    assert len(pairs.distinct()) == 1


def test_numbers_are_given_in_the_order_in_which_objects_are_reported():
    """With room for one, the right half comes first and the left half gets the next number when it is better."""
    stream = stream_of(TwoHalves(num_predictions=1))
    frame = picture(left=(10, 0, 0), right=(0, 20, 0))
    answers = [stream.step(frame), stream.step(picture(left=(90, 0, 0), right=(0, 0, 90))), stream.step(frame)]
    assert [answer.ids.tolist() for answer in answers] == [[1], [2], [2]]
    assert stream.state_dict()["ids"] == [[1, 1], [0, 2]]


def test_a_state_from_when_every_class_had_a_number_is_refused():
    stream = stream_of(TwoHalves(num_predictions=1))
    stream.step(picture((10, 0, 0), (0, 20, 0)))
    with pytest.raises(ValueError, match="saved with version 1, here it is 2"):
        stream.load_state_dict({**stream.state_dict(), "version": 1, "ids": [[1, 1, 1]]})


# -- methods


def sharpened(file: str, **changes: Any) -> tuple[nn.Module, Any]:
    cfg = load_cfg(f"synthetic/{file}", **{**SMALL, "INPUT__MIN_SIZE_TEST": 0, **changes})
    return sharpen_(fill_(build_model(cfg)), TRACKED).eval(), cfg


def framewise(file: str) -> tuple[nn.Module, Any]:
    return sharp_model(f"synthetic/{file}", **SMALL), load_cfg(f"synthetic/{file}", **SMALL, INPUT__MIN_SIZE_TEST=0)


def clipwise(method: str, **changes: Any) -> tuple[nn.Module, Any]:
    return small_model(method, **changes), small_cfg(method, **changes, INPUT__MIN_SIZE_TEST=0)


METHODS = {
    "MinVIS": lambda: framewise("minvis_R18_tiny.yaml"),
    "VISAGE": lambda: framewise("visage_R18_tiny.yaml"),
    "DVIS++": lambda: sharpened("dvis_R18_tiny_online.yaml"),
    "GenVIS": lambda: clipwise("genvis"),
    "GenVIS, semi-online": lambda: clipwise("genvis", MODEL__GENVIS__LEN_CLIP_WINDOW=3, INPUT__SAMPLING_FRAME_NUM=6),
    "LBVQ, frames matched": lambda: clipwise("lbvq", TEST__MATCH_FRAMES=True),
    "VidEoMT": lambda: (tiny(VIDEOMT), cfg_of({**VIDEOMT, **TINY}, INPUT__MIN_SIZE_TEST=0)),
    "PMT": lambda: (tiny(PMT), cfg_of({**PMT, **TINY}, INPUT__MIN_SIZE_TEST=0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_there_are_never_more_numbers_than_queries(name):
    """Eight queries and 13 classes: each answer has a number at most once, and no number is above eight."""
    model, cfg = METHODS[name]()
    stream = StreamPredictor(model, cfg=cfg)
    answers = stream.steps(frames(9, 48, 64, seed=1).permute(0, 2, 3, 1).numpy())
    for answer in answers:
        assert 0 < len(answer) == len(set(answer.ids.tolist())) and set(answer.ids.tolist()) <= set(range(1, 9))
    track = stream.finish()
    assert len(track) >= len(set(track.ids.tolist())) and set(track.ids.tolist()) <= set(answers[-1].ids.tolist())


def test_a_track_that_ctvis_ends_takes_its_number_with_it():
    """An object that comes later is another track: as many numbers as tracks were reported, each of one object."""
    early = {"MODEL__TRACKER__NOISE_FRAME_NUM": 2, "MODEL__TRACKER__MEMORY_BANK__NUM_DEAD_FRAMES": 2}
    model, cfg = sharpened("ctvis_R18_tiny.yaml", **early)
    stream = StreamPredictor(model, cfg=cfg)
    answers = stream.steps(frames(9, 48, 64, seed=1).permute(0, 2, 3, 1).numpy())
    seen = {identity for answer in answers for identity in answer.ids.tolist()}
    state = stream.state_dict()
    assert seen == set(range(1, len(seen) + 1)) and len(seen) <= state["state"]["num_rows"]
    assert all(len(answer) == len(set(answer.ids.tolist())) for answer in answers)
    assert seen > set(answers[-1].ids.tolist())
