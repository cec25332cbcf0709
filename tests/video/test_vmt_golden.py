"""VMT against numbers recorded from the published inference code, weights by `golden_fill`.

`vmt_r50.npz` and `vmt_swinl.npz`: three and two frames of odd sizes; every tensor on the way, then masks and results.
The published code itself moves by 1e-5 in logits and 1e-3 in mask logits of size 150 between one and two threads.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_fill import frames
from helpers import GOLDEN
from video_models import golden_model

from lbvq.modeling.vmt import edges, mask_heads
from lbvq.modeling.vmt.dynamic_masks import centres_in_pixels

CASES = {
    "r50": ("hq_ytvis/vmt_R50.yaml", (3, 90, 122, 5)),
    "swinl": ("hq_ytvis/vmt_SwinL.yaml", (2, 74, 102, 6)),
}


class Run:
    """One run of the recorded video with what was recorded on the way."""

    def __init__(self, case: str) -> None:
        config_file, video = CASES[case]
        self.recorded = np.load(GOLDEN / f"vmt_{case}.npz")
        self.model = model = golden_model(config_file)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name in self.recorded.files:
                if name.startswith("override/"):
                    parameters[name.removeprefix("override/")].copy_(self.want(name))
        self.frames = frames(*video)
        self.queries = self.want("selected_queries").sort().values
        self.order = self.want("selected_queries").argsort()  # recorded rows in ascending order of queries
        with torch.inference_mode():
            self.trace()
        self.output = model([{"image": list(self.frames), **self.size}])

    def want(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.recorded[name])

    @property
    def size(self) -> dict[str, int]:
        height, width = self.recorded["result_size"].tolist()
        return {"height": height, "width": width}

    def trace(self) -> None:
        model = self.model
        images = self.images = torch.cat([images.tensor for _, images in model.image_batches(self.frames)])
        self.memory, self.taps, self.layout = model.detr.encode(images)
        self.levels = model.detr.project(self.taps)
        self.states = list(model.detr.decode(len(images), lambda: iter([self.memory[None]]), self.layout))
        joint = model.detr.split_levels(self.memory, self.layout)[:3]
        self.coarse_features, self.joined = model.mask_head(joint)
        self.maps = model.frame_maps(joint, self.taps[0], images)
        state = self.states[-1]
        self.logits = model.detr.class_embed[-1](state.content)[0]
        self.parameters = model.parameters_of(state.content[0, self.queries])
        centres = centres_in_pixels(state.references[0][:, self.queries], images.shape[-2:])
        self.boxes = state.pred_boxes[0][:, self.queries]
        coarse = model.coarse_masks(self.maps, self.parameters.coarse, centres)
        self.points = []
        encode, fuse = model.encoder.encode, model.fuse
        model.encoder.encode = lambda *args: self.keep(self.points, args, encode(*args))
        self.fused = []
        model.fuse = lambda *args: self.keep(self.fused, args, fuse(*args))
        self.masks = model._masks(self.maps, self.parameters, centres, self.boxes, coarse)
        del model.encoder.encode, model.fuse

    @staticmethod
    def keep(calls: list, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        calls.append((*inputs, output))
        return output


@pytest.fixture(scope="module", params=["r50", "swinl"])
def run(request) -> Run:
    return Run(request.param)


def close(got: torch.Tensor, want: torch.Tensor, scale: float | None = None) -> None:
    """Equal up to 1e-4 of the largest value, as the recording asks for."""
    limit = 1e-4 * (float(want.abs().max()) if scale is None else scale)
    torch.testing.assert_close(got, want, atol=limit, rtol=0)


def test_backbone_and_projected_maps(run):
    assert int(run.frames.long().sum()) == run.recorded["frames_checksum"][0]
    taps = [*run.taps]
    if run.model.detr.backbone[0].has_stem:
        taps.append(run.model.detr.backbone[0].finest(run.images))
    for number, tap in enumerate(taps):
        close(tap[:, :: max(1, tap.shape[1] // 8), ::2, ::2], run.want(f"feat_{number}"))
        close(torch.stack((tap.mean(), tap.std())), run.want(f"feat_{number}_meanstd").float())
    for number, level in enumerate(run.levels):
        close(level[:, ::16], run.want(f"src_{number}"))


def test_encoder_and_every_decoder_layer(run):
    close(run.memory[:, ::3, ::8], run.want("memory"))
    close(torch.stack([state.content[0] for state in run.states])[:, ::6, ::8], run.want("hs"))
    close(torch.stack([state.boxes[0] for state in run.states])[:, :, ::12, ::8], run.want("hs_box"))
    close(run.states[0].references[0, 0], run.want("init_reference"))
    close(torch.stack([state.pred_boxes[0] for state in run.states])[:, :, ::6], run.want("inter_references"))


def test_classes_and_the_selection_of_queries(run):
    close(run.logits, run.want("all_logits"))
    top = run.logits.sigmoid().flatten().topk(10).indices
    assert sorted(top.tolist()) == sorted(run.recorded["top10_flat_index"].tolist())
    assert (top // 42).unique().tolist() == run.queries.tolist()
    close(run.logits[run.queries], run.want("pred_logits")[run.order])
    close(run.boxes, run.want("pred_boxes")[:, run.order])


def test_networks_of_the_objects(run):
    for got, name in zip(
        (run.parameters.coarse, run.parameters.second, run.parameters.refined),
        ("controller", "controller_inc", "controller_refine"),
        strict=True,
    ):
        close(got, run.want(name)[run.order])


def test_maps_of_the_mask_heads(run):
    close(run.coarse_features[:, ::2], run.want("mask_head_out"))
    close(run.joined[:, ::16], run.want("mask_head_stride8"))
    close(run.maps.fine[:, ::2, ::2, ::2], run.want("lay2_h").relu(), float(run.want("lay2_h").abs().max()))
    close(run.maps.high[:, ::16, ::2, ::2], run.want("lay_hr1_c").relu(), float(run.want("lay_hr1_c").abs().max()))
    size = run.recorded["boundary_shape"][1:].tolist()
    image = run.model.conv_norm_relus_fuse_img(mask_heads.resize_nearest(run.images, size))
    close(image[:, ::16, ::4, ::4], run.want("img_feat"))


def test_coarse_second_and_refined_logits(run):
    close(run.masks.coarse, run.want("coarse_logits_stride8")[:, run.order])
    close(run.masks.second[..., ::2, ::2], run.want("inc_logits_stride4")[:, run.order])
    close(run.masks.refined[..., ::2, ::2], run.want("refine_logits_stride2")[:, run.order])


def test_edges_and_box_maps(run):
    shape = run.recorded["boundary_shape"]
    bits = np.unpackbits(run.recorded["boundary"], axis=1)[:, : shape[1] * shape[2]].reshape(shape)
    assert (run.masks.edges.numpy() == bits.astype(bool)).all()
    assert torch.equal(edges.box_corners(run.boxes, tuple(shape[1:])), run.want("boxes_int")[:, run.order].long())


def test_point_transformer(run):
    for t, (points, position, output) in enumerate(run.points):
        count, step = run.recorded[f"enc_len_{t}"]
        assert len(points) == count
        close(points[::step], run.want(f"enc_in_{t}"))
        close(position[::step], run.want(f"enc_pos_{t}"))
        close(output[::step], run.want(f"enc_out_{t}"))


def test_channels_that_refined_masks_are_made_from(run):
    pixels, private, _ = run.fused[0]
    joined = torch.cat((pixels[0].expand(private.shape[1], -1, -1, -1), private[0]), dim=1)
    got, want = joined[:, ::8, ::8, ::8], run.want("fuse_in")[run.order]
    close(got[:, :8], want[:, :8])  # what objects share
    # Probabilities of the second masks: their slope is at most 1/4 of that of the logits, which are recorded to 1e-4.
    close(got[:, 8], want[:, 8], float(run.want("inc_logits_stride4").abs().max()) / 4)
    close(joined[:, 64:, ::6, ::6], run.want("fuse_in_maps")[run.order])


def test_masks_at_twice_the_size(run):
    kinds = {"coarse": ("pred_masks", 2), "second": ("pred_masks_inc", 4), "refined": ("pred_masks_refine", 4)}
    for number, (kind, (name, step)) in enumerate(kinds.items()):
        got = mask_heads.output_logits(getattr(run.masks, kind))
        assert [1, *got.shape] == run.recorded["out_shapes"][number].tolist()
        close(got[..., ::step, ::step], run.want(name)[run.order])
    count = got[0].numel()
    want = np.unpackbits(run.recorded["pred_masks_refine_sign"], axis=1)[:, :count].astype(bool)[run.order]
    assert ((got.flatten(1) > 0).numpy() != want).mean() < 1e-3


def test_reported_scores_categories_and_masks(run):
    recorded = run.recorded
    kept = recorded["result_category"] >= 0  # the others have no pixel in the whole video
    order = np.argsort(-recorded["result_score"][kept], kind="stable")
    assert run.output["pred_scores"] == pytest.approx(recorded["result_score"][kept][order], abs=1e-4)
    assert [label + 1 for label in run.output["pred_labels"]] == recorded["result_category"][kept][order].tolist()
    height, width = recorded["result_size"].tolist()
    count = len(run.frames) * height * width
    bits = np.unpackbits(recorded["result_masks"], axis=1)[:, :count].astype(bool)[kept][order]
    got = run.output["pred_masks"]
    assert got.shape == (len(order), len(run.frames), height, width)
    assert (got.flatten(1).numpy() != bits).mean() < 1e-3
    assert run.output["image_size"] == (height, width)


def test_a_memory_budget_of_nothing_changes_nothing(run):
    run.model.feature_budget_mib = 0
    output = run.model([{"image": list(run.frames), **run.size}])
    assert output["pred_scores"] == run.output["pred_scores"]
    assert torch.equal(output["pred_masks"], run.output["pred_masks"])
