"""What a resumed run does with settings that differ from those it began with: follow them, keep its own, or refuse."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

# The state of the optimizer, of the schedule and of the random generators is that of the checkpoint.
KEPT = (
    *(f"SOLVER.{name}" for name in ("BASE_LR", "BACKBONE_MULTIPLIER", "DETECTOR_MULTIPLIER", "LLRD", "MOMENTUM")),
    *(f"SOLVER.{name}" for name in ("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_EMBED")),
    *("SEED", "MODEL.WEIGHTS"),
)
REFUSED = ("SOLVER.OPTIMIZER", "SOLVER.PARAMETER_GROUPS")  # its state would not fit
WITHOUT_EFFECT = ("OUTPUT_DIR", "VERSION", "MODEL.CATEGORIES.NAMES", "MODEL.CATEGORIES.IDS", "MODEL.DEVICE")


def flat_settings(node: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as {"SOLVER.MAX_ITER": 100}, made of plain values, lists for tuples."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat.update(flat_settings(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def compare_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say which settings of a resumed run differ from those in its checkpoint, and what becomes of them.

    Raises:
        ValueError: a setting differs that the state in the checkpoint does not fit.
    """
    changed = {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}
    refused = _listed({key: values for key, values in changed.items() if key in REFUSED})
    if refused:
        raise ValueError(
            f"A resumed run cannot change {refused}. Start a new run from its weights (MODEL.WEIGHTS) instead."
        )
    kept = _listed({key: values for key, values in changed.items() if key in KEPT and key != "MODEL.WEIGHTS"})
    followed = _listed(
        {key: values for key, values in changed.items() if key not in (*KEPT, *REFUSED, *WITHOUT_EFFECT)}
    )
    if kept:
        logger.warning(
            "A resumed run goes on with what it began with; these changes have NO effect: %s. To use them, start a new "
            "run from its weights (MODEL.WEIGHTS).",
            kept,
        )
    if followed:
        logger.warning("Changed since the run began, and followed from here on: %s.", followed)


def _listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {old!r:.60} -> {new!r:.60}" for key, (old, new) in changed.items())
