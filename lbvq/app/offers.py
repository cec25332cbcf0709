"""What can be chosen on the page: models and refinement; nothing else that a browser says is taken for a name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lbvq.inference.prompts import parse_classes
from lbvq.zoo import DEFAULT_MODEL, MODELS, ZooModel, load_config
from mask2former.abilities import has_ability, require

GIVEN = "given"  # key of the model that the command line names
REFINEMENTS = {
    "": "none",
    "sam2": "SAM 2, frame by frame",
    "sam2_video": "SAM 2, following objects through the video",
}
_MAX_CLASSES, _MAX_CLASS_NAME, _MAX_NAME = 100, 80, 200  # names; characters


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen.

    Attributes:
        key: what the page calls it.
        title, about: what the page says of it.
        group: how its weights come here.
        open_vocabulary: its classes are to be named.
    """

    key: str
    title: str
    about: str
    group: str
    open_vocabulary: bool


@dataclass(frozen=True)
class Settings:
    """What a user has chosen: the key of a model, the text of `--classes`, a refiner or "", the least score."""

    model: str
    classes: str | None
    refine: str
    threshold: float


class Offers:
    """The models in the order of the page; the first is chosen unless the user does."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Args:
        args: config_file, weights and opts of the command line.
        """
        offers = [_given(args)] if args.config_file or args.weights is not None else []
        usual = sorted(MODELS.values(), key=lambda model: (model.name != DEFAULT_MODEL, not model.downloads))
        offers += [offer for model in usual if (offer := _published(model)) is not None]
        self._offers = {offer.key: offer for offer in offers}

    def describe(self) -> dict[str, Any]:
        """For the page."""
        return {"models": [asdict(offer) for offer in self._offers.values()], "refinements": REFINEMENTS}

    def settings(self, query: Mapping[str, str]) -> Settings:
        """Check what a browser sends; ValueError says what is wrong with it."""
        unknown = sorted(set(query) - {"name", "model", "classes", "refine", "threshold"})
        if unknown:
            raise ValueError(f"there is no setting {unknown[0]!r:.40}.")
        model, refine = query.get("model", next(iter(self._offers))), query.get("refine", "")
        if model not in self._offers:
            raise ValueError(f"there is no model {model!r:.80}; choose one of the list.")
        if refine not in REFINEMENTS:
            raise ValueError(f"there is no refinement {refine!r:.40}; choose one of the list.")
        classes = _classes(query.get("classes", ""), self._offers[model])
        return Settings(model, classes, refine, _threshold(query.get("threshold", "0.3")))


def shown_name(text: str) -> str:
    """The last part of what a browser calls a file, to be shown."""
    return text.replace("\\", "/").rpartition("/")[2][:_MAX_NAME] or "video"


def _classes(text: str, offer: Offer) -> str | None:
    if not offer.open_vocabulary:
        if text:
            raise ValueError(f"{offer.title} knows the classes it was trained on; leave the names of classes out.")
        return None
    names = parse_classes(text)
    if len(names) > _MAX_CLASSES or max(map(len, names)) > _MAX_CLASS_NAME:
        raise ValueError(f"at most {_MAX_CLASSES} classes of {_MAX_CLASS_NAME} characters can be named.")
    if not all(name.isprintable() for name in names):  # XML cannot hold them
        raise ValueError("names of classes must be of one line and without control characters.")
    return text


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"the least score must be between 0 and 1, got {text!r:.20}.")
    return value


def _given(args: argparse.Namespace) -> Offer:
    from lbvq.cli.predict import config_of

    source = args.config_file or config_of(args.weights)
    about = f"weights {Path(args.weights).name}" if args.weights else "untrained" if args.weights == "" else ""
    kind = _kind(source, args.opts)
    require(kind, "video")
    return Offer(GIVEN, Path(source).name, about, "from the command line", has_ability(kind, "open_vocabulary"))


def _published(model: ZooModel) -> Offer | None:
    """The offer of a published model; None for one that takes images only."""
    kind = _kind(model.name)
    if not has_ability(kind, "video"):
        return None
    scores = ", ".join(f"{metric} {value:g}" for metric, value in list(model.scores.items())[:1])
    size = f"{model.size_mb} MB" if model.size_mb else ""
    about = "; ".join(filter(None, [f"{model.dataset} {scores}".strip(), size, model.licence]))
    group = "downloaded when first used" if model.downloads else "weights to be fetched by hand before"
    return Offer(model.name, model.name, about, group, has_ability(kind, "open_vocabulary"))


def _kind(source: str, opts: Sequence[str] = ()) -> Any:
    """The class of a model."""
    import lbvq.modeling  # noqa: F401  registers the methods; not at the top, for the sake of --help
    from mask2former.registry import model_class

    return model_class(load_config(source, opts))
