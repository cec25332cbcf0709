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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from lbvq.cli.predict import BAD_INPUT, UNTRAINED_OBJECTS, add_model_arguments, build_predictor
from lbvq.files.writing import atomic_path, write_text
from lbvq.inference.results import FramePrediction
from lbvq.inference.stream import StreamPredictor
from lbvq.video.draw import draw_objects
from lbvq.video.reader import read_video
from lbvq.video.writer import check_output, open_writer

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
    parser.add_argument("--score-threshold", type=float, default=0.3, help="draw objects with at least this score")
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument("--fps", type=float, help="frame rate to write (default: that of the input, or 10)")
    parser.add_argument("--load-state", metavar="FILE", help="go on with a stream that was saved")
    parser.add_argument("--save-state", metavar="FILE", help="save the stream at the end, to go on with it later")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration")


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code, 2 for anything wrong with files or settings."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        drawn = [Path(path) for path in args.output if not path.lower().endswith(".json")]
        results = [Path(path) for path in args.output if path.lower().endswith(".json")]
        for path in (*drawn, *results, *([Path(args.save_state)] if args.save_state else [])):
            check_output(path, [args.input], args.overwrite)
        with ExitStack() as stack:
            frames = stack.enter_context(closing(open_source(args.input)))
            keep_masks = bool(results or args.save_state or args.load_state)
            predictor = build_predictor(args, partial(StreamPredictor.from_config, keep_masks=keep_masks))
            if args.load_state:
                predictor.load_state_dict(torch.load(args.load_state, map_location="cpu", weights_only=True))
            sinks = open_sinks(args, drawn, frames.frame_rate, stack)
            play(predictor, frames, sinks, args)
        finish(predictor, results, args)
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) and error.args else error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def play(
    predictor: StreamPredictor, frames: FrameSource, sinks: list[Callable[[np.ndarray], bool]], args: argparse.Namespace
) -> None:
    """Segment frame after frame until the source or the user ends it; after Ctrl-C, what was found is still written."""
    start, count = time.perf_counter(), 0
    try:
        for frame in frames:
            objects = predictor.step(frame)
            count += 1
            picture = draw_frame(frame, objects, args.score_threshold, predictor.is_trained)
            if not all([sink(picture) for sink in sinks]) or count == args.max_frames:
                break
    except KeyboardInterrupt:
        print("interrupted")
    seconds = time.perf_counter() - start
    print(f"{count} frames, {count / max(seconds, 1e-9):.1f} frames per second")


def finish(predictor: StreamPredictor, results: list[Path], args: argparse.Namespace) -> None:
    """Save the stream and write the results of the whole of it."""
    if args.save_state:
        with atomic_path(args.save_state) as part, open(part, "wb") as file:
            torch.save(predictor.state_dict(), file)
        print(f"wrote {args.save_state}")
    if results:
        prediction = predictor.finish().distinct()
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


# -- sources ----------------------------------------------------------------------------------------------------------


class FrameSource:
    """Iterates over (H, W, 3) uint8 RGB frames; `frame_rate` is None where it is not known."""

    frame_rate: float | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        """Release the device or file."""


class FileSource(FrameSource):
    """A video file or folder of frames."""

    def __init__(self, path: str) -> None:
        self._frames = read_video(path)
        self.frame_rate = self._frames.frame_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._frames[t] for t in range(len(self._frames)))

    def close(self) -> None:
        self._frames.close()


class StreamSource(FrameSource):
    """A video that is decoded while it arrives, from an address or an open file."""

    def __init__(self, source: Any, name: str) -> None:
        try:
            self._container = av.open(source)
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"cannot read a video from {name}: {error}") from error
        if not self._container.streams.video:
            raise ValueError(f"{name} has no video stream")
        rate = self._container.streams.video[0].average_rate
        self.frame_rate = float(rate) if rate else None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            for frame in self._container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
        except av.error.FFmpegError as error:
            logger.warning("The video ends early: %s", error)

    def close(self) -> None:
        self._container.close()


class CameraSource(FrameSource):
    """A camera, read in the background: frames that come faster than they are used are skipped."""

    def __init__(self, number: int) -> None:
        self._camera = cv2.VideoCapture(number)
        if not self._camera.isOpened():
            raise ValueError(f"camera {number} cannot be opened; give its number or a file with --input")
        self._new = threading.Condition()
        self._frame: np.ndarray | None = None
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            with self._new:
                self._new.wait_for(lambda: self._frame is not None or self._ended)
                frame, self._frame = self._frame, None
            if frame is None:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])  # OpenCV has BGR

    def close(self) -> None:
        self._ended = True
        self._reader.join(timeout=5)
        self._camera.release()

    def _read(self) -> None:
        while not self._ended:
            found, frame = self._camera.read()
            with self._new:
                self._frame, self._ended = (frame, self._ended) if found else (self._frame, True)
                self._new.notify()


def open_source(name: str) -> FrameSource:
    """Choose the source by its name; see the help of `--input`."""
    if name.isdigit():
        return CameraSource(int(name))
    if name == "-":
        return StreamSource(sys.stdin.buffer, "the standard input")
    if "://" in name:
        return StreamSource(name, name)
    return FileSource(name)


# -- sinks ------------------------------------------------------------------------------------------------------------


def open_sinks(
    args: argparse.Namespace, paths: list[Path], frame_rate: float | None, stack: ExitStack
) -> list[Callable[[np.ndarray], bool]]:
    """Functions that take a drawn frame and return whether to go on."""
    sinks: list[Callable[[np.ndarray], bool]] = []
    rate = args.fps or frame_rate or FALLBACK_RATE
    for path in paths:
        writer = stack.enter_context(open_writer(path, rate, overwrite=args.overwrite))
        sinks.append(partial(write_to, writer))
        stack.callback(print, f"wrote {path}")
    if args.show:
        sinks.append(show_in_window)
        stack.callback(cv2.destroyAllWindows)
    if args.serve is not None:
        server = BrowserView(args.host, args.serve)
        stack.callback(server.close)
        print(f"watch it at http://{args.host}:{server.port}/")
        sinks.append(server.show)
    return sinks


def write_to(writer: Any, picture: np.ndarray) -> bool:
    """Write a frame into a file or folder."""
    writer.write(picture)
    return True


def show_in_window(picture: np.ndarray) -> bool:
    """Show a frame; False when the user pressed q."""
    try:
        cv2.imshow("lbvq", picture[:, :, ::-1])
        return cv2.waitKey(1) & 0xFF != ord("q")
    except cv2.error as error:
        raise ValueError(
            "this OpenCV cannot open windows; install opencv-python instead of opencv-python-headless, or use --serve"
        ) from error


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

    def show(self, picture: np.ndarray) -> bool:
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
