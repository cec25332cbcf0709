"""Turn the `Instances` of training clips into the targets of the frame losses and of the clip losses.

Every clip carries the same N annotated instances in each of its T frames; an instance that a frame lacks has class and
id -1 there. Masks are padded to the size of the padded batch, because losses sample both sides at relative positions.

Everything is selected and checked on the CPU, where samples come from. Only masks are copied to the device, at the end;
labels and ids stay, because matches are made on the CPU, too: nothing is read back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mask2former.structures import ABSENT
from mask2former.transfer import to_device

HOST = torch.device("cpu")


def prepare_targets(
    samples: list[dict[str, Any]], padded_size: tuple[int, int], device: torch.device, num_classes: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Build the targets of every frame and of every clip of a batch.

    Args:
        samples: B training samples; `instances` is a list of T `Instances` with `gt_classes`, `gt_ids`, `gt_masks`.
        padded_size: (H, W) of the padded batch.
        device: where the masks go.
        num_classes: K, to check the classes against.

    Returns:
        B*T frame targets `{labels (n,), ids (n,), masks (n, H, W), name}`, clip by clip, holding the rows whose id is
        valid in that frame, and B clip targets `{labels (N,), ids (N, T), masks (N, T, H, W), video_len, frame_idx,
        name}` holding the rows that are valid in at least one frame. Masks are bool. All may be empty.
    """
    frame_targets: list[dict[str, Any]] = []
    clip_targets: list[dict[str, Any]] = []
    for sample in samples:
        target = clip_target(sample, padded_size, HOST, num_classes)
        clip_targets.append(moved(target, device))
        frame_targets.extend(moved(frame, device) for frame in frames_of(target))
    return frame_targets, clip_targets


def clip_target(
    sample: dict[str, Any], padded_size: tuple[int, int], device: torch.device, num_classes: int | None = None
) -> dict[str, Any]:
    """Build the target of one clip; see `prepare_targets`."""
    instances = sample["instances"]
    name = sample_name(sample)
    masks = stack_masks(instances, padded_size, HOST, name)
    ids = valid_ids(torch.stack([frame.gt_ids for frame in instances], dim=1).to(HOST), masks)
    kept = (ids != ABSENT).any(dim=1)  # (N,)
    labels = first_known_class([classes_of_present(frame).to(HOST) for frame in instances])[kept]
    check_classes(labels, num_classes, name)
    target = {
        "labels": labels,
        "ids": shift_ids(ids[kept]),
        "masks": masks[kept],
        "video_len": sample.get("video_len"),
        "frame_idx": sample.get("frame_idx"),
        "name": name,
    }
    return moved(target, device)


