"""From a configuration to loaders: DATASETS, DATALOADER and INPUT are read here and in the mappers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lbvq.data.batches import (
    Pick,
    arrival_order,
    grouped_batches,
    mixed_batches,
    plain_batches,
    tag_single_source,
    with_seeds,
)
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.checks import ObjectCounts, check_records, class_facts, count_objects
from lbvq.data.class_maps import class_map_between
from lbvq.data.clip_mapper import VideoClipMapper, VideoTestMapper
from lbvq.data.image_mapper import ImageMapper, ImageTestMapper
from lbvq.data.loader import MappedRecords, Mapper, TrainLoader, keep_list, start_worker
from lbvq.data.pseudo_mapper import ImageAsClipTestMapper, PseudoClipMapper
from lbvq.data.record_store import RecordStore, load_once_per_machine
from lbvq.data.samplers import (
    TRAINING_SAMPLERS,
    InferenceSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    repeat_factors,
)
from lbvq.engine import comm
from mask2former.abilities import has_ability
from mask2former.registry import knows_model, model_class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """One data set as training sees it.

    Attributes:
        name: registered name.
        records: shared bytes.
        is_landscape: for each record, wider than high.
        factors: (records,) how often each record comes per epoch; None: once.
        counts: how many objects the records have.
    """

    name: str
    records: RecordStore
    is_landscape: list[bool]
    factors: torch.Tensor | None = None
    counts: ObjectCounts | None = None


def build_train_loader(cfg: Any, *, mappers: Sequence[Mapper] | None = None) -> TrainLoader:
    """Build the loader of DATASETS.TRAIN.

    Several data sets are mixed by DATASETS.DATASET_RATIO (by their sizes when it is empty). The last one, or the one in
    DATASETS.TARGET, of which only the names of the classes are needed, is the target: the classes of the others are
    translated to its classes, and images become moving clips.

    Args:
        cfg: the configuration.
        mappers: one per data set, instead of the usual ones.
    """
    names = _training_names(cfg)
    target = cfg.DATASETS.TARGET or names[-1]
    batch_size = _batch_size(cfg)
    sets = [_load_training_set(name, cfg) for name in names]
    mappers = list(mappers) if mappers is not None else [build_train_mapper(cfg, name, target) for name in names]
    ratios = list(cfg.DATASETS.DATASET_RATIO) if len(sets) > 1 else []
    if len(sets) > 1 and not ratios:
        ratios = [len(each.records) for each in sets]
        logger.info("DATASETS.DATASET_RATIO is empty: %s are mixed by their sizes %s.", names, ratios)
    plan = partial(
        make_plan,
        sets=sets,
        ratios=ratios,
        batch_size=batch_size,
        grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return TrainLoader(
        MappedRecords([each.records for each in sets], mappers),
        plan,
        seed=comm.shared_random_seed(),
        batch_size=batch_size,
        world_size=comm.get_world_size(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        object_counts=[each.counts for each in sets if each.counts is not None],
    )


def make_plan(
    seed: int,
    num_workers: int,
    *,
    sets: Sequence[TrainingSet],
    ratios: Sequence[float],
    batch_size: int,
    grouping: bool,
    rank: int,
    world_size: int,
) -> Iterator[list[Pick]]:
    """Plan the batches of one process, without end.

    Args:
        seed: shared by all processes.
        num_workers: what the order of grouped batches is made for, see `arrival_order`.
        sets: the data sets.
        ratios: their weights; ignored for a single one.
        batch_size: of one process.
        grouping: batches of all wide or all other records.
        rank: of this process.
        world_size: number of processes.
    """
    streams = []
    for number, each in enumerate(sets):
        where: dict[str, Any] = {"seed": seed + number, "rank": rank, "world_size": world_size}
        if each.factors is not None:
            sampler: TrainingSampler = RepeatFactorTrainingSampler(each.factors, **where)
        else:
            sampler = TrainingSampler(len(each.records), **where)
        if grouping and batch_size > 1:
            arriving = arrival_order(sampler, batch_size, num_workers)
            streams.append(grouped_batches(arriving, each.is_landscape, batch_size))
        else:
            streams.append(plain_batches(sampler, batch_size))
    if len(streams) > 1:
        batches = mixed_batches(streams, ratios, batch_size, seed=seed + len(sets) + rank)
    else:
        batches = tag_single_source(streams[0])
    return with_seeds(batches, seed, rank)


def build_train_mapper(cfg: Any, name: str, target: str) -> Mapper:
    """Choose how records of data set `name` become training samples for the classes of `target`."""
    class_map = class_map_between(name, target)
    kind = _kind(name)
    if _takes_images(cfg):
        if kind != "image" or class_map is not None:
            raise ValueError(
                f"{model_class(cfg).__name__} trains on images with the classes of one data set, got {name!r} for "
                f"the target {target!r}; set DATASETS.TRAIN."
            )
        return ImageMapper.from_config(cfg)
    if kind == "image":
        return PseudoClipMapper.from_config(cfg, class_map, is_target=name == target)
    return VideoClipMapper.from_config(cfg, class_map)


def build_test_loader(cfg: Any, dataset_name: str, *, mapper: Mapper | None = None) -> DataLoader:
    """Build the loader of one test set: a share of its records for each process, one sample per batch, in order.

    Videos are decoded while the model works on them, images by DATALOADER.NUM_WORKERS workers.
    """
    store, facts = load_once_per_machine(lambda: (DatasetCatalog.get(dataset_name), class_facts(dataset_name)))
    MetadataCatalog.get(dataset_name).set(**facts)  # in the processes that did not read the file
    if mapper is None:
        if _kind(dataset_name) == "video":
            mapper = VideoTestMapper.from_config(cfg)
        elif _takes_images(cfg):
            mapper = ImageTestMapper.from_config(cfg)
        else:
            mapper = ImageAsClipTestMapper.from_config(cfg)
    is_lazy = isinstance(mapper, VideoTestMapper)
    return DataLoader(
        TestRecords(store, mapper),
        batch_size=1,
        sampler=InferenceSampler(len(store)),
        num_workers=0 if is_lazy else cfg.DATALOADER.NUM_WORKERS,
        collate_fn=keep_list,
        worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(0),  # leave the global random numbers alone
    )


class TestRecords(Dataset):
    """Test samples by index."""

    __test__ = False  # not a test, whatever pytest thinks of its name

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Mapper) -> None:
        self.records = records
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.mapper(self.records[index])


def filter_empty(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop records that show nothing but crowds, videos in no frame and images at all."""
    if not records or "annotations" not in records[0]:
        return list(records)
    kept = [record for record in records if any(not each.get("iscrowd", 0) for each in _objects(record))]
    logger.info("Removed %d images with no usable annotations. %d images left.", len(records) - len(kept), len(kept))
    return kept


