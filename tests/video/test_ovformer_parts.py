"""Classifier, class frequencies, scoring and linking of OVFormer against recorded numbers."""

from __future__ import annotations

import json

import numpy as np
import ov_inputs
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN, ROOT
from ovformer_models import fixed_choice
from torch import nn
from video_models import load_cfg

from lbvq.modeling.ovformer import criterion
from lbvq.modeling.ovformer.criterion import class_frequencies, federated_subset, first_to_come
from lbvq.modeling.ovformer.tracks import LinkedTracks
from lbvq.modeling.ovformer.zero_shot import ZeroShotClassifier, open_vocabulary_scores, read_text_embeddings
from mask2former.registry import build_model

UNITS = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "ovformer_units.npz").items()}


def text(name: str, count: int) -> torch.Tensor:
    return torch.from_numpy(ov_inputs.text_embedding(name, count))


@pytest.fixture
def classifier() -> ZeroShotClassifier:
    module = fill_(ZeroShotClassifier(256, text=text("unit", 7)))
    module.set_vocabulary(text("unit", 7))  # `fill_` overwrote it
    return module


@pytest.mark.parametrize("num_frames, name", [(1, "logits_image"), (4, "logits_video")])
def test_class_logits_of_images_and_clips(classifier, num_frames, name):
    with torch.no_grad():
        logits = classifier(UNITS["x"], UNITS["feats"][:num_frames])
    torch.testing.assert_close(logits, UNITS[name], atol=2e-5, rtol=0)
    assert (logits[..., -1] == 0).all()


def test_class_logits_of_another_vocabulary(classifier):
    other = text("unit_other", 4)
    want = UNITS["logits_video_other_vocab"]
    with torch.no_grad():
        torch.testing.assert_close(classifier(UNITS["x"], UNITS["feats"], other), want, atol=2e-5, rtol=0)
        classifier.set_vocabulary(3 * other)  # the length of a text does not count
        torch.testing.assert_close(classifier(UNITS["x"], UNITS["feats"])[..., :-1], want, atol=2e-5, rtol=0)


def test_text_columns_have_length_one_and_the_last_is_zero(classifier):
    norms = classifier.zs_weight.norm(dim=0)
    torch.testing.assert_close(norms, UNITS["zs_weight_col_norms"], atol=1e-6, rtol=0)
    assert norms[-1] == 0


def test_image_features_of_another_clip_model_are_refused(classifier):
    with pytest.raises(ValueError, match=r"\(T, 3, 512\), got \(4, 3, 256\)"):
        classifier(UNITS["x"], UNITS["feats"][..., :256])


def test_learned_class_vectors_are_parameters_and_no_vocabulary_replaces_them():
    module = ZeroShotClassifier(256, text=read_text_embeddings("rand", 9), is_learned=True)
    assert isinstance(module.zs_weight, nn.Parameter) and module.zs_weight.shape == (512, 10)
    with pytest.raises(ValueError, match="learned"):
        module.set_vocabulary(text("unit", 7))


def test_class_frequencies_of_lvis_are_the_recorded_ones():
    got = class_frequencies(ROOT / "datasets" / "metadata" / "lvis_v1.json", 1203)
    torch.testing.assert_close(got, UNITS["freq_weight_lvis"], atol=0, rtol=1e-6)
    assert (got == 0).sum() == 337


def test_class_frequencies_of_a_list_in_published_form(tmp_path):
    path = tmp_path / "cat_info.json"
    table = json.loads((ROOT / "datasets" / "metadata" / "lvvis.json").read_text())
    path.write_text(json.dumps(ov_inputs.lvvis_cat_info(table["categories"])[::-1]))
    torch.testing.assert_close(class_frequencies(path, 1196), UNITS["freq_weight_lvvis_synthetic"], atol=0, rtol=1e-6)


