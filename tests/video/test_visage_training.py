"""VISAGE: what its losses compare, what they are told about absent objects, and clips made of images alone."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from frame_models import SMALL, frame_instances, sharp_model
from golden_fill import frames
from PIL import Image
from video_models import load_cfg

from lbvq.data.build import build_train_loader
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.coco import register_coco_instances
from lbvq.engine.weights import load_weights
from lbvq.modeling.online.appearance import AppearanceDecoder, contrast, contrastive_losses, object_pairs, pool_inside
from lbvq.modeling.online.visage import frames_with_absent
from mask2former.registry import build_model

TINY = "synthetic/visage_R18_tiny.yaml"


def match(queries: list[int], objects: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(objects, dtype=torch.int64)


def target(*ids: int) -> dict:
    return {"ids": torch.tensor(ids)}


# -- what is compared


def test_contrast_of_two_objects_by_hand():
    anchors, candidates = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    choice, error = contrast(anchors, candidates)  # products [[2, 2], [0, 1]], cosines [[1, .71], [0, .71]]
    assert choice.item() == pytest.approx(np.log(1 + np.exp(0)) + np.log(1 + np.exp(-1)))
    half = 0.5**0.5
    assert error.item() == pytest.approx((half**2 + (1 - half) ** 2) / 2)


def test_contrast_of_one_object_is_its_cosine_alone():
    choice, error = contrast(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0]]))
    assert choice.item() == 0
    assert error.item() == pytest.approx((0.5**0.5 - 1) ** 2)


def test_contrast_of_no_object_is_zero():
    assert [term.item() for term in contrast(torch.zeros(0, 4), torch.zeros(0, 4))] == [0, 0]


def test_large_products_do_not_overflow():
    choice, _ = contrast(torch.full((2, 1), 1e3), torch.tensor([[-1e3], [1e3]]))
    assert choice.item() == pytest.approx(2e6)


def test_only_objects_in_both_frames_are_paired():
    matches = [match([5, 7], [0, 1]), match([2, 4, 6], [2, 0, 1]), match([1], [0])]
    targets = [target(0, 1, -1), target(0, 1, 2), target(0, -1, -1)]
    pairs = [(later, one.tolist(), other.tolist()) for later, one, other in object_pairs(matches, targets, 3)]
    assert pairs == [(1, [5, 7], [4, 6]), (2, [4], [1])]


def test_pairs_do_not_cross_clips():
    matches, targets = [match([0], [0])] * 4, [target(3)] * 4
    assert [later for later, *_ in object_pairs(matches, targets, 2)] == [1, 3]
    assert object_pairs(matches, targets, 1) == []


def test_an_object_without_a_query_is_left_out():
    """With more objects than queries some stay unmatched."""
    pairs = object_pairs([match([0], [1]), match([0], [1])], [target(3, 4), target(3, 4)], 2)
    assert [(one.tolist(), other.tolist()) for _, one, other in pairs] == [([0], [0])]


def test_losses_are_divided_by_the_number_of_objects_in_all_pairs():
    embeddings = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    pairs = [(1, torch.tensor([0, 1]), torch.tensor([2, 3])), (2, torch.tensor([2]), torch.tensor([0]))]
    terms = [contrast(embeddings[later - 1, one], embeddings[later, other]) for later, one, other in pairs]
    want = [sum(column) / 3 for column in zip(*terms, strict=True)]
    torch.testing.assert_close(list(contrastive_losses(embeddings, pairs)), want)


def test_without_pairs_the_losses_are_zero_and_connected():
    embeddings = torch.randn(2, 4, 8, requires_grad=True)
    choice, error = contrastive_losses(embeddings, [(1, torch.zeros(0).long(), torch.zeros(0).long())])
    (choice + error).backward()
    assert choice == error == 0 and torch.equal(embeddings.grad, torch.zeros(2, 4, 8))


# -- appearance


def test_features_are_averaged_inside_the_mask():
    features = torch.arange(8.0).reshape(1, 2, 2, 2)
    masks = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]], [[-1.0, -1.0], [-1.0, 0.0]]]])
    pooled = pool_inside(features, masks)
    assert pooled[0, 0].tolist() == pytest.approx([1.0, 5.0], abs=1e-5)
    assert pooled[0, 1].tolist() == [0, 0]  # an empty mask; a logit of 0 is outside


def test_appearance_trains_its_own_module_only():
    decoder = AppearanceDecoder({"res3": 8}, hidden_dim=32)
    features = {"res3": torch.randn(1, 8, 4, 4, requires_grad=True)}
    masks, queries = torch.randn(1, 5, 16, 16, requires_grad=True), torch.randn(1, 5, 32, requires_grad=True)
    reid, appearance = decoder(queries, features, masks)
    appearance.sum().backward()
    assert features["res3"].grad is None and masks.grad is None and queries.grad is None
    assert decoder.input_proj[0][0].weight.grad.abs().sum() > 0
    reid.sum().backward()
    assert queries.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"MODEL__APPEARANCE_DECODER__IN_FEATURES": "['res9']"}, r"IN_FEATURES names \['res9'\]"),
        ({"MODEL__APPEARANCE_DECODER__IN_FEATURES": "[]"}, "IN_FEATURES is empty"),
        ({"MODEL__APPEARANCE_WEIGHT": 1.5}, r"APPEARANCE_WEIGHT must be in \[0, 1\], got 1.5"),
        ({"MODEL__MASK_FORMER__MEMORY_BANK__BANK_SIZE": 0}, "BANK_SIZE must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_names_its_key(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(load_cfg(TINY, **changes))


def test_settings_reach_the_model():
    model = build_model(
        load_cfg(
            TINY,
            MODEL__MASK_FORMER__MEMORY_BANK__BANK_SIZE=3,
            MODEL__VISAGE__NEWEST_WEIGHS_MOST=True,
            MODEL__APPEARANCE_DECODER__APP_REID_WEIGHT=0.5,
            MODEL__APPEARANCE_DECODER__IN_FEATURES="['res4']",
        )
    )
    assert (model.memory.size, model.memory.newest_weighs_most) == (3, True)
    assert model.contrast_weights["loss_reid_app"] == 0.5 and model.contrast_weights["loss_reid"] == 2.0
    assert model.appearance_decoder.in_features == ("res4",)


def test_training_starts_from_the_weights_of_an_image_model(tmp_path):
    image_model = sharp_model("synthetic/minvis_R18_tiny.yaml", **SMALL)
    torch.save({"model": image_model.state_dict()}, tmp_path / "image.pth")
    report = load_weights(sharp_model(TINY, **SMALL), tmp_path / "image.pth", allow_missing="new_modules")
    assert {name.split(".")[0] for name in report.missing} == {"appearance_decoder"}


# -- absent objects


def absent_in_the_middle() -> dict:
    masks = torch.ones(2, 3, 4, 4)
    masks[1, 1] = 0
    ids = torch.tensor([[0, 0, 0], [1, -1, 1]])
    return {"labels": torch.tensor([5, 2]), "ids": ids, "masks": masks, "name": "a clip"}


def test_an_absent_object_is_no_object_in_that_frame_only():
    targets = frames_with_absent(absent_in_the_middle(), 13, shared_labels=False)
    assert [each["labels"].tolist() for each in targets] == [[5, 2], [5, 13], [5, 2]]
    assert [each["ids"].tolist() for each in targets] == [[0, 1], [0, -1], [0, 1]]
    assert not targets[1]["masks"][1].any()


def test_the_published_fault_labels_it_so_in_all_frames():
    targets = frames_with_absent(absent_in_the_middle(), 13, shared_labels=True)
    assert [each["labels"].tolist() for each in targets] == [[5, 13]] * 3


def test_a_clip_without_objects_has_targets_without_rows():
    empty = {
        "labels": torch.zeros(0, dtype=torch.int64),
        "ids": torch.zeros(0, 3, dtype=torch.int64),
        "masks": torch.zeros(0, 3, 4, 4),
        "name": "a clip",
    }
    for shared in (True, False):
        assert [len(each["labels"]) for each in frames_with_absent(empty, 13, shared_labels=shared)] == [0, 0, 0]


def clip(*rows: list) -> dict:
    """3 frames with objects (id, class, ellipse)."""
    return {
        "image": list(frames(3, 48, 64, seed=5)),
        "instances": [frame_instances(48, 64, list(row)) for row in rows],
    }


A, B = (4, 3, (20, 20, 12, 14)), (9, 7, (30, 44, 10, 12))
NO_B = (-1, 13, None)  # as detectron2's mappers write it: class K


def test_objects_that_never_meet_in_neighbouring_frames_give_no_contrast():
    model = sharp_model(TINY, **SMALL).train()
    losses = model([clip([B], [NO_B], [B])])
    assert all(losses[name] == 0 for name in losses if "reid" in name)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_object_that_comes_later_has_its_class():
    """The class of the first frame, where it is absent, means nothing."""
    model = sharp_model(TINY, **SMALL).train()
    assert all(loss.isfinite() for loss in model([clip([A, NO_B], [A, B], [A, B])]).values())


def test_more_objects_than_queries_train():
    model = sharp_model(TINY, **{**SMALL, "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 1}).train()
    assert all(loss.isfinite() for loss in model([clip([A, B], [A, B], [A, B])]).values())


# -- images alone


@pytest.fixture
def images(tmp_path):
    """Two images of 64 x 48 in COCO format with a person and a car each."""
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }
    generator = np.random.default_rng(0)
    for image_id in (1, 2):
        Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"{image_id}.png")
        content["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": 48, "width": 64})
        for category, x in ((1, 6.0), (3, 36.0)):
            polygon = [x, 10.0, x + 20, 10.0, x + 20, 38.0, x, 38.0]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": [polygon],
                    "bbox": [x, 10.0, 20.0, 28.0],
                    "area": 560.0,
                    "iscrowd": 0,
                }
            )
    (tmp_path / "images.json").write_text(json.dumps(content))
    names = ["person", "car"]
    facts = {"thing_classes": names, "thing_dataset_id_to_contiguous_id": {1: 0, 3: 1}, "category_table": "coco"}
    register_coco_instances("images_for_visage", facts, tmp_path / "images.json", tmp_path)
    yield "images_for_visage"
    DatasetCatalog.remove("images_for_visage")
    MetadataCatalog.remove("images_for_visage")


def image_cfg(name: str, copy_paste: bool):
    small = {"SOLVER__IMS_PER_BATCH": 2, "DATALOADER__NUM_WORKERS": 0, "INPUT__SAMPLING_FRAME_NUM": 3}
    sizes = {"INPUT__PSEUDO__MIN_SIZE_TRAIN": "(48,)", "INPUT__PSEUDO__CROP__ENABLED": False}
    return load_cfg(
        "coco/visage_R50_bs16.yaml",
        DATASETS__TRAIN=f"('{name}',)",
        INPUT__PSEUDO__COPY_PASTE=copy_paste,
        **small,
        **sizes,
    )


def test_images_alone_make_moving_clips_with_the_classes_of_the_target(images):
    np.random.seed(0)
    batch = next(iter(build_train_loader(image_cfg(images, copy_paste=False))))
    assert [len(sample["image"]) for sample in batch] == [3, 3]
    first, last = batch[0]["instances"][0], batch[0]["instances"][-1]
    classes = MetadataCatalog.get("ytvis_2019_train").thing_classes
    assert [classes[label] for label in first.gt_classes] == ["person", "sedan"]
    assert not torch.equal(first.gt_masks.tensor, last.gt_masks.tensor)  # the image turns


def test_objects_of_a_second_image_are_pasted_in(images):
    np.random.seed(0)
    batches = list(islice(build_train_loader(image_cfg(images, copy_paste=True)), 4))
    counts = [len(sample["instances"][0]) for batch in batches for sample in batch]
    assert counts == [4] * 8  # two of the image, two of the other
    kept = [int((sample["instances"][0].gt_ids[2:] >= 0).sum()) for batch in batches for sample in batch]
    assert max(kept) > 0  # some are kept, others would hide too much


def test_visage_trains_on_clips_of_images_with_pasted_objects(images):
    np.random.seed(0)
    batch = next(iter(build_train_loader(image_cfg(images, copy_paste=True))))
    model = sharp_model(TINY, **{**SMALL, "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 40}).train()
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_reid_app"] > 0  # objects are followed through the clip
