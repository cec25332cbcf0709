"""Point sampling, matching and losses against the recorded numbers, small cases by hand, and empty cases."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from helpers import GOLDEN

from lbvq.config import get_cfg
from mask2former import points as points_module
from mask2former.linear import predicted_masks
from mask2former.modeling import criterion as criterion_module
from mask2former.modeling import matcher as matcher_module
from mask2former.modeling.criterion import (
    SetCriterion,
    average_over_processes,
    dice_loss,
    masks_of_rows,
    sigmoid_ce_loss,
)
from mask2former.modeling.matcher import (
    HungarianMatcher,
    assign,
    matched_rows,
    matching_cost,
    pairwise_dice,
    pairwise_sigmoid_ce,
)
from mask2former.points import point_sample, sample_lists, sample_pixels, uncertain_points

NUM_POINTS = 49


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "m2f_parts.npz") as arrays:
        names = [name for name in arrays.files if name.split("/")[0] in ("crit", "match", "loss")]
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in names}


@pytest.fixture(scope="module")
def targets(golden):
    return [{"labels": golden[f"crit/tgt_labels{i}"], "masks": golden[f"crit/tgt_masks{i}"]} for i in range(2)]


def close(value, want):
    torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-5)


def make_matcher():
    return HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=NUM_POINTS)


def make_criterion():
    return SetCriterion(5, matcher=make_matcher(), num_points=NUM_POINTS, last_layer_num=2)


def test_losses_and_pairwise_costs_equal_the_recorded_ones(golden):
    logits, masks = golden["loss/logits"], golden["loss/targets"]
    close(dice_loss(logits, masks, 3.0), golden["loss/dice"])
    close(sigmoid_ce_loss(logits, masks, 3.0), golden["loss/ce"])
    close(pairwise_dice(logits, masks[:3]), golden["loss/batch_dice"])
    close(pairwise_sigmoid_ce(logits, masks[:3]), golden["loss/batch_ce"])


def test_costs_and_matches_equal_the_recorded_ones(golden, targets):
    outputs = {"pred_logits": golden["crit/logits"], "pred_masks": golden["crit/masks"]}
    matcher = make_matcher()
    with fixed_rand():
        close(torch.rand(1, NUM_POINTS, 2), golden["match/points"])
        close(matcher.cost(outputs, targets[0], 0), golden["match/cost0"])
        matches = matcher(outputs, targets)
        few = matcher({name: value[:1, :2] for name, value in outputs.items()}, targets[:1])
    for image, (queries, objects) in enumerate(matches):
        assert torch.equal(queries, golden[f"match/q{image}"]) and torch.equal(objects, golden[f"match/t{image}"])
    assert torch.equal(few[0][0], golden["match/few_q"]) and torch.equal(few[0][1], golden["match/few_t"])


def test_all_losses_and_kept_matches_equal_the_recorded_ones(golden, targets):
    outputs = {"pred_logits": golden["crit/logits"], "pred_masks": golden["crit/masks"]}
    outputs["aux_outputs"] = [
        {"pred_logits": golden[f"crit/aux{i}_logits"], "pred_masks": golden[f"crit/aux{i}_masks"]} for i in range(2)
    ]
    with fixed_rand():
        losses, kept = make_criterion()(outputs, targets)
    assert set(losses) == {name.removeprefix("crit/") for name in golden if name.startswith("crit/loss")}
    for name, loss in losses.items():
        close(loss, golden[f"crit/{name}"])
    for layer in range(2):
        for image in range(2):
            for index, kind in enumerate("qt"):
                assert torch.equal(kept[layer][image][index], golden[f"crit/fg{layer}_{image}_{kind}"])


def test_uncertain_points_equal_the_recorded_ones(golden):
    with fixed_rand():
        close(
            uncertain_points(golden["crit/masks"][0][:3, None], NUM_POINTS, 3.0, 0.75), golden["crit/uncertain_points"]
        )


def test_point_sample_reads_pixel_centres_exactly_and_zero_outside():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    centres = torch.tensor([[[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [1.5, 0.5]]])
    assert point_sample(maps, centres).flatten().tolist() == pytest.approx([0.0, 11.0, 0.0], abs=1e-5)


def test_uncertain_points_lie_where_the_logit_changes_sign():
    torch.manual_seed(0)
    logits = torch.linspace(-8, 8, 64).expand(2, 1, 64, 64)
    points = uncertain_points(logits, 100, 4.0, 0.75)
    assert points.shape == (2, 100, 2) and points.min() >= 0 and points.max() <= 1
    distance = (points[:, :, 0] - 0.5).abs()
    assert distance[:, :75].median() < 0.1 < distance[:, 75:].median()


@pytest.mark.parametrize("oversample, importance", [(0.5, 0.75), (3.0, 1.5)])
def test_impossible_point_settings_are_refused(oversample, importance):
    with pytest.raises(ValueError, match="SAMPLE_RATIO"):
        uncertain_points(torch.zeros(1, 1, 4, 4), 10, oversample, importance)


def test_a_perfect_query_costs_least():
    mask = (torch.rand(2, 50) > 0.5).float()
    logits = torch.tensor([[-9.0, 9.0, 0.0], [9.0, -9.0, 0.0], [0.0, 0.0, 9.0]])
    masks = torch.stack([mask[1] * 40 - 20, mask[0] * 40 - 20, torch.zeros(50)])
    cost = matching_cost(logits, masks, torch.tensor([0, 1]), mask, cost_class=2, cost_mask=5, cost_dice=5)
    queries, objects = assign(cost)
    assert queries.tolist() == [0, 1] and objects.tolist() == [1, 0]


def test_matching_without_objects_is_empty():
    queries, objects = assign(torch.zeros(5, 0))
    assert len(queries) == len(objects) == 0 and queries.dtype == torch.int64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_names_the_sample(value):
    outputs = {"pred_logits": torch.zeros(2, 3, 6), "pred_masks": torch.zeros(2, 3, 4, 4)}
    outputs["pred_masks"][1] = value
    targets = [
        {"labels": torch.tensor([0]), "masks": torch.ones(1, 8, 8), "name": name} for name in ("video a", "video b")
    ]
    with pytest.raises(ValueError, match=r"video b: .* not finite"):
        make_matcher()(outputs, targets)


def test_a_batch_without_objects_has_a_class_loss_and_zero_mask_losses_with_gradients():
    outputs = {
        "pred_logits": torch.randn(2, 8, 6, requires_grad=True),
        "pred_masks": torch.randn(2, 8, 12, 16, requires_grad=True),
    }
    targets = [{"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 48, 64)}] * 2
    losses, _ = make_criterion()(outputs, targets)
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0 and losses["loss_ce"] > 0
    sum(losses.values()).backward()
    assert outputs["pred_masks"].grad is not None


def test_the_order_of_objects_does_not_matter(golden, targets):
    outputs = {"pred_logits": golden["crit/logits"], "pred_masks": golden["crit/masks"]}
    flipped = [{name: value.flip(0) for name, value in target.items()} for target in targets]
    with fixed_rand():
        first, _ = make_criterion()(outputs, targets)
        second, _ = make_criterion()(outputs, flipped)
    for name, loss in first.items():
        close(second[name], loss)


def test_bool_targets_are_read_in_parts_and_give_the_numbers_of_float_ones(monkeypatch, golden):
    points, masks = torch.rand(1, 30, 2), golden["crit/tgt_masks0"].bool()
    want = point_sample(masks[None].float(), points)
    monkeypatch.setattr(points_module, "CONVERTED_AT_ONCE", masks[0].numel())
    assert torch.equal(point_sample(masks[None], points), want)
    each = point_sample(masks[:, None], points.expand(len(masks), -1, -1))
    close(each[:, 0], want[0])


def test_points_of_a_large_half_precision_map_are_read_exactly():
    maps = torch.arange(2000.0).view(1, 1, 1, 2000).half()
    centres = torch.stack(((torch.arange(2000) + 0.5) / 2000, torch.full((2000,), 0.5)), dim=1)[None]
    close(point_sample(maps, centres).flatten()[1:-1], maps.float().flatten()[1:-1])


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_side_by_side_are_read_as_maps_are(size, dtype):
    """Points on the border, outside, and on the centres of cells, in clips of each memory format."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(2, 3, 6, *size, generator=generator).to(dtype)
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1.0, 0.0], [-0.1, 0.4], [1.7, -3.0]])
    points = torch.cat((corners.expand(2, -1, -1), torch.rand(2, 50, 2, generator=generator)), dim=1)
    each = [point_sample(clip, at.expand(3, -1, -1)).mT.flatten(0, 1) for clip, at in zip(clips, points, strict=True)]
    want = torch.stack(each)  # (2, 3 * 56, 6)
    pixels = clips.permute(0, 1, 3, 4, 2)
    for given in (pixels, pixels.contiguous(), list(pixels)):
        read = sample_pixels(given, points)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, want, rtol=0, atol=2e-6)
    torch.testing.assert_close(sample_pixels(pixels, points.double()), want.double(), rtol=0, atol=2e-6)
    assert sample_pixels(pixels[..., :0], points).shape == (2, 168, 0)


