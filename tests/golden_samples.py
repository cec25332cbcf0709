"""Annotated clips of `synth_targets` in the form that a data mapper hands to a model."""

from __future__ import annotations

from typing import Any

import torch

from mask2former.structures import BitMasks, Boxes, Instances


def training_sample(clip: dict[str, Any]) -> dict[str, Any]:
    """One clip of `synth_targets.clips` as a training sample, with fresh tensors."""
    height, width = clip["image"][0].shape[-2:]
    frames = []
    for t in range(len(clip["image"])):
        frame = Instances((height, width))
        frame.gt_boxes = Boxes(torch.zeros(len(clip["masks"]), 4))
        frame.gt_classes = clip["classes"][:, t].clone()
        frame.gt_ids = clip["ids"][:, t].clone()
        masks = clip["masks"][:, t]
        frame.gt_masks = BitMasks(masks) if clip["kind"] == "bitmask" else masks.to(torch.uint8)
        frames.append(frame)
    return {
        "image": clip["image"],
        "instances": frames,
        "height": height,
        "width": width,
        "video_len": clip["video_len"],
        "frame_idx": clip["frame_idx"],
        "file_names": ["unused"] * len(frames),
    }
