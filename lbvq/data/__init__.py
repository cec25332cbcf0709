"""Data: from annotation files to training clips and test videos."""

from __future__ import annotations

from lbvq.data.builtin import register_builtin_datasets
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog

__all__ = ["DatasetCatalog", "MetadataCatalog"]

register_builtin_datasets()
