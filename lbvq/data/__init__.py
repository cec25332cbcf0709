"""Data: from annotation files to training clips and test videos.

The data sets that are known by name are registered here, with names and functions only; everything in `__all__` is
loaded when it is first used, so that preparing files does not wait for torch to be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbvq.data.builtin import register_builtin_datasets
from mask2former.lazy import lazy_names

if TYPE_CHECKING:
    from .build import build_test_loader as build_test_loader
    from .build import build_train_loader as build_train_loader
    from .catalog import DatasetCatalog as DatasetCatalog
    from .catalog import MetadataCatalog as MetadataCatalog
    from .coco import register_coco_instances as register_coco_instances
    from .ytvis import register_ytvis_instances as register_ytvis_instances

_HOME = {  # public name: module that defines it
    "DatasetCatalog": "lbvq.data.catalog",
    "MetadataCatalog": "lbvq.data.catalog",
    "build_test_loader": "lbvq.data.build",
    "build_train_loader": "lbvq.data.build",
    "register_coco_instances": "lbvq.data.coco",
    "register_ytvis_instances": "lbvq.data.ytvis",
}

__all__ = list(_HOME)

__getattr__, __dir__ = lazy_names(__name__, _HOME)

register_builtin_datasets()
