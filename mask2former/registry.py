"""Names in a configuration to classes in the code.

Four registries with detectron2's names hold every exchangeable part. A registered class takes explicit keywords and
offers a classmethod `from_config(cfg, ...)` that reads them from a configuration; `build_from_cfg` joins the two.
The configuration may be ours or detectron2's: only attribute access is used.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from fvcore.common.registry import Registry as FvcoreRegistry
from torch import nn

from .abilities import check_settings
from .lazy import PROVIDERS
from .structures import ShapeSpec

if TYPE_CHECKING:
    from .cfg import Cfg

logger = logging.getLogger(__name__)


class Registry(FvcoreRegistry):
    """fvcore's registry with a lookup error that names the valid choices; they may be imported when needed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._providers: list[str] = []

    def provide_from(self, module: str) -> None:
        """Import a module, which registers more, when a name is asked for that nobody has registered."""
        self._providers.append(module)

    def __contains__(self, name: str) -> bool:
        for module in self._modules():
            if super().__contains__(name):
                return True
            importlib.import_module(module)
        return super().__contains__(name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for module in self._modules():
            importlib.import_module(module)
        return super().__iter__()

    def _modules(self) -> list[str]:
        """What to import for more names; importing again costs nothing."""
        return [*self._providers, *PROVIDERS]

    @property
    def name(self) -> str:
        return self._name

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(name for name, _ in self)

    def get(self, name: str) -> Any:
        """Return the object registered as `name`; KeyError lists what exists."""
        if name in self:
            return super().get(name)
        close = get_close_matches(str(name), self.names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        valid = ", ".join(self.names()) or "none; import the module that registers it"
        raise KeyError(f"No object named {name!r} in the {self.name} registry.{hint} Registered names: {valid}.")


META_ARCH_REGISTRY = Registry("META_ARCH")
BACKBONE_REGISTRY = Registry("BACKBONE")
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")  # heads and pixel decoders
TRANSFORMER_MODULE_REGISTRY = Registry("TRANSFORMER_MODULE")
for _registry in (META_ARCH_REGISTRY, BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY, TRANSFORMER_MODULE_REGISTRY):
    _registry.provide_from("mask2former.modeling")


def build_from_cfg(registry: FvcoreRegistry, name: str, cfg: Cfg, *args: Any) -> Any:
    """Build the object registered as `name` from a configuration.

    A class with `from_config` is called with the dictionary that `from_config(cfg, *args)` returns. Everything else
    (a plain function, or a class written for detectron2) is called as `obj(cfg, *args)`. A class that says what it can
    do is not built for a configuration that asks for more.
    """
    factory: Callable[..., Any] = registry.get(name)
    if hasattr(factory, "can"):
        check_settings(factory, cfg)
    from_config = getattr(factory, "from_config", None)
    if from_config is None:
        return factory(cfg, *args)
    return factory(**from_config(cfg, *args))


def build_backbone(cfg: Cfg, input_shape: ShapeSpec | None = None) -> Any:
    """Build `cfg.MODEL.BACKBONE.NAME`; the input has as many channels as `MODEL.PIXEL_MEAN` unless told otherwise."""
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    backbone = build_from_cfg(BACKBONE_REGISTRY, name, cfg, input_shape)
    if not isinstance(backbone, nn.Module) or not callable(getattr(backbone, "output_shape", None)):
        raise TypeError(
            f"MODEL.BACKBONE.NAME {name!r} built a {type(backbone).__name__}; expected a module with output_shape(), "
            "see mask2former.modeling.backbone.Backbone."
        )
    return backbone


def build_sem_seg_head(cfg: Cfg, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.SEM_SEG_HEAD.NAME` for the feature maps described by `input_shape`."""
    return build_from_cfg(SEM_SEG_HEADS_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.NAME, cfg, input_shape)


def knows_model(cfg: Cfg) -> bool:
    """Whether the model of a configuration is registered."""
    return cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY


def model_class(cfg: Cfg) -> type[nn.Module]:
    """What `build_model` makes a model of; KeyError lists what there is."""
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)


def build_model(cfg: Cfg) -> nn.Module:
    """Build `cfg.MODEL.META_ARCHITECTURE`, without weights, on `cfg.MODEL.DEVICE`."""
    model = build_from_cfg(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, cfg)
    model.config = cfg.clone()  # to be saved with the weights
    return model.to(resolve_device(cfg.MODEL.DEVICE))


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn `MODEL.DEVICE` into a device that exists here; without CUDA "cuda" becomes the CPU, with a warning."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE must be a torch device such as 'cuda' or 'cpu', got {name!r}.") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %r but CUDA is not available here; using the CPU.", str(name))
        return torch.device("cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is {name!r} but there are {torch.cuda.device_count()} CUDA devices here.")
    return device
