"""From the class indices of a model to the category ids of the data set it is scored on."""

from __future__ import annotations

import logging
from typing import Any

from lbvq.files.class_list import ClassList

logger = logging.getLogger(__name__)

SHOWN = 5  # names in a message


class ClassIds:
    """Category id of every class index; classes that the data set does not have get None.

    A model that brings its own categories is understood by their names, so that one trained on the categories of
    another data set, or on the same ones in another order, is scored for what it says.
    """

    def __init__(self, metadata: Any, classes: ClassList | None = None) -> None:
        """Compare.

        Args:
            metadata: of the data set, after it has been read.
            classes: of the model; None takes its class indices for those of the data set.

        Raises:
            ValueError: no class of the model is one of the data set.
        """
        self._name = metadata.name
        self._ids: dict[int, int | None] = {
            index: category_id for category_id, index in metadata.thing_dataset_id_to_contiguous_id.items()
        }
        known = ClassList.from_metadata(metadata)
        if classes is not None and known is not None and classes != known:
            self._ids = classes.ids_in(known)
            _report(self._ids, classes, known, self._name)

    def __getitem__(self, label: int) -> int | None:
        if label not in self._ids:
            raise ValueError(
                f"class index {label} is not among the {len(self._ids)} of {self._name}; "
                "does MODEL.SEM_SEG_HEAD.NUM_CLASSES fit the data set?"
            )
        return self._ids[label]


def _report(ids: dict[int, int | None], classes: ClassList, known: ClassList, name: str) -> None:
    """Say what the names of both sides mean for the scores."""
    found = {category_id for category_id in ids.values() if category_id is not None}
    if not found:
        raise ValueError(
            f"No class of the model ({_some(classes.names)}) is one of {name} ({_some(known.names)}): there is nothing "
            "to score. Set DATASETS.TEST to data with the classes of the model, or MODEL.CATEGORIES if these are wrong."
        )
    foreign = [classes.names[index] for index, category_id in ids.items() if category_id is None]
    unknown = [each for each, category_id in zip(known.names, known.ids, strict=True) if category_id not in found]
    if not foreign and not unknown and list(ids.values()) == list(known.ids):
        return  # only ids or spellings differ
    logger.warning("The model was trained on other classes than those of %s; they are matched by name.", name)
    if foreign:
        logger.warning("%d of its classes are not in %s and left out: %s.", len(foreign), name, _some(foreign))
    if unknown:
        logger.warning("%d classes of %s are unknown to the model: %s.", len(unknown), name, _some(unknown))


def _some(names: Any) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
