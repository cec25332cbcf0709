"""Linking, memory, erasing and scoring of OVFormer with recorded outputs of the decoder (`ovformer_post.npz`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from frame_models import recorded_calls
from helpers import GOLDEN
from ovformer_models import CLIP, FRAME, IMAGE, clip_cfg
from torch import nn

from lbvq.masks.tubes import MaskTubes
from lbvq.modeling import postprocess
from lbvq.modeling.ovformer import tracks as ovformer_tracks
from lbvq.modeling.postprocess import MaskStream
from mask2former.registry import build_model

RECORDED = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "ovformer_post.npz").items()}


class Decoder(nn.Module):
    """Gives recorded outputs, a piece per call."""

    def __init__(self, pieces: list[dict[str, Any]]) -> None:
        super().__init__()
        self.pieces, self.num_classes = iter(pieces), 6

    def forward(self, features: Any, **context: Any) -> tuple:
        return {**next(self.pieces), "aux_outputs": []}, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)


class NoBackbone(nn.Module):
    def forward(self, images: torch.Tensor) -> dict:
        return {}


def stubbed(config: str, folder: Any, pieces: list[dict[str, Any]], **changes: Any) -> nn.Module:
    model = build_model(clip_cfg(config, folder, **changes)).eval()
    model.backbone, model.sem_seg_head = NoBackbone(), Decoder(pieces)
    return model


def outputs(prefix: str, rows: slice = slice(None), frames: slice | None = None) -> dict[str, torch.Tensor]:
    names = {f"pred_{name}": name for name in ("embds", "logits", "object_logits", "masks")}
    found = {key: RECORDED[f"{prefix}_in_{name}"] for key, name in names.items() if f"{prefix}_in_{name}" in RECORDED}
    found = {key: value[rows] for key, value in found.items()}
    if frames is not None:
        found["pred_masks"] = found["pred_masks"][:, :, frames]
    return found


def video(**more: Any) -> dict[str, Any]:
    frames = [torch.zeros(3, 24, 32, dtype=torch.uint8)] * 12
    return {"image": frames, "clip_features": torch.zeros(12, 512), "height": 27, "width": 36, **more}


FRAME_PIECES = [outputs("frame", slice(0, 10)), outputs("frame", slice(10, 12))]
CLIP_PIECES = [outputs("clip", slice(i, i + 1), slice(0, length)) for i, length in enumerate((5, 5, 2))]


def test_image(tmp_path):
    model = stubbed(IMAGE, tmp_path, [outputs("image")], TEST__DETECTIONS_PER_IMAGE=20)
    sample = {"image": torch.zeros(3, 22, 30, dtype=torch.uint8), "height": 27, "width": 36}
    with torch.inference_mode():
        instances = model([{**sample, "clip_features": torch.zeros(512)}])[0]["instances"]
    order = instances.scores.argsort(descending=True, stable=True)
    torch.testing.assert_close(instances.scores[order], RECORDED["image_scores"], atol=1e-6, rtol=0)
    assert torch.equal(instances.pred_classes[order], RECORDED["image_labels"])
    assert torch.equal(instances.pred_masks[order], RECORDED["image_masks"])


def test_every_image_of_a_batch_has_its_own_objectness(tmp_path):
    """The published code takes the objectness of the first image for all."""
    one = outputs("image")
    other = {**one, "pred_object_logits": -one["pred_object_logits"]}
    both = {key: torch.cat((other[key], one[key])) for key in one}
    model = stubbed(IMAGE, tmp_path, [both], TEST__DETECTIONS_PER_IMAGE=20)
    sample = {"image": torch.zeros(3, 22, 30, dtype=torch.uint8), "clip_features": torch.zeros(512)}
    with torch.inference_mode():
        results = model([{**sample, "height": 27, "width": 36}] * 2)
    scores = results[1]["instances"].scores.sort(descending=True).values
    torch.testing.assert_close(scores, RECORDED["image_scores"], atol=1e-6, rtol=0)


def test_frames(tmp_path, monkeypatch):
    model = stubbed(FRAME, tmp_path, list(FRAME_PIECES))
    tracks = recorded_calls(ovformer_tracks.LinkedTracks, "add", monkeypatch)
    streamed = recorded_calls(MaskStream, "add", monkeypatch)
    results = recorded_calls(postprocess, "video_output", monkeypatch)
    output = model([video()])
    assert torch.equal(torch.stack(tracks[0][0][0].orders[1:]), RECORDED["frame_link"])
    torch.testing.assert_close(torch.tensor(output["pred_scores"]), RECORDED["frame_scores"], atol=1e-6, rtol=0)
    assert output["pred_labels"] == RECORDED["frame_labels"].tolist()
    maps = torch.cat([arguments[1] for arguments, _ in streamed], dim=1)
    scores, _, _, stream = results[0][0]
    maps = maps[(scores * stream.quality()).argsort(descending=True, stable=True)]
    torch.testing.assert_close(maps, RECORDED["frame_masks"], atol=0, rtol=0)
    erased = (maps.flatten(2) == -1).all(-1)
    assert torch.equal(erased, RECORDED["frame_erased"]) and erased.any()
    assert not output["pred_masks"][erased].any()


def test_clips(tmp_path, monkeypatch):
    model = stubbed(CLIP, tmp_path, list(CLIP_PIECES))
    tracks = recorded_calls(ovformer_tracks.LinkedTracks, "add", monkeypatch)
    output = model([video()])
    assert torch.equal(torch.stack(tracks[0][0][0].orders[1:]), RECORDED["clip_link"])
    torch.testing.assert_close(torch.tensor(output["pred_scores"]), RECORDED["clip_scores"], atol=1e-6, rtol=0)
    assert output["pred_labels"] == RECORDED["clip_labels"].tolist()
    assert torch.equal(output["pred_masks"], RECORDED["clip_masks"])


@pytest.mark.parametrize("config, pieces", [(FRAME, FRAME_PIECES), (CLIP, CLIP_PIECES)])
def test_run_lengths_and_a_temporary_file_give_the_same(config, pieces, tmp_path):
    dense = stubbed(config, tmp_path, list(pieces))([video()])
    bounded = stubbed(config, tmp_path, list(pieces), TEST__FEATURE_BUDGET_MB=0)([video(dense_masks=False)])
    assert isinstance(bounded["pred_masks"], MaskTubes)
    assert torch.equal(bounded["pred_masks"].to_dense(), dense["pred_masks"])
    assert bounded["pred_scores"] == dense["pred_scores"]


class Camera:
    """Frames that can be read once, in order."""

    def __init__(self, frames: torch.Tensor) -> None:
        self.frames, self.reads = frames, []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, t: int) -> torch.Tensor:
        self.reads.append(t)
        return self.frames[t]


class BrightnessTowers:
    """In place of CLIP: tells how bright an image is."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def to(self, device: Any) -> BrightnessTowers:
        return self

    def encode_images(self, frames: Any) -> torch.Tensor:
        self.seen += [frame.round() for frame in frames]
        return torch.stack([frame.mean().expand(512) for frame in self.seen[-len(frames) :]])


