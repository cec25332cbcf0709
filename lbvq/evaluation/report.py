"""A folder that explains a score: a page to look at, and its numbers as JSON, CSV, Markdown and pictures."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lbvq.evaluation import plots
from lbvq.evaluation.analysis import MISSED, NOTHING, Analysis, TrackReport, precision_curves
from lbvq.evaluation.annotations import Detection, GroundTruth, Video
from lbvq.evaluation.mask_texts import Masks
from lbvq.evaluation.overlap import TubeRuns
from lbvq.evaluation.page.content import page_content
from lbvq.evaluation.page.writing import write_page
from lbvq.evaluation.tables import format_number
from lbvq.evaluation.tube_ap_result import to_percent
from lbvq.evaluation.video_metrics import Scores
from lbvq.files.images import read_image
from lbvq.files.json_files import to_json, without_nan
from lbvq.files.mask_file import MaskFile
from lbvq.files.writing import atomic_path, write_text
from lbvq.masks.rle import decode, to_rle
from lbvq.video.draw import contact_sheet

logger = logging.getLogger(__name__)

NUM_WORST = 24
_FRAMES_SHOWN = 5
_GREEN, _RED = (60, 200, 60), (230, 50, 50)  # RGB
_SHOWN_WIDTH = 400  # pixels of a frame in a picture
_MAX_MATRIX = 60  # classes in the picture of confused classes


def write_report(
    folder: str | Path,
    scores: Scores,
    ground_truth: GroundTruth,
    predictions: MaskFile,
    *,
    frames: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    analysis: Analysis | None = None,
) -> Path:
    """Write everything into `folder` and return the page to open first, index.html.

    Args:
        folder: made if it does not exist; files of an earlier report are replaced.
        scores: of a `VideoScorer`.
        ground_truth: with annotations.
        predictions: the scored results.
        frames: folder to which `file_names` of the videos are relative; without it no tubes are drawn.
        about: what was evaluated, for the top of the page.
        analysis: of these predictions, where there is one already; much of it is computed once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    task = "segm" if "segm" in scores.results else next(iter(scores.results))
    analysis = analysis or Analysis(ground_truth, predictions, scores.main.settings)
    content = analysis.to_dict(frames)
    write_text(folder / "analysis.json", to_json(content) + "\n")
    about = {**(about or {}), "videos": len(ground_truth.videos), "tracks": len(ground_truth.tracks)}
    about["predictions"] = len(analysis.detections)
    _write_summary(folder, scores, about)
    classes = _class_rows(scores, task, ground_truth, analysis)
    _write_csv(folder / "classes.csv", classes)
    curves = precision_curves(scores.results[task])
    _write_curves(folder, curves, scores.results[task].settings.recall_thresholds)
    sections = {f"by_{name}": [_without_videos(row) for row in rows] for name, rows in content["by"].items()}
    for name, rows in sections.items():
        if rows:
            _write_csv(folder / f"{name}.csv", rows)
            bars = plots.draw_bars({f"{row['range']} ({row['tracks']})": row["AP"] for row in rows}, TITLES[name])
            plots.save_image(folder / f"{name}.png", bars)
    _write_confusion(folder, analysis.confusion())
    worst = _write_tracks(folder, analysis)
    pictures = _draw_worst(folder, analysis, worst, Path(frames)) if frames is not None else []
    write_text(folder / "report.md", _page(about, scores, classes, sections, worst, pictures, analysis))
    return write_page(folder, page_content(about, scores, classes, analysis, content, frames))


TITLES = {
    "by_size": "AP by mean area in pixels (number of counted tracks)",
    "by_length": "AP by visible frames (number of counted tracks)",
    "by_occlusion": "AP by occlusion (number of counted tracks)",
    "by_num_objects": "AP of videos by their number of objects (number of counted tracks)",
    "by_camera_motion": "AP of videos by the motion of the camera (number of counted tracks)",
}


def _without_videos(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "video_ids"}


def _write_summary(folder: Path, scores: Scores, about: Mapping[str, Any]) -> None:
    content = {"about": about, "groups": scores.groups, "results": scores.tables}
    write_text(folder / "summary.json", to_json(content, indent=2) + "\n")
    rows = [
        {"task": task, "metric": name, "value": value}
        for task, table in scores.tables.items()
        for name, value in table.items()
    ]
    _write_csv(folder / "summary.csv", rows)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["empty"])
        writer.writeheader()
        writer.writerows(without_nan(row) for row in rows)


