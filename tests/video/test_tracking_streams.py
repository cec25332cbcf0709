"""CTVIS, DVIS and DVIS++ frame by frame, in pieces, from a saved state; and what they refuse."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from frame_models import sharpen_
from golden_fill import fill_, frames
from tracking_models import TRACKED
from video_models import load_cfg

from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.stream import StreamPredictor
from lbvq.modeling.online.segmenter import OnlineSegmenter
from mask2former.registry import build_model

VIDEO = frames(9, 48, 64, seed=1).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
SMALL = {"MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 8, "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 13, "INPUT__MIN_SIZE_TEST": 0}
CTVIS, ONLINE = "synthetic/ctvis_R18_tiny.yaml", "synthetic/dvis_R18_tiny_online.yaml"
EARLY = {"MODEL__TRACKER__NOISE_FRAME_NUM": 2, "MODEL__TRACKER__MEMORY_BANK__NUM_DEAD_FRAMES": 2}
METHODS = {
    "CTVIS": (CTVIS, EARLY),
    "CTMinVIS": (
        CTVIS,
        {
            "MODEL__META_ARCHITECTURE": "CTMinVIS",
            "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "VideoMultiScaleMaskedTransformerDecoder_dvisPlus",
        },
    ),
    "DVIS++": (ONLINE, {}),
    "DVIS++ without vectors": (ONLINE, {"MODEL__MASK_FORMER__REID_BRANCH": False}),
    "DVIS": (
        ONLINE,
        {
            "MODEL__META_ARCHITECTURE": "DVIS_online",
            "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "VideoMultiScaleMaskedTransformerDecoder_dvis",
        },
    ),
}


def small_model(name: str, **changes):
    """A model and its configuration; frames keep their size."""
    file, settings = METHODS[name]
    cfg = load_cfg(file, **{**SMALL, **settings, **changes})
    return sharpen_(fill_(build_model(cfg)), TRACKED).eval(), cfg


@pytest.fixture(scope="module", params=list(METHODS))
def pair(request):
    return small_model(request.param)


def stream_of(pair, **settings) -> StreamPredictor:
    return StreamPredictor(pair[0], cfg=pair[1], **settings)


def same(one, other, *names: str) -> None:
    for name in names:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_a_stream_finds_what_the_whole_video_gives(pair):
    want = VideoPredictor(pair[0], cfg=pair[1])(VIDEO)
    stream = stream_of(pair)
    stream.steps(VIDEO)
    got = stream.finish()
    assert len(want) > 0 and want.masks.areas().any()
    assert got.labels.tolist() == want.labels.tolist()
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    assert got.masks == want.masks


def test_the_answer_is_what_would_be_found_if_the_video_ended_here(pair):
    stream = stream_of(pair)
    for length in range(1, 7):
        objects = stream.step(VIDEO[length - 1])
        ended = stream_of(pair)
        ended.steps(VIDEO[:length])
        prediction = ended.finish(pairs=False)
        assert objects.labels.tolist() == prediction.labels.tolist()
        assert objects.ids.tolist() == prediction.ids.tolist()
        np.testing.assert_allclose(objects.scores, prediction.scores, rtol=1e-5)
        assert np.array_equal(objects.masks, prediction.masks.frame(-1).numpy())


def test_answers_to_the_first_frames_do_not_depend_on_what_follows(pair):
    answers = stream_of(pair).steps(VIDEO)
    others = stream_of(pair).steps([*VIDEO[:5], *VIDEO[:3]])
    for one, other in zip(answers[:5], others[:5], strict=True):
        same(one, other, "masks", "scores", "labels", "ids")


@pytest.mark.parametrize("keep_masks", [True, False])
def test_a_stream_goes_on_elsewhere_from_a_saved_state(pair, keep_masks):
    first, second = (stream_of(pair, keep_masks=keep_masks) for _ in range(2))
    first.steps(VIDEO[:5])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for one, other in zip(first.steps(VIDEO[5:]), second.steps(VIDEO[5:]), strict=True):
        same(one, other, "masks", "scores", "labels", "ids")
    if keep_masks:
        one, other = first.finish(), second.finish()
        assert one.masks == other.masks
        same(one, other, "scores", "ids")


@pytest.mark.parametrize("step", [4, 30])
def test_results_do_not_depend_on_the_window(pair, monkeypatch, step):
    """Up to rounding, which libraries do otherwise for other batch sizes."""
    video = [torch.from_numpy(frame).permute(2, 0, 1) for frame in VIDEO]
    want = pair[0]([{"image": video}])
    monkeypatch.setattr(OnlineSegmenter, "encode_step", step)
    got = pair[0]([{"image": video}])
    assert got["pred_labels"] == want["pred_labels"]
    assert got["pred_scores"] == pytest.approx(want["pred_scores"], rel=1e-3)
    assert (got["pred_masks"] != want["pred_masks"]).float().mean() < 1e-3


def test_ctvis_gives_and_takes_tracks_on_the_way():
    """The small case above is one in which tracks are born late, dropped and forgotten."""
    model, _ = small_model("CTVIS")
    state, rows = model.start_stream(), []
    with torch.inference_mode():
        for t, frame in enumerate(VIDEO):
            images = model.batch_images([torch.from_numpy(frame).permute(2, 0, 1)])
            state, masks = model.advance(state, model.observe(images, t))
            rows.append(masks.rows.tolist())
    assert max(rows[0]) + 1 < state["num_rows"] > len(state["tracks"]["rows"])
    assert len(state["memory"]["rows"]) < state["num_rows"]


@pytest.mark.parametrize("name", ["CTVIS", "DVIS++"])
def test_an_overflow_in_one_frame_does_not_last(name, monkeypatch, caplog):
    """One frame of numbers that are none: it is said, objects wait, and later frames are finite again."""
    model, cfg = small_model(name)
    encode, count = model.encode_frames, iter(range(99))

    def broken(*inputs):
        encoded = encode(*inputs)
        if next(count) == 3:
            for each in (encoded.frame_queries, *(v for v in encoded.outputs.values() if torch.is_tensor(v))):
                each.fill_(float("nan"))
        return encoded

    monkeypatch.setattr(model, "encode_frames", broken)
    stream = StreamPredictor(model, cfg=cfg)
    answers = stream.steps(VIDEO)
    assert "not finite" in caplog.text
    assert all(np.isfinite(answer.scores).all() for answer in answers)
    assert any(answer.masks.any() for answer in answers[4:])


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("CTVIS", {"MODEL__TRACKER__MATCH_METRIC": "cosine"}, "MATCH_METRIC must be 'bisoftmax'"),
        ("CTVIS", {"MODEL__CL_PLUGIN__CL_PLUGIN_NAME": "SimpleCLPlugin"}, "must be 'CTCLPlugin'"),
        ("DVIS++", {"MODEL__MASK_FORMER__TEST__TASK": "vps"}, "TASK must be 'vis'"),
        ("DVIS++", {"MODEL__TRACKER__NOISE_MODE": "x"}, "NOISE_MODE must be one of"),
    ],
)
def test_what_does_not_exist_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        small_model(name, **change)


def test_offline_dvis_cannot_be_streamed_but_for_its_queries():
    cfg = load_cfg("synthetic/dvis_R18_tiny_offline.yaml", **SMALL)
    model = fill_(build_model(cfg)).eval()
    with pytest.raises(ValueError, match="DVIS_Plus_offline needs all frames"):
        StreamPredictor(model, cfg=cfg)
    matched = fill_(build_model(load_cfg("synthetic/dvis_R18_tiny_offline.yaml", **SMALL, TEST__MATCH_FRAMES=True)))
    assert len(StreamPredictor(matched.eval(), cfg=cfg).step(VIDEO[0])) > 0
