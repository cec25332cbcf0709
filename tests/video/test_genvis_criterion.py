"""Which query is responsible for which object in GenVIS, and the losses, clip after clip.

Recorded from the published code: `genvis_parts.npz`, four objects, six queries, two frame-decoder outputs, three clips
of two frames. Object 0 hides in the second clip while object 2 appears and takes its query, so in the third clip both
own it: as published.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from helpers import GOLDEN

from lbvq.modeling.genvis.criterion import ClipInputs, GenvisCriterion, GenvisMatcher, split_target

PRESENT = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]], bool)  # object, clip
LABELS = torch.tensor([0, 3, 1, 4])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def criterion() -> GenvisCriterion:
    return GenvisCriterion(
        5,
        prefix="genvis",
        matcher=GenvisMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=256),
        no_object_weight=0.1,
        num_points=256,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        sim_use_clip=True,
    )


def shapes() -> torch.Tensor:
    """Four rectangles, (4, 12, 16)."""
    masks = torch.zeros(4, 12, 16)
    masks[0, 1:5, 1:6] = 1
    masks[1, 6:11, 2:8] = 1
    masks[2, 2:9, 10:15] = 1
    masks[3, 7:12, 9:13] = 1
    return masks


def video_target() -> dict:
    """Three clips of two frames."""
    present = torch.from_numpy(PRESENT).repeat_interleave(2, dim=1)  # (4, 6)
    return {
        "labels": LABELS,
        "ids": torch.where(present, torch.arange(4)[:, None], -1),
        "masks": shapes()[:, None] * present[:, :, None, None],
        "name": "video 1",
    }


def outputs_of(clip: int) -> dict:
    masks = normal(300 + clip, 2, 1, 6, 2, 6, 8)
    small = shapes()[:, ::2, ::2]
    masks[:, 0, 4] += 8 * small[0 if clip != 1 else 2] - 4
    masks[:, 0, 1] += 8 * small[1] - 4
    auxiliary = {"pred_masks": normal(320 + clip, 2, 1, 6, 2, 6, 8), "pred_logits": normal(330 + clip, 2, 1, 6, 6)}
    return {
        "pred_logits": normal(310 + clip, 2, 1, 6, 6),
        "pred_masks": masks,
        "pred_fq_embed": normal(340 + clip, 2, 1, 2, 5, 8) * 0.5,
        "pred_cq_embed": normal(350 + clip, 2, 1, 6, 8) * 0.5,
        "aux_outputs": [auxiliary],
    }


def frame_inputs(clip: int) -> tuple[list[dict], list]:
    visible = torch.from_numpy(PRESENT[:, clip].nonzero()[0])
    targets = [{"labels": LABELS[visible], "ids": visible, "masks": shapes()[visible]}] * 2
    pairs = (torch.arange(len(visible)), torch.arange(len(visible)))
    return targets, [[pairs] * 2] * 2


def test_a_video_is_split_into_clips_that_know_what_is_new():
    clips = split_target(video_target(), 2)
    assert [clip["valid"].tolist() for clip in clips] == PRESENT.T.tolist()
    assert [clip["new"].nonzero().flatten().tolist() for clip in clips] == [[0, 1], [2], [3]]
    assert all(clip["masks"].shape == (4, 2, 12, 16) and clip["ids"].shape == (4, 2) for clip in clips)


def test_frames_that_do_not_fill_a_clip_are_left_out():
    assert [clip["ids"].shape[1] for clip in split_target(video_target(), 4)] == [4]
    assert split_target(video_target(), 7) == []


def test_owners_and_losses_are_the_recorded_ones():
    recorded = np.load(GOLDEN / "genvis_parts.npz")
    targets = split_target(video_target(), 2)
    clips = [ClipInputs(outputs_of(clip), [target], *frame_inputs(clip)) for clip, target in enumerate(targets)]
    with fixed_rand(), torch.no_grad():
        found = criterion()(clips)
    for clip, (losses, owners) in enumerate(found):
        tag = f"crit_c{clip}/"
        want = {name.removeprefix(tag): recorded[name].item() for name in recorded.files if f"{tag}loss" in name}
        assert losses.keys() == want.keys()
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(want[name], abs=1e-5), name
        assert torch.stack(owners[0]).tolist() == recorded[f"{tag}match"].tolist()
        assert torch.stack(owners[1]).tolist() == recorded[f"{tag}match_aux"].tolist()


@pytest.mark.parametrize("num_objects", [0, 4])
def test_a_clip_without_a_visible_object_trains_the_classes_only(num_objects):
    target = {
        "labels": LABELS[:num_objects],
        "ids": torch.full((num_objects, 2), -1),
        "masks": torch.zeros(num_objects, 2, 12, 16),
    }
    nothing = torch.zeros(0, dtype=torch.int64)
    frame_targets = [{"labels": nothing, "ids": nothing, "masks": torch.zeros(0, 12, 16)}] * 2
    frame_matches = [[(nothing, nothing)] * 2] * 2
    ((losses, owners),) = criterion()(
        [ClipInputs(outputs_of(0), split_target(target, 2), frame_targets, frame_matches)]
    )
    assert losses["loss_genvis_ce"] > 0 and losses["loss_genvis_ce_0"] > 0
    assert all(loss == 0 for name, loss in losses.items() if "_ce" not in name)
    assert [len(queries) for queries in owners[0]] == [num_objects] * 2


COST = torch.tensor([[0.0, 5.0, 5.0], [1.0, 0.0, 4.0], [2.0, 3.0, 0.0], [3.0, 4.0, 1.0]])


def matched(new: list, valid: list, before: list | None) -> list[int]:
    matcher = GenvisMatcher(cost_class=1, cost_mask=1, cost_dice=1, num_points=1)
    target = {"new": torch.tensor(new, dtype=torch.bool), "valid": torch.tensor(valid, dtype=torch.bool)}
    return matcher.match(COST, target, None if before is None else torch.tensor(before)).tolist()


def test_new_objects_get_the_best_queries():
    assert matched([1, 1, 1], [1, 1, 1], None) == [0, 1, 2]


def test_an_object_keeps_its_query_whatever_the_costs_say():
    assert matched([0, 0, 0], [1, 1, 1], [3, 2, 0]) == [3, 2, 0]


def test_a_new_object_does_not_get_the_query_of_a_visible_one():
    assert matched([0, 0, 1], [1, 1, 1], [2, 1, 0]) == [2, 1, 3]


def test_a_new_object_may_get_the_query_of_a_hidden_one():
    assert matched([0, 0, 1], [0, 1, 1], [2, 1, 0]) == [2, 1, 2]


def test_more_objects_than_queries_are_refused():
    target = {"labels": torch.zeros(7, dtype=torch.int64), "masks": torch.ones(7, 2, 12, 16), "ids": torch.zeros(7, 2)}
    target["name"] = "video 3"
    with pytest.raises(ValueError, match=r"video 3: 7 objects .* MODEL.VITA.NUM_OBJECT_QUERIES is 6"):
        criterion()([ClipInputs(outputs_of(0), split_target(target, 2), [], [])])
