"""Our models have the parameter names and shapes of the published ones, so published checkpoints load.

Every configuration file whose model exists is tested; a new method joins in as soon as it is registered.
"""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from helpers import CONFIGS, GOLDEN, recorded

import lbvq.modeling  # noqa: F401  registers the methods
from lbvq.config import get_cfg
from lbvq.engine.solver import build_optimizer
from lbvq.engine.weights import load_weights
from lbvq.zoo import list_configs
from mask2former.registry import META_ARCH_REGISTRY, build_from_cfg

RECORDED = recorded("keys")
with gzip.open(GOLDEN / "solver.json.gz", "rt") as golden_file:
    RECORDED_OPTIMIZER = json.load(golden_file)["optim"]


def config(name: str):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def build(cfg, folder, *, device="meta"):
    """Build a model; on "meta" it has names and shapes but no memory."""
    if cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH:  # text embeddings are data that the model reads when it is built
        path = folder / "text.npy"
        np.save(path, np.random.RandomState(0).randn(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 512).astype("float32"))
        cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH = str(path)
    with torch.device(device):
        return build_from_cfg(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, cfg)


def names_with_models() -> list[str]:
    return [name for name in RECORDED["configs"] if config(name).MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY]


def test_the_main_method_is_among_the_tested():
    assert len([name for name in names_with_models() if "lbvq_R" in name]) == 5


@pytest.mark.parametrize("name", names_with_models())
def test_names_and_shapes_are_the_published_ones(name, tmp_path):
    state = build(config(name), tmp_path).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == RECORDED["lists"][RECORDED["configs"][name]]


@pytest.mark.parametrize("name", sorted(set(list_configs()) - set(RECORDED["configs"])))
def test_a_configuration_without_a_published_counterpart_builds(name, tmp_path):
    assert len(build(config(name), tmp_path).state_dict()) > 100


def zeros_of(name):
    return {key: torch.zeros(shape) for key, shape in RECORDED["lists"][RECORDED["configs"][name]].items()}


def test_a_published_checkpoint_loads_completely(tmp_path):
    name = "youtubevis_2019/lbvq_R50_bs8.yaml"
    torch.save({"model": zeros_of(name), "iteration": 139999}, tmp_path / "lbvq.pth")
    report = load_weights(build(config(name), tmp_path, device="cpu"), tmp_path / "lbvq.pth", allow_missing="none")
    assert report.complete


def test_training_starts_from_the_coco_image_model(tmp_path):
    """Only the clip module is new, and the classifier has another number of classes."""
    name = "youtubevis_2019/lbvq_R50_bs8.yaml"
    image_model = {key: torch.zeros(shape) for key, shape in RECORDED["lists"]["minvis_r50_coco_80cls"].items()}
    torch.save({"model": image_model}, tmp_path / "coco.pth")
    model = build(config(name), tmp_path, device="cpu")
    report = load_weights(model, tmp_path / "coco.pth", allow_missing="new_modules")
    classifier = {"sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias"}
    assert {key for key, _, _ in report.mismatched} == classifier | {"criterion.empty_weight"}
    new = {key.split(".")[0] for key in report.missing} - {"sem_seg_head", "criterion"}
    assert new == {"lbvq_module", "lbvq_criterion"}  # the second are class weights
    with pytest.raises(ValueError, match=r"lbvq_module\.\* \(\d+ tensors\)"):
        load_weights(model, tmp_path / "coco.pth")


OPTIMIZED = {"lbvq_r50": "youtubevis_2019/lbvq_R50_bs8.yaml", "vita_r50": "youtubevis_2019/vita_R50_bs8.yaml"}


@pytest.mark.parametrize("recorded", [key for key, name in OPTIMIZED.items() if name in names_with_models()])
def test_every_parameter_has_the_published_rate_and_decay(recorded, tmp_path):
    cfg = config(OPTIMIZED[recorded])
    model = build(cfg, tmp_path)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    got = {names[p]: [g["lr"], g["weight_decay"]] for g in optimizer.param_groups for p in g["params"]}
    want = RECORDED_OPTIMIZER[recorded]
    assert set(got) == set(want)
    assert all(got[name] == pytest.approx(want[name], rel=1e-12) for name in want)
    assert len(optimizer.param_groups) == 3
