"""What a model can do besides its own work, declared on its class; who asks a model for more gets one sentence.

A model class says `can = Abilities(...)`, and `sample = "image"` or `sample = "video"`: what it is given at a time.
A class that says nothing takes videos and does what `Abilities()` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cfg import Cfg


@dataclass(frozen=True)
class Abilities:
    """Attributes:
    images: segments a single image as a video of one frame, so that it can be scored on image data sets.
    online: can be run frame by frame, while the video comes in.
    match_frames: the queries of its frames can be matched instead of what the method does (TEST.MATCH_FRAMES).
    refine: its masks can be refined after inference.
    compile: has parts that `torch.compile` makes faster (MODEL.COMPILE).
    open_vocabulary: its classes are given as text and may be changed.
    export: the network it runs on frames can be written as a graph for other runtimes.
    """

    images: bool = True
    online: bool = False
    match_frames: bool = False
    refine: bool = True
    compile: bool = False
    open_vocabulary: bool = False
    export: bool = False


# What is said when a model called {name} lacks an ability.
REFUSALS = {
    "video": "{name} segments single images, not videos. Choose a video method in MODEL.META_ARCHITECTURE.",
    "images": "{name} cannot segment single images. Set DATASETS.TEST to video data sets.",
    "online": "{name} needs all frames of a video before it can decide. Choose an online method{or_match}.",
    "match_frames": "{name} has no queries of single frames that could be matched. Leave TEST.MATCH_FRAMES False.",
    "refine": "The masks of {name} are results of single images, and only those of videos are refined. Leave SAM False "
    "and REFINE.NAME empty.",
    "compile": "{name} has no part that is compiled. Leave MODEL.COMPILE False.",
    "open_vocabulary": "{name} knows the classes it was trained on and no others. To find classes by their names "
    "choose an open-vocabulary method, OVFormer.",
    "export": "{name} has no network of single frames that could be exported. Export a method that finds objects frame "
    "by frame, such as MinVIS, LBVQ or VidEoMT.",
}
OR_MATCH = ", or set TEST.MATCH_FRAMES True to follow its objects from frame to frame by their queries"

SETTINGS = {  # keys of the configuration that ask for an ability
    "TEST.MATCH_FRAMES": "match_frames",
    "MODEL.COMPILE": "compile",
    "SAM": "refine",
    "REFINE.NAME": "refine",
}


def has_ability(model: Any, ability: str) -> bool:
    """Whether a model, or a class of models, can do something: "video", or an attribute of `Abilities`."""
    if ability == "video":
        return getattr(model, "sample", "video") == "video"
    return bool(getattr(getattr(model, "can", Abilities()), ability))


def require(model: Any, ability: str) -> None:
    """Raise ValueError, one sentence of what to do, when a model or class lacks an ability; see `has_ability`."""
    if not has_ability(model, ability):
        raise ValueError(refusal(model, ability))


def refusal(model: Any, ability: str) -> str:
    """The sentence for a model or class that lacks an ability."""
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    or_match = OR_MATCH if has_ability(model, "match_frames") else ""
    return REFUSALS[ability].format(name=name, or_match=or_match)


def check_settings(model: Any, cfg: Cfg) -> None:
    """Refuse settings that a model class would have to ignore."""
    for key, ability in SETTINGS.items():
        value: Any = cfg
        for part in key.split("."):
            value = getattr(value, part, None)
        if value:
            require(model, ability)
