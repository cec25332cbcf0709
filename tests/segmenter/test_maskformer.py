"""The whole image model: names, losses, results and old checkpoints, on a small network."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from fvcore.common.config import CfgNode
from golden_fill import fill_, frames
from helpers import GOLDEN

from mask2former.config import add_maskformer2_config
from mask2former.modeling.maskformer import MaskFormer, image_targets
from mask2former.registry import build_model
from mask2former.structures import BitMasks, Instances

NUM_CLASSES, NUM_QUERIES, DEC_LAYERS = 3, 6, 4


def published_config() -> CfgNode:
    """The COCO instance configuration with ResNet-50."""
    cfg = CfgNode()
    add_maskformer2_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.update(STRIDE_IN_1X1=False, OUT_FEATURES=["res2", "res3", "res4", "res5"])
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.SEM_SEG_HEAD.update(
        NAME="MaskFormerHead",
        IN_FEATURES=["res2", "res3", "res4", "res5"],
        NUM_CLASSES=80,
        CONVS_DIM=256,
        TRANSFORMER_ENC_LAYERS=6,
        PIXEL_DECODER_NAME="MSDeformAttnPixelDecoder",
    )
    cfg.MODEL.MASK_FORMER.update(
        CLASS_WEIGHT=2.0,
        DICE_WEIGHT=5.0,
        MASK_WEIGHT=5.0,
        DROPOUT=0.0,
        DEC_LAYERS=10,
        TRANSFORMER_IN_FEATURE="multi_scale_pixel_decoder",
    )
    return cfg


def small_config() -> CfgNode:
    cfg = published_config()
    cfg.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.SEM_SEG_HEAD.update(NUM_CLASSES=NUM_CLASSES, CONVS_DIM=32, MASK_DIM=16, TRANSFORMER_ENC_LAYERS=1)
    cfg.MODEL.MASK_FORMER.update(
        HIDDEN_DIM=32, NHEADS=4, DIM_FEEDFORWARD=64, NUM_OBJECT_QUERIES=NUM_QUERIES, DEC_LAYERS=DEC_LAYERS
    )
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 64
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    return cfg


def small_model(cfg: CfgNode | None = None) -> MaskFormer:
    return fill_(build_model(cfg or small_config()))


def sample(seed: int = 0, num_objects: int = 2, size: tuple[int, int] = (50, 70)) -> dict:
    masks = torch.zeros(num_objects, *size, dtype=torch.bool)
    for idx in range(num_objects):
        masks[idx, 5 + 10 * idx : 25 + 10 * idx, 10 : 40 + 10 * idx] = True
    instances = Instances(size, gt_classes=torch.arange(num_objects) % NUM_CLASSES, gt_masks=BitMasks(masks))
    return {"image": frames(1, *size, seed=seed)[0], "instances": instances, "height": 100, "width": 140}


def test_parameter_names_and_shapes_are_those_of_the_published_model():
    """The published MinVIS on COCO is this model with 80 classes."""
    keys = json.loads(gzip.decompress((GOLDEN / "segmenter_keys.json.gz").read_bytes()))["minvis_r50_coco_80cls"]
    with torch.device("meta"):
        model = MaskFormer(**MaskFormer.from_config(published_config()))
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == keys


# ---- training


def test_training_returns_weighted_losses_of_every_layer():
    model = small_model().train()
    losses = model([sample(0), sample(1)])
    suffixes = ["", *(f"_{idx}" for idx in range(DEC_LAYERS - 1))]
    assert set(losses) == {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in suffixes}
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []


def test_losses_are_multiplied_by_their_weights():
    model = small_model().train()
    torch.manual_seed(0)
    weighted = model([sample()])
    model.criterion.weight_dict = {name: 1.0 for name in model.criterion.weight_dict}
    torch.manual_seed(0)
    plain = model([sample()])
    for name, loss in weighted.items():
        torch.testing.assert_close(loss, plain[name] * (2.0 if name.startswith("loss_ce") else 5.0))


def test_without_deep_supervision_only_the_last_layer_counts():
    cfg = small_config()
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    assert set(small_model(cfg).train()([sample()])) == {"loss_ce", "loss_mask", "loss_dice"}


def test_a_batch_without_objects_has_finite_losses():
    losses = small_model().train()([sample(num_objects=0)])
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0
    assert losses["loss_ce"] > 0 and torch.isfinite(losses["loss_ce"])


def test_training_needs_annotations():
    with pytest.raises(ValueError, match="instances"):
        small_model().train()([{"image": torch.zeros(3, 32, 32)}])


@pytest.mark.parametrize("kind", ["bitmasks", "tensor"])
def test_targets_are_padded_at_the_bottom_and_right(kind):
    masks = torch.zeros(1, 8, 10, dtype=torch.bool)
    masks[0, 2:6, 3:9] = True
    gt_masks = BitMasks(masks) if kind == "bitmasks" else masks
    instances = Instances((8, 10), gt_classes=torch.tensor([1]), gt_masks=gt_masks, gt_ids=torch.tensor([7]))
    targets = image_targets(instances, (32, 32))
    assert targets["masks"].shape == (1, 32, 32) and targets["masks"][0, 2:6, 3:9].all()
    assert targets["masks"].sum() == 24
    assert targets["labels"].tolist() == [1] and targets["ids"].tolist() == [7]


# ---- results


def evaluate(model: MaskFormer, samples: list[dict]) -> list[dict]:
    with torch.no_grad():
        return model.eval()(samples)


def test_results_have_the_wanted_size_and_number():
    result = evaluate(small_model(), [sample()])[0]
    assert list(result) == ["instances"]
    instances = result["instances"]
    assert instances.image_size == (100, 140) and len(instances) == 10
    assert instances.pred_masks.shape == (10, 100, 140) and instances.pred_masks.dtype == torch.bool
    assert (instances.scores[:-1] > 0).any() and instances.pred_classes.max() < NUM_CLASSES
    without_size = {"image": sample()["image"]}
    assert evaluate(small_model(), [without_size])[0]["instances"].image_size == (50, 70)


def test_a_batch_gives_what_its_images_give_alone():
    model, first, second = small_model(), sample(0), sample(1)
    together = [result["instances"] for result in evaluate(model, [first, second])]
    alone = [evaluate(model, [each])[0]["instances"] for each in (first, second)]
    for batched, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batched.scores, single.scores, atol=1e-4, rtol=1e-4)
        assert (batched.pred_masks != single.pred_masks).float().mean() < 1e-3
    assert not torch.allclose(together[0].scores, together[1].scores, atol=1e-4)


def test_images_are_normalised_before_they_are_padded():
    model = small_model()
    images = model.preprocess([sample(size=(50, 70)), sample(size=(40, 90))])
    assert images.tensor.shape == (2, 3, 64, 96) and images.image_sizes == [(50, 70), (40, 90)]
    assert not images.tensor[0, :, 50:].any() and not images.tensor[1, :, :, 90:].any()
    want = (sample(size=(50, 70))["image"][0, 3, 4] - 123.675) / 58.395
    assert images.tensor[0, 0, 3, 4].item() == pytest.approx(want.item(), abs=1e-5)


def test_a_negative_divisor_takes_the_backbone_s():
    cfg = small_config()
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = -1
    assert build_model(cfg).size_divisibility == 0
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.update(EMBED_DIM=8, DEPTHS=[1, 1, 1, 1], NUM_HEADS=[2, 2, 2, 2])
    assert build_model(cfg).size_divisibility == 32


# ---- checkpoints


def test_means_are_not_part_of_the_state_dict():
    assert not [name for name in small_model().state_dict() if "pixel_mean" in name or "pixel_std" in name]


def test_files_from_before_the_pixel_decoder_had_a_prefix_are_read():
    model = small_model()
    state = model.state_dict()
    marker = "sem_seg_head.pixel_decoder."
    old = {name.replace(marker, "sem_seg_head."): value for name, value in state.items()}
    assert not any(name.startswith(marker) for name in old)
    fresh = build_model(small_config())
    fresh.load_state_dict(old)  # strict
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())


def test_current_files_are_never_renamed():
    model = small_model()
    state = {**model.state_dict(), "sem_seg_head.something": torch.zeros(1)}
    result = build_model(small_config()).load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["sem_seg_head.something"] and not result.missing_keys


def test_zoo_files_with_static_query_are_read():
    model = small_model()
    old = {name.replace("query_feat", "static_query"): value for name, value in model.state_dict().items()}
    fresh = build_model(small_config())
    fresh.load_state_dict(old)
    assert torch.equal(fresh.sem_seg_head.predictor.query_feat.weight, model.sem_seg_head.predictor.query_feat.weight)


# ---- settings that do not fit


def test_only_the_multi_scale_decoder_exists():
    cfg = small_config()
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res5"
    with pytest.raises(ValueError, match="multi_scale_pixel_decoder"):
        build_model(cfg)


def test_features_that_the_backbone_does_not_return_are_named():
    cfg = small_config()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    with pytest.raises(ValueError, match=r"names \['res2'\]"):
        build_model(cfg)
