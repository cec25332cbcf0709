"""The detectron2 plugin against a stand-in with the same interface, and against detectron2 where it is installed.

docs/verified.md says how to install it; it is not a dependency, and has no release on the package index.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from abc import ABCMeta
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from fvcore.common.config import CfgNode as FvcoreCfgNode
from fvcore.common.registry import Registry
from helpers import CONFIGS, ROOT
from torch import nn

from lbvq import detectron2_plugin
from lbvq.config import add_lbvq_config, get_cfg
from lbvq.config.node import dotted_leaves
from mask2former.config import add_maskformer2_config
from mask2former.registry import META_ARCH_REGISTRY

KINDS = ["stand_in", "itself"] if find_spec("detectron2") else ["stand_in"]
RESNET = "build_resnet_backbone"  # a name that detectron2 has, too


class TheirCfgNode(FvcoreCfgNode):
    """detectron2's node derives from fvcore's too."""


class TheirMetadata(SimpleNamespace):
    def set(self, **facts):
        for key, value in facts.items():
            assert key not in self.__dict__ or getattr(self, key) == value
            setattr(self, key, value)
        return self


class TheirDatasetCatalog(dict):
    def register(self, name, function):
        assert name not in self
        self[name] = function


class TheirMetadataCatalog(dict):
    def get(self, name):
        return self.setdefault(name, TheirMetadata(name=name))


@pytest.fixture(params=KINDS)
def detectron2(request, monkeypatch):
    """Return detectron2 with registries and catalogs that are left as they were, and `their_cfg`."""
    return _stand_in(monkeypatch) if request.param == "stand_in" else _itself(monkeypatch)


def _itself(monkeypatch):
    package = importlib.import_module("detectron2")
    modeling, data, config = (importlib.import_module(f"detectron2.{name}") for name in ("modeling", "data", "config"))
    for registry in (modeling.META_ARCH_REGISTRY, modeling.BACKBONE_REGISTRY, modeling.SEM_SEG_HEADS_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    for catalog in (data.DatasetCatalog, data.MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    return SimpleNamespace(modeling=package.modeling, data=package.data, get_cfg=config.get_cfg)


def _stand_in(monkeypatch):
    """Put a small detectron2 into sys.modules."""
    package, modeling, data = (ModuleType(f"detectron2{name}") for name in ("", ".modeling", ".data"))

    class Backbone(nn.Module, metaclass=ABCMeta):
        pass

    modeling.Backbone = Backbone
    modeling.META_ARCH_REGISTRY = Registry("META_ARCH")
    modeling.BACKBONE_REGISTRY = Registry("BACKBONE")
    modeling.SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")

    def build_model(cfg):
        model = modeling.META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        return model.to(torch.device(cfg.MODEL.DEVICE))

    def build_backbone(cfg):
        shape = SimpleNamespace(channels=len(cfg.MODEL.PIXEL_MEAN), height=None, width=None, stride=None)
        backbone = modeling.BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, shape)
        assert isinstance(backbone, Backbone)
        return backbone

    modeling.build_model, modeling.build_backbone = build_model, build_backbone
    data.DatasetCatalog, data.MetadataCatalog = TheirDatasetCatalog(), TheirMetadataCatalog()
    package.modeling, package.data = modeling, data
    for module in (package, modeling, data):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(modeling=modeling, data=data, get_cfg=_stand_in_cfg)


def _stand_in_cfg():
    """A configuration as detectron2 makes it: its own node type, its own groups."""
    cfg = TheirCfgNode(
        {"VERSION": 2, "OUTPUT_DIR": "", "MODEL": {"WEIGHTS": "", "RPN": {"HEAD_NAME": "StandardRPNHead"}}}
    )
    for key, value in dotted_leaves(get_cfg()).items():  # detectron2 has the published keys
        *groups, name = key.split(".")
        node = cfg
        for group in groups:
            node = node.setdefault(group, TheirCfgNode())
        node.setdefault(name, value)
    return cfg


def their_cfg(detectron2):
    """A configuration of detectron2 with our keys, as the plugin's first lines say."""
    cfg = detectron2.get_cfg()
    add_maskformer2_config(cfg)
    add_lbvq_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "youtubevis_2019" / "lbvq_R50_bs8.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    return cfg


