"""CTVIS' contrastive training against recorded numbers (`ctvis_plugin.npz`), and its rules by hand.

Recorded: two videos of six frames, 12 queries, objects that come and go, with three kinds of random draws. The
published code moves by 5e-7 in losses and 4e-8 in gradients.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from helpers import GOLDEN

from lbvq.modeling.ctvis import contrast as plugin
from lbvq.modeling.ctvis.contrast import HIDDEN, MemoryContrast, moving_averages, queries_of_clips
from mask2former.modeling.matcher import HungarianMatcher

RECORDED = np.load(GOLDEN / "ctvis_plugin.npz")
NUM_FRAMES, NUM_CLASSES = 6, 7


def recorded_targets() -> list[dict[str, torch.Tensor]]:
    """Both videos: all objects in every frame, hidden ones with class K and an empty mask."""
    packed = torch.from_numpy(np.unpackbits(RECORDED["in_gt_masks_packed"], axis=-1)).bool()
    targets, start = [], 0
    for count in (5, 3):
        visible = torch.from_numpy(RECORDED["in_visible"]).bool()[:count]
        for frame in range(NUM_FRAMES):
            labels = torch.arange(count).where(visible[:, frame], torch.tensor(NUM_CLASSES))
            ids = torch.arange(count).where(visible[:, frame], torch.tensor(-1))
            targets.append({"labels": labels, "ids": ids, "masks": packed[start : start + count]})
            start += count
    assert start == len(packed)
    return targets


def recorded_queries() -> list[torch.Tensor]:
    targets = recorded_targets()
    outputs = {f"pred_{name}": torch.from_numpy(RECORDED[f"in_{name}"]) for name in ("logits", "masks")}
    with fixed_rand():
        matches = HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=5, num_points=256)(outputs, targets)
    return queries_of_clips(matches, targets, NUM_FRAMES)


def test_objects_are_matched_as_recorded():
    for video, queries in enumerate(recorded_queries()):
        for frame in range(NUM_FRAMES):
            assert queries[frame].tolist() == RECORDED[f"match/{2 * frame + video}"].tolist()


SEQUENCE = np.random.RandomState(3)
DRAWS = {
    "last": lambda count: torch.zeros(count),
    "mean": lambda count: torch.full((count,), 0.9),
    "seq": lambda count: torch.tensor([SEQUENCE.rand() for _ in range(count)]),
}


@pytest.mark.parametrize("mode", list(DRAWS))
def test_losses_items_and_gradients_are_the_recorded_ones(mode, monkeypatch):
    monkeypatch.setattr(plugin, "draw_shares", DRAWS[mode])
    items, original = [], plugin.contrast

    def noted(anchors, positives, negatives, counts):
        items.extend(zip((anchors * positives[:, 0]).sum(-1).tolist(), counts.sum(1).tolist(), strict=True))
        return original(anchors, positives, negatives, counts)

    monkeypatch.setattr(plugin, "contrast", noted)
    embeddings = torch.from_numpy(RECORDED["in_embeds"]).requires_grad_()
    compare = MemoryContrast(num_negatives=11, skip_first_appearance=True)
    losses = compare(embeddings.unflatten(0, (2, -1)), recorded_queries())
    assert [count for _, count in items] == RECORDED[f"{mode}/negatives"].tolist()
    np.testing.assert_allclose([product for product, _ in items], RECORDED[f"{mode}/positive_dot"], atol=1e-5)
    weights = {"loss_reid": 2.0, "loss_aux_reid": 3.0}
    for name, loss in losses.items():
        assert weights[name] * loss.item() == pytest.approx(float(RECORDED[f"{mode}/{name}"]), abs=1e-5)
    sum(weights[name] * loss for name, loss in losses.items()).backward()
    np.testing.assert_allclose(embeddings.grad, RECORDED[f"{mode}/grad_embeds"], atol=1e-6)


def test_every_appearance_is_compared_unless_as_published():
    """Object 4 of the first video appears in frame 2, is hidden in two frames, and comes back in frame 5."""
    seen = {flag: 0 for flag in (False, True)}
    for flag in seen:
        compare = MemoryContrast(num_negatives=11, skip_first_appearance=flag)
        embeddings = torch.from_numpy(RECORDED["in_embeds"]).unflatten(0, (2, -1))
        for clip, queries in zip(embeddings, recorded_queries(), strict=True):
            seen[flag] += sum(len(loss) for loss, _ in compare.clip_terms(clip, queries))
    assert seen == {False: 22, True: 21}


def test_the_average_is_that_of_the_tracker():
    """Frame 1 is orthogonal to frame 0 and does not move it; frame 2 is hidden; frame 3 has cosines 0.6 and 0.8."""
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [0.6, 0.8]])[:, None]
    visible = torch.tensor([True, True, False, True])[:, None]
    averages = moving_averages(own, visible)[:, 0]
    assert averages[:3].tolist() == [[1.0, 0.0]] * 3
    torch.testing.assert_close(averages[3], 0.3 * torch.tensor([1.0, 0.0]) + 0.7 * torch.tensor([0.6, 0.8]))


def test_few_negatives_are_drawn_among_the_others_only():
    torch.manual_seed(0)
    counts = MemoryContrast(num_negatives=2).negatives(torch.tensor([3, 0, HIDDEN]), 5)
    assert counts.sum(1).tolist() == [2, 2, 5]
    assert not counts[0, 3] and not counts[1, 0]
    assert MemoryContrast(num_negatives=99).negatives(torch.tensor([3]), 5).tolist() == [
        [True, True, True, False, True]
    ]


def test_clips_without_objects_give_zero_and_a_graph():
    embeddings = torch.randn(2, 3, 4, 5, requires_grad=True)
    for queries in (torch.zeros(3, 0, dtype=torch.int64), torch.full((3, 2), HIDDEN)):
        losses = MemoryContrast()(embeddings, [queries, queries])
        assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
        sum(losses.values()).backward()
    assert embeddings.grad.abs().sum() == 0


def test_an_object_in_one_frame_only_is_not_compared():
    queries = torch.tensor([[0], [HIDDEN], [HIDDEN]])
    for frame in range(3):
        losses = MemoryContrast()(torch.randn(1, 3, 4, 5), [queries.roll(frame, 0)])
        assert losses["loss_reid"].item() == 0
