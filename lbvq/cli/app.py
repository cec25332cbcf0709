"""A page on this computer: drop a video, see what is found in it: the work behind `lbvq app`."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lbvq.app.limits import Limits
from lbvq.cli.interrupt import Interrupts
from lbvq.cli.predict import add_model_arguments
from lbvq.engine.user_errors import user_command

if TYPE_CHECKING:
    from lbvq.app.server import AppServer

EXAMPLES = """examples:
  lbvq app                                        then open http://127.0.0.1:8000; Ctrl-C ends it
  lbvq app --weights runs/pets/model_best.pth     with a model of your own as the first choice
  lbvq app --max-seconds 20 --max-mb 50           smaller videos only

Only this computer can use the page unless --host says otherwise. Videos and results are deleted when the command ends.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (default: 8000; 0 is any free one)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this computer alone)"
    )
    usual = Limits()
    parser.add_argument(
        *("--max-mb",), type=float, default=usual.num_bytes / 2**20, help="largest file in MB (default: %(default)g)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=usual.seconds, help="longest video in seconds (default: %(default)g)"
    )
    parser.add_argument(
        "--max-frames", type=int, default=usual.frames, help="longest video in frames (default: %(default)d)"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration")


@user_command
def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, which is the usual end: 0."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    from lbvq.app.server import is_local

    try:
        with Interrupts():
            print("starting ...", flush=True)
            with serving(args) as server:
                if not is_local(args.host):
                    print(_OPEN_WARNING.format(host=args.host), file=sys.stderr)
                shown = f"[{args.host}]" if ":" in args.host else args.host
                print(f"open http://{shown}:{server.port}/ in a browser; Ctrl-C ends it", flush=True)
                threading.Event().wait()
    except KeyboardInterrupt:
        print("ended; videos and results are deleted")
    return 0


_OPEN_WARNING = (
    "WARNING: everyone who reaches this computer at {host} can use the page and its GPU. There is no password and no "
    "encryption; listen at a network of people you trust."
)


@contextmanager
def serving(args: argparse.Namespace, limits: Limits | None = None) -> Iterator[AppServer]:
    """A server that answers until the block is left; then its jobs are stopped and its files deleted.

    Args:
        args: the command line.
        limits: by default those of the command line.
    """
    from lbvq.app.jobs import JobQueue
    from lbvq.app.offers import Offers
    from lbvq.app.server import AppServer
    from lbvq.app.work import Segmenter, devices

    limits = limits or limits_of(args)
    offers = Offers(args)
    with TemporaryDirectory(prefix="lbvq-app-", ignore_cleanup_errors=True) as folder:
        jobs = JobQueue([Segmenter(args, limits, device) for device in devices(args.opts)], limits)
        try:
            server = AppServer(args.host, args.port, jobs=jobs, offers=offers, limits=limits, folder=Path(folder))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield server
            finally:
                server.shutdown()
                server.server_close()
        finally:
            jobs.close()


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the command line gives; ValueError for one that lets nothing in."""
    for name in ("max_mb", "max_seconds", "max_frames"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(args, name):g}.")
    num_bytes = int(args.max_mb * 2**20)
    return replace(Limits(), num_bytes=num_bytes, seconds=args.max_seconds, frames=args.max_frames)
