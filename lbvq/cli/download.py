"""Fetch the weights of published models: the work behind `lbvq download`."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

from lbvq.engine.download import DownloadError, check_is_no_page
from lbvq.engine.known_weights import DRIVE_IDS
from lbvq.zoo import MODELS

EXAMPLES = """examples:
  lbvq download mask2former_swin_tiny_coco
  lbvq download vita_r50_ovis minvis_r50_ytvis19

Files go to $VIS_WEIGHTS_DIR, by default into torch's cache, where every command finds them. Those on Google Drive need
the package gdown: pip install gdown.
"""
FAILED = 2  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="models as `lbvq list` names them")


def run(args: argparse.Namespace) -> int:
    """Fetch every model that was named; returns the exit code."""
    unknown = [name for name in args.names if name not in MODELS]
    if unknown:  # found before anything is fetched
        near = difflib.get_close_matches(unknown[0], MODELS, n=3, cutoff=0.4)
        raise ValueError(f"no published model is called {unknown[0]!r}; near it: {', '.join(near)}; see `lbvq list`.")
    models = [MODELS[name] for name in args.names]
    failed = 0
    for model in models:
        try:
            print(f"{model.name}: {fetch(model.weights)}")
        except (OSError, ImportError) as error:
            print(f"error: {model.name}: {error}", file=sys.stderr)
            failed = FAILED
    return failed


def fetch(file_name: str) -> Path:
    """Return the local file of published weights, fetching it when it is not there yet."""
    from lbvq.engine.weight_files import find_weights, weights_folder  # they import torch, --help does not

    try:
        return find_weights(file_name)[0]
    except FileNotFoundError:
        if file_name not in DRIVE_IDS:
            raise
    return fetch_from_drive(DRIVE_IDS[file_name], weights_folder() / file_name)


def fetch_from_drive(drive_id: str, target: Path) -> Path:
    """Let gdown fetch a file of Google Drive, complete or not at all."""
    try:
        import gdown
    except ImportError as error:
        raise ImportError(
            f"{target.name} is on Google Drive and fetched by the package gdown: pip install gdown. Or put it by other "
            f"means from https://drive.google.com/file/d/{drive_id} into {target.parent}."
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        gdown.download(id=drive_id, output=str(part), resume=True)
    except Exception as error:  # gdown raises its own and those of requests, and is not always there to be named
        raise DownloadError(f"gdown could not fetch {target.name} ({drive_id}): {error}") from error
    if not part.is_file():
        raise DownloadError(
            f"gdown did not fetch {target.name} ({drive_id}); Drive limits how often a file is fetched."
        )
    check_is_no_page(part, f"Google Drive ({drive_id})")
    os.replace(part, target)
    return target
