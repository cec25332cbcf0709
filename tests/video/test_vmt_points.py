"""The pixels that VMT refines: edges, box maps, dynamic masks, and the transformer over pixels."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lbvq.modeling.vmt.backbone import our_name, published_name
from lbvq.modeling.vmt.dynamic_masks import double_size, dynamic_masks, num_parameters, relative_coordinates
from lbvq.modeling.vmt.edges import PointTransformer, box_maps, find_edges
from lbvq.modeling.vmt.mask_heads import POINT_DIM, VideoMaskHeads

PUBLISHED_BYTES_PER_LAYER = 4 * 12000 * 12000 * 4  # attention weights of 4 heads in float32


def published_encoder(ours: PointTransformer, points: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The same layers with `nn.MultiheadAttention` asked for its weights, as the published code does."""
    x = points[:, None]
    for layer in ours.layers:
        placed = x + position[:, None]
        x = layer.norm1(x + layer.self_attn(placed, placed, x, need_weights=True)[0])
        x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
    return x[:, 0]


def test_points_get_the_numbers_of_the_published_attention():
    torch.manual_seed(0)
    model = PointTransformer().eval()
    points, position = torch.randn(2, 300, 64)
    with torch.no_grad():
        want = published_encoder(model, points, position)
        torch.testing.assert_close(model.encode(points, position), want, atol=1e-5, rtol=0)


