"""DVIS and DVIS++ against videos recorded from the published code (`dvis*_r50_{online,offline}.npz`).

Five frames, 90 x 120 to 135 x 180. The published code itself moves by 4e-5 between one and two threads. With random
weights every frame has the objects of the first in the same order, and all masks are nearly alike: what tells wrong
code from right is in `test_dvis_modules.py`, these show that the parts are put together as published.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from frame_models import recorded_calls
from golden_fill import fill_, frames
from golden_tame import tame_
from helpers import GOLDEN
from torch import Tensor
from video_models import load_cfg

from lbvq.modeling.dvis import offline as offline_module
from mask2former.registry import build_model

CONFIGS = {
    "dvis_r50_online": "ovis/DVIS_Online_R50.yaml",
    "dvis_plus_r50_online": "dvis_Plus/ovis/DVIS_Plus_Online_R50_16wIter.yaml",
    "dvis_r50_offline": "ovis/DVIS_Offline_R50.yaml",
    "dvis_plus_r50_offline": "dvis_Plus/ovis/DVIS_Plus_Offline_R50.yaml",
}
TAMED = ("tracker.", "refiner.", "sem_seg_head.predictor.")


class Run:
    """One video with everything that happened on the way, and what was recorded."""

    def __init__(self, name: str) -> None:
        self.name, self.recorded = name, np.load(GOLDEN / f"{name}.npz")
        self.model = tame_(fill_(build_model(load_cfg(CONFIGS[name]))), TAMED).eval()
        video = {"image": list(frames(5, 90, 120, seed=0)), "height": 135, "width": 180}
        with pytest.MonkeyPatch.context() as patch:
            tracked = recorded_calls(self.model.tracker, "forward", patch)
            predicted = recorded_calls(self.model.tracker, "predict", patch)
            maps = recorded_calls(self.model.tracker, "mask_features", patch)
            place = (offline_module, "select_top") if name.endswith("offline") else (self.model, "decide")
            selected = recorded_calls(*place, patch)
            refined = recorded_calls(self.model.refiner, "forward", patch) if "offline" in name else []
            self.output = self.model([video])
        self.compared = torch.cat([arguments[0] for arguments, _ in tracked])[:, :, 0]  # (T, Q, C)
        self.memory = torch.cat([arguments[1] for arguments, _ in tracked])
        self.tracked = [frame for _, (frame, _) in tracked]
        self.logits = torch.cat([result[0].reshape(-1, *result[0].shape[-2:]) for _, result in predicted])
        self.embeddings = torch.cat([result[1].reshape(-1, *result[1].shape[-2:]) for _, result in predicted])
        self.maps = [result for _, result in maps]
        self.refined = refined
        self.scores, self.labels, self.queries = selected[0][1]

    def want(self, name: str) -> Tensor:
        return torch.from_numpy(self.recorded[name])

    def close(self, got: Tensor, name: str, atol: float = 5e-4) -> None:
        torch.testing.assert_close(got, self.want(name), atol=atol, rtol=0)


@pytest.fixture(scope="module")
def runs() -> Callable[[str], Run]:
    return functools.cache(Run)


@pytest.fixture(params=list(CONFIGS))
def run(request, runs) -> Run:
    return runs(request.param)


@pytest.fixture(params=[name for name in CONFIGS if name.endswith("online")])
def online(request, runs) -> Run:
    return runs(request.param)


@pytest.fixture(params=[name for name in CONFIGS if name.endswith("offline")])
def offline(request, runs) -> Run:
    return runs(request.param)


def test_frames_are_segmented_and_matched_as_recorded(run):
    run.close(run.compared[:, ::10].permute(2, 0, 1), "seg_embds_s10")
    orders = torch.cat([frame.orders[0] for frame in run.tracked])
    assert torch.equal(orders, run.want("match_indices"))


def test_objects_are_tracked_as_recorded(run):
    run.close(run.logits[:, ::4], "trk_logits_s4")
    outputs = torch.cat([frame.outputs[-1, 0] for frame in run.tracked])
    objects, _ = run.model.tracker.for_refiner(outputs, run.memory[:1])
    run.close(objects[:, ::10].permute(2, 0, 1).detach(), "trk_embds_s10")
    if "plus" in run.name:
        references = torch.cat([frame.references[0] for frame in run.tracked])
        run.close(references[:, ::10].permute(2, 0, 1), "trk_references_s10")


def test_masks_of_tracked_objects(online):
    masks = torch.einsum("tqc,tchw->qthw", online.embeddings, torch.cat(online.maps))
    online.close(masks[::10, :, ::4, ::4], "trk_masks_s10_4_4", 1e-3)


def test_objects_are_refined_as_recorded(offline):
    ((_, frame_queries), refined) = offline.refined[0]
    offline.close(frame_queries[:, ::10, 0].permute(2, 0, 1), "ref_frame_embds_in_s10")
    offline.close(refined[0, 0, :, ::10].permute(2, 0, 1), "ref_embds_s10")
    with torch.inference_mode():
        logits = offline.model.refiner.classify(refined[0])
    offline.close(logits.expand(5, -1, -1)[:, ::4], "ref_logits_s4")


def test_scores_labels_objects_and_masks(run):
    torch.testing.assert_close(run.scores, run.want("pred_scores").float(), atol=1e-4, rtol=0)
    assert run.labels.tolist() == run.recorded["pred_labels"].tolist()
    assert run.queries.tolist() == run.recorded["pred_ids"].tolist()
    shape = tuple(run.recorded["pred_masks_shape"])
    want = np.unpackbits(run.recorded["pred_masks_packed"], axis=-1)[..., : shape[-1]].reshape(shape).astype(bool)
    assert (run.output["pred_masks"].numpy() != want).mean() <= 5e-4
    assert run.output["image_size"] == (135, 180) and run.output["pred_scores"] == run.scores.tolist()


def test_windows_of_any_length_give_the_same_video(run, monkeypatch):
    video: dict[str, Any] = {"image": list(frames(5, 90, 120, seed=0)), "height": 135, "width": 180}
    owner = type(run.model)
    if run.name.endswith("online"):
        monkeypatch.setattr(owner, "encode_step", 3)
    else:
        monkeypatch.setattr(owner, "frames_per_run", 3)
    output = run.model([video])
    assert output["pred_labels"] == run.output["pred_labels"]
    assert output["pred_scores"] == pytest.approx(run.output["pred_scores"], abs=1e-4)
    assert (output["pred_masks"] != run.output["pred_masks"]).float().mean() < 1e-3
