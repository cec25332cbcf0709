"""Data: from annotation files to training clips and test videos."""

from __future__ import annotations

from lbvq.data.build import build_test_loader, build_train_loader
from lbvq.data.builtin import register_builtin_datasets
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.coco import register_coco_instances
from lbvq.data.ytvis import register_ytvis_instances

__all__ = [
    "DatasetCatalog",
    "MetadataCatalog",
    "build_test_loader",
    "build_train_loader",
    "register_coco_instances",
    "register_ytvis_instances",
]

register_builtin_datasets()
