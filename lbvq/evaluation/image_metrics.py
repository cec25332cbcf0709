"""The image metrics by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbvq.evaluation.base import Results
    from lbvq.evaluation.diagnosis.outcomes import Outcomes


def _coco(ground_truth: Any, results: Any) -> Results:
    from lbvq.evaluation.coco import score_coco

    return score_coco(ground_truth, results)


def _lvis(ground_truth: Any, results: Any) -> Results:
    from lbvq.evaluation.lvis import LvisScorer

    return {"segm": LvisScorer(ground_truth).update(results).compute()}


def _judge_coco(ground_truth: Any, results: Any) -> dict[str, Outcomes]:
    from lbvq.evaluation.coco import judge_coco

    return judge_coco(ground_truth, results)


def _judge_lvis(ground_truth: Any, results: Any) -> dict[str, Outcomes]:
    from lbvq.evaluation.lvis import LvisScorer

    return {"segm": LvisScorer(ground_truth).update(results).outcomes()}


def _check_coco(ground_truth: Any) -> None:
    from lbvq.evaluation.coco import check_coco

    check_coco(ground_truth)


def _check_lvis(ground_truth: Any) -> None:
    from lbvq.evaluation.lvis import LvisScorer

    LvisScorer(ground_truth).check_masks()


# Name -> function of annotations and results, both a path or what `read_mask_file` returned.
IMAGE_METRICS: dict[str, Callable[[Any, Any], Results]] = {"coco": _coco, "lvis": _lvis}

# Name -> function of the same that tells what became of every detection, by task.
IMAGE_JUDGES: dict[str, Callable[[Any, Any], dict[str, Outcomes]]] = {"coco": _judge_coco, "lvis": _judge_lvis}

# Name -> function of annotations that raises ValueError where scoring would.
IMAGE_CHECKS: dict[str, Callable[[Any], None]] = {"coco": _check_coco, "lvis": _check_lvis}
