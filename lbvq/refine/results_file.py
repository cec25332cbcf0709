"""Refine an existing results file, video by video, in a way that can be interrupted and taken up again.

Every finished video is one line of `OUTPUT.partial`; a second run reads the lines that are there and goes on with the
rest. The results file itself appears only when all videos are done.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.files import rules
from lbvq.files.json_files import parse_json, read_json
from lbvq.files.writing import write_text
from lbvq.masks import rle
from lbvq.masks.tubes import MaskTubes

from .base import MaskRefiner
from .video import RefineReport, refine_tubes

logger = logging.getLogger(__name__)

VideoId = int | str


def refine_results(
    results: str | os.PathLike,
    output: str | os.PathLike,
    open_frames: Callable[[VideoId], Sequence[np.ndarray]],
    refiner: MaskRefiner,
    *,
    settings: str = "",
    score_threshold: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> RefineReport:
    """Refine the masks of a YouTube-VIS results file.

    Args:
        results: list of entries {video_id, score, category_id, segmentations}; other keys are kept.
        output: file to write; must not be `results`.
        open_frames: video id -> its T frames (H, W, 3) uint8 RGB, read lazily.
        refiner: any `MaskRefiner`.
        settings: what the refinement depends on, as text; an interrupted run with other settings is refused.
        score_threshold: entries below it keep their masks.
        progress: called with (videos finished, all videos).

    Returns:
        What happened, over all videos, those of an interrupted run included.
    """
    results, output = Path(results), Path(output)
    if output.resolve() == results.resolve():
        raise ValueError(f"the refined masks would overwrite {results}; choose another output")
    videos = _group_by_video(read_json(results), results)
    partial = output.with_name(output.name + ".partial")
    header = {"results": results.name, "bytes": results.stat().st_size, "settings": settings}
    done = _read_partial(partial, header)
    if done:
        logger.info(
            "%s holds %d finished videos; going on with the other %d", partial, len(done), len(videos) - len(done)
        )
    with partial.open("a", encoding="utf-8") as file:
        for video_id, entries in videos.items():
            if str(video_id) not in done:
                line = _refine_video(
                    video_id, entries, open_frames, refiner, score_threshold, f"{results}, video {video_id}"
                )
                file.write(json.dumps(line) + "\n")
                file.flush()
                done[str(video_id)] = line
            if progress is not None:
                progress(len(done), len(videos))
    refined = [entry for video_id in videos for entry in done[str(video_id)]["entries"]]
    write_text(output, json.dumps(refined))
    partial.unlink()
    return sum((RefineReport(**line["report"]) for line in done.values()), RefineReport())


def _group_by_video(entries: Any, path: Path) -> dict[VideoId, list[dict]]:
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of entries, got {type(entries).__name__}")
    videos: dict[VideoId, list[dict]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}, entry {index}"
        missing = {"video_id", "score", "segmentations"} - (entry.keys() if isinstance(entry, dict) else set())
        if missing:
            raise ValueError(f"{where}: expected a dict with {', '.join(sorted(missing))}")
        if not isinstance(entry["video_id"], str):  # videos of one's own may have names
            rules.whole(entry, "video_id", where, exact=True)
        rules.finite(entry, "score", where)
        videos.setdefault(entry["video_id"], []).append(entry)
    return videos


def _refine_video(
    video_id: VideoId,
    entries: list[dict],
    open_frames: Callable[[VideoId], Sequence[np.ndarray]],
    refiner: MaskRefiner,
    score_threshold: float,
    where: str,
) -> dict[str, Any]:
    frames = open_frames(video_id)
    size_hw = np.asarray(frames[0]).shape[:2]
    tubes = MaskTubes.from_rle([entry["segmentations"] for entry in entries], size_hw, len(frames), where)
    confident = [entry["score"] >= score_threshold for entry in entries]
    refined, report = refine_tubes(tubes, frames, refiner, confident=confident)
    empty = rle.to_rle([], *size_hw)
    masks = [[mask or empty for mask in refined.rles(n)] for n in range(len(entries))]
    changed = [{**entry, "segmentations": tube} for entry, tube in zip(entries, masks, strict=True)]
    return {"video_id": video_id, "report": vars(report), "entries": changed}


def _read_partial(partial: Path, header: dict[str, Any]) -> dict[str, dict]:
    """Finished videos of an interrupted run by id; starts the file when there is none."""
    if not partial.exists():
        write_text(partial, json.dumps(header) + "\n")
        return {}
    first, *lines = partial.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    if first.strip() != json.dumps(header):
        raise ValueError(
            f"{partial} was begun from another results file or with other settings; delete it to start anew"
        )
    whole = [line for line in lines if line.endswith("\n")]  # the last line is cut off when the run was killed
    write_text(partial, "".join([first, *whole]))
    return {str(line["video_id"]): line for line in (parse_json(each, partial) for each in whole)}
