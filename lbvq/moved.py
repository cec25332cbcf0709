"""Module paths of version 0.1 that have moved: importing one gives the new module, and says which it is."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

NEW_HOME = {  # old module: the one that replaced it
    "lbvq.rle": "lbvq.masks.rle",
    "lbvq.tubes": "lbvq.masks.tubes",
    "lbvq.video_container": "lbvq.video.container",
    "lbvq.video_io": "lbvq.video.reader",
    "lbvq.video_writer": "lbvq.video.writer",
    "lbvq.visualize": "lbvq.video.draw",
    "lbvq.api": "lbvq.inference.predictor",
    "lbvq.stream": "lbvq.inference.stream",
    "lbvq.results": "lbvq.inference.results",
    "lbvq.frames": "lbvq.inference.frames",
    "lbvq.text_embeddings": "lbvq.inference.vocabulary",
    "lbvq.predict": "lbvq.cli.predict",
    "lbvq.evaluation.mask_file": "lbvq.files.mask_file",
    "lbvq.evaluation.runs": "lbvq.masks.runs",
    "lbvq.engine.safe_pickle": "lbvq.files.safe_pickle",
    "lbvq.live": "lbvq.cli.live",
    "lbvq.modeling.clip_encoder": "lbvq.modeling.clips.encoder",
    "lbvq.modeling.clip_decoder": "lbvq.modeling.clips.decoder",
    "lbvq.modeling.clip_matcher": "lbvq.modeling.clips.matcher",
    "lbvq.modeling.clip_criterion": "lbvq.modeling.clips.criterion",
    "lbvq.modeling.clip_segmenter": "lbvq.modeling.clips.segmenter",
    "lbvq.modeling.frame_matching": "lbvq.modeling.online.frame_matching",
    "lbvq.modeling.tracking": "lbvq.modeling.online.tracking",
    "lbvq.modeling.appearance": "lbvq.modeling.online.appearance",
    "lbvq.modeling.minvis": "lbvq.modeling.online.minvis",
    "lbvq.modeling.visage": "lbvq.modeling.online.visage",
    "lbvq.modeling.genvis_memory": "lbvq.modeling.genvis.memory",
    "lbvq.modeling.genvis_criterion": "lbvq.modeling.genvis.criterion",
    "lbvq.modeling.ovformer_decoder": "lbvq.modeling.ovformer.decoder",
    "lbvq.modeling.ovformer_criterion": "lbvq.modeling.ovformer.criterion",
    "lbvq.modeling.ovformer_tracks": "lbvq.modeling.ovformer.tracks",
    "lbvq.modeling.clip_towers": "lbvq.modeling.ovformer.towers",
    "lbvq.modeling.image_features": "lbvq.modeling.ovformer.image_features",
    "lbvq.modeling.zero_shot": "lbvq.modeling.ovformer.zero_shot",
}


class _MovedModules:
    """Finder and loader of the old paths. It is asked last, so it costs nothing where a module is found.

    Without `importlib.abc`, which imports modules that nobody needs who only reads files.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, cast("Loader", self)) if fullname in NEW_HOME else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # as usual

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, NEW_HOME[module.__name__]
        warnings.warn(f"{old} is now {new}", FutureWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)  # what the import statement then returns


def install_moved_modules() -> None:
    """Make the old paths importable."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
