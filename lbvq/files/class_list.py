"""The categories of a model: they travel with its weights, so that nothing it finds is named after another data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

AnyCfg = TypeVar("AnyCfg", bound=Any)  # a configuration of any kind

MAX_CLASSES = 1 << 20
MAX_NAME_LENGTH = 1000


@dataclass(frozen=True)
class ClassList:
    """Categories by class index.

    Attributes:
        names: what they are called.
        ids: their ids in annotation and results files.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise ValueError(
                f"{len(self.names)} category names need as many different ids, got {len(set(self.ids))}; see "
                "MODEL.CATEGORIES."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        shown = ", ".join(self.names[:4])
        return f"{len(self)} classes ({shown}{', ...' if len(self) > 4 else ''})"

    @classmethod
    def from_config(cls, cfg: Cfg) -> ClassList | None:
        """Those of MODEL.CATEGORIES, whose ids may be left out; None when there are no names."""
        # which neither detectron2's configuration has nor one that is made of a few keys
        group = getattr(getattr(cfg, "MODEL", None), "CATEGORIES", None)
        names, ids = ([], []) if group is None else (group.NAMES, group.IDS)
        return _checked(names, ids or list(range(1, len(names) + 1)), "MODEL.CATEGORIES") if names else None

    @classmethod
    def from_metadata(cls, metadata: Any) -> ClassList | None:
        """Those of a registered data set; None when they are not known (yet)."""
        names = metadata.get("thing_classes")
        if not names:
            return None
        by_id = metadata.get("thing_dataset_id_to_contiguous_id") or {n + 1: n for n in range(len(names))}
        by_index = {index: category_id for category_id, index in by_id.items()}
        if sorted(by_index) != list(range(len(names))):
            return None
        return cls(tuple(names), tuple(by_index[index] for index in range(len(names))))

    @classmethod
    def from_plain(cls, content: Any, source: str) -> ClassList | None:
        """What `to_plain` returned, read from a file that anybody may have written; None for nothing."""
        if content is None:
            return None
        if not isinstance(content, Mapping):
            raise ValueError(f"{source}: its categories must be names and ids, got {type(content).__name__}.")
        return _checked(content.get("names"), content.get("ids"), f"{source}: its categories")

    def to_plain(self) -> dict[str, list]:
        """Lists for a checkpoint."""
        return {"names": list(self.names), "ids": list(self.ids)}

    def write_to(self, cfg: Cfg) -> None:
        """Set MODEL.CATEGORIES of a configuration that is not frozen."""
        cfg.MODEL.CATEGORIES.NAMES, cfg.MODEL.CATEGORIES.IDS = list(self.names), list(self.ids)

    def ids_in(self, other: ClassList) -> dict[int, int | None]:
        """Class index -> category id in another list, by name without regard to case and punctuation; None: not there.

        Lists with the same names in the same order mean the same, whatever their spelling.
        """
        own, there = [_plain(name) for name in self.names], [_plain(name) for name in other.names]
        if own == there:
            return dict(enumerate(other.ids))
        by_name = dict(zip(there, other.ids, strict=True))
        return {index: by_name.get(name) for index, name in enumerate(own)}


def with_classes(cfg: AnyCfg, classes: ClassList) -> AnyCfg:
    """A copy of a configuration with the categories of its model, frozen if the original is."""
    copy = cfg.clone()
    copy.defrost()
    classes.write_to(copy)
    if cfg.is_frozen():
        copy.freeze()
    return copy


def _checked(names: Any, ids: Any, what: str) -> ClassList:
    if not isinstance(names, Sequence) or not isinstance(ids, Sequence) or isinstance(names, str):
        raise ValueError(f"{what} must be a list of names and a list of ids.")
    if len(names) > MAX_CLASSES or not all(isinstance(name, str) and len(name) <= MAX_NAME_LENGTH for name in names):
        raise ValueError(f"{what} must be names of at most {MAX_NAME_LENGTH} characters.")
    if not all(type(number) is int for number in ids):
        raise ValueError(f"{what} must have whole numbers as ids.")
    try:
        return ClassList(tuple(names), tuple(ids))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name