def test_points_of_no_maps_are_none():
    assert point_sample(torch.zeros(0, 1, 4, 4), torch.zeros(0, 7, 2)).shape == (0, 1, 7)
    assert uncertain_points(torch.zeros(0, 1, 4, 4), 8).shape == (0, 8, 2)


def test_mask_losses_are_divided_by_the_mean_count_of_all_processes_and_at_least_one(monkeypatch):
    assert average_over_processes(5, torch.device("cpu")) == 5
    assert average_over_processes(0, torch.device("cpu")) == 1

    class TwoProcesses:
        """The other process counts seven masks."""

        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)

        @staticmethod
        def all_reduce(count):
            count += 7

    monkeypatch.setattr(criterion_module, "dist", TwoProcesses)
    # stays a tensor, so that nobody waits for it
    assert torch.equal(average_over_processes(4, torch.device("cpu")), torch.tensor(5.5))
    assert torch.equal(average_over_processes(0, torch.device("cpu")), torch.tensor(3.5))


def test_half_precision_outputs_give_finite_float32_losses(golden, targets):
    outputs = {"pred_logits": golden["crit/logits"].half(), "pred_masks": golden["crit/masks"].half()}
    with fixed_rand():
        losses, _ = make_criterion()(outputs, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, golden[f"crit/{name}"], rtol=0.01, atol=0.01)


