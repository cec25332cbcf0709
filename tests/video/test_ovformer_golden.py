"""OVFormer's inference against numbers recorded from the published code (`ovformer_*.npz`).

The published code moves by 3e-5 in logits, 6e-5 in masks and 2e-6 in scores between one and two threads. Where one
pixel of an attention mask lies at its threshold, logits of a frame move by up to 4e-3: there nearly all must be equal.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from frame_models import recorded_calls
from helpers import GOLDEN
from ovformer_models import CLIP, FRAME, IMAGE, IMAGE_SWIN, cropped, golden_model

from lbvq.inference.results import VideoPrediction
from lbvq.masks import rle
from lbvq.modeling import postprocess
from lbvq.modeling.ovformer import tracks as ovformer_tracks
from lbvq.modeling.postprocess import MaskStream

further_away = pytest.mark.xfail(
    torch.__version__ < (2, 7), reason="with PyTorch 2.6 fewer numbers are within 1e-4 of the recording"
)


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def close(got: torch.Tensor, wanted: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(got.float(), wanted.float(), atol=atol, rtol=0)


def nearly_all_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    difference = (got.float() - wanted.float()).abs()
    assert difference.max() <= 2e-2
    assert (difference <= 1e-4).float().mean() >= 0.999


def same_labels(got: torch.Tensor, wanted: torch.Tensor, scores: torch.Tensor) -> None:
    """Labels in order of score are equal wherever the score is not nearly that of a neighbour."""
    clear = torch.ones(len(scores), dtype=torch.bool)
    near = scores.diff().abs() <= 1e-5
    clear[1:] &= ~near
    clear[:-1] &= ~near
    assert clear.any()
    assert torch.equal(got[clear], wanted[clear])


@pytest.mark.parametrize("config, name", [(IMAGE, "ovformer_r50_image"), (IMAGE_SWIN, "ovformer_swinb_image")])
def test_image(config, name, tmp_path, monkeypatch):
    want = load(name)
    model = golden_model(config, tmp_path, [139])
    calls = recorded_calls(model.sem_seg_head.predictor, "predict", monkeypatch)
    (image,) = cropped(1, 3)
    with torch.inference_mode():
        (result,) = model([{"image": image, "image_id": 139, "height": 108, "width": 144}])
    outputs = calls[0][1][0]
    close(outputs["pred_logits"][0, ::5], want["pred_logits_q::5"], 1e-4)
    close(outputs["pred_object_logits"][0], want["pred_object_logits"], 1e-4)
    close(outputs["pred_embds"][0, ::5], want["pred_embds_q::5"], 1e-4)
    close(outputs["pred_masks"][0, ::10], want["pred_masks_q::10"], 2e-4)
    instances = result["instances"]
    order = instances.scores.argsort(descending=True, stable=True)
    close(instances.scores[order], want["scores_sorted"], 1e-5)
    same_labels(instances.pred_classes[order], want["classes_sorted"], want["scores_sorted"])
    masks = instances.pred_masks[order]
    close(masks.flatten(1).sum(1), want["mask_area_sorted"], 2)
    assert (masks[:10, ::2, ::2] != want["masks_top10_::2"]).float().mean() <= 1e-3
    assert instances.pred_boxes.tensor.shape == (100, 4)


def test_predictions_on_the_first_queries_of_an_image(tmp_path):
    want = load("ovformer_r50_image")
    model = golden_model(IMAGE, tmp_path, [139])
    sample = {"image": cropped(1, 3)[0], "image_id": 139}
    images = model.preprocess([sample])
    with torch.no_grad():
        features = model.features_of_image(sample)[:, None]
        model.sem_seg_head.predictor.train()
        outputs, *_ = model.sem_seg_head(model.backbone(images.tensor), image_features=features)
    assert len(outputs["aux_outputs"]) == 9
    first = outputs["aux_outputs"][0]
    assert sorted(first) == ["pred_logits", "pred_masks", "pred_object_logits"]
    close(first["pred_logits"][0, ::25], want["aux0_logits_q::25"], 1e-4)
    close(first["pred_object_logits"][0], want["aux0_object_logits"], 1e-4)


FRAME_NAMES = [f"datasets/ytvis_2019/valid/JPEGImages/v0/{t:05d}.jpg" for t in range(12)]


@pytest.fixture(scope="module")
def frame_run(tmp_path_factory):
    """A video through the frame model, with what happened on the way."""
    model = golden_model(FRAME, tmp_path_factory.mktemp("clip"), FRAME_NAMES)
    video = {"image": cropped(12, 4), "file_names": FRAME_NAMES, "height": 108, "width": 144}
    with pytest.MonkeyPatch.context() as patch:
        found = {
            "tracks": recorded_calls(ovformer_tracks.LinkedTracks, "add", patch),
            "masks": recorded_calls(MaskStream, "add", patch),
            "results": recorded_calls(postprocess, "video_output", patch),
        }
        found["output"] = model([video])
    return found


@further_away
def test_frames_embeddings_logits_and_links(frame_run):
    want = load("ovformer_r50_frame")
    tracks = frame_run["tracks"][0][0][0]
    assert torch.equal(torch.stack(tracks.orders[1:]), want["link_indices"])
    frames = [[part.float() for part in arguments[1:]] for arguments, _ in frame_run["tracks"]]
    embeddings, logits, objects = (torch.stack(parts) for parts in zip(*frames, strict=True))
    nearly_all_close(embeddings[::4, ::5], want["pred_embds_frame::4_q::5"])
    orders = torch.stack(tracks.orders)
    aligned = logits.gather(1, orders[..., None].expand_as(logits)).transpose(0, 1)
    nearly_all_close(aligned[::10], want["per_frame_logits_q::10"])
    aligned = objects.gather(1, orders[..., None].expand_as(objects)).transpose(0, 1)
    nearly_all_close(aligned, want["per_frame_obj_logits"])
    mean_logits, mean_objects = tracks.mean_logits()
    nearly_all_close(mean_logits, want["pred_logits_video"])
    nearly_all_close(mean_objects, want["pred_obj_logits_video"])


@further_away
def test_frames_scores_labels_and_erased_masks(frame_run):
    want = load("ovformer_r50_frame")
    output = frame_run["output"]
    scores = torch.tensor(output["pred_scores"])
    close(scores, want["scores_sorted"], 1e-5)
    same_labels(torch.tensor(output["pred_labels"]), want["classes_sorted"], want["scores_sorted"])
    maps = torch.cat([arguments[1] for arguments, _ in frame_run["masks"]], dim=1)  # (10, 12, 24, 32)
    ((scores, _, _, stream),) = [arguments for arguments, _ in frame_run["results"]]
    maps = maps[(scores * stream.quality()).argsort(descending=True, stable=True)]
    assert torch.equal((maps.flatten(2) == -1).all(-1), want["erased_sorted"])
    nearly_all_close(maps[:, ::2, ::2, ::2], want["masks_sorted_::2"])


def test_results_of_frames_are_the_recorded_json(frame_run):
    entries = VideoPrediction.from_output(frame_run["output"]).to_json(7)
    recorded = json.loads((GOLDEN / "ovformer_r50_frame_results.json").read_text())
    assert len(entries) == len(recorded) == 10
    left = list(recorded)
    for entry in entries:  # near-equal scores may change places
        match = min(left, key=lambda other: (other["category_id"] != entry["category_id"], -overlap(entry, other)))
        left.remove(match)
        assert match["video_id"] == entry["video_id"] == 7
        assert match["category_id"] == entry["category_id"]
        assert entry["score"] == pytest.approx(match["score"], abs=1e-5)
        assert overlap(entry, match) >= 0.999


def overlap(entry: dict, other: dict) -> float:
    """Share of equal pixels over all frames; a missing mask is an empty one."""
    pairs = zip(entry["segmentations"], other["segmentations"], strict=True)
    empty = np.zeros((108, 144), dtype=bool)
    decoded = [[empty if each is None else rle.decode(each) for each in pair] for pair in pairs]
    return float(np.mean([(one == two).mean() for one, two in decoded]))


CLIP_NAMES = [f"datasets/LVVIS/val/JPEGImages/00000/{t:05d}.jpg" for t in range(12)]


@further_away
def test_clips(tmp_path, monkeypatch):
    want = load("ovformer_r50_clip")
    model = golden_model(CLIP, tmp_path, CLIP_NAMES)
    clips = recorded_calls(model, "segment_clip", monkeypatch)
    tracks = recorded_calls(ovformer_tracks.LinkedTracks, "add", monkeypatch)
    video = {"image": cropped(12, 5), "file_names": CLIP_NAMES, "height": 108, "width": 144}
    output = model([video])
    assert [outputs["pred_masks"].shape[2] for _, outputs in clips] == [5, 5, 2]
    for index, (_, outputs) in enumerate(clips):
        close(outputs["pred_object_logits"][0], want[f"clip{index}_object_logits"], 1e-4)
        close(outputs["pred_logits"][0, ::25], want[f"clip{index}_logits_q::25"], 1e-4)
        close(outputs["pred_embds"][0, ::10], want[f"clip{index}_embds_q::10"], 1e-4)
        close(outputs["pred_masks"][0, ::20, ::2], want[f"clip{index}_masks_q::20_t::2"], 3e-4)
    linked = tracks[0][0][0]
    assert torch.equal(torch.stack(linked.orders[1:]), want["link_indices"])
    mean_logits, mean_objects = linked.mean_logits()
    close(mean_logits[::5], want["video_logits_q::5"], 1e-4)
    close(mean_objects, want["video_obj_logits"], 1e-4)
    close(torch.tensor(output["pred_scores"]), want["scores_sorted"], 1e-5)
    same_labels(torch.tensor(output["pred_labels"]), want["labels_sorted"], want["scores_sorted"])
    masks = output["pred_masks"]
    assert masks.shape == (50, 12, 108, 144)
    close(masks.flatten(2).sum(-1), want["mask_area_sorted"], 2)
    assert (masks[:10, ::3, ::2, ::2] != want["masks_top10_t::3_::2"]).float().mean() <= 1e-3
