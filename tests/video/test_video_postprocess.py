"""Selection of predictions, streamed masks and the output dictionary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lbvq.masks.tubes import MaskTubes
from lbvq.modeling.postprocess import MaskStream, second_pass, select_objects, select_top, video_output

SIZES = {"padded_size": (32, 64), "image_size": (30, 50), "output_size": (45, 75)}


def logits(num_masks: int = 3, num_frames: int = 7) -> torch.Tensor:
    noise = torch.randn(num_masks, num_frames, 4, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(8, 16), mode="bilinear") * 4


def stream_of(maps: torch.Tensor, size: int, dense: bool, **sizes) -> MaskStream:
    stream = MaskStream(len(maps), **{**SIZES, **sizes}, dense_frames=maps.shape[1] if dense else None)
    for chunk in maps.split(size, dim=1):
        stream.add(chunk)
    return stream


def by_definition(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and qualities of whole videos, written out."""
    cropped = F.interpolate(maps, size=SIZES["padded_size"], mode="bilinear")[..., :30, :50]
    prob = cropped.sigmoid()
    hard = prob > 0.5
    quality = (prob * hard).flatten(1).sum(1) / (hard.flatten(1).sum(1) + 1e-6)
    return F.interpolate(cropped, size=SIZES["output_size"], mode="bilinear") > 0, quality


def test_select_top_takes_pairs_of_query_and_class():
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.05]])
    scores, labels, queries = select_top(probabilities, 3)
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.6, 0.3]))
    assert labels.tolist() == [1, 0, 1]
    assert queries.tolist() == [0, 1, 1]  # the second query twice


def test_select_objects_takes_each_query_once_with_its_best_class():
    probabilities = torch.tensor([[0.1, 0.5, 0.2], [0.7, 0.6, 0.05], [0.1, 0.1, 0.15]])
    scores, labels, queries = select_objects(probabilities, 2)
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.5]))
    assert labels.tolist() == [0, 1] and queries.tolist() == [1, 0]
    assert len(select_objects(probabilities, 10)[0]) == 3 and len(select_objects(probabilities[:0], 10)[0]) == 0


def test_select_top_takes_what_there_is_when_asked_for_more():
    assert len(select_top(torch.rand(2, 3), 10)[0]) == 6


def test_masks_and_quality_follow_the_definition():
    masks, quality = by_definition(logits())
    stream = stream_of(logits(), 2, dense=True)
    assert torch.equal(stream.masks(torch.arange(3)), masks)
    torch.testing.assert_close(stream.quality(), quality)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_chunks_do_not_matter(size):
    whole, parts = stream_of(logits(), 7, dense=True), stream_of(logits(), size, dense=True)
    assert torch.equal(parts.masks(torch.arange(3)), whole.masks(torch.arange(3)))
    assert torch.equal(parts.quality(), whole.quality())


@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_few_masks_at_a_time_give_the_same(num_rows, monkeypatch):
    whole = stream_of(logits(), 7, dense=True)
    monkeypatch.setattr("lbvq.modeling.postprocess.PIXELS_AT_ONCE", num_rows * 7 * 32 * 64)
    parts = stream_of(logits(), 7, dense=True)
    assert torch.equal(parts.masks(torch.arange(3)), whole.masks(torch.arange(3)))
    assert torch.equal(parts.quality(), whole.quality())


def test_run_lengths_hold_the_same_masks_as_the_dense_tensor():
    dense, tubes = stream_of(logits(), 2, dense=True), stream_of(logits(), 2, dense=False)
    rows = torch.tensor([2, 0, 2])
    assert isinstance(tubes.masks(rows), MaskTubes)
    assert torch.equal(tubes.masks(rows).to_dense(), dense.masks(rows))


def test_an_object_that_is_never_there_has_quality_zero():
    stream = stream_of(torch.full((1, 3, 8, 16), -5.0), 2, dense=True)
    assert stream.quality().tolist() == [0]
    assert not stream.masks(torch.tensor([0])).any()


def test_no_objects_give_empty_masks():
    stream = stream_of(logits()[:0], 2, dense=True)
    assert stream.masks(torch.tensor([], dtype=torch.int64)).shape == (0, 7, 45, 75)
    empty = stream_of(logits()[:0], 2, dense=False).masks(torch.tensor([], dtype=torch.int64))
    assert empty.shape == (0, 7, 45, 75)


def test_output_is_sorted_by_the_final_score():
    stream = stream_of(logits(), 3, dense=True)
    scores, labels, rows = torch.tensor([0.5, 0.9, 0.1]), torch.tensor([4, 5, 6]), torch.tensor([2, 1, 1])
    output = video_output(scores, labels, rows, stream)
    final = (scores * stream.quality()[rows]).tolist()
    order = sorted(range(3), key=lambda i: -final[i])
    assert output["image_size"] == (45, 75)
    assert output["pred_scores"] == [final[i] for i in order]
    assert output["pred_labels"] == [labels.tolist()[i] for i in order]
    assert torch.equal(output["pred_masks"], stream.masks(rows[order]))


def test_quality_can_be_left_out():
    output = video_output(
        torch.tensor([0.5]), torch.tensor([0]), torch.tensor([0]), stream_of(logits(), 7, True), use_quality=False
    )
    assert output["pred_scores"] == [0.5]


def test_masks_made_in_inference_mode_can_be_changed_afterwards():
    with torch.inference_mode():
        output = video_output(
            torch.tensor([0.5]), torch.tensor([0]), torch.tensor([0]), stream_of(logits()[:1], 7, dense=True)
        )
    output["pred_masks"][:, 0] = False  # as a refiner does
    assert not output["pred_masks"][:, 0].any()