def _class_rows(scores: Scores, task: str, ground_truth: GroundTruth, analysis: Analysis) -> list[dict[str, Any]]:
    """One row per class, in the order of the ids."""
    result = scores.results[task]
    letters = {each: letter for letter in ("b", "n") for each in scores.groups.get(letter, ())}
    num_tracks = dict.fromkeys(ground_truth.categories, 0)
    num_found = dict.fromkeys(ground_truth.categories, 0)
    for track in ground_truth.tracks:
        num_tracks[track.category_id] += 1
    for detection in analysis.detections:
        num_found[detection.category_id] += 1
    rows = []
    for each in ground_truth.categories:
        chosen: dict[str, Any] = {"category_ids": [each]}
        row = {"id": each, "class": ground_truth.category_name(each)}
        if letters:
            row["group"] = {"b": "base", "n": "novel"}.get(letters.get(each, ""), "")
        rows.append(
            row
            | {
                "AP": to_percent(result.average("AP", **chosen)),
                "AP50": to_percent(result.average("AP", iou=0.5, **chosen)),
                "AP75": to_percent(result.average("AP", iou=0.75, **chosen)),
                "AR": to_percent(result.average("AR", **chosen)),
                "tracks": num_tracks[each],
                "predictions": num_found[each],
            }
        )
    return rows


def _write_curves(folder: Path, curves: Mapping[str, np.ndarray], recalls: Sequence[float]) -> None:
    rows = [
        {"recall": recall, **{name: float(values[index]) for name, values in curves.items()}}
        for index, recall in enumerate(recalls)
    ]
    _write_csv(folder / "precision_recall.csv", rows)
    image = plots.draw_curves(curves, "Precision over recall, mean over classes", "recall", "precision")
    plots.save_image(folder / "precision_recall.png", image)


def _write_confusion(folder: Path, table: Mapping[str, Mapping[str, int]]) -> None:
    columns = [name for name in table if name != NOTHING] + [MISSED]
    rows = [{"track": name, **{column: row.get(column, 0) for column in columns}} for name, row in table.items()]
    _write_csv(folder / "confusion.csv", rows)
    used = [name for name in table if any(table[name].values()) or any(row.get(name) for row in table.values())]
    order = sorted(used, key=lambda name: (name == NOTHING, -sum(table[name].values())))[:_MAX_MATRIX]
    shown = [name for name in order if name != NOTHING] + [MISSED]
    counts = np.array([[table[name].get(column, 0) for column in shown] for name in order]).reshape(-1, len(shown))
    title = "Class of the track (row) and of the prediction that found it (column)"
    plots.save_image(folder / "confusion.png", plots.draw_matrix(order, shown, counts, title))


def _write_tracks(folder: Path, analysis: Analysis) -> list[TrackReport]:
    """Write all tracks, and return the worst: those found least, large and long ones first."""
    truth = analysis.ground_truth
    reports = analysis.tracks()
    rows = []
    for report in reports:
        track = truth.tracks[report.track]
        rows.append(
            {
                "annotation": track.id,
                "video": track.video_id,
                "folder": truth.videos[track.video_id].name,
                "class": truth.category_name(track.category_id),
                "crowd": int(track.is_crowd),
                "visible_frames": int(analysis.lengths[report.track]),
                "best_iou": report.iou,
                "its_score": report.score,
                "best_iou_of_any_class": report.iou_any,
                "that_class": "" if report.category_any is None else truth.category_name(report.category_any),
            }
        )
    _write_csv(folder / "tracks.csv", rows)

    def badness(report: TrackReport) -> tuple[float, int]:
        return report.iou, -int(analysis.lengths[report.track])

    return sorted((each for each in reports if not truth.tracks[each.track].is_crowd), key=badness)[:NUM_WORST]


def _draw_worst(folder: Path, analysis: Analysis, worst: Sequence[TrackReport], frames: Path) -> list[str]:
    """Draw the worst tracks in green with their best prediction in red; returns the names of the pictures.

    That is the best prediction of any class where it overlaps more than the best one of the right class.
    """
    names = []
    (folder / "worst").mkdir(exist_ok=True)
    for place, report in enumerate(worst, start=1):
        track = analysis.ground_truth.tracks[report.track]
        video = analysis.ground_truth.videos[track.video_id]
        position = report.detection_any if report.iou_any > report.iou else report.detection
        found = analysis.detections[position] if position >= 0 else None
        sheet = _draw_tube(video, track.masks, None if found is None else found.masks, frames)
        if sheet is None:
            continue
        text = f"{analysis.ground_truth.category_name(track.category_id)}, video {video.id}, annotation {track.id}: "
        text += _how_found(report, found, track.category_id, analysis.ground_truth)
        name = f"worst/{place:02d}_video{video.id}_annotation{track.id}.jpg"
        picture = contact_sheet(sheet, columns=len(sheet), width=_SHOWN_WIDTH * len(sheet), heading=text)
        plots.save_image(folder / name, np.ascontiguousarray(picture[..., ::-1]))
        names.append(name)
    if worst and not names:
        logger.warning("%s: none of the videos' frames was found there; no tubes were drawn", frames)
    return names