@pytest.mark.parametrize("config, pieces", [(FRAME, FRAME_PIECES), (CLIP, CLIP_PIECES)])
def test_a_video_without_names_is_embedded_from_its_pixels_which_are_read_once(config, pieces, tmp_path):
    model = stubbed(config, tmp_path, list(pieces))
    towers = BrightnessTowers()
    model.use_towers(towers)
    camera = Camera(torch.randint(0, 256, (12, 3, 24, 30), dtype=torch.uint8))
    output = model([{"image": camera, "height": 27, "width": 36}])
    assert sorted(camera.reads) == list(range(12))
    assert torch.equal(torch.stack(towers.seen), camera.frames.float())
    assert output["pred_masks"].shape[1:] == (12, 27, 36)


@pytest.mark.parametrize("config", [FRAME, CLIP])
def test_a_video_without_frames_is_an_error(config, tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        stubbed(config, tmp_path, [])([{"image": []}])


def test_features_must_fit_the_frames(tmp_path):
    with pytest.raises(ValueError, match="expected 12, got 3"):
        stubbed(FRAME, tmp_path, [])([video(clip_features=torch.zeros(3, 512))])


def test_matching_of_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="MATCH_FRAMES"):
        build_model(clip_cfg(FRAME, tmp_path, TEST__MATCH_FRAMES=True))
