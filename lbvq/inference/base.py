"""What the predictor of whole videos and that of streams share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lbvq.inference.frames import Resize
from lbvq.inference.loading import class_names_of, fitting_classes, load_config, trained_model, weights_of
from lbvq.inference.vocabulary import with_classes
from lbvq.modeling.ovformer.zero_shot import read_text_embeddings
from mask2former.abilities import has_ability, require
from mask2former.bfloat16 import Bfloat16Products, wants_bfloat16
from mask2former.registry import model_class

if TYPE_CHECKING:
    from typing_extensions import Self

    from mask2former.cfg import Cfg


class Predictor:
    """A model, and what it takes to run it on frames as they come from a file or a camera.

    Attributes:
        model: the network in the form in which it is run, left in the mode it was given in.
        resize: how frames are made ready for it.
        names: names of the classes, or None when they are not known.
        category_ids: their ids in results files, or None for class index + 1.
        half: compute in half precision on CUDA.
        products: what computes products on the CPU in bfloat16, None for full precision there.
        is_trained: False when no weights were loaded; what such a network finds is noise.
    """

    def __init__(
        self,
        model: Any,
        *,
        resize: Resize | None,
        names: Sequence[str] | None,
        category_ids: Sequence[int] | None = None,
        half: bool,
        bfloat16: bool = False,
        is_trained: bool,
    ) -> None:
        self.model = model
        self.resize = Resize() if resize is None else resize
        self.names = None if names is None else tuple(names)
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.half, self.is_trained = half, is_trained
        self.products = Bfloat16Products() if bfloat16 else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        opts: Sequence[Any] = (),
        **settings: Any,
    ) -> Self:
        """Build a predictor from what a model is called.

        Args:
            source: a YAML file, a folder of a model, a name of the model zoo, or "organisation/model" of the Hugging
                Face Hub, see `load_config`.
            weights, classes, settings: see `from_config`.
            opts: KEY VALUE pairs that override the configuration.
        """
        return cls.from_config(load_config(source, opts), weights, classes, **settings)

    @classmethod
    def from_config(
        cls,
        cfg: Cfg,
        weights: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        *,
        model: Any = None,
        **settings: Any,
    ) -> Self:
        """Build a predictor from a configuration.

        Args:
            cfg: the configuration.
            weights: a file or an address; by default MODEL.WEIGHTS. "" builds an untrained network.
            classes: names of the classes, by class index; by default those that come with the weights, or those of
                the data set in DATASETS.TEST. An
                open-vocabulary model (OVFormer) finds exactly these classes, whatever they are.
            model: the model of `cfg`, if it is built already; if it is an open-vocabulary one, it is set to `classes`.
            settings: further arguments of the constructor.
        """
        return cls(**{**cls.parts(cfg, weights, classes, model), **settings})

    @classmethod
    def parts(
        cls,
        cfg: Cfg,
        weights: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        model: Any = None,
    ) -> dict[str, Any]:
        """Arguments of the constructor for a configuration, see `from_config`."""
        kind = model_class(cfg) if model is None else model
        require(kind, "video")
        if model is not None and weights is not None:
            raise ValueError("weights can be given only for a model that is to be built; load them with load_weights")
        is_renamed = classes is not None and has_ability(kind, "open_vocabulary")
        if classes is not None and is_renamed:
            cfg = with_classes(cfg, classes, known_names=class_names_of(cfg))
        is_trained = model is not None or bool(weights_of(cfg, weights))
        if model is None:
            model = trained_model(cfg, weights)
            cfg = model.config  # with the categories of the weights
        elif is_renamed:
            model.set_vocabulary(read_text_embeddings(cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH))
        fitting = fitting_classes(cfg, model, classes)
        return {
            "model": model,
            "resize": Resize.from_config(cfg),
            "names": None if fitting is None else fitting.names,
            "category_ids": None if fitting is None else fitting.ids,
            "half": cfg.TEST.AMP.ENABLED,
            "bfloat16": wants_bfloat16(cfg.TEST.AMP.CPU),
            "is_trained": is_trained,
        }

    def save_pretrained(self, folder: str | os.PathLike, **saved: Any) -> Path:
        """Write the model with the names of its classes as a folder; see `lbvq.modeling.pretrained.save_pretrained`."""
        return self.model.save_pretrained(folder, **{**self._classes(), **saved})

    def push_to_hub(self, repo_id: str, **saved: Any) -> str:
        """Send such a folder to the Hugging Face Hub and return its address; see `lbvq.modeling.pretrained`."""
        return self.model.push_to_hub(repo_id, **{**self._classes(), **saved})

    def _classes(self) -> dict[str, Any]:
        return {"names": self.names, "category_ids": self.category_ids}

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        """Evaluation mode without gradients, in half precision if that is wanted on this device."""
        parameter = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        on_cuda = parameter is not None and parameter.device.type == "cuda"
        was_training = getattr(self.model, "training", False)
        if was_training:
            self.model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast("cuda", torch.float16) if on_cuda and self.half else nullcontext(),
                nullcontext() if self.products is None else self.products.active(),
            ):
                yield
        finally:
            if was_training:
                self.model.train()


def short_form(init: Callable[..., None]) -> Callable[..., None]:
    """Let the constructor of a `Predictor` take names and configurations, too.

    `VideoPredictor("lbvq_r50_ytvis19")` is short for `from_pretrained`, `VideoPredictor(cfg)` and
    `VideoPredictor(model, cfg=cfg)` for `from_config`; their arguments `classes`, `weights` and `opts` may follow.
    """

    @functools.wraps(init)
    def either(
        self: Predictor,
        model: Any,
        classes: Sequence[str] | None = None,
        *,
        weights: str | os.PathLike | None = None,
        cfg: Cfg | None = None,
        opts: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        is_name, is_cfg = isinstance(model, (str, os.PathLike)), hasattr(model, "MODEL") and not callable(model)
        if not (is_name or is_cfg or callable(model)):
            raise ValueError(f"expected a configuration, a name, or a model, got {type(model).__name__}")
        if len(opts) and not is_name:
            raise ValueError("opts can be given only with the name of a configuration; change the configuration itself")
        if is_name:
            cfg, model = load_config(model, opts), None
        elif is_cfg:
            cfg, model = model, None
        if cfg is not None:
            settings = {**self.parts(cfg, weights, classes, model), **settings}
        elif weights is not None or classes is not None:
            raise ValueError(
                "weights and classes can be given only with a configuration; load weights into a model with "
                "load_weights, and name its classes by `names`"
            )
        init(self, **{"model": model, **settings})

    return either
