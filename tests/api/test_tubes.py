from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lbvq.masks import rle
from lbvq.masks.tubes import MaskTubes

dense_videos = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=6).flatmap(
    lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False))
)


def random_masks(*shape: int, seed: int = 0) -> torch.Tensor:
    masks = torch.from_numpy(np.random.default_rng(seed).random(shape) > 0.6)
    masks[0, 0] = False  # one object is not visible in one frame
    return masks


@settings(max_examples=100, deadline=None)
@given(dense_videos)
def test_dense_masks_come_back_unchanged(masks):
    tubes = MaskTubes.from_dense(masks)
    assert tubes.shape == masks.shape
    dense = tubes.to_dense()
    assert dense.dtype == torch.bool and np.array_equal(dense.numpy(), masks)
    assert np.array_equal(tubes.areas(), masks.sum((2, 3)))
    assert np.array_equal(tubes.visible(), masks.any((2, 3)))
    assert MaskTubes.from_rle([tubes.rles(n) for n in range(len(tubes))], tubes.size) == tubes


def test_appending_chunks_equals_encoding_the_whole_video():
    masks = random_masks(3, 7, 11, 13)
    tubes = MaskTubes((11, 13))
    for start, stop in [(0, 2), (2, 2), (2, 6), (6, 7)]:
        tubes.append(masks[:, start:stop])
    assert tubes == MaskTubes.from_dense(masks)
    assert tubes != MaskTubes.from_dense(~masks)
    assert tubes.rles(0)[0] is None
    assert np.array_equal(rle.decode(tubes.rles(1)[4]), masks[1, 4])


def test_frames_come_out_dense_in_any_order():
    masks = random_masks(2, 5, 4, 6)
    tubes = MaskTubes.from_dense(masks)
    assert torch.equal(tubes.frame(3), masks[:, 3]) and torch.equal(tubes.frame(-1), masks[:, 4])
    assert torch.equal(torch.stack(list(tubes.frames()), dim=1), masks)
    assert torch.equal(tubes.to_dense([4, 0, 0]), masks[:, [4, 0, 0]])
    assert torch.equal(tubes.to_dense(slice(1, 4)), masks[:, 1:4])
    assert tubes.to_dense([]).shape == (2, 0, 4, 6)
    with pytest.raises(IndexError, match="frame 5 does not exist"):
        tubes.frame(5)


def test_objects_that_share_a_query_share_their_strings():
    masks = random_masks(3, 4, 8, 8)
    tubes = MaskTubes((8, 8))
    tubes.append(masks, rows=[2, 0, 2, 2])
    assert torch.equal(tubes.to_dense(), masks[[2, 0, 2, 2]])
    assert tubes._counts[0][1] is tubes._counts[2][1]


def test_indexing_selects_objects_like_a_tensor():
    masks = random_masks(4, 2, 5, 5)
    tubes = MaskTubes.from_dense(masks)
    keep = torch.tensor([True, False, False, True])
    for index in (slice(1, None), [2, 0], keep, keep.numpy(), np.array([3, 3]), torch.tensor([1]), [], [-1]):
        want = masks[list(index) if isinstance(index, list) else index]
        assert torch.equal(tubes[index].to_dense(), want)
    assert torch.equal(tubes[2].to_dense(), masks[2:3])
    assert [one.shape for one in tubes] == [(1, 2, 5, 5)] * 4
    for wrong in (4, [0, 9], "a", [True]):
        with pytest.raises(IndexError):
            tubes[wrong]


def test_a_selection_does_not_grow_with_its_source():
    tubes = MaskTubes.from_dense(random_masks(2, 1, 3, 3))
    first = tubes[:1]
    tubes.append(torch.ones(2, 1, 3, 3, dtype=torch.bool))
    assert first.shape == (1, 1, 3, 3) and len(first.rles(0)) == 1


def test_new_objects_are_absent_in_earlier_frames():
    tubes = MaskTubes((3, 3), num_frames=2)
    assert tubes.shape == (0, 2, 3, 3)
    tubes.append(torch.ones(1, 1, 3, 3, dtype=torch.bool))
    tubes.add_objects(1)
    tubes.append(torch.ones(2, 1, 3, 3, dtype=torch.bool))
    assert tubes.visible().tolist() == [[False, False, True, True], [False, False, False, True]]


def test_no_objects_and_no_frames_keep_their_shape():
    empty = MaskTubes.from_dense(torch.zeros(0, 3, 4, 5, dtype=torch.bool))
    assert empty.shape == (0, 3, 4, 5) and empty.to_dense().shape == (0, 3, 4, 5)
    assert empty.areas().shape == (0, 3) and empty.boxes().shape == (0, 3, 4) and list(empty) == []
    assert MaskTubes((4, 5)).to_dense().shape == (0, 0, 4, 5)
    assert MaskTubes.from_rle([], (4, 5), num_frames=3) == empty


def test_differently_written_but_equal_masks_are_equal():
    size = [2, 3]
    plain = MaskTubes.from_rle([[{"size": size, "counts": [1, 2, 3]}, None]], size)
    odd = MaskTubes.from_rle([[{"size": size, "counts": [1, 1, 0, 1, 3, 0]}, {"size": size, "counts": [6]}]], size)
    assert plain == odd
    assert plain.boxes()[0].tolist() == [[0, 0, 2, 2], [0, 0, 0, 0]]


def test_broken_input_is_refused_with_the_place():
    good = rle.encode(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"entry 4, object 0, frame 1: mask size must be 3 x 2"):
        MaskTubes.from_rle([[None, good]], (3, 2), where="entry 4")
    with pytest.raises(ValueError, match=r"object 1: expected a list of 2 masks, got 1"):
        MaskTubes.from_rle([[good, good], [good]], (2, 3))
    tubes = MaskTubes.from_dense(torch.ones(2, 1, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(N, t, 2, 3\), got \(2, 1, 3, 2\)"):
        tubes.append(torch.ones(2, 1, 3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="hold 2 objects, got masks of 3"):
        tubes.append(torch.ones(3, 1, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="positive"):
        MaskTubes((0, 3))


def test_a_failed_append_changes_nothing():
    tubes = MaskTubes.from_dense(random_masks(2, 1, 2, 3))
    before = tubes[:]
    with pytest.raises(ValueError, match="threshold"):
        tubes.append(torch.zeros(2, 2, 2, 3))
    assert tubes == before


def test_tubes_survive_pickling():
    tubes = MaskTubes.from_dense(random_masks(2, 3, 4, 5))
    assert pickle.loads(pickle.dumps(tubes)) == tubes


def test_memory_grows_by_run_lengths_not_by_pixels():
    masks = np.zeros((2, 1, 360, 640), bool)
    masks[:, :, 100:200, 100:300] = True
    tubes = MaskTubes((360, 640))
    tubes.append(masks)
    tracemalloc.start()
    for _ in range(50):
        tubes.append(masks)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 0.02 * 50 * masks.nbytes
