"""Reading semantic, instance and panoptic results from queries: cases small enough to compute by hand."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling import maskformer
from mask2former.modeling.maskformer import (
    MaskResizer,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)

SAME = MaskResizer((4, 4), (4, 4), (4, 4))
SURE = 20.0  # a logit whose probability is 1 up to rounding


def class_logits(*probabilities: list[float]) -> torch.Tensor:
    """Rows of K + 1 probabilities, the last one "no object", as logits."""
    return torch.tensor(probabilities).clamp(min=1e-9).log()


def mask_logits(*cells: tuple[slice, slice], value: float = SURE) -> torch.Tensor:
    """One 4 x 4 mask per entry, sure inside the cells, sure of the contrary outside."""
    masks = torch.full((len(cells), 4, 4), -SURE)
    for mask, (rows, columns) in zip(masks, cells, strict=True):
        mask[rows, columns] = value
    return masks


LEFT, RIGHT, TOP, NOTHING = (
    (slice(None), slice(0, 2)),
    (slice(None), slice(2, 4)),
    (slice(0, 2), slice(None)),
    (slice(0, 0), slice(0, 0)),
)
EVERYTHING = (slice(None), slice(None))


# ---- instances


def test_the_best_pairs_of_query_and_class_are_kept_in_order():
    classes = class_logits([0.5, 0.4, 0.1], [0.1, 0.2, 0.7])
    result = instance_inference(classes, mask_logits(LEFT, RIGHT), SAME, top_k=3)
    assert result.pred_classes.tolist() == [0, 1, 1]
    assert result.scores.tolist() == pytest.approx([0.5, 0.4, 0.2], abs=1e-5)
    assert result.pred_masks.dtype == torch.bool
    assert result.pred_masks[0].equal(result.pred_masks[1])  # one query, two classes
    assert result.pred_masks[2].equal(mask_logits(RIGHT)[0] > 0)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 2, 4], [0, 0, 2, 4], [2, 0, 4, 4]]
    assert result.image_size == (4, 4)


def test_a_score_is_multiplied_by_the_mean_probability_inside_the_mask():
    masks = mask_logits(LEFT)
    masks[0, :, 0] = torch.tensor(0.6).logit()
    masks[0, :, 1] = torch.tensor(0.8).logit()
    result = instance_inference(class_logits([0.5, 0.5]), masks, SAME, top_k=1)
    assert result.scores.item() == pytest.approx(0.5 * 0.7, abs=1e-5)


def test_an_empty_mask_has_score_zero_and_an_empty_box():
    result = instance_inference(class_logits([0.9, 0.1]), mask_logits(NOTHING), SAME, top_k=5)
    assert result.scores.tolist() == [0] and result.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("num_queries, top_k", [(0, 10), (2, 0)])
def test_nothing_to_keep_gives_no_instances(num_queries, top_k):
    result = instance_inference(torch.zeros(num_queries, 3), torch.zeros(num_queries, 4, 4), SAME, top_k)
    assert len(result) == 0 and result.pred_masks.shape == (0, 4, 4) and len(result.pred_boxes) == 0


def test_classes_that_are_not_allowed_are_dropped_after_the_selection():
    classes = class_logits([0.5, 0.4, 0.1], [0.3, 0.2, 0.5])
    result = instance_inference(classes, mask_logits(LEFT, RIGHT), SAME, top_k=2, allowed_classes={1})
    assert result.pred_classes.tolist() == [1] and result.scores.tolist() == pytest.approx([0.4], abs=1e-5)


def test_working_through_queries_in_pieces_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(7, 4, generator=generator), torch.randn(7, 4, 4, generator=generator)
    resize = MaskResizer((8, 8), (7, 6), (14, 12))
    whole = instance_inference(classes, masks, resize, top_k=12)
    monkeypatch.setattr(maskformer, "QUERY_CHUNK", 2)
    pieces = instance_inference(classes, masks, resize, top_k=12)
    assert whole.pred_masks.equal(pieces.pred_masks)
    torch.testing.assert_close(whole.scores, pieces.scores)


# ---- sizes


def test_masks_are_resized_to_the_padded_image_cut_and_resized_to_the_result():
    masks = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    resize = MaskResizer(padded_size=(12, 16), image_size=(10, 13), output_size=(20, 26))
    padded = torch.nn.functional.interpolate(masks[None], (12, 16), mode="bilinear", align_corners=False)
    want = torch.nn.functional.interpolate(padded[..., :10, :13], (20, 26), mode="bilinear", align_corners=False)
    assert resize(masks).equal(want[0])


# ---- semantic


def test_semantic_scores_sum_the_masks_weighted_by_their_class():
    classes = class_logits([0.6, 0.3, 0.1], [0.2, 0.7, 0.1])
    scores = semantic_inference(classes, mask_logits(LEFT, EVERYTHING), SAME, is_resized_first=True)
    assert scores.shape == (2, 4, 4)
    assert scores[:, 0, 0].tolist() == pytest.approx([0.8, 1.0], abs=1e-5)
    assert scores[:, 0, 3].tolist() == pytest.approx([0.2, 0.7], abs=1e-5)


def test_semantic_scores_may_be_resized_before_or_after_the_sum():
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(3, 4, generator=generator), torch.randn(3, 2, 2, generator=generator) * 4
    resize = MaskResizer((8, 8), (8, 8), (12, 12))
    before = semantic_inference(classes, masks, resize, is_resized_first=True)
    after = semantic_inference(classes, masks, resize, is_resized_first=False)
    assert before.shape == after.shape == (3, 12, 12)
    assert 0 < (before - after).abs().max() < 0.2


def test_semantic_scores_without_queries_are_zero():
    assert not semantic_inference(torch.zeros(0, 3), torch.zeros(0, 4, 4), SAME, is_resized_first=True).any()


# ---- panoptic


def panoptic(classes, masks, **options):
    settings = {"score_threshold": 0.5, "overlap_threshold": 0.8, "thing_classes": None, **options}
    return panoptic_inference(classes, masks, SAME, **settings)


def test_every_pixel_goes_to_the_surest_query():
    classes = class_logits([0.9, 0.05, 0.05], [0.05, 0.9, 0.05])
    segment_map, segments = panoptic(classes, mask_logits(LEFT, RIGHT))
    assert segments == [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": True, "category_id": 1}]
    assert segment_map.dtype == torch.int32
    assert segment_map.tolist() == [[1, 1, 2, 2]] * 4


def test_a_segment_that_lost_most_of_its_mask_is_dropped():
    classes = class_logits([0.9, 0.1], [0.6, 0.4])
    segment_map, segments = panoptic(classes, mask_logits(LEFT, EVERYTHING))
    assert [segment["id"] for segment in segments] == [1]
    assert segment_map.tolist() == [[1, 1, 0, 0]] * 4
    _, both = panoptic(classes, mask_logits(LEFT, EVERYTHING), overlap_threshold=0.5)
    assert len(both) == 2


def test_unsure_queries_and_queries_without_object_are_ignored():
    classes = class_logits([0.4, 0.3, 0.3], [0.2, 0.1, 0.7])
    segment_map, segments = panoptic(classes, mask_logits(LEFT, RIGHT))
    assert segments == [] and not segment_map.any()
    assert panoptic(torch.zeros(0, 3), torch.zeros(0, 4, 4))[1] == []


def test_stuff_of_one_class_is_one_segment_and_things_are_counted():
    classes = class_logits([0.9, 0.05, 0.05], [0.9, 0.05, 0.05])
    as_stuff, stuff = panoptic(classes, mask_logits(LEFT, RIGHT), thing_classes={1})
    assert stuff == [{"id": 1, "isthing": False, "category_id": 0}] and (as_stuff == 1).all()
    _, things = panoptic(classes, mask_logits(LEFT, RIGHT), thing_classes={0})
    assert [segment["id"] for segment in things] == [1, 2]


def test_a_pixel_below_one_half_belongs_to_nothing():
    masks = mask_logits(LEFT)
    masks[0, 0, 0] = -0.1
    segment_map, _ = panoptic(class_logits([0.9, 0.1]), masks)
    assert segment_map[0].tolist() == [0, 1, 0, 0]