def test_without_detectron2_nothing_happens(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as if it were not installed
    assert detectron2_plugin.register() == []
    detectron2_plugin.setup_environment()


def test_a_detectron2_that_cannot_be_imported_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import a_package_that_is_missing\n")
    for name in ("detectron2", "detectron2.modeling", "detectron2.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        detectron2_plugin.register()


def test_models_backbones_heads_and_data_sets_are_added_once(detectron2):
    added = detectron2_plugin.register()
    assert {"Lbvq", "D2SwinTransformer", "MaskFormerHead", "ytvis_2019_train"} <= set(added)
    assert RESNET in detectron2.modeling.BACKBONE_REGISTRY  # theirs, if they have one
    assert {name for name, _ in META_ARCH_REGISTRY} <= set(added)
    assert detectron2_plugin.register() == []


def test_names_that_are_taken_stay(detectron2):
    theirs, (backbones, data_sets) = object(), (detectron2.modeling.BACKBONE_REGISTRY, detectron2.data.DatasetCatalog)
    if RESNET not in backbones:
        backbones._do_register(RESNET, theirs)
    if "coco_2017_train" not in data_sets:
        data_sets.register("coco_2017_train", theirs)
    before = backbones.get(RESNET), data_sets["coco_2017_train"]
    added = detectron2_plugin.register()
    assert (backbones.get(RESNET), data_sets["coco_2017_train"]) == before
    assert not {RESNET, "coco_2017_train"} & set(added)


def test_a_prefix_avoids_collisions(detectron2):
    detectron2.modeling.META_ARCH_REGISTRY._do_register("MaskFormer", object())
    added = detectron2_plugin.register(prefix="vis_")
    assert {"vis_Lbvq", "vis_MaskFormer", f"vis_{RESNET}"} <= set(added)


def test_detectron2_builds_and_runs_our_model_from_its_own_configuration(detectron2):
    detectron2_plugin.setup_environment()
    cfg = their_cfg(detectron2)
    model = detectron2.modeling.build_model(cfg).eval()
    assert type(model).__name__ == "Lbvq"
    frames = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    with torch.no_grad():
        output = model([{"image": frames, "height": 64, "width": 96, "video_len": 2, "frame_idx": [0, 1]}])
    assert len(output["pred_scores"]) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert tuple(output["pred_masks"].shape) == (10, 2, 64, 96)


def test_detectron2_accepts_our_backbone_as_its_own(detectron2):
    detectron2_plugin.register(prefix="vis_")
    cfg = their_cfg(detectron2)
    cfg.MODEL.BACKBONE.NAME = f"vis_{RESNET}"
    backbone = detectron2.modeling.build_backbone(cfg)
    assert type(backbone).__module__ == "mask2former.modeling.resnet"
    assert set(backbone.output_shape()) == {"res2", "res3", "res4", "res5"}


def test_data_sets_bring_their_metadata(detectron2):
    detectron2_plugin.register()
    metadata = detectron2.data.MetadataCatalog.get("ytvis_2019_val")
    assert metadata.name == "ytvis_2019_val" and len(metadata.thing_classes) == 40
    assert callable(detectron2.data.DatasetCatalog["ytvis_2019_val"])


@pytest.mark.parametrize("kind", KINDS)
def test_detectron2_registers_us_by_an_environment_variable(kind, tmp_path):
    """In a fresh process; the stand-in imports the module that the variable names, as detectron2 does."""
    if kind == "stand_in":
        _write_stand_in(tmp_path)
    environment = {**os.environ, "DETECTRON2_ENV_MODULE": "lbvq.detectron2_plugin"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    code = "import detectron2.modeling as m; assert 'Lbvq' in m.META_ARCH_REGISTRY; print('registered')"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "registered"


def _write_stand_in(folder):
    package = folder / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import importlib, os\nimportlib.import_module(os.environ['DETECTRON2_ENV_MODULE']).setup_environment()\n"
    )
    (package / "modeling.py").write_text(
        "from abc import ABCMeta\n"
        "from fvcore.common.registry import Registry\n"
        "class Backbone(metaclass=ABCMeta): pass\n"
        "META_ARCH_REGISTRY, BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY = Registry('a'), Registry('b'), Registry('c')\n"
    )
    (package / "data.py").write_text(
        "from types import SimpleNamespace\n"
        "class DatasetCatalog(dict):\n"
        "    def register(self, name, function): self[name] = function\n"
        "class MetadataCatalog(dict):\n"
        "    def get(self, name): return SimpleNamespace(set=lambda **facts: None)\n"
        "DatasetCatalog, MetadataCatalog = DatasetCatalog(), MetadataCatalog()\n"
    )
