"""What is done with one video: checked, segmented, drawn, and written as files that other tools read."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lbvq.app.jobs import Job
from lbvq.app.limits import Limits, check_length, open_upload
from lbvq.app.offers import GIVEN, Settings
from lbvq.cli import predict
from lbvq.cli.interrupt import Interrupts
from lbvq.files.writing import write_text
from lbvq.video.draw import identity_color
from lbvq.video.reader import VideoFrames
from lbvq.video.writer import DEFAULT_FRAME_RATE

if TYPE_CHECKING:
    from lbvq.inference.results import VideoPrediction

VIDEO, RESULTS, CVAT = "video.mp4", "results.json", "cvat.xml"
_LOGGERS = ("lbvq", "mask2former")
_MAX_NOTES = 8


class Segmenter:
    """Does jobs on one device, one after the other; the network of the last one stays loaded."""

    def __init__(self, args: argparse.Namespace, limits: Limits, device: str | None) -> None:
        """Args:
        args: config_file, weights, data and opts of the command line.
        limits: of videos.
        device: such as "cuda:1"; None leaves it to the configuration.
        """
        self._args, self._limits, self._device = args, limits, device
        self._key: tuple[str, str | None, str] | None = None
        self._predictor: Any = None

    def __call__(self, job: Job) -> dict[str, Any]:
        """Segment the video of a job, leave files in its folder, and return what the page shows."""
        with _collected(job) as notes, self._on_device():
            job.progress("check")
            with closing(open_upload(job.upload, self._limits)) as frames:
                check_length(frames, self._limits)
                job.progress("model")
                args = self._arguments(job.settings)
                predictor = self._load(job.settings, args)
                prediction = predictor(frames, progress=job.progress)
                shown = predict.choose_objects(prediction, job.settings.threshold, predictor.is_trained)
                if not predictor.is_trained:
                    notes.append("The network is UNTRAINED: its masks are noise, not objects.")
                found = _write(job, frames, shown, args)
            job.upload.unlink()
        counts = {"num_found": len(prediction), "best": float(max(prediction.scores, default=0.0))}
        return {**found, **counts, "notes": notes[:_MAX_NOTES]}

    def _arguments(self, settings: Settings) -> argparse.Namespace:
        """The command line of `lbvq predict` that does the same."""
        parser = argparse.ArgumentParser()
        predict.add_arguments(parser)
        chosen = {"data": self._args.data, "opts": list(self._args.opts)}
        if settings.model == GIVEN:
            chosen |= {"config_file": self._args.config_file, "weights": self._args.weights}
        else:
            chosen |= {"config_file": settings.model}
        if self._device is not None:
            chosen["opts"] += ["MODEL.DEVICE", self._device]
        chosen |= {"classes": settings.classes, "refine": settings.refine or None}
        return argparse.Namespace(**{**vars(parser.parse_args([])), **chosen})

    def _load(self, settings: Settings, args: argparse.Namespace) -> Any:
        key = settings.model, settings.classes, settings.refine
        if key != self._key:
            self._key = self._predictor = None  # two networks may not fit
            gc.collect()
            self._predictor = predict.build_predictor(args)
            self._key = key
        return self._predictor

    def _on_device(self) -> Any:
        """Kernels of others take the current device of the thread."""
        if self._device is None:
            return nullcontext()
        import torch

        return torch.cuda.device(self._device)


def devices(opts: list[str]) -> list[str | None]:
    """A device for every GPU, or [None], which is what the configuration says."""
    import torch

    if "MODEL.DEVICE" in opts[::2] or torch.cuda.device_count() < 1:
        return [None]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def tracks_of(shown: VideoPrediction, times: np.ndarray) -> list[dict[str, Any]]:
    """A row for every object, by its number.

    Args:
        shown: N objects in T frames.
        times: (T,) seconds.

    Returns:
        id, name, score, color (as #rrggbb), frames (that show it), and spans, [first, last] time of every stretch of
        frames that show it.
    """
    visible = shown.masks.areas() > 0  # (N, T)
    rows = [
        {
            "id": item.id,
            "name": f"class {item.label}" if item.name is None else item.name,
            "score": item.score,
            "color": "#{:02x}{:02x}{:02x}".format(*identity_color(item.id)),
            "frames": int(seen.sum()),
            "spans": [[float(times[first]), float(times[last])] for first, last in _stretches(seen)],
        }
        for item, seen in zip(shown, visible, strict=True)
    ]
    return sorted(rows, key=lambda row: row["id"])


def _stretches(seen: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of True in (T,) bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _write(job: Job, frames: VideoFrames, shown: VideoPrediction, args: argparse.Namespace) -> dict[str, Any]:
    """Write all files of a job; returns what the page shows of them."""
    predict.write_drawn(frames, shown, [job.folder / VIDEO], args, Interrupts(), job.progress)
    job.progress("write")
    entries = predict.result_entries(shown, 1, job.name)
    write_text(job.folder / RESULTS, json.dumps(entries))
    _write_cvat(job.folder)
    stamps = frames.timestamps
    times = np.arange(len(frames)) / DEFAULT_FRAME_RATE if stamps is None else stamps
    height, width = frames.size
    return {
        "files": [name for name in (VIDEO, RESULTS, CVAT) if (job.folder / name).is_file()],
        "tracks": tracks_of(shown, times),
        "frames": len(frames),
        "seconds": float(times[-1]),
        "width": width,
        "height": height,
    }


def _write_cvat(folder: Path) -> None:
    """The results as CVAT takes them, under a name of ours; without an object there is no such file."""
    from lbvq.data.formats import WriteOptions, writer
    from lbvq.data.formats.results import read_results

    labels = read_results(folder / RESULTS, None, threshold=0.0)
    for video in labels.videos:
        video.name = Path(CVAT).stem
    writer("cvat")(labels, folder, WriteOptions())


@contextmanager
def _collected(job: Job) -> Iterator[list[str]]:
    """Take what is warned of in this thread, which the user of the page has to know, in the user's words."""
    notes: list[str] = []
    thread = threading.get_ident()

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = job.in_words_of_user(record.getMessage())
            if record.thread == thread and text not in notes:
                notes.append(text)

    handler = Notes(logging.WARNING)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield notes
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(handler)