def shapes_stream(**settings) -> MaskStream:
    return MaskStream(0, padded_size=(8, 8), image_size=(8, 8), output_size=(16, 16), **settings)


def halves(*sides: str) -> torch.Tensor:
    """Mask logits (n, 1, 2, 2): the left or the right half."""
    maps = {"left": [[3.0, -3.0], [3.0, -3.0]], "right": [[-3.0, 3.0], [-3.0, 3.0]]}
    return torch.tensor([maps[side] for side in sides])[:, None]


def test_objects_may_appear_later_and_be_absent():
    """The same masks as of a stream that knows all three objects from the start, with zeros where they are not."""
    growing, fixed = shapes_stream(), MaskStream(3, padded_size=(8, 8), image_size=(8, 8), output_size=(16, 16))
    nowhere = torch.zeros(1, 1, 2, 2)
    frames = [
        (1, [0], halves("left"), [halves("left"), nowhere, nowhere]),
        (3, [2, 1], halves("left", "right"), [nowhere, halves("right"), halves("left")]),
        (3, [], nowhere[:0], [nowhere] * 3),
        (3, [1, 0], halves("left", "right"), [halves("right"), halves("left"), nowhere]),
    ]
    for count, rows, logits, whole in frames:
        growing.reserve(count)
        growing.add(logits, torch.tensor(rows, dtype=torch.int64))
        fixed.add(torch.cat(whole))
    assert growing.masks(torch.arange(3)) == fixed.masks(torch.arange(3))
    assert torch.equal(growing.quality(), fixed.quality())
    assert growing.masks(torch.tensor([1])).visible().tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_growing_stream_is_saved_even_before_its_first_object(keeps):
    stream, nothing = shapes_stream(quality_of_output=True), torch.zeros(0, 1, 2, 2)
    rows = torch.zeros(0, dtype=torch.int64)
    take = MaskStream.add if keeps else MaskStream.measure
    take(stream, nothing, rows)
    for count in (1, 2):
        stream = MaskStream.from_state_dict(stream.state_dict())
        stream.reserve(count)
        take(stream, halves("left"), torch.tensor([count - 1]))
    again = MaskStream.from_state_dict(stream.state_dict())
    assert again.num_frames == 3 and again.quality_of_output
    assert torch.equal(again.quality(), stream.quality()) and again.quality().shape == (2,)
    if keeps:
        assert again.masks(torch.arange(2)) == stream.masks(torch.arange(2))
        assert again.masks(torch.arange(2)).visible().tolist() == [[False, True, False], [False, False, True]]


def test_dense_masks_cannot_become_more():
    stream = MaskStream(1, padded_size=(8, 8), image_size=(8, 8), output_size=(8, 8), dense_frames=2)
    stream.reserve(1)
    with pytest.raises(ValueError, match="of 1 objects"):
        stream.reserve(2)


def test_quality_is_measured_at_the_size_that_is_asked_for():
    logits = torch.tensor([[[[2.0, -2.0]]]])
    sizes = {"padded_size": (1, 4), "image_size": (1, 4), "output_size": (1, 2)}
    for at_output, want in ((False, [2.0, 1.0]), (True, [1.5])):  # columns 2, 1, -1, -2; then the mean of the first two
        stream = MaskStream(1, **sizes, quality_of_output=at_output)
        stream.add(logits)
        assert stream.quality().item() == pytest.approx(torch.tensor(want).sigmoid().mean().item(), abs=1e-5)


def test_a_second_pass_makes_each_mask_once_and_reports_what_is_kept():
    maps, made = logits(4), []

    def make_masks(rows: torch.Tensor) -> Iterator[torch.Tensor]:
        made.append(rows.tolist())
        yield from maps[rows].split(3, dim=1)

    maps[2] = -1.0  # row 2 is never visible
    chosen = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([5, 1, 2, 3]), torch.tensor([3, 2, 3, 0])
    sizes = {"num_frames": 7, "image_size": (30, 50), "padded_size": (32, 64)}
    video = {"height": 45, "width": 75}
    asked = []

    def keep(*pairs: torch.Tensor) -> torch.Tensor:
        asked.extend(pairs)
        return pairs[2] & (pairs[1] != 3)

    kept = second_pass(video, chosen, make_masks, **sizes, use_quality=False, keep=keep)
    assert made == [[0, 2, 3]] and asked[2].tolist() == [True, False, True, True]
    assert kept["pred_labels"] == [5, 2] and kept["pred_scores"] == pytest.approx([0.9, 0.7])
    masks, quality = by_definition(maps)
    assert torch.equal(kept["pred_masks"], masks[[3, 3]])
    every = second_pass({**video, "dense_masks": False}, chosen, make_masks, **sizes)
    want = torch.tensor([0.9, 0.8, 0.7, 0.6]) * quality[[3, 2, 3, 0]]
    order = want.argsort(descending=True, stable=True)
    assert every["pred_scores"] == pytest.approx(want[order].tolist())
    assert torch.equal(every["pred_masks"].to_dense(), masks[torch.tensor([3, 2, 3, 0])[order]])


def test_quality_can_be_that_of_the_maps_as_given():
    maps = torch.full((1, 2, 8, 16), -4.0)
    maps[0, 0, 2, 3], maps[0, 0, 7, 15] = 1.0, 3.0  # the second lies in the padding
    stream = stream_of(maps, 1, dense=True, quality_of_maps=True)
    want = torch.tensor([1.0, 3.0]).sigmoid().mean()
    torch.testing.assert_close(stream.quality()[0], want)
