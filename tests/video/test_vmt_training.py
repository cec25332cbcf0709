"""VMT in training: SeqFormer's losses against numbers recorded from its published code, and our refinement losses.

`seqformer_loss_r50.npz`: two clips of two frames and different size, dropout off; every loss of all six layers, the
matches, and what was matched. Losses agree to 1e-5 between thread counts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_fill import frames
from helpers import GOLDEN
from video_models import golden_model, load_cfg

from lbvq.modeling.vmt.boxes import TINY, boxes_of_masks
from lbvq.modeling.vmt.criterion import ClipTarget, VmtCriterion
from lbvq.modeling.vmt.mask_heads import ObjectMasks
from mask2former.registry import build_model
from mask2former.structures import BitMasks, ImageList, Instances

CLIPS = [((90, 122), 3), ((96, 100), 2)]  # (height, width), objects
NUM_FRAMES = 2


def recorded_objects() -> list[dict[str, torch.Tensor]]:
    """Ellipses of the two clips, drawn as in the recording: classes (G,), boxes (G, T, 4), masks (G, T, H, W)."""
    rng = np.random.RandomState(3)
    clips = []
    for (height, width), count in CLIPS:
        classes = torch.from_numpy(rng.randint(1, 41, size=count))
        boxes = torch.full((count, NUM_FRAMES, 4), TINY)
        masks = torch.zeros(count, NUM_FRAMES, height, width, dtype=torch.bool)
        y, x = np.mgrid[0:height, 0:width]
        for g in range(count):
            centre_y, centre_x = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
            radius_y, radius_x = rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.3)
            for t in range(NUM_FRAMES):
                if (g, t) == (1, 1):
                    continue  # absent
                row = ((y + 0.5) / height - centre_y - 0.03 * t) / radius_y
                column = ((x + 0.5) / width - centre_x) / radius_x
                masks[g, t] = torch.from_numpy(row**2 + column**2 <= 1)
                boxes[g, t] = torch.tensor([centre_x, centre_y + 0.03 * t, 2 * radius_x, 2 * radius_y])
        clips.append({"classes": classes, "boxes": boxes, "masks": masks})
    return clips


class Recorded:
    """One forward pass over the recorded clips."""

    def __init__(self) -> None:
        self.arrays = np.load(GOLDEN / "seqformer_loss_r50.npz")
        model = golden_model("hq_ytvis/vmt_R50.yaml", MODEL__VMT__TRAIN_REFINEMENT=False)
        images = [
            model.normalise(frame)
            for number, (size, _) in enumerate(CLIPS)
            for frame in frames(NUM_FRAMES, *size, seed=11 + number)
        ]
        batch = ImageList.from_tensors(images, model.size_divisibility)
        self.targets = []
        for (size, _), clip in zip(CLIPS, recorded_objects(), strict=True):
            masks = torch.zeros(*clip["masks"].shape[:2], *batch.tensor.shape[-2:], dtype=torch.bool)
            masks[..., : size[0], : size[1]] = clip["masks"]
            self.targets.append(ClipTarget(clip["classes"], clip["boxes"], masks, size))
        self.coarse = []
        match_layers, matched_coarse = model.criterion.matcher.match_layers, model._matched_coarse

        def match(outputs, targets):
            self.outputs, self.matches = outputs, match_layers(outputs, targets)
            return self.matches

        def make_coarse(*args):
            self.coarse.append(matched_coarse(*args))
            return self.coarse[-1]

        model.criterion.matcher.match_layers, model._matched_coarse = match, make_coarse
        with torch.no_grad():
            self.losses = model.unweighted_losses(batch, self.targets)
        self.weights = model.criterion.weight_dict


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


def test_the_recorded_objects_are_drawn_as_recorded(recorded):
    for number, target in enumerate(recorded.targets):
        assert target.classes.tolist() == recorded.arrays[f"target_labels_{number}"].tolist()
        assert (
            target.masks.flatten(2).sum(2).flatten().tolist() == recorded.arrays[f"target_mask_area_{number}"].tolist()
        )
        assert np.allclose(target.boxes.flatten(0, 1), recorded.arrays[f"target_boxes_{number}"], atol=1e-6)


def test_classes_and_boxes_of_padded_clips(recorded):
    output = recorded.outputs[-1]
    assert np.allclose(output.logits[:, ::10], recorded.arrays["pred_logits"], atol=1e-4)
    assert np.allclose(output.boxes[:, :, ::10], recorded.arrays["pred_boxes"], atol=1e-4)


def test_every_layer_is_matched_as_recorded(recorded):
    assert len(recorded.matches) == 6
    for layer, matches in enumerate(recorded.matches):
        for number, (queries, objects) in enumerate(matches):
            want = recorded.arrays[f"match/{layer}/{number}"]
            assert torch.stack((queries, objects)).tolist() == want.tolist()


def test_every_loss_of_seqformer(recorded):
    names = {name.removeprefix("loss/") for name in recorded.arrays.files if name.startswith("loss/loss_")}
    assert names == set(recorded.losses)
    for name in sorted(names):
        assert float(recorded.losses[name]) == pytest.approx(float(recorded.arrays[f"loss/{name}"]), rel=1e-4), name
    total = sum(recorded.weights[name] * float(loss) for name, loss in recorded.losses.items())
    assert total == pytest.approx(float(recorded.arrays["total"]), rel=1e-4)


# ---- the whole training step, on a small model

TINY_VMT = {
    "MODEL__VMT__ENC_LAYERS": 1,
    "MODEL__VMT__DEC_LAYERS": 2,
    "MODEL__VMT__NUM_OBJECT_QUERIES": 12,
}


def tiny_model(**changes):
    torch.manual_seed(0)
    return build_model(load_cfg("synthetic/vmt_R18_tiny.yaml", **{**TINY_VMT, **changes}))


def sample(count: int = 2, num_frames: int = 2, size: tuple[int, int] = (64, 96), seed: int = 0) -> dict:
    """A clip with boxes of colour; the last object is absent in the last frame."""
    rng = torch.Generator().manual_seed(seed)
    images, instances = [], []
    for t in range(num_frames):
        masks = torch.zeros(count, *size, dtype=torch.bool)
        for g in range(count):
            if not (g == count - 1 and t == num_frames - 1 and count > 1):
                masks[g, 8 + 4 * t + 20 * g : 28 + 4 * t + 20 * g, 10 + 20 * g : 40 + 20 * g] = True
        image = torch.randint(0, 60, (3, *size), generator=rng).float()
        image += 150 * masks.any(dim=0)
        images.append(image.to(torch.uint8))
        present = masks.flatten(1).any(dim=1)
        instances.append(
            Instances(
                size,
                gt_classes=torch.arange(count) % 5,
                gt_ids=torch.where(present, torch.arange(count), -1),
                gt_masks=BitMasks(masks),
            )
        )
    return {"image": images, "instances": instances}


def test_a_training_step_returns_every_weighted_loss_and_reaches_every_part():
    model = tiny_model().train()
    losses = model([sample(), sample(1, seed=1)])
    each_layer = {"loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"}
    refinement = {
        "loss_mask_refine",
        "loss_mask_dice_refine",
        "loss_mask_bound_refine",
        "loss_refine",
        "loss_mask_sem",
        "loss_mask_sem_dice",
    }
    assert set(losses) == each_layer | {f"{name}_0" for name in each_layer} | refinement
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_clips_without_objects_train_the_classifier_alone_but_reach_every_part():
    model = tiny_model().train()
    losses = model([sample(0), sample(0)])
    assert losses["loss_ce"].item() > 0
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for name, loss in losses.items() if "loss_ce" not in name)
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # other processes may have objects, and all must agree on what has a gradient


def test_a_few_steps_lower_the_loss():
    model = tiny_model(MODEL__VMT__DROPOUT=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    totals = []
    for _ in range(8):
        total = sum(model([sample()]).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert min(totals[-3:]) < 0.8 * totals[0]


def test_what_a_later_mask_reads_of_an_earlier_one_carries_no_gradient():
    model = tiny_model(MODEL__VMT__DROPOUT=0.0).train()
    losses = model([sample()])
    gradients = torch.autograd.grad(
        losses["loss_mask_refine"] + losses["loss_refine"],
        [model.controller.layers[-1].weight, model.controller_refine.layers[-1].weight],
        allow_unused=True,
    )
    assert gradients[0] is None  # coarse masks learn from their own losses alone
    assert gradients[1].abs().sum() > 0


def test_boxes_of_masks_are_tight_and_tiny_where_there_is_nothing():
    masks = torch.zeros(1, 2, 8, 16, dtype=torch.bool)
    masks[0, 0, 2:4, 4:12] = True
    boxes = boxes_of_masks(masks, (8, 16))
    assert boxes[0, 0].tolist() == [0.5, 0.375, 0.5, 0.25]
    assert boxes[0, 1].tolist() == pytest.approx([TINY] * 4)
    assert boxes_of_masks(masks[:0], (8, 16)).shape == (0, 2, 4)


def test_clips_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"INPUT.SAMPLING_FRAME_NUM = 2 frames, got 3 images"):
        tiny_model().train()([sample(), sample(num_frames=3)])


LN2 = math.log(2)


def half_masked_clip():
    """One object that fills the left half of 4 x 4 pixels, and masks that know nothing: every probability is 1/2."""
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2] = True
    edges = torch.zeros(1, 2, 2, dtype=torch.bool)
    edges[0, 0, 0] = True  # of the four pixels at stride 2 one was refined, and it belongs to the object
    pred = ObjectMasks(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 2), edges)
    return pred, masks


def small_criterion():
    return VmtCriterion(matcher=None, weight_dict={}, alpha=0.25)


def test_the_six_refinement_losses_of_a_mask_that_knows_nothing():
    """Focal loss of a pixel is 1/4 ln 2, times 1/4 inside the object and 3/4 outside."""
    pred, masks = half_masked_clip()
    losses = small_criterion().refinement_losses([pred], [masks], num_objects=1.0)
    focal = (0.25 * 0.25 + 0.75 * 0.25) / 2 * LN2
    want = {
        "loss_mask_refine": focal,
        "loss_mask_dice_refine": 1 - (2 * 0.5 * 8 + 1) / (16 * 0.5 + 8 + 1),
        "loss_mask_bound_refine": 1 - (2 * 0.5 * 1 + 1) / (0.5 + 1 + 1),  # the one refined pixel alone
        "loss_refine": focal + 1 - (2 * 0.5 * 2 + 1) / (4 * 0.5 + 2 + 1),
        "loss_mask_sem": focal,
        "loss_mask_sem_dice": 1 - (2 * 0.5 * 2 + 1) / (4 * 0.5 + 2 + 1),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(want, rel=1e-5)


def test_the_foreground_is_divided_by_the_clips_and_all_else_by_the_objects():
    pred, masks = half_masked_clip()
    one = small_criterion().refinement_losses([pred], [masks], num_objects=1.0)
    two = small_criterion().refinement_losses([pred, pred], [masks, masks], num_objects=8.0)
    for name, loss in one.items():
        share = 1.0 if name.startswith("loss_mask_sem") else 2 / 8
        assert two[name].item() == pytest.approx(share * loss.item(), rel=1e-5), name


def test_the_foreground_is_the_best_of_all_objects():
    pred, masks = half_masked_clip()
    sure = ObjectMasks(
        pred.coarse.expand(-1, 2, -1, -1),
        pred.second.expand(-1, 2, -1, -1),
        torch.cat([pred.refined - 50, torch.where(torch.tensor([[True, False]] * 2), 50.0, -50.0)[None, None]], dim=1),
        pred.edges,
    )
    losses = small_criterion().refinement_losses([sure], [masks.expand(2, -1, -1, -1)], num_objects=2.0)
    assert losses["loss_mask_sem"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_mask_sem_dice"].item() == pytest.approx(0, abs=1e-6)


def test_settings_reach_the_refinement_loss_they_name():
    names = ("MASK", "DICE", "BOUNDARY", "SECOND")
    cfg = load_cfg("hq_ytvis/vmt_R50.yaml")
    for index, name in enumerate(names, start=2):
        cfg.merge_from_list([f"MODEL.VMT.REFINE_{name}_WEIGHT", float(index)])
    cfg.merge_from_list(["MODEL.VMT.FOREGROUND_WEIGHT", 6.0, "MODEL.VMT.FOREGROUND_DICE_WEIGHT", 7.0])
    weights = VmtCriterion(**VmtCriterion.from_config(cfg)).weight_dict
    losses = ("mask_refine", "mask_dice_refine", "mask_bound_refine", "refine", "mask_sem", "mask_sem_dice")
    assert [weights[f"loss_{name}"] for name in losses] == [2, 3, 4, 5, 6, 7]
