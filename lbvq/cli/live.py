"""Segment a video while it plays: the work behind `demo/stream.py`.

Frames come from a file, a camera, an address or a pipe; the drawn frames go to a window, a browser, or files.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from lbvq.cli.interrupt import Interrupts
from lbvq.cli.predict import UNTRAINED_OBJECTS, add_model_arguments, add_threshold, build_predictor
from lbvq.cli.sources import FrameSource, open_source
from lbvq.engine.user_errors import user_command
from lbvq.files.writing import atomic_path, write_text
from lbvq.video.draw import draw_objects
from lbvq.video.times import MAX_RATE
from lbvq.video.writer import FolderWriter, VideoWriter, check_output, open_writer

if TYPE_CHECKING:  # the network is imported when the arguments are read, so that --help answers at once
    from lbvq.inference.results import FramePrediction
    from lbvq.inference.stream import StreamPredictor

EXAMPLES = """examples:
  lbvq stream --model videomt_small_ytvis19 --input 0 --serve 8000      the camera; look at http://127.0.0.1:8000
  lbvq stream --model videomt_small_ytvis19 --input rtsp://10.0.0.5/live --output drawn.mp4 found.json --max-frames 900

Ctrl-C ends it with whole files. Online methods only; others run frame by frame with TEST.MATCH_FRAMES=True.
"""
FALLBACK_RATE = 10.0  # frames per second to write when the source does not say
JPEG_QUALITY = 85

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--input",
        default="0",
        help="a video file or folder of frames, the number of a camera (default: 0), an address such as rtsp://..., or "
        "'-' for a video on the standard input",
    )
    parser.add_argument(
        "--output", nargs="+", default=[], help="any of: video (.mp4), folder of frames (no suffix), results (.json)"
    )
    parser.add_argument("--show", action="store_true", help="show the frames in a window; q ends")
    parser.add_argument("--serve", type=int, metavar="PORT", help="show the frames in a browser, at this port")
    parser.add_argument("--host", default="127.0.0.1", help="address that --serve listens at (default: this computer)")
    add_threshold(parser)
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument("--fps", type=float, help="frame rate to write (default: the times of the input, or 10)")
    parser.add_argument(
        "--no-audio", action="store_true", help="leave out the sound of a file, which is kept otherwise"
    )
    parser.add_argument("--load-state", metavar="FILE", help="go on with a stream that was saved")
    parser.add_argument("--save-state", metavar="FILE", help="save the stream at the end, to go on with it later")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration")


@user_command
def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code, 2 for anything wrong with files or settings."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with Interrupts() as interrupts:
            _run(args, interrupts)
    except KeyboardInterrupt:
        print("interrupted; what was not complete is not written", file=sys.stderr)
        return interrupts.exit_code
    return 0


def _run(args: argparse.Namespace, interrupts: Interrupts) -> None:
    from lbvq.inference.stream import StreamPredictor

    drawn = [Path(path) for path in args.output if not path.lower().endswith(".json")]
    results = [Path(path) for path in args.output if path.lower().endswith(".json")]
    for path in (*drawn, *results, *([Path(args.save_state)] if args.save_state else [])):
        check_output(path, [args.input], args.overwrite)
    with closing(open_source(args.input)) as frames:
        keep_masks = bool(results or args.save_state or args.load_state)
        predictor = build_predictor(args, partial(StreamPredictor.from_config, keep_masks=keep_masks))
        if args.load_state:
            load_state(predictor, args.load_state)
        with interrupts.shielded():
            with ExitStack() as stack:
                writers = open_writers(args, drawn, frames, stack)
                play(predictor, frames, [*writers, *open_views(args, stack)], args, interrupts)
            finish(predictor, results, args)


def load_state(predictor: StreamPredictor, path: str) -> None:
    """Go on with a stream that was saved; ValueError names a file that holds none, or one of another model."""
    from lbvq.files.torch_files import read_torch_file

    content = read_torch_file(path)
    try:
        predictor.load_state_dict(content)
    except Exception as error:  # whatever other content makes of going on with it
        raise ValueError(f"{path} holds no saved stream of this model: {error}") from error


def play(
    predictor: StreamPredictor,
    frames: FrameSource,
    sinks: list[Sink],
    args: argparse.Namespace,
    interrupts: Interrupts,
) -> None:
    """Segment frame after frame until the source or the user ends it; what was found until a signal is written."""
    start, count = time.perf_counter(), 0
    try:
        with closing(iter(frames)) as source:
            while count != args.max_frames and not interrupts.received:
                with interrupts.waiting():
                    frame = next(source, None)
                if frame is None:
                    for sink in sinks:
                        sink.complete()
                    break
                objects = predictor.step(frame.picture)
                count += 1
                picture = draw_frame(frame.picture, objects, args.score_threshold, predictor.is_trained)
                if not all([sink.show(picture, frame.time) for sink in sinks]):
                    break
    except KeyboardInterrupt:
        pass  # while waiting for a frame
    if interrupts.received:
        interrupts.acknowledge()
        print("interrupted")
    seconds = time.perf_counter() - start
    print(f"{count} frames, {count / max(seconds, 1e-9):.1f} frames per second")


def finish(predictor: StreamPredictor, results: list[Path], args: argparse.Namespace) -> None:
    """Save the stream and write the results of the whole of it."""
    import torch

    if args.save_state:
        with atomic_path(args.save_state) as part, open(part, "wb") as file:
            torch.save(predictor.state_dict(), file)
        print(f"wrote {args.save_state}")
    if results:
        prediction = predictor.finish(pairs=False).distinct()
        prediction = prediction.keep(args.score_threshold) if predictor.is_trained else prediction[:UNTRAINED_OBJECTS]
        for path in results:
            write_text(path, json.dumps(prediction.to_json(1)))
            print(f"wrote {path}")


def draw_frame(frame: np.ndarray, objects: FramePrediction, threshold: float, is_trained: bool) -> np.ndarray:
    """Draw the objects that are good enough, each with its best class only; of an untrained network the first few."""
    shown: list[int] = []
    for n in range(len(objects)):
        is_wanted = objects.scores[n] >= threshold if is_trained else len(shown) < UNTRAINED_OBJECTS
        if is_wanted and not any(np.array_equal(objects.masks[n], objects.masks[other]) for other in shown):
            shown.append(n)
    captions = objects.captions()
    return draw_objects(frame, objects.masks[shown], objects.ids[shown], [captions[n] for n in shown])


# -- sinks ------------------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Takes the frames that are drawn."""

    def show(self, picture: np.ndarray, time: float | None) -> bool:
        """Take a (H, W, 3) uint8 RGB frame; return whether to go on."""

    def complete(self) -> None:
        """Note that the source has ended by itself."""


