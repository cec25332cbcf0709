"""Draw what the loader yields: python tools/view_dataset.py --config-file configs/... [KEY VALUE ...]

Writes one picture per training clip: its frames as the model gets them, with masks, classes and track ids. `--dataset`
looks at one registered data set; `--raw` leaves out every random transform, so that annotations can be judged.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lbvq.data import MetadataCatalog
from lbvq.engine.user_errors import user_command
from lbvq.files.data_entries import add_data_argument, data_options
from lbvq.files.writing import atomic_path
from lbvq.video.draw import contact_sheet, draw_objects
from lbvq.zoo import load_config

SMALLEST_WIDTH = 480  # pixels of a drawn frame


@user_command
def main() -> None:
    args = parse_arguments()
    from lbvq.data import build_train_loader  # imports torch

    cfg = load_config(args.config_file, [*data_options(args.data), *args.options])
    if args.dataset:
        cfg.DATASETS.TRAIN, cfg.DATASETS.DATASET_RATIO = (args.dataset,), []
    cfg.SOLVER.IMS_PER_BATCH = 1
    np.random.seed(args.seed)
    mappers = [raw_mapper(cfg, name) for name in cfg.DATASETS.TRAIN] if args.raw else None
    loader = build_train_loader(cfg, mappers=mappers)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[-1]).thing_classes
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for number, (sample,) in enumerate(islice(loader, args.num)):
        path = output / f"{number:03d}_{describe(sample)}.png"
        with atomic_path(path) as part:
            Image.fromarray(draw_sample(sample, names, cfg.INPUT.FORMAT)).save(part)
        print(f"{path}: {summary(sample, names)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="YAML file; its DATASETS.TRAIN and INPUT are used")
    add_data_argument(parser)
    parser.add_argument("--dataset", default="", help="registered name, instead of DATASETS.TRAIN")
    parser.add_argument("--raw", action="store_true", help="no random transforms, frames in their own size")
    parser.add_argument("--num", type=int, default=8, help="clips to draw (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the loader (default 0)")
    parser.add_argument("--output", default="output/view_dataset", help="folder of the pictures")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the configuration")
    return parser.parse_args()


def raw_mapper(cfg: Any, name: str) -> Any:
    """A mapper that changes no pixel and no class."""
    from lbvq.data.clip_mapper import VideoClipMapper
    from lbvq.data.pseudo_mapper import PseudoClipMapper

    mapper = VideoClipMapper if MetadataCatalog.get(name).kind == "video" else PseudoClipMapper
    sampling = {"num_frames": cfg.INPUT.SAMPLING_FRAME_NUM, "frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE}
    return mapper([], **sampling, image_format=cfg.INPUT.FORMAT)


def draw_sample(sample: dict[str, Any], names: list[str], image_format: str) -> np.ndarray:
    """(H, W, 3) RGB picture of a clip, or of a single image, with its objects."""
    is_clip = isinstance(sample["image"], list)
    images = sample["image"] if is_clip else [sample["image"]]
    instances = sample["instances"] if is_clip else [sample["instances"]]
    frames = [draw_frame(*pair, names, image_format) for pair in zip(images, instances, strict=True)]
    titles = [f"frame {t}" for t in sample["frame_idx"]] if is_clip else None
    return contact_sheet(frames, columns=min(len(frames), 4), titles=titles)


def draw_frame(image: Any, objects: Any, names: list[str], image_format: str) -> np.ndarray:
    """Draw the objects of one frame; the colour follows the row, which is the same object in every frame."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., :: -1 if image_format == "BGR" else 1])
    rows = range(len(objects))
    ids = objects.gt_ids.tolist() if objects.has("gt_ids") else list(rows)
    shown = [row for row in rows if ids[row] != -1]
    captions = [f"{names[int(objects.gt_classes[row])]} #{ids[row]}" for row in shown]
    masks = objects.gt_masks.tensor.numpy()[shown]
    enlarge = max(1, SMALLEST_WIDTH // pixels.shape[1])  # so that labels do not hide what they name
    pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    masks = masks.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    return draw_objects(pixels, masks, [row + 1 for row in shown], captions)


def describe(sample: dict[str, Any]) -> str:
    """Name of the video or image, for the file name."""
    return f"video{sample['video_id']}" if "video_id" in sample else f"image{sample['image_id']}"


def summary(sample: dict[str, Any], names: list[str]) -> str:
    """One line about a clip: frames, size, and how long each object is visible."""
    if not isinstance(sample["image"], list):
        return f"{tuple(sample['image'].shape[1:])} pixels, {len(sample['instances'])} objects"
    instances = sample["instances"]
    ids = np.array([objects.gt_ids.tolist() for objects in instances]).reshape(len(instances), -1)  # (T, G)
    classes = np.array([objects.gt_classes.tolist() for objects in instances]).reshape(len(instances), -1)
    found = [
        f"{names[classes[:, row].max()]} in {int((ids[:, row] != -1).sum())}"
        for row in range(ids.shape[1])
        if (ids[:, row] != -1).any()
    ]
    size = tuple(sample["image"][0].shape[1:])
    return f"frames {sample['frame_idx']}, {size} pixels, {', '.join(found) or 'no objects'}"


if __name__ == "__main__":
    sys.exit(main())