def moved(target: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A target with its masks on a device."""
    return {**target, "masks": to_device(target["masks"], device)}


def frames_of(target: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a clip target into T frame targets with the rows that are valid in that frame."""
    frames = []
    for t in range(target["ids"].shape[1]):
        rows = target["ids"][:, t] != ABSENT
        frames.append(
            {
                "labels": target["labels"][rows],
                "ids": target["ids"][rows, t],
                "masks": target["masks"][rows, t],
                "name": f"{target['name']}, frame {t} of the clip",
            }
        )
    return frames


def frames_with_all(
    sample: dict[str, Any], padded_size: tuple[int, int], device: torch.device, num_classes: int
) -> list[dict[str, Any]]:
    """T frame targets that list all N annotated instances of a clip, also those that no frame shows.

    Args:
        sample, padded_size, device: as of `prepare_targets`.
        num_classes: K, the label of an instance in the frames where it is absent.

    Returns:
        `{labels (N,), ids (N,), masks (N, H, W), name}`, ids -1 where absent.
    """
    instances, name = sample["instances"], sample_name(sample)
    masks = stack_masks(instances, padded_size, HOST, name)
    ids = valid_ids(torch.stack([frame.gt_ids for frame in instances], dim=1).to(HOST), masks)
    classes = torch.stack([frame.gt_classes for frame in instances], dim=1).to(HOST)
    check_classes(classes[ids != ABSENT], num_classes, name)
    labels = torch.where(ids == ABSENT, num_classes, classes)
    masks = to_device(masks, device)
    return [
        {
            "labels": labels[:, t],
            "ids": ids[:, t],
            "masks": masks[:, t],
            "name": f"{name}, frame {t} of the clip",
        }
        for t in range(len(instances))
    ]


def stack_masks(
    instances: list[Any], padded_size: tuple[int, int], device: torch.device, name: str = "sample"
) -> Tensor:
    """Stack the masks of T frames into (N, T, H, W) bool, zero outside each frame's own size.

    `gt_masks` may be a `BitMasks` or a tensor (N, h, w) of any type, nonzero meaning inside.
    """
    num_objects = {len(frame.gt_ids) for frame in instances}
    if len(num_objects) != 1:
        counts = [len(frame.gt_ids) for frame in instances]
        raise ValueError(
            f"{name}: every frame of a clip must list the same instances in the same order, got {counts} rows per frame"
        )
    stacked = torch.zeros(num_objects.pop(), len(instances), *padded_size, dtype=torch.bool, device=device)
    for t, frame in enumerate(instances):
        masks = getattr(frame.gt_masks, "tensor", frame.gt_masks)
        height, width = frame.image_size
        if masks.shape != (len(frame.gt_ids), height, width):
            raise ValueError(
                f"{name}: gt_masks of frame {t} must have shape {(len(frame.gt_ids), height, width)}, "
                f"got {tuple(masks.shape)}"
            )
        stacked[:, t, :height, :width] = masks.to(device=device, dtype=torch.bool)
    return stacked


def valid_ids(ids: Tensor, masks: Tensor) -> Tensor:
    """Mark an instance absent (-1) in the frames where its mask is empty. (N, T), (N, T, H, W) -> (N, T)."""
    return torch.where(masks.flatten(2).any(dim=2), ids, ABSENT)


def classes_of_present(frame: Any) -> Tensor:
    """Class of each instance of a frame, (N,); -1 for those that are absent, which MinVIS and VISAGE give class K."""
    return torch.where(frame.gt_ids == ABSENT, ABSENT, frame.gt_classes)


def first_known_class(classes: list[Tensor]) -> Tensor:
    """Take each instance's class from the first frame that has one. T tensors (N,) -> (N,); -1 when none has."""
    labels = classes[0].clone()  # a copy: the tensor belongs to the data set
    for later in classes[1:]:
        labels = torch.where(labels == ABSENT, later, labels)
    return labels


def check_classes(labels: Tensor, num_classes: int | None, name: str) -> None:
    """Raise ValueError unless every class is in [0, num_classes); on a GPU it would only be noticed much later."""
    if (labels < 0).any():
        raise ValueError(
            f"{name}: an instance has an id in some frame but no class in any frame (gt_classes is -1 everywhere). "
            "The data mapper must give ids only to instances with a class."
        )
    if num_classes is not None and (labels >= num_classes).any():
        raise ValueError(
            f"{name}: class {int(labels.max())} does not exist, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; "
            "set it to the number of categories of the training set."
        )


def shift_ids(ids: Tensor) -> Tensor:
    """Subtract the smallest valid id of the clip, so that ids start at 0. (N, T) -> (N, T)."""
    valid = ids != ABSENT
    if not valid.any():
        return ids
    return torch.where(valid, ids - ids[valid].min().clamp(min=0), ids)


def sample_name(sample: dict[str, Any]) -> str:
    """Say in words which sample this is, for messages."""
    parts = []
    if sample.get("video_id") is not None:
        parts.append(f"video {sample['video_id']}")
    if sample.get("file_names"):
        parts.append(str(sample["file_names"][0]))
    if sample.get("frame_idx") is not None:
        parts.append(f"frames {list(sample['frame_idx'])}")
    return ", ".join(parts) or "sample without a name"


def fewest_queries(model: nn.Module) -> int | None:
    """Number of object queries of a model, the smallest where it has several kinds; None for one without.

    A clip with more objects cannot teach all of them, since every query takes one at most.
    """
    names = ("query_embed", "query_feat", "q")  # checkpoint names
    found = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names
    ]
    return min(found, default=None)
