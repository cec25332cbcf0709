"""Videos with a few rectangles, as annotations and results."""

from __future__ import annotations

import numpy as np
from plain_tube_ap import as_files

from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.diagnosis.frames import frame_pixels
from lbvq.evaluation.tracking_scores import tracking_scores
from lbvq.files.mask_file import MaskFile
from lbvq.masks import rle


def box(x, y=0, width=4, height=4, size=(12, 40)):
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def files(tracks, detections, video=7):
    """Tracks (category, masks) and detections (category, score, masks) of one video -> ground truth, results file."""
    size = tracks[0][1][0].shape
    case = {"videos": {video: (*size, len(tracks[0][1]))}, "categories": [1, 2]}
    case["tracks"] = [{"video": video, "category": c, "masks": masks, "crowd": crowd} for c, masks, crowd in tracks]
    case["detections"] = [{"video": video, "category": c, "score": s, "masks": masks} for c, s, masks in detections]
    truth, results = as_files(case, rle.encode)
    return GroundTruth(truth), MaskFile.of(results, "predictions")


def tracking_of(truth, predictions, min_score=0.0):
    detections = read_predictions(predictions, truth)
    return tracking_scores(truth, detections, frame_pixels(truth, detections), min_score)