def open_writers(args: argparse.Namespace, paths: list[Path], frames: FrameSource, stack: ExitStack) -> list[Sink]:
    """The files and folders to write, which are finished when `stack` is left."""
    videos = [path for path in paths if path.suffix]
    sound = None if args.no_audio or args.fps else frames.sound
    if frames.has_sound and sound is None and videos and not args.no_audio:
        reason = "--fps changes its speed" if args.fps else "it is copied from files only"
        logger.warning("The sound of %s is left out: %s", args.input, reason)
    rate = args.fps or min(frames.frame_rate or FALLBACK_RATE, MAX_RATE)
    sinks: list[Sink] = []
    for path in paths:
        stack.push(partial(_say_written, path))
        writer = open_writer(path, rate, overwrite=args.overwrite, sound=sound)
        stack.enter_context(writer)
        sinks.append(FileView(writer, rate, timed=not args.fps))
    return sinks


def _say_written(path: Path, error_type: type[BaseException] | None, *_: object) -> None:
    if error_type is None:
        print(f"wrote {path}")


def open_views(args: argparse.Namespace, stack: ExitStack) -> list[Sink]:
    """Where the frames are watched, until `stack` is left."""
    sinks: list[Sink] = []
    if args.show:
        sinks.append(WindowView())
        stack.callback(cv2.destroyAllWindows)
    if args.serve is not None:
        server = BrowserView(args.host, args.serve)
        stack.callback(server.close)
        print(f"watch it at http://{args.host}:{server.port}/")
        sinks.append(server)
    return sinks


