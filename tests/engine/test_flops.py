"""Floating point operations are those counted by hand, whatever library computes them."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from helpers import CONFIGS, run_tool
from torch import Tensor, nn
from video_models import small_model

from lbvq.engine.flops import flops_by_part
from mask2former import linear as linear_module
from mask2former.attention import attend
from mask2former.layers import Conv2d
from mask2former.linear import Linear, mask_logits

CONV = 2 * 64 * 8 * 3 * 9  # 8 x 8 cells, 3 x 3 taps, 3 -> 8 channels
POINTWISE = 2 * 64 * 8 * 16
LINEAR = 2 * 64 * 16 * 24
ATTENTION = 2 * 64 * 24 * (3 * 24) + 2 * (2 * 64 * 64 * 24) + 2 * 64 * 24 * 24  # projections, products, output
MASKS = 2 * 40 * 24 * 64
VECTOR = 2 * 40 * 24


class Added(nn.Module):
    def forward(self, x: Tensor, parameter: Tensor) -> Tensor:
        return x + parameter


class Network(nn.Module):
    """One of every product that the models use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pointwise, self.linear = Conv2d(3, 8, 3, padding=1), Conv2d(8, 16, 1), Linear(16, 24)
        self.attention, self.added = nn.MultiheadAttention(24, 2), Added()
        self.queries, self.vector = nn.Parameter(torch.randn(1, 40, 24)), nn.Parameter(torch.randn(24))

    def forward(self, image: Tensor) -> Tensor:
        x = self.pointwise(self.conv(image))
        tokens = self.linear(x.flatten(2).permute(2, 0, 1))  # (64, 1, 24)
        tokens = self.added(attend(self.attention, tokens, tokens, tokens), self.vector)
        masks = mask_logits(self.queries, tokens.permute(1, 2, 0).unflatten(2, (8, 8)))
        return masks.sum() + (self.queries[0] @ self.vector).sum()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_sum_is_the_one_by_hand_with_and_without_the_fast_library(monkeypatch, fast, context):
    monkeypatch.setattr(linear_module, "_HAS_ONEDNN", fast and linear_module._HAS_ONEDNN)
    network, image = Network(), torch.randn(1, 3, 8, 8)

    def run() -> None:
        with context():
            network(image)

    rows, uncounted = flops_by_part(network, run, depth=1)
    parts = {"conv": CONV, "pointwise": POINTWISE, "linear": LINEAR}  # `attend` calls no module
    assert rows[0] == ("Network", sum(parts.values()) + ATTENTION + MASKS + VECTOR)
    assert dict(rows[1:]) == parts
    assert not uncounted
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_fused_encoder_layer_of_torch_hides_nothing():
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True).eval()
    want = 2 * 50 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * (2 * 50 * 50 * 16)
    rows, uncounted = flops_by_part(layer, lambda: layer(torch.randn(1, 50, 16)), depth=0)
    assert rows == [("TransformerEncoderLayer", want)]
    assert not uncounted


def test_compiled_parts_are_counted_as_they_were_before():
    layer = nn.Sequential(nn.Linear(8, 4))
    layer.compile(backend="eager")
    assert flops_by_part(layer, lambda: layer(torch.randn(5, 8)), depth=0)[0] == [("Sequential", 2 * 5 * 8 * 4)]


def test_operators_that_nobody_can_count_are_named():
    with torch.library._scoped_library("flops_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CPU")
        run = partial(torch.ops.flops_test.twice, torch.ones(3))
        rows, uncounted = flops_by_part(nn.Identity(), run, depth=0)
    assert rows == [("Identity", 0)]
    assert uncounted == {"flops_test::twice": 1}


def test_the_fast_library_changes_no_count_of_a_whole_model(monkeypatch):
    model = small_model().eval()
    video = [{"image": [torch.zeros(3, 64, 96, dtype=torch.uint8)] * 2, "height": 64, "width": 96, "video_len": 2}]
    rows, uncounted = flops_by_part(model, lambda: model(video), depth=2)
    assert not uncounted
    monkeypatch.setattr(linear_module, "_HAS_ONEDNN", False)
    assert flops_by_part(model, lambda: model(video), depth=2)[0] == rows


@pytest.mark.parametrize("opts", [[], ["TEST.MATCH_FRAMES", "True"]])
def test_the_command_prints_a_count_for_every_way_of_running_a_model(capsys, opts):
    arguments = ["--config-file", CONFIGS / "synthetic/lbvq_R18_tiny.yaml", "--tasks", "flops", "--frames", 1]
    assert run_tool("analyze_model", *arguments, "--size", 64, 96, "MODEL.DEVICE", "cpu", *opts) == 0
    rows = dict(re.findall(r"^(\S+) +([\d.]+)$", capsys.readouterr().out, re.MULTILINE))
    model = "MatchedFrames" if opts else "Lbvq"
    assert float(rows[model]) > float(rows["segmenter.backbone" if opts else "backbone"]) > 0
    assert ("lbvq_module" in rows) == (not opts)