def test_class_frequencies_without_a_file(tmp_path):
    assert class_frequencies("", 3).tolist() == [1, 1, 1]
    assert class_frequencies(tmp_path / "absent.json", 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("content", ["[]", "7", '[{"id": 1}]', '[{"id": 1, "image_count": -3}]'])
def test_class_frequencies_of_a_wrong_file_are_an_error(tmp_path, content):
    path = tmp_path / "counts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="CLASS_COUNTS_PATH"):
        class_frequencies(path, 2)


@pytest.mark.parametrize(
    "name, labels", [("few", [3, 3, 700, 1203]), ("none", [1203, 1203]), ("many", list(range(0, 1203, 20)))]
)
def test_federated_subset(name, labels, monkeypatch):
    monkeypatch.setattr(criterion, "first_to_come", fixed_choice)
    got = federated_subset(torch.tensor(labels), UNITS["freq_weight_lvis"], torch.ones(1204))
    assert torch.equal(got, UNITS[f"fed_{name}"])


def test_federated_subset_of_a_small_vocabulary_has_every_class_of_weight():
    subset = federated_subset(torch.tensor([4, 1]), torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.rand(5))
    assert subset[:2].tolist() == [1, 4] and sorted(subset[2:].tolist()) == [0, 3]


def test_the_first_to_come_are_those_that_multinomial_draws():
    weight = torch.rand(300) * (torch.arange(300) % 3 > 0)
    torch.manual_seed(5)
    wanted = torch.multinomial(weight, 50, replacement=False)
    torch.manual_seed(5)
    assert torch.equal(first_to_come(weight, torch.empty(300).exponential_(), 50), wanted)


def test_score_is_the_geometric_mean_of_class_and_objectness():
    logits, objects = torch.tensor([[0.0, 100.0, 7.0]]), torch.tensor([[0.0, 0.0]])
    torch.testing.assert_close(open_vocabulary_scores(logits, objects), torch.tensor([[0.5, 0.5**0.5]]))


# ---- text files


def test_a_missing_text_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"save_clip_features.py text .*CLIP_TEXT_PATH"):
        read_text_embeddings(tmp_path / "absent.npy")


def test_an_empty_path_says_which_setting_it_is():
    with pytest.raises(ValueError, match="CLIP_TEXT_PATH is empty"):
        read_text_embeddings("")


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 3, 4), np.float32), "shape"),
        (np.ones((2, 8), np.int64), "float array"),
        (np.ones((3, 8), np.float32), "3 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2"),
        (np.array([[1.0] * 8, [0.0] * 8]), "class 1 is zero"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "class 0 is zero or not finite"),
    ],
)
def test_a_wrong_text_file_is_an_error(tmp_path, array, message):
    np.save(tmp_path / "text.npy", array)
    with pytest.raises(ValueError, match=message):
        read_text_embeddings(tmp_path / "text.npy", 2)


def test_a_text_file_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "text.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"no \.npy file of plain numbers"):
        read_text_embeddings(tmp_path / "text.npy")


def test_half_precision_files_are_read_as_float32(tmp_path):
    np.save(tmp_path / "text.npy", np.ones((2, 8), np.float16))
    assert read_text_embeddings(tmp_path / "text.npy", 2).dtype == torch.float32


# ---- linking


def test_tracks_remember_past_embeddings_with_their_weight():
    """The memory is 0.7 times the new embedding of the track and 0.3 times what was remembered, in track order."""
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    north_east, north_west = torch.tensor([0.8, 0.6]), torch.tensor([-0.6, 0.8])
    tracks = LinkedTracks(decay=0.3)
    for embeddings in ((east, north), (north_west, north_east)):
        tracks.add(torch.stack(embeddings), torch.zeros(2, 3), torch.zeros(2, 2))
    assert [order.tolist() for order in tracks.orders] == [[0, 1], [1, 0]]
    torch.testing.assert_close(tracks._memory, torch.tensor([[0.86, 0.42], [-0.42, 0.86]]))


@pytest.mark.parametrize("decay, order", [(0.0, [1, 0]), (0.9, [0, 1])])
def test_what_was_remembered_decides_which_query_a_track_takes(decay, order):
    """Two tracks change places for one frame; only a memory that holds on brings them back."""
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    between = (torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6]))
    tracks = LinkedTracks(decay=decay)
    tracks.add(torch.stack((east, north)), torch.zeros(2, 3), torch.zeros(2, 2))
    tracks._memory = (1 - decay) * torch.stack(between) + decay * tracks._memory  # as if they had been seen so
    tracks.add(torch.stack((east, north)), torch.zeros(2, 3), torch.zeros(2, 2))
    assert tracks.orders[1].tolist() == order


def test_a_frame_without_finite_numbers_changes_nothing():
    tracks = LinkedTracks(decay=0.3)
    good = (torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2))
    tracks.add(*good)
    tracks.add(*(torch.full_like(part, torch.nan) for part in good))
    tracks.add(*good)
    torch.testing.assert_close(tracks.mean_logits()[0], good[1])
    assert tracks.orders[2].tolist() == [0, 1]


def test_the_vocabulary_of_a_model_must_be_a_file(tmp_path):
    cfg = load_cfg("lvvis/ovformer_R50_bs8.yaml", MODEL__MASK_FORMER__CLIP_TEXT_PATH=str(tmp_path / "x.npy"))
    with pytest.raises(FileNotFoundError, match=r"x\.npy do not exist"):
        build_model(cfg)