def _how_found(report: TrackReport, found: Detection | None, category_id: int, truth: GroundTruth) -> str:
    if found is None:
        return "not found"
    if found.category_id == category_id:
        return f"best IoU {report.iou:.2f} at score {found.score:.2f}"
    return f"found as {truth.category_name(found.category_id)}, IoU {report.iou_any:.2f} at score {found.score:.2f}"


def _draw_tube(video: Video, wanted: Masks, found: Masks | None, frames: Path) -> list[np.ndarray] | None:
    """A few frames with outlines, spread over those in which the object is visible; None if a frame is missing."""
    if video.size is None:
        return None
    areas = TubeRuns([wanted], video.size, lambda _, frame: f"video {video.id}, frame {frame}").areas[0]
    visible = np.flatnonzero(areas).tolist() or [0]
    chosen = sorted({visible[index] for index in np.linspace(0, len(visible) - 1, _FRAMES_SHOWN).round().astype(int)})
    sheet = []
    for frame in chosen:
        path = frames / video.file_names[frame] if frame < len(video.file_names) else None
        if path is None or not path.is_file():
            return None
        image = read_image(path)
        for masks, color in ((found, _RED), (wanted, _GREEN)):
            text = masks[frame] if masks is not None and frame < len(masks) else None
            if text is not None:
                mask = _decode(text, video.size).astype(np.uint8)
                _draw_outline(image, cv2.resize(mask, image.shape[1::-1]), color)
        sheet.append(image)
    return sheet


def _draw_outline(frame: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Outline a (H, W) uint8 mask in a frame, which is changed."""
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(frame, contours, -1, color, max(1, round(frame.shape[0] / 240)), cv2.LINE_AA)


def _decode(text: bytes, size: tuple[int, int]) -> np.ndarray:
    return decode(to_rle({"size": list(size), "counts": json.loads(text)}, *size))


def _page(
    about: Mapping[str, Any],
    scores: Scores,
    classes: Sequence[Mapping[str, Any]],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    worst: Sequence[TrackReport],
    pictures: Sequence[str],
    analysis: Analysis,
) -> str:
    lines = ["# Evaluation report", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for task, table in scores.tables.items():
        summary = {name: value for name, value in table.items() if not name.startswith("AP-")}
        lines += [f"## {task}", "", *_markdown([{"": "percent", **summary}]), ""]
    lines += ["## Where AP is lost", "", "Single errors are in analysis.json.", ""]
    lines += ["```", analysis.summary(), "```", ""]
    lines += ["## Precision and recall", "", "![precision over recall](precision_recall.png)", ""]
    for name, rows in sections.items():
        if rows:
            lines += [f"## {TITLES[name]}", "", *_markdown(rows), "", f"![{name}]({name}.png)", ""]
    text = f"Predictions with a score of at least {analysis.min_score}; numbers in confusion.csv."
    lines += ["## Confused classes", "", text, "", "![confused classes](confusion.png)", ""]
    lines += ["## Classes", "", *_markdown(sorted(classes, key=_by_precision)), ""]
    lines += ["## Tracks found worst", "", "All tracks are in tracks.csv.", ""]
    if pictures:
        lines += ["Green: ground truth; red: the best prediction, of the same class if no other is named.", ""]
        lines += [f"![{name}]({name})" for name in pictures]
    truth = analysis.ground_truth
    rows = [
        {
            "video": truth.tracks[each.track].video_id,
            "annotation": truth.tracks[each.track].id,
            "class": truth.category_name(truth.tracks[each.track].category_id),
            "best IoU": each.iou,
            "best IoU of any class": each.iou_any,
        }
        for each in worst
    ]
    return "\n".join([*lines, "", *_markdown(rows)]) + "\n"


def _by_precision(row: Mapping[str, Any]) -> tuple[bool, float]:
    return math.isnan(row["AP"]), row["AP"]


def _markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as a table."""
    if not rows:
        return ["(none)"]
    cells = [[format_number(v) if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return ["| " + " | ".join(each) + " |" for each in [list(rows[0]), ["---"] * len(rows[0]), *cells]]