MEASURE = """
import torch
from lbvq.engine.memory import peak_memory_mib
from lbvq.modeling.vmt.edges import PointTransformer
torch.set_num_threads(1)
model = PointTransformer(num_layers=1).eval()
with torch.inference_mode():
    model.encode(torch.randn(10, 64), torch.randn(10, 64))
    before = peak_memory_mib()
    model.encode(torch.randn(12000, 64), torch.randn(12000, 64))
print(int((peak_memory_mib() - before) * 2**20))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is not available")
def test_12000_points_take_less_than_a_quarter_of_the_published_memory():
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(run.stdout) < PUBLISHED_BYTES_PER_LAYER / 4


def test_only_pixels_on_edges_change_and_a_frame_without_edges_stays():
    torch.manual_seed(0)
    model = PointTransformer(num_layers=1).eval()
    features = torch.randn(2, 64, 6, 7)
    edges = torch.zeros(2, 6, 7, dtype=torch.bool)
    edges[0, 2:4, 1:3] = True
    out = model(features, edges)
    assert torch.equal(out[1], features[1])
    changed = (out != features).any(dim=1)
    assert torch.equal(changed, edges)


@pytest.mark.parametrize("subset, lengths", [("even", [5]), ("random", [5]), ("all", [4, 4, 3])])
def test_more_pixels_than_fit_are_thinned_out_or_cut_into_sequences(subset, lengths):
    model = PointTransformer(num_layers=1, max_points=5, subset=subset)
    edges = torch.zeros(40, dtype=torch.bool)
    edges[3:25:2] = True  # 11 pixels
    sequences = model.sequences(edges)
    assert [len(places) for places in sequences] == lengths
    places = torch.cat(sequences)
    assert edges[places].all() and len(places.unique()) == len(places)
    edges[9:] = False
    assert [places.tolist() for places in model.sequences(edges)] == [[3, 5, 7]]


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="POINT_SUBSET must be one of even, random, all, got 'odd'"):
        PointTransformer(subset="odd")
    with pytest.raises(ValueError, match="MAX_REFINED_POINTS"):
        PointTransformer(max_points=0)


def test_edges_lie_around_the_outline_and_nowhere_without_a_mask():
    mask = torch.zeros(2, 60, 60, dtype=torch.bool)
    mask[0, 20:44, 20:44] = True
    edges = find_edges(mask)
    assert not edges[1].any()
    assert edges[0, 20, 32] and edges[0, 43, 32] and edges[0, 32, 20]
    assert not edges[0, 32, 32] and not edges[0, 5, 5] and not edges[0, 32, 50]


def test_a_box_over_the_border_wraps_as_published_or_is_cut():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.5, 0.5, 0.5]])
    wrapped, cut = (box_maps(boxes, (8, 16), wrap=wrap) for wrap in (True, False))
    assert torch.equal(wrapped[0], cut[0]) and wrapped[0].sum() == 4 * 8
    assert wrapped[1].sum() == 0  # columns -4 to 4 are taken as 12 to 4
    assert cut[1].sum() == 4 * 4 and cut[1, 2:6, :4].all()
    assert box_maps(boxes[:0], (8, 16), wrap=True).shape == (0, 8, 16)


def test_a_box_wraps_as_python_slices_do():
    size = (7, 9)
    boxes = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.3
    maps = box_maps(boxes, size, wrap=True)
    for box, got in zip(boxes, maps, strict=True):
        centre_x, centre_y, width, height = (box * torch.tensor([9.0, 7.0, 9.0, 7.0])).tolist()
        left, top = centre_x - width / 2, centre_y - height / 2
        want = torch.zeros(size)
        want[int(top) : int(top + height), int(left) : int(left + width)] = 1
        assert torch.equal(got, want)


def test_a_dynamic_mask_equals_three_convolutions():
    torch.manual_seed(0)
    inputs, parameters = torch.randn(2, 3, 10, 4, 5), torch.randn(3, num_parameters(10))
    got = dynamic_masks(inputs, parameters)
    assert (num_parameters(10), num_parameters(11)) == (169, 177)
    for n, row in enumerate(parameters):
        w1, w2, w3, b1, b2, b3 = row.split([80, 64, 8, 8, 8, 1])
        x = nn.functional.conv2d(inputs[:, n], w1.view(8, 10, 1, 1), b1).relu()
        x = nn.functional.conv2d(x, w2.view(8, 8, 1, 1), b2).relu()
        x = nn.functional.conv2d(x, w3.view(1, 8, 1, 1), b3)
        torch.testing.assert_close(got[:, n], x[:, 0], atol=1e-4, rtol=1e-4)
    assert dynamic_masks(inputs[:, :0], parameters[:0]).shape == (2, 0, 4, 5)


def test_relative_coordinates_count_input_pixels_from_cell_centres():
    places = relative_coordinates(torch.tensor([[[20.0, 10.0]]]), (2, 3), 8)
    assert places[0, 0, 0].tolist() == [[16, 8, 0], [16, 8, 0]]
    assert places[0, 0, 1].tolist() == [[6, 6, 6], [-2, -2, -2]]


def test_doubling_keeps_values_at_odd_pixels():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    doubled = double_size(x)
    assert doubled.shape == (1, 1, 4, 6)
    assert torch.equal(doubled[..., 1::2, 1::2], x)
    assert doubled[0, 0, 1, 2] == 0.5 and doubled[0, 0, 0, 0] == 0


def test_convolving_shared_channels_once_equals_the_branches_on_joined_channels():
    torch.manual_seed(0)
    points = PointTransformer(num_layers=1)
    heads = VideoMaskHeads(dim=16, tap_channels=8, has_stem=True, point_transformer=points, wrap_boxes=True)
    pixels, private = torch.randn(2, POINT_DIM, 9, 8), torch.randn(2, 3, 5, 9, 8)
    joined = torch.cat((pixels[:, None].expand(-1, 3, -1, -1, -1), private), dim=2).flatten(0, 1)
    with torch.no_grad():
        want = sum(fusion(joined) for fusion in heads.fusions).unflatten(0, (2, 3))
        torch.testing.assert_close(heads.fuse(pixels, private), want, atol=1e-5, rtol=1e-5)
        assert heads.fuse(pixels, private[:, :0]).shape == (2, 0, 11, 9, 8)


@pytest.mark.parametrize(
    "ours, published",
    [
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.running_var", "bn1.running_var"),
        ("res2.0.conv3.norm.bias", "layer1.0.bn3.bias"),
        ("res5.2.conv2.weight", "layer4.2.conv2.weight"),
        ("res3.0.shortcut.weight", "layer2.0.downsample.0.weight"),
        ("res3.0.shortcut.norm.num_batches_tracked", "layer2.0.downsample.1.num_batches_tracked"),
    ],
)
def test_names_of_the_backbone_are_translated_both_ways(ours, published):
    assert published_name(ours) == published
    assert our_name(published) == ours