def test_each_cost_has_a_weight_of_its_own():
    """One query that knows nothing: class probability 1/2, cross entropy ln 2, dice 1 - 2/3."""
    logits, masks = torch.zeros(1, 2), torch.zeros(1, 2)
    labels, wanted = torch.tensor([0]), torch.tensor([[1.0, 0.0]])
    costs = {"cost_class": 3.0, "cost_mask": 20.0, "cost_dice": 1.0}
    assert matching_cost(logits, masks, labels, wanted, **costs).item() == pytest.approx(20 * math.log(2) - 1.5 + 1 / 3)


def test_settings_reach_the_loss_and_the_cost_they_name():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MASK_FORMER.CLASS_WEIGHT", 3.0, "MODEL.MASK_FORMER.MASK_WEIGHT", 20.0])
    cfg.merge_from_list(["MODEL.MASK_FORMER.DICE_WEIGHT", 1.0, "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.3])
    criterion = SetCriterion(**SetCriterion.from_config(cfg))
    weights = {name: criterion.weight_dict[name] for name in ("loss_ce", "loss_mask", "loss_dice", "loss_dice_0")}
    assert weights == {"loss_ce": 3.0, "loss_mask": 20.0, "loss_dice": 1.0, "loss_dice_0": 1.0}
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_mask, matcher.cost_dice) == (3.0, 20.0, 1.0)
    assert criterion.empty_weight[0] == 1 and criterion.empty_weight[-1] == pytest.approx(0.3)


def test_a_query_without_object_counts_a_tenth():
    """Two queries, one class: the first, matched, pays ln 2; the second says "no object" with probability 1/4."""
    criterion = SetCriterion(1, matcher=HungarianMatcher(), no_object_weight=0.1)
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    matches = [(torch.tensor([0]), torch.tensor([0]))]
    loss = criterion.class_loss(logits, [{"labels": torch.tensor([0])}], matches)
    assert loss.item() == pytest.approx((math.log(2) + 0.1 * math.log(4)) / 1.1)


def test_lists_of_maps_are_read_at_points_of_their_own_whatever_is_joined(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 4, 6), (0, 4, 6), (3, 4, 6), (1, 5, 5)]
    lists = [torch.rand(size, generator=generator) > 0.5 for size in sizes]
    at = torch.rand(6, 7, 2, generator=generator)
    singly = [point_sample(maps[None, None], here[None])[0, 0] for maps, here in zip(chain(*lists), at, strict=True)]
    for limit in (0, 48, 2**24):  # every list by itself, two of them at most, all of one size
        monkeypatch.setattr(points_module, "JOINED_AT_ONCE", limit)
        assert torch.equal(sample_lists(lists, at), torch.stack(singly)), limit


def test_matched_rows_name_the_image_of_every_query():
    match = (torch.tensor([1, 4]), torch.tensor([0, 1]))
    none = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    images, queries = matched_rows([match, none, match])
    assert images.tolist() == [0, 0, 2, 2] and queries.tolist() == [1, 4, 1, 4]
    assert [len(part) for part in matched_rows([])] == [0, 0]


