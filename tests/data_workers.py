"""What the processes of distributed data tests run; a module of its own, so that new processes can import it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from data_cases import small_cfg

from lbvq.data.build import build_test_loader, build_train_loader
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.checks import check_test_set
from lbvq.data.ytvis import register_ytvis_instances
from lbvq.engine import comm

RECORDS = [{"video_id": n, "width": 4, "height": 3, "length": 1, "annotations": [[{"iscrowd": 0}]]} for n in range(7)]


def read_here_and_tell(folder: str) -> list[dict]:
    """Reader of the data set "counted": leaves a file for every process that reads."""
    Path(folder, f"read_by_{comm.get_rank()}").touch()
    MetadataCatalog.get("counted").set(thing_classes=["thing"])
    return RECORDS


def fail_to_read() -> list[dict]:
    raise ValueError("the annotation file is broken")


def share_records(folder: str) -> None:
    """Build both loaders in each process and write down what they give."""
    DatasetCatalog.register("counted", lambda: read_here_and_tell(folder))
    DatasetCatalog.register("broken", fail_to_read)
    MetadataCatalog.get("counted").set(kind="video")
    cfg = small_cfg("DATASETS.TRAIN", ("counted",), "SOLVER.IMS_PER_BATCH", 4)
    train = build_train_loader(cfg, mappers=[lambda record: record])
    test = build_test_loader(cfg, "counted", mapper=lambda record: record)
    try:
        build_test_loader(cfg, "broken", mapper=lambda record: record)
    except ValueError as caught:
        error = str(caught)
    result = {
        "train": [[sample["video_id"] for sample in batch] for batch in islice(train, 7)],
        "test": [sample["video_id"] for batch in test for sample in batch],
        "classes": MetadataCatalog.get("counted").thing_classes,
        "seed": train.state_dict()["seed"],
        "error": error,
    }
    Path(folder, f"result_{comm.get_rank()}.json").write_text(json.dumps(result))


def check_own_test_set(json_file: str, folder: str) -> None:
    """Check a data set whose classes are known once its file is read, and write down the classes in each process."""
    register_ytvis_instances("own", {}, json_file, folder)
    check_test_set(small_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1), "own")
    first = MetadataCatalog.get("own").thing_classes
    loader = build_test_loader(small_cfg(), "own")
    text = f"{first} {len(loader.dataset)} {MetadataCatalog.get('own').thing_classes}"
    Path(folder, f"rank{comm.get_rank()}.txt").write_text(text)
