"""Matching and losses of clip queries against numbers recorded from the published code, and by hand.

Recorded (`m2f_parts.npz`, vcrit/*): L=2, B=1, T=2, 6 queries, 5 classes, 49 points, one auxiliary layer; random points
depend on their shape only. A second description of the criterion agrees to 1e-5.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from helpers import GOLDEN

from lbvq.config import get_cfg
from lbvq.modeling.clips.criterion import ClipCriterion, clip_class_loss, similarity_loss
from lbvq.modeling.clips.decoder import ClipMasks
from lbvq.modeling.clips.matcher import ClipMatcher
from mask2former.modeling.criterion import layer_weights, weighted

FRAME_MATCHES = [
    [(torch.tensor([3]), torch.tensor([0])), (torch.tensor([2, 5]), torch.tensor([1, 0]))],
    [(torch.tensor([4]), torch.tensor([0])), (torch.tensor([1, 6]), torch.tensor([0, 1]))],
]


def matcher() -> ClipMatcher:
    return ClipMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=49)


def criterion(prefix: str = "lbvq", sim_use_clip: bool = True) -> ClipCriterion:
    return ClipCriterion(
        5,
        prefix=prefix,
        matcher=matcher(),
        no_object_weight=0.1,
        num_points=49,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        sim_use_clip=sim_use_clip,
    )


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "m2f_parts.npz") as arrays:
        return {
            name.removeprefix("vcrit/"): torch.from_numpy(np.asarray(arrays[name]))
            for name in arrays.files
            if name.startswith("vcrit/")
        }


@pytest.fixture
def outputs(recorded):
    aux = {"pred_logits": recorded["aux_logits"], "pred_masks": recorded["aux_masks"]}
    names = ("pred_logits", "pred_masks", "pred_fq_embed", "pred_cq_embed")
    return {
        **{name: recorded[name] for name in names},
        "aux_outputs": [{**aux, "pred_fq_embed": None, "pred_cq_embed": None}],
    }


@pytest.fixture
def clip_targets(recorded):
    return [
        {
            "labels": torch.tensor([1, 4]),
            "ids": torch.tensor([[0, 0], [-1, 3]]),
            "masks": recorded["clip_masks"].float(),
        }
    ]


@pytest.fixture
def frame_targets(clip_targets):
    masks = clip_targets[0]["masks"]
    return [
        {"labels": torch.tensor([1]), "ids": torch.tensor([0]), "masks": masks[:1, 0]},
        {"labels": torch.tensor([1, 4]), "ids": torch.tensor([0, 3]), "masks": masks[:, 1]},
    ]


@pytest.fixture
def no_objects():
    clip = {
        "labels": torch.zeros(0, dtype=torch.int64),
        "ids": torch.zeros(0, 2, dtype=torch.int64),
        "masks": torch.zeros(0, 2, 48, 64),
    }
    frame = {"labels": clip["labels"], "ids": clip["labels"], "masks": torch.zeros(0, 48, 64)}
    nothing = (clip["labels"], clip["labels"])
    return [clip], [frame, frame], [[nothing, nothing], [nothing, nothing]]


def test_matches_are_those_of_the_published_matcher(recorded, outputs, clip_targets):
    with fixed_rand():
        matches = matcher()(outputs, clip_targets)
    assert len(matches) == 2
    for entry, (queries, objects) in enumerate(matches):
        assert queries.tolist() == recorded[f"match{entry}_q"].tolist()
        assert objects.tolist() == recorded[f"match{entry}_t"].tolist()


def test_a_cost_that_is_not_finite_names_the_sample(outputs, clip_targets):
    outputs["pred_masks"] = outputs["pred_masks"].clone()
    outputs["pred_masks"][1, 0, 3] = float("nan")
    clip_targets[0]["name"] = "video 7, frames [1, 2]"
    with pytest.raises(ValueError, match=r"video 7, frames \[1, 2\].*not finite"):
        matcher()(outputs, clip_targets)


def test_losses_are_those_of_the_published_criterion(recorded, outputs, clip_targets, frame_targets):
    with fixed_rand():
        losses = criterion()(outputs, clip_targets, frame_targets, FRAME_MATCHES)
    assert sorted(losses) == sorted(name for name in recorded if name.startswith("loss_"))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, recorded[name], atol=1e-5, rtol=1e-5, msg=name)


def test_similarity_of_frame_queries_only(recorded, outputs, clip_targets, frame_targets):
    with fixed_rand():
        losses = criterion(sim_use_clip=False)(outputs, clip_targets, frame_targets, FRAME_MATCHES)
    torch.testing.assert_close(losses["loss_lbvq_sim"], recorded["sim_frame_only"], atol=1e-5, rtol=1e-5)


def test_the_prefix_is_all_that_differs_between_methods(outputs, clip_targets, frame_targets):
    with fixed_rand():
        one = criterion("lbvq")(outputs, clip_targets, frame_targets, FRAME_MATCHES)
        other = criterion("vita")(outputs, clip_targets, frame_targets, FRAME_MATCHES)
    assert {name.replace("lbvq", "vita"): value.item() for name, value in one.items()} == {
        name: value.item() for name, value in other.items()
    }


def test_without_similarity_embeddings_there_is_no_similarity_loss(outputs, clip_targets, frame_targets):
    outputs["pred_fq_embed"] = None
    assert "loss_lbvq_sim" not in criterion()(outputs, clip_targets, frame_targets, FRAME_MATCHES)


def test_a_batch_without_objects_gives_zero_mask_losses_that_can_be_differentiated(outputs, no_objects):
    leaves = [outputs[name].requires_grad_() for name in ("pred_masks", "pred_fq_embed", "pred_cq_embed")]
    losses = criterion()(outputs, *no_objects)
    for name, loss in losses.items():
        assert loss.item() > 0 if "_ce" in name else loss.item() == 0, name
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_masks_on_demand_give_the_losses_and_gradients_of_dense_masks(outputs, clip_targets, frame_targets, num_layers):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 4, 12, 16, generator=generator).requires_grad_()
    embeddings = [torch.randn(2, 1, 6, 4, generator=generator).requires_grad_() for _ in range(num_layers)]
    outputs["aux_outputs"] = outputs["aux_outputs"][: num_layers - 1]
    found = []
    for as_masks in (ClipMasks, lambda *parts: ClipMasks(*parts).dense()):
        for layer, embed in zip((outputs, *outputs["aux_outputs"]), embeddings, strict=True):
            layer["pred_masks"] = as_masks(embed, features)
        with fixed_rand():
            losses = criterion()(outputs, clip_targets, frame_targets, FRAME_MATCHES)
        masks = [loss for name, loss in losses.items() if "mask" in name or "dice" in name]
        found.append((losses, torch.autograd.grad(sum(masks), [features, *embeddings])))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_the_class_loss_counts_no_object_a_tenth():
    """One query of one object with certain logits, one without object at equal logits: by hand."""
    logits = torch.zeros(1, 1, 2, 3)
    logits[0, 0, 0, 1] = 100
    targets = [{"labels": torch.tensor([1])}]
    loss = clip_class_loss(logits, targets, [(torch.tensor([0]), torch.tensor([0]))], torch.tensor([1.0, 1.0, 0.1]))
    assert loss.item() == pytest.approx(0.1 * math.log(3) / 1.1, rel=1e-5)


def test_a_perfect_mask_has_almost_no_loss_over_all_frames_together():
    torch.manual_seed(0)
    truth = torch.zeros(1, 2, 16, 16)
    truth[0, 0, 4:12, 4:12] = 1  # not there in the second frame
    masks = (truth - 0.5)[None, None] * 200
    match = [(torch.tensor([0]), torch.tensor([0]))]
    layers = [{"pred_logits": torch.zeros(1, 1, 1, 6), "pred_masks": each} for each in (masks, -masks)]
    target = {"labels": torch.tensor([0]), "masks": truth}
    draws = [criterion().draw(layer, [target]) for layer in layers]
    losses = criterion().mask_losses(layers, [target], [match] * 2, draws, 1.0)
    (mask, dice), (wrong_mask, wrong_dice) = losses
    assert mask.item() < 5 < 50 < wrong_mask.item()
    assert dice.item() < 0.3 < 0.9 < wrong_dice.item()


def test_similarity_of_two_rows_by_hand():
    """One object: all four pairs should be positive; their inner products are 4, 2, 2 and 1."""
    embeddings = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    want = sum(math.log(1 + math.exp(-product)) for product in (4, 2, 2, 1)) / 4
    loss = similarity_loss(embeddings, torch.tensor([5, 5]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(want, rel=1e-5)


def test_similarity_ignores_pairs_of_other_groups_and_rows_without_id():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 8, generator=generator)
    ids, groups = torch.tensor([0, 1, 0, 1, -1]), torch.tensor([0, 0, 1, 1, 1])
    first = similarity_loss(rows[:2], ids[:2], groups[:2])
    second = similarity_loss(rows[2:4], ids[2:4], groups[2:4])
    both = similarity_loss(rows, ids, groups)
    assert both.item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-5)


def test_weights_are_repeated_for_auxiliary_layers_and_losses_without_weight_dropped():
    weights = layer_weights({"loss_ce": 2.0, "loss_mask": 5.0}, 2)
    assert weights == {
        "loss_ce": 2.0, "loss_mask": 5.0, "loss_ce_0": 2.0, "loss_mask_0": 5.0, "loss_ce_1": 2.0, "loss_mask_1": 5.0,
    }  # fmt: skip
    losses = {"loss_ce_1": torch.tensor(3.0), "loss_ce_2": torch.tensor(1.0)}
    assert weighted(losses, weights) == {"loss_ce_1": torch.tensor(6.0)}


def test_the_class_weights_are_a_buffer_of_the_checkpoint():
    assert criterion().state_dict()["empty_weight"].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.1])


def test_settings_reach_the_clip_loss_and_the_cost_they_name():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MASK_FORMER.CLASS_WEIGHT", 3.0, "MODEL.MASK_FORMER.MASK_WEIGHT", 20.0])
    cfg.merge_from_list(["MODEL.MASK_FORMER.DICE_WEIGHT", 1.0, "MODEL.LBVQ.SIM_WEIGHT", 0.25])
    cfg.merge_from_list(["MODEL.LBVQ.NO_OBJECT_WEIGHT", 0.3, "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.2])
    whole = ClipCriterion(**ClipCriterion.from_config(cfg, "lbvq"))
    names = ("loss_lbvq_ce", "loss_lbvq_mask", "loss_lbvq_dice", "loss_lbvq_mask_0", "loss_lbvq_sim")
    assert [whole.weight_dict[name] for name in names] == [3.0, 20.0, 1.0, 20.0, 0.25]
    assert (whole.matcher.cost_class, whole.matcher.cost_mask, whole.matcher.cost_dice) == (3.0, 20.0, 1.0)
    assert whole.empty_weight[-1] == pytest.approx(0.3)


def test_clip_losses_and_costs_tell_masks_from_dice():
    """A query that knows nothing of one object in two frames; half of each frame is the object."""
    outputs = {"pred_logits": torch.zeros(1, 1, 1, 2), "pred_masks": torch.zeros(1, 1, 1, 2, 4, 4)}
    masks = torch.zeros(1, 2, 4, 4)
    masks[..., :2] = 1
    target = {"labels": torch.tensor([0]), "masks": masks}
    costs = ClipMatcher(cost_class=3.0, cost_mask=20.0, cost_dice=1.0, num_points=4000)
    torch.manual_seed(0)
    got = costs.costs(outputs, [target])[0].item()
    assert got == pytest.approx(20 * math.log(2) - 1.5 + 0.5, abs=0.05)  # of 4,000 points about half lie inside


def test_a_clip_query_without_object_counts_a_tenth():
    """Two queries, one class: the first, matched, pays ln 2; the second says "no object" with probability 1/4."""
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3), 0.0]]]])
    matches = [(torch.tensor([0]), torch.tensor([0]))]
    weights = torch.tensor([1.0, 0.1])
    loss = clip_class_loss(logits, [{"labels": torch.tensor([0])}], matches, weights)
    assert loss.item() == pytest.approx((math.log(2) + 0.1 * math.log(4)) / 1.1)
