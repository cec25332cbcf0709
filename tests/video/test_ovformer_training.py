"""OVFormer's losses, matches and gradients against recorded numbers of the published code (`ovformer_r50_train_*`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import ov_inputs
import pytest
import torch
from fixed_points import fixed_rand
from frame_models import recorded_calls
from helpers import GOLDEN, ROOT
from ovformer_models import CLIP, IMAGE, clip_cfg, cropped, fixed_choice, golden_model

from lbvq.data.categories import category_table
from lbvq.modeling.ovformer import criterion as criterion_module
from lbvq.modeling.ovformer.criterion import OpenVocabularyCriterion, class_frequencies
from mask2former.registry import build_model
from mask2former.structures import BitMasks, Instances

SIZES = ((96, 128), (90, 104))


def moving_masks(count: int, num_frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    """(count, T, H, W) bool: moving ellipses and, at odd places, rectangles; every third is absent from one frame."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width]
    masks = np.zeros((count, num_frames, height, width), bool)
    for index in range(count):
        centre = rng.uniform(0.2 * height, 0.8 * height), rng.uniform(0.2 * width, 0.8 * width)
        radius = rng.uniform(0.1 * height, 0.3 * height), rng.uniform(0.1 * width, 0.3 * width)
        speed = rng.uniform(-3, 3, 2)
        for t in range(num_frames):
            if index % 3 == 2 and t == index % num_frames:
                continue
            dy, dx = (y - centre[0] - speed[0] * t) / radius[0], (x - centre[1] - speed[1] * t) / radius[1]
            masks[index, t] = (np.abs(dy) < 1) & (np.abs(dx) < 1) if index % 2 else dy**2 + dx**2 < 1
    return torch.from_numpy(masks)


def image_batch() -> list[dict[str, Any]]:
    batch = []
    for b, labels in enumerate([[2, 700, 2, 55], [1202, 16, 305]]):
        height, width = SIZES[b]
        instances = Instances((height, width))
        instances.gt_masks = moving_masks(len(labels), 1, height, width, 20 + b)[:, 0]
        if b == 1:
            instances.gt_masks[2] = False
            instances.gt_masks[2, 10:40, 10:30] = True
        instances.gt_classes = torch.tensor(labels)
        image = cropped(1, 10 + b, height, width)[0]
        batch.append({"image": image, "image_id": 100 + b, "instances": instances})
    return batch


def clip_batch() -> list[dict[str, Any]]:
    batch = []
    for b, labels in enumerate([[5, 800, 5, 1195], [0, 16, 305]]):
        height, width = SIZES[b]
        masks = moving_masks(len(labels), 2, height, width, 30 + b)
        frames = []
        for t in range(2):
            frame = Instances((height, width))
            frame.gt_masks = BitMasks(masks[:, t])
            present = masks[:, t].flatten(1).any(1)
            frame.gt_classes = torch.where(present, torch.tensor(labels), 1196)
            frame.gt_ids = torch.where(present, torch.arange(len(labels)), -1)
            frames.append(frame)
        names = [f"datasets/LVVIS/train/JPEGImages/{b:05d}/{t:05d}.jpg" for t in range(2)]
        batch.append({"image": cropped(2, 12 + b, height, width), "instances": frames, "file_names": names})
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("config, name, batch", [(IMAGE, "image", image_batch), (CLIP, "clip", clip_batch)])
def test_losses_matches_and_gradients(config, name, batch, tmp_path, monkeypatch):
    recorded = np.load(GOLDEN / f"ovformer_r50_train_{name}.npz")
    samples = batch()
    keys = [key for sample in samples for key in ([sample["image_id"]] if name == "image" else sample["file_names"])]
    model = golden_model(config, tmp_path, keys, MODEL__MASK_FORMER__TRAIN_NUM_POINTS=1024).train()
    counts = category_table("lvis_v1" if name == "image" else "lvvis")["categories"]
    counts = counts if name == "image" else ov_inputs.lvvis_cat_info(counts)
    model.criterion.class_frequency = frequencies(counts)
    matches = recorded_calls(model.criterion.matcher, "match_layers", monkeypatch)
    monkeypatch.setattr(criterion_module, "first_to_come", fixed_choice)
    with fixed_rand():
        losses = model(samples)
        sum(losses.values()).backward()
    assert sorted(losses) == recorded["loss_names"].tolist()
    got = np.array([losses[key].item() for key in sorted(losses)])
    np.testing.assert_allclose(got, recorded["loss_values"], rtol=1e-4, atol=4e-4)
    assert sum(got) == pytest.approx(recorded["total"].item(), rel=2e-5)
    for layer, found in enumerate(found for _, layers in matches for found in layers):
        for b, pair in enumerate(found):
            assert torch.stack(pair).tolist() == recorded[f"match{layer}_b{b}"].tolist()
    parameters = dict(model.named_parameters())
    assert [each for each in parameters if parameters[each].grad is None] == recorded["no_grad_params"].tolist()
    norms = np.array([parameters[each].grad.double().norm().item() for each in recorded["grad_names"]])
    np.testing.assert_allclose(norms, recorded["grad_norms"], rtol=1e-3, atol=1e-6)
    total = torch.stack([each.grad.double().norm() for each in parameters.values()]).norm().item()
    assert total == pytest.approx(recorded["grad_total_norm"].item(), rel=1e-4)


