"""Put the YAML files and the category tables into an installed package; all else about packaging is in pyproject.toml.

In a checkout, and in an editable installation, they are read where they are (`configs/`, `datasets/metadata/`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RESOURCES = {"configs": "lbvq/configs", "datasets/metadata": "lbvq/metadata"}  # folder here: folder in the package


class BuildWithResources(build_py):
    """Copies the resources after the modules."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in RESOURCES.items():
                shutil.copytree(ROOT / source, Path(self.build_lib) / target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithResources})