class FileView:
    """Writes the frames into a file or folder, with the times of the source as far as they ascend."""

    def __init__(self, writer: VideoWriter | FolderWriter, rate: float, timed: bool) -> None:
        self._writer, self._step = writer, 1 / rate
        self._is_timed: bool | None = None if timed else False  # None: the first frame tells
        self._offset = self._last = 0.0

    def show(self, picture: np.ndarray, time: float | None) -> bool:
        self._writer.write(picture, self._time(time))
        self._writer.is_whole = False
        return True

    def complete(self) -> None:
        self._writer.is_whole = True

    def _time(self, time: float | None) -> float | None:
        """Seconds from the first frame; a clock that stands still or starts again goes on where it was."""
        if self._is_timed is None:
            self._is_timed, self._offset, self._last = time is not None, time or 0.0, -1 / MAX_RATE
        if not self._is_timed:
            return None
        due = self._last + self._step
        if time is not None and time - self._offset < self._last:  # it starts again
            self._offset = time - due
        self._last = max(due if time is None else time - self._offset, self._last + 1 / MAX_RATE)
        return self._last


class WindowView:
    """Shows the frames in a window until the user presses q."""

    def show(self, picture: np.ndarray, time: float | None) -> bool:
        try:
            cv2.imshow("lbvq", picture[:, :, ::-1])
            return cv2.waitKey(1) & 0xFF != ord("q")
        except cv2.error as error:
            raise ValueError(
                "this OpenCV cannot open windows; install opencv-python instead of opencv-python-headless, or use "
                "--serve"
            ) from error

    def complete(self) -> None:
        """The window closes with the command."""


class BrowserView:
    """Serves the newest frame as a stream of JPEG pictures, which every browser shows as a video."""

    def __init__(self, host: str, port: int) -> None:
        """Args:
        port: 0 takes any free one.
        """
        self._new = threading.Condition()
        self._picture, self._count, self._closed = b"", 0, False
        view = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                view._answer(self)

            def log_message(self, *_: Any) -> None:
                """Requests are not worth a line each."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ValueError(f"cannot listen at {host}:{port} ({error}); choose another port with --serve") from error
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def complete(self) -> None:
        """The last frame stays."""

    def show(self, picture: np.ndarray, time: float | None = None) -> bool:
        """Make a frame the newest."""
        _, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        with self._new:
            self._picture, self._count = data.tobytes(), self._count + 1
            self._new.notify_all()
        return True

    def close(self) -> None:
        """Stop serving."""
        with self._new:
            self._closed = True
            self._new.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if request.path != "/frames":
            page = b"<!doctype html><title>lbvq</title><img src=/frames style='max-width:100%'>"
            request.send_header("Content-Type", "text/html")
            request.send_header("Content-Length", str(len(page)))
            request.end_headers()
            request.wfile.write(page)
            return
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        try:
            for picture in self._pictures():
                request.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + picture + b"\r\n")
        except OSError:
            return  # the browser is gone

    def _pictures(self) -> Iterator[bytes]:
        """The newest JPEG picture, every time there is one, until `close`."""
        sent = 0
        while not self._closed:
            with self._new:
                while self._count == sent and not self._closed:
                    self._new.wait()
                picture, sent = self._picture, self._count
            if not self._closed:
                yield picture
