"""Feature maps of a video in memory and in a temporary file."""

from __future__ import annotations

import os

import pytest
import torch

from lbvq.modeling.feature_store import FeatureStore

FRAME_BYTES = 4 * 3 * 5 * 4
MIB = 2**20


def maps(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 4, 3, 5, generator=torch.Generator().manual_seed(count)).to(dtype)


def read_all(store: FeatureStore, size: int) -> torch.Tensor:
    return torch.cat([features for _, features in store.chunks(size)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_resident", [0, 3, 7, 20])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_what_comes_back_is_bit_for_bit_what_went_in(dtype, num_resident, size):
    features = maps(7, dtype)
    with FeatureStore(num_resident * features[0].nbytes / MIB) as store:
        for chunk in features.split(3):
            store.append(chunk)
        assert len(store) == 7
        assert store.num_spilled == max(7 - num_resident, 0)
        assert torch.equal(read_all(store, size), features)
        assert [start for start, _ in store.chunks(size)] == list(range(0, 7, size))


def test_channels_last_maps_come_back_equal_and_in_the_same_order_of_memory():
    features = maps(4).contiguous(memory_format=torch.channels_last)
    with FeatureStore(2 * FRAME_BYTES / MIB) as store:
        store.append(features[:3])
        store.append(features[3:].contiguous())  # another order is converted
        assert torch.equal(read_all(store, 4), features)
        assert all(part.is_contiguous(memory_format=torch.channels_last) for _, part in store.chunks(3))
        with pytest.raises(ValueError, match=r"shape \(4, 3, 5\), got \(4, 3, 6\)"):
            store.append(torch.zeros(1, 4, 3, 6))


def test_the_file_has_no_name_or_is_gone_afterwards(tmp_path):
    with FeatureStore(0, directory=tmp_path) as store:
        store.append(maps(3))
        assert read_all(store, 3).shape[0] == 3
    assert list(tmp_path.iterdir()) == []


def test_an_exception_inside_also_deletes_the_file(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), FeatureStore(0, directory=tmp_path) as store:
        store.append(maps(3))
        raise RuntimeError("inside")
    assert list(tmp_path.iterdir()) == []
    assert len(store) == 0


@pytest.mark.skipif(os.name != "posix", reason="named until closed on other systems")
def test_a_killed_process_leaves_no_file_behind(tmp_path):
    store = FeatureStore(0, directory=tmp_path)
    store.append(maps(3))
    assert list(tmp_path.iterdir()) == []  # while it is in use
    store.close()


def test_changing_a_map_afterwards_does_not_change_the_stored_one():
    features = maps(2)
    with FeatureStore(1) as store:
        store.append(features)
        want = features.clone()
        features.zero_()
        assert torch.equal(read_all(store, 2), want)


def test_frames_of_another_shape_are_refused():
    with FeatureStore(1) as store:
        store.append(maps(2))
        with pytest.raises(ValueError, match=r"shape \(4, 3, 5\), got \(4, 3, 6\)"):
            store.append(torch.zeros(1, 4, 3, 6))


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    with (
        FeatureStore(0, directory=tmp_path / "absent") as store,
        pytest.raises(OSError, match="FEATURE_BUDGET_MB"),
    ):
        store.append(maps(1))


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_senseless_budget_is_refused(budget):
    with pytest.raises(ValueError, match="FEATURE_BUDGET_MB"):
        FeatureStore(budget)


def test_an_empty_store_yields_nothing():
    with FeatureStore(1) as store:
        assert len(store) == 0
        assert list(store.chunks(3)) == []