def frequencies(categories: list[dict[str, Any]]) -> torch.Tensor:
    known = [0 if each["frequency"] in ("r", "n") else each["image_count"] for each in categories]
    return torch.tensor(known, dtype=torch.float32).sqrt()


# ---- the criterion by itself

NUM_CLASSES, NUM_QUERIES = 6, 5


@pytest.fixture
def criterion(tmp_path) -> OpenVocabularyCriterion:
    cfg = clip_cfg(IMAGE, tmp_path, MODEL__MASK_FORMER__TRAIN_NUM_POINTS=64)
    arguments = OpenVocabularyCriterion.from_config(cfg)
    return OpenVocabularyCriterion(
        **{**arguments, "num_classes": NUM_CLASSES, "class_frequency": torch.ones(NUM_CLASSES)}
    )


def outputs_of(num_frames: int | None) -> dict[str, Any]:
    size = (2, NUM_QUERIES) + (() if num_frames is None else (num_frames,)) + (8, 8)
    torch.manual_seed(0)
    return {
        "pred_logits": torch.randn(2, NUM_QUERIES, NUM_CLASSES + 1, requires_grad=True),
        "pred_object_logits": torch.randn(2, NUM_QUERIES, 2),
        "pred_masks": torch.randn(size),
    }


@pytest.mark.parametrize("num_frames", [None, 3])
def test_a_batch_without_objects_has_the_objectness_loss_alone(criterion, num_frames):
    shape = (0, 16, 16) if num_frames is None else (0, num_frames, 16, 16)
    target = {"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(shape, dtype=torch.bool)}
    losses, matches = criterion(outputs_of(num_frames), [target, target])
    assert all(len(queries) == 0 for pairs in matches for queries, _ in pairs)
    assert losses["loss_ce"] == losses["loss_mask"] == losses["loss_dice"] == 0
    assert losses["loss_object_ce"] > 0


def test_classes_that_never_appear_and_have_no_count_are_not_pushed_down(criterion):
    criterion.class_frequency = torch.tensor([1.0, 1, 1, 0, 1, 1])
    outputs = outputs_of(None)
    target = {"labels": torch.tensor([1, 4]), "masks": torch.rand(2, 16, 16) > 0.5}
    losses, _ = criterion(outputs, [target, target])
    losses["loss_ce"].backward()
    touched = outputs["pred_logits"].grad.abs().sum((0, 1)) > 0
    assert touched.tolist() == [True, True, True, False, True, True, False]


def test_training_without_counts_says_what_to_do(criterion):
    criterion.class_frequency = torch.zeros(NUM_CLASSES)
    with pytest.raises(ValueError, match="CLASS_COUNTS_PATH"):
        criterion(outputs_of(None), [])


def test_counts_of_other_classes_are_refused_in_training_only(criterion):
    criterion.class_frequency = class_frequencies(ROOT / "datasets" / "metadata" / "lvis_v1.json", NUM_CLASSES)
    with pytest.raises(ValueError, match="training with 6 classes"):
        criterion(outputs_of(None), [])


def test_the_frame_model_does_not_train(tmp_path):
    model = build_model(clip_cfg("youtubevis_2019/ovformer_R50_bs8.yaml", tmp_path)).train()
    with pytest.raises(ValueError, match="VideoOVFormer"):
        model([])
