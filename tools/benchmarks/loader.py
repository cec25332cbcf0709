"""Clips per second of the training loader, stage by stage.

Without --dataset it writes synthetic videos of the given size to a temporary folder and uses those. Stages are measured
in this process on the same clips; the loader itself with each number of workers asked for.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np

from lbvq.data import MetadataCatalog, build_train_loader
from lbvq.data.augment import ClipAugmenter
from lbvq.data.augment_lists import clip_augmentations, pseudo_augmentations
from lbvq.data.build import build_train_mapper
from lbvq.data.clip_sampling import choose_frames
from lbvq.data.frames import read_image
from lbvq.data.loader import seeded
from lbvq.data.synthetic import SyntheticSettings, write_dataset
from lbvq.files.data_entries import data_options
from lbvq.zoo import load_config


def run(args: argparse.Namespace) -> None:
    if args.dataset:
        _measure(args, args.dataset)
        return
    with tempfile.TemporaryDirectory(prefix="lbvq-loader-") as folder:
        scale = min(args.height / 96, args.width / 128)
        settings = SyntheticSettings.scaled(scale, height=args.height, width=args.width, num_frames=30)
        write_dataset(folder, num_train=args.num_videos, num_val=0, settings=settings)
        os.environ["DETECTRON2_DATASETS"] = folder
        _measure(args, "synthetic_train")


def _config(args: argparse.Namespace, name: str) -> Any:
    cfg = load_config(args.config_file or "", data_options(args.data))
    if not args.config_file:
        cfg.INPUT.SAMPLING_FRAME_NUM = 6
        cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "RGB", "flip_by_clip"
        for node in (cfg.INPUT, cfg.INPUT.PSEUDO):
            node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN = (288, 320, 352, 384, 416, 448, 480, 512), 768
            node.MIN_SIZE_TRAIN_SAMPLING, node.CROP.ENABLED = "choice_by_clip", True
            node.CROP.TYPE, node.CROP.SIZE = "absolute_range", type(node.CROP.SIZE)((384, 600))
    cfg.DATASETS.TRAIN = (name,)
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def _measure(args: argparse.Namespace, name: str) -> None:
    cfg = _config(args, name)
    cfg.DATALOADER.NUM_WORKERS = 0
    np.random.seed(0)
    loader = build_train_loader(cfg)
    store = loader.dataset.stores[0]
    print(f"{name}: {len(store)} records, {store.num_bytes / 2**20:.2f} MiB shared, clips of {_frames(cfg)} frames")
    print(f"{'stage':<28}{'ms per clip':>14}{'clips per s':>14}")
    for label, make in _stages(cfg, name, store).items():
        _report(label, args.clips, _each_seeded(make, len(store), args.clips))
    for workers in args.workers:
        cfg.DATALOADER.NUM_WORKERS = workers
        np.random.seed(0)
        batches = iter(build_train_loader(cfg))
        next(batches)  # workers have started
        _report(f"loader, {workers} workers", args.clips, islice(batches, args.clips))


def _frames(cfg: Any) -> int:
    return cfg.INPUT.SAMPLING_FRAME_NUM


def _stages(cfg: Any, name: str, store: Any) -> dict[str, Callable[[int], Any]]:
    """Label -> function of a record's index; every stage includes those before it."""
    is_video = MetadataCatalog.get(name).kind == "video"
    policies = clip_augmentations(cfg) if is_video else pseudo_augmentations(cfg)
    mapper = build_train_mapper(cfg, name, name)

    def read(index: int) -> list[np.ndarray]:
        record = store[index]
        if not is_video:
            return [read_image(record["file_name"])] * _frames(cfg)
        chosen = choose_frames(record["length"], _frames(cfg), cfg.INPUT.SAMPLING_FRAME_RANGE)
        images = {t: read_image(record["file_names"][t]) for t in set(chosen)}
        return [images[t] for t in chosen]

    def augment(index: int) -> list[np.ndarray]:
        augmenter = ClipAugmenter(policies, _frames(cfg))
        return [augmenter(image)[0] for image in read(index)]

    return {
        "record": lambda index: store[index],
        "+ decoding the frames used": read,
        "+ augmenting the frames": augment,
        "+ masks, boxes (all)": lambda index: mapper(store[index]),
    }


def _each_seeded(make: Callable[[int], Any], num_records: int, count: int) -> Iterable[Any]:
    """Make `count` clips with the same random numbers for every stage."""
    for number in range(count):
        with seeded((0, number)):
            yield make(number % num_records)


def _report(label: str, count: int, clips: Iterable[Any]) -> None:
    started = time.perf_counter()
    for _ in clips:
        pass
    seconds = time.perf_counter() - started
    print(f"{label:<28}{1000 * seconds / count:>14.2f}{count / seconds:>14.1f}")