def _objects(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the objects of an image, or of every frame of a video."""
    for entry in record["annotations"]:
        if isinstance(entry, dict):
            yield entry
        else:
            yield from entry


def _load_training_set(name: str, cfg: Any) -> TrainingSet:
    """Read one data set, once per machine."""
    wants_factors = _sampler_name(cfg) == "RepeatFactorTrainingSampler"

    def load() -> tuple[list[dict[str, Any]], Any]:
        records = DatasetCatalog.get(name)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            records = filter_empty(records)
        if not records:
            raise ValueError(
                f"No valid data found in {name!r}: it has no record, or none with objects "
                "(DATALOADER.FILTER_EMPTY_ANNOTATIONS)."
            )
        check_records(cfg, name, records)
        is_landscape = [record["width"] > record["height"] for record in records]
        factors = None
        if wants_factors:
            categories = [{each["category_id"] for each in _objects(record)} for record in records]
            factors = repeat_factors(categories, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT)
        return records, (is_landscape, factors, count_objects(name, records), class_facts(name))

    records, (is_landscape, factors, counts, facts) = load_once_per_machine(load)
    MetadataCatalog.get(name).set(**facts)
    logger.info("%s: %d records, %.2f MiB of annotations", name, len(records), records.num_bytes / 2**20)
    return TrainingSet(name, records, is_landscape, factors, counts)


def _training_names(cfg: Any) -> list[str]:
    names = [cfg.DATASETS.TRAIN] if isinstance(cfg.DATASETS.TRAIN, str) else list(cfg.DATASETS.TRAIN)
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; name at least one registered data set.")
    ratios = cfg.DATASETS.DATASET_RATIO
    if len(names) > 1 and ratios and (len(ratios) != len(names) or min(ratios) < 0 or max(ratios) <= 0):
        raise ValueError(
            f"DATASETS.DATASET_RATIO needs one number of at least 0 for each of {names}, and one above 0, got {ratios}."
        )
    return names


def _batch_size(cfg: Any) -> int:
    total, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total < 1 or total % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, got {total} for {world_size}."
        )
    return total // world_size


def _sampler_name(cfg: Any) -> str:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in TRAINING_SAMPLERS:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN must be one of {TRAINING_SAMPLERS}, got {name!r}.")
    return name


def _takes_images(cfg: Any) -> bool:
    """Whether a sample of the model is a single image; a model that is not known is given clips."""
    return knows_model(cfg) and not has_ability(model_class(cfg), "video")


def _kind(name: str) -> str:
    """Return "video" or "image"."""
    kind = MetadataCatalog.get(name).get("kind")
    if kind not in ("video", "image"):
        raise ValueError(
            f"Data set {name!r} does not say what it holds: call MetadataCatalog.get({name!r}).set(kind='video') or "
            "kind='image', or register it by register_ytvis_instances or register_coco_instances."
        )
    return kind