@pytest.mark.parametrize("at_once, cached", [(1, 1), (2**24, 20), (2**24, 2**24)])
def test_costs_of_a_batch_are_those_of_each_image(at_once, cached, monkeypatch):
    monkeypatch.setattr(matcher_module, "COMPARED_AT_ONCE", at_once)
    monkeypatch.setattr(matcher_module, "CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "pred_logits": torch.randn(3, 5, 4, generator=generator),
        "pred_masks": torch.randn(3, 5, 6, 8, generator=generator),
    }
    targets = [
        {"labels": torch.arange(count) % 3, "masks": torch.rand(count, 12, 16, generator=generator) > 0.5}
        for count in (2, 0, 3)
    ]
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=9)
    torch.manual_seed(1)
    together = matcher.costs(outputs, targets)
    torch.manual_seed(1)
    for image, (target, cost) in enumerate(zip(targets, together, strict=True)):
        torch.testing.assert_close(cost, matcher.cost(outputs, target, image), rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_frames", [None, 2])
def test_all_layers_together_draw_match_and_lose_as_one_after_the_other(num_frames, monkeypatch):
    """Of three images one has no object, and one more objects than there are queries."""
    generator = torch.Generator().manual_seed(0)
    frames = () if num_frames is None else (num_frames,)
    layers = [
        {
            "pred_logits": torch.randn(3, 5, 6, generator=generator),
            "pred_masks": torch.randn(3, 5, *frames, 6, 8, generator=generator),
        }
        for _ in range(3)
    ]
    targets = [
        {"labels": torch.arange(count) % 5, "masks": torch.rand(count, *frames, 12, 16, generator=generator) > 0.5}
        for count in (2, 0, 7)
    ]
    found = []
    for at_once in (1, 2**24):
        monkeypatch.setattr(criterion_module, "DRAWN_AT_ONCE", at_once)
        torch.manual_seed(1)
        found.append(make_criterion()({**layers[0], "aux_outputs": layers[1:]}, targets))
    (losses, matches), (together, all_matches) = found
    assert list(losses) == list(together) and len(losses) == 9
    for name, loss in losses.items():
        torch.testing.assert_close(together[name], loss, rtol=1e-6, atol=0)
    for layer, same in zip(matches, all_matches, strict=True):
        for match, other in zip(layer, same, strict=True):
            assert torch.equal(torch.stack(match), torch.stack(other))


@pytest.mark.parametrize("num_frames", [None, 2])
def test_matched_masks_made_of_their_parts_have_the_losses_and_gradients_of_all_masks(num_frames):
    """The masks themselves get no gradient then; layers with other features than the first have masks only."""
    generator = torch.Generator().manual_seed(0)
    rows = 6 * (num_frames or 1)
    frames = () if num_frames is None else (num_frames,)
    targets = [
        {"labels": torch.arange(count) % 5, "masks": torch.rand(count, *frames, 12, 16, generator=generator) > 0.5}
        for count in (2, 0, 4)
    ]
    features = torch.randn(3, 7, rows, 8, generator=generator).requires_grad_()
    embeddings = [torch.randn(3, 5, 7, generator=generator).requires_grad_() for _ in range(3)]
    logits = [torch.randn(3, 5, 6, generator=generator) for _ in range(3)]

    def run(has_parts):
        layers, made = [], []
        for index, (embed, scores) in enumerate(zip(embeddings, logits, strict=True)):
            own = features * 1 if has_parts == "of the layer" and index else features
            layer = {"pred_logits": scores, **predicted_masks(embed, own)}
            layer["pred_masks"].retain_grad()
            made.append(layer["pred_masks"])
            if num_frames:
                layer["pred_masks"] = layer["pred_masks"].unflatten(2, (num_frames, -1))
            if not has_parts:
                del layer["mask_parts"]
            layers.append(layer)
        torch.manual_seed(1)
        losses, _ = make_criterion()({**layers[0], "aux_outputs": layers[1:]}, targets)
        gradients = torch.autograd.grad(sum(losses.values()), [features, *embeddings, *made], allow_unused=True)
        return losses, gradients[:4], [each is not None for each in gradients[4:]]

    losses, gradients, has_grad = run(False)
    assert has_grad == [True] * 3
    for has_parts, expected in (("in common", [False] * 3), ("of the layer", [True] * 3)):
        same, others, has_grad = run(has_parts)
        assert has_grad == expected
        torch.testing.assert_close(same, losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)


def test_rows_are_multiplied_with_the_features_of_their_own_image():
    embed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    features = [torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[5.0, 6.0]], [[7.0, 8.0]]])]
    masks = masks_of_rows(embed, torch.tensor([1, 0, 1]), features)
    assert masks.tolist() == [[5.0, 6.0], [3.0, 4.0], [17.0, 20.0]]
    assert masks_of_rows(embed[:0], torch.zeros(0, dtype=torch.int64), features).shape == (0, 2)
