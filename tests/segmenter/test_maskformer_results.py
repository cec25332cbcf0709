"""Reading instances from queries: cases small enough to compute by hand."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling import maskformer
from mask2former.modeling.maskformer import MaskResizer, best_instances

SAME = MaskResizer((4, 4), (4, 4), (4, 4))
SURE = 20.0  # a logit whose probability is 1 up to rounding


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
    classes = torch.tensor([[0.5, 0.4], [0.1, 0.2]])
    result = best_instances(classes, mask_logits(LEFT, RIGHT), SAME, top_k=3)
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
    result = best_instances(torch.tensor([[0.5]]), masks, SAME, top_k=1)
    assert result.scores.item() == pytest.approx(0.5 * 0.7, abs=1e-5)


def test_an_empty_mask_has_score_zero_and_an_empty_box():
    result = best_instances(torch.tensor([[0.9]]), mask_logits(NOTHING), SAME, top_k=5)
    assert result.scores.tolist() == [0] and result.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("num_queries, top_k", [(0, 10), (2, 0)])
def test_nothing_to_keep_gives_no_instances(num_queries, top_k):
    result = best_instances(torch.zeros(num_queries, 2), torch.zeros(num_queries, 4, 4), SAME, top_k)
    assert len(result) == 0 and result.pred_masks.shape == (0, 4, 4) and len(result.pred_boxes) == 0


def test_working_through_queries_in_pieces_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.rand(7, 3, generator=generator), torch.randn(7, 4, 4, generator=generator)
    resize = MaskResizer((8, 8), (7, 6), (14, 12))
    whole = best_instances(classes, masks, resize, top_k=12)
    monkeypatch.setattr(maskformer, "QUERY_CHUNK", 2)
    pieces = best_instances(classes, masks, resize, top_k=12)
    assert whole.pred_masks.equal(pieces.pred_masks)
    torch.testing.assert_close(whole.scores, pieces.scores)


# ---- sizes


def test_masks_are_resized_to_the_padded_image_cut_and_resized_to_the_result():
    masks = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    resize = MaskResizer(padded_size=(12, 16), image_size=(10, 13), output_size=(20, 26))
    padded = torch.nn.functional.interpolate(masks[None], (12, 16), mode="bilinear", align_corners=False)
    want = torch.nn.functional.interpolate(padded[..., :10, :13], (20, 26), mode="bilinear", align_corners=False)
    assert resize(masks).equal(want[0])
