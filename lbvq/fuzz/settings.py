"""Targets: configuration files and weight files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lbvq.config import get_cfg
from lbvq.engine.weight_files import read_weights
from lbvq.fuzz.mutations import mutate_text
from lbvq.fuzz.targets import target

_YAML = """\
VERSION: 2
MODEL:
  META_ARCHITECTURE: "LBVQ"
  SEM_SEG_HEAD: {NUM_CLASSES: 40}
  PIXEL_MEAN: [123.675, 116.280, 103.530]
SOLVER:
  STEPS: (100000,)
  BASE_LR: 0.0001
INPUT:
  MIN_SIZE_TRAIN: &sizes
    - 320
    - 352
DATASETS:
  TRAIN: ("ytvis_2021_train",)
  TEST: ()
SEED: 7
"""


def write_yaml(folder: Path) -> None:
    (folder / "settings.yaml").write_text(_YAML)


@target("yaml", write_yaml, mutate_text)
def read_yaml(path: Path) -> None:
    get_cfg().merge_from_file(str(path))


def write_weights(folder: Path) -> None:
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.zeros(2, dtype=torch.float16)}
    torch.save({"model": state, "iteration": 3}, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in state.items()}
    (folder / "arrays.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=2))
    (folder / "object.pkl").write_bytes(pickle.dumps({"model": {"a": np.array([1, 2], dtype=object)}}, protocol=2))
    save_file(state, folder / "tensors.safetensors")


@target("weights", write_weights)
def read_one_weight_file(path: Path) -> None:
    read_weights(path)
