"""A client of `lbvq app` that speaks HTTP as a browser does, and a server with a network whose finds are known."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch
from red_green_model import RedGreenModel  # noqa: F401  registers itself

from lbvq.app.limits import Limits
from lbvq.app.server import TOKEN_HEADER, AppServer
from lbvq.cli import app
from lbvq.video.writer import write_video

LIMITS = Limits(num_bytes=10**6, seconds=2.0, frames=30, pixels=320 * 240, waiting=2, kept=4, stall_seconds=0.5)
YAML = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: RedGreenModel
  DEVICE: cpu
  SEM_SEG_HEAD: {NUM_CLASSES: 40}
INPUT: {MIN_SIZE_TEST: 60, FORMAT: RGB}
DATASETS:
  TEST: ("ytvis_2019_val",)
"""


def red_green_video(num_frames: int = 6) -> list[np.ndarray]:
    """A red square that moves, hidden in frame 2, and a green one that stands still."""
    frames = []
    for t in range(num_frames):
        frame = np.full((60, 80, 3), 90, dtype=np.uint8)
        if t != 2:
            frame[4 * t : 4 * t + 20, 8:28] = (220, 20, 20)
        frame[30:50, 50:70] = (20, 220, 20)
        frames.append(frame)
    return frames


def video_bytes(folder: Path, num_frames: int = 6) -> bytes:
    """An mp4 of 10 frames per second."""
    write_video(folder / "in.mp4", red_green_video(num_frames), 10, overwrite=True)
    return (folder / "in.mp4").read_bytes()


@contextmanager
def red_green_server(folder: Path, *arguments: str, limits: Limits | None = None) -> Iterator[Client]:
    """A running server and a client of it."""
    (folder / "red_green.yaml").write_text(YAML)
    torch.save({"model": {"margin": torch.tensor(50.0)}}, folder / "trained.pth")
    model = ["--model", str(folder / "red_green.yaml"), "--weights", str(folder / "trained.pth")]
    with app.serving(arguments_of(*model, *arguments), limits) as server:
        yield Client(server)


def arguments_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    app.add_arguments(parser)
    return parser.parse_args(["--port", "0", *arguments])


class Client:
    """Asks a server; every request is a connection of its own."""

    def __init__(self, server: AppServer) -> None:
        self.server = server

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
        """(status, headers, body) of an answer; the names of `headers` have _ for -."""
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
        """Post as our page does; (status, what the JSON says)."""
        token = {TOKEN_HEADER.replace("-", "_"): self.server.token}
        status, _, content = self.request("POST", path, body, **{**token, **headers})
        return status, json.loads(content)

    def upload(self, body: bytes, **settings: str) -> tuple[int, dict]:
        return self.post(f"/jobs?{urlencode(settings)}", body)

    def state(self, job_id: str) -> dict:
        return json.loads(self.request("GET", f"/jobs/{job_id}")[2])

    def wait(self, job_id: str) -> dict:
        """A job that has ended."""
        for _ in range(1200):
            job = self.state(job_id)
            if job["state"] not in ("waiting", "running"):
                return job
            time.sleep(0.05)
        raise TimeoutError(f"the job does not end: {job}")

    def files(self) -> list[Path]:
        """Everything that the server keeps on disk."""
        return [path for path in self.server.folder.rglob("*") if path.is_file()]
