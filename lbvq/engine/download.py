"""Fetch one file by https: resumed where it was cut, checked before it gets its name, by one process at a time.

Until all of it is there and right, what has arrived stands beside the target as `.<name>.part`; nothing reads that but
the next try.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

logger = logging.getLogger(__name__)

TRIES = 5  # a connection that breaks is taken up again; every try that brought something is followed by another
SILENCE_S = 30.0  # a server that says nothing for so long has gone
BLOCK = 1 << 20
TOKEN_VARIABLE, TOKEN_HOST = "HF_TOKEN", "huggingface.co"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_HTML = (b"<!doctype html", b"<html")


class DownloadError(OSError):
    """A file could not be fetched; the text says why, and where to put it by other means."""


class _Cut(Exception):
    """The connection ended too early; what has arrived stays."""


@dataclass(frozen=True)
class Checksum:
    """First digits of a hash, in lower-case hexadecimal."""

    kind: str  # "sha256" or "md5"
    digits: str


@dataclass
class _Progress:
    """What the server says of the file, and what has arrived of it."""

    part: Path
    size: int | None
    checksum: Checksum | None

    @property
    def arrived(self) -> int:
        """Bytes."""
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def _version_file(self) -> Path:
        return self.part.with_name(f"{self.part.name}.version")

    @property
    def version(self) -> str:
        """What the server calls the version of the file that the part is of; "" when it does not say."""
        return self._version_file.read_text(encoding="utf-8") if self._version_file.is_file() else ""

    @version.setter
    def version(self, version: str) -> None:
        self._version_file.write_text(version, encoding="utf-8")

    def forget(self) -> None:
        """Throw away what has arrived."""
        self.part.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)


def download(
    address: str, target: Path, *, checksum: Checksum | None = None, size: int | None = None, tries: int = TRIES
) -> None:
    """Bring a file to `target`, complete or not at all; a file that is there already is left as it is.

    Args:
        address: https://, or http:// of this computer.
        target: where to put it; the folder is made.
        checksum: what the file must have; servers of the Hugging Face Hub say it themselves.
        size: bytes it must have; by default what the server says.
        tries: how often in turn the connection may break without bringing anything.

    Raises:
        DownloadError: it could not be fetched or is not what it should be.
    """
    _check_address(address)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target):
            if not target.is_file():  # a process that waited finds the file of the one before it
                state = _Progress(target.with_name(f".{target.name}.part"), size, checksum)
                _fetch_all(address, state, tries)
                _check_content(address, state)
                os.replace(state.part, target)
                state.forget()
    except DownloadError as error:
        raise DownloadError(f"{error} Put the file {target.name} from {address} into {target.parent}.") from error
    except OSError as error:
        raise DownloadError(f"{target} cannot be written: {error}.") from error


def _check_address(address: str) -> None:
    url = urlsplit(address)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1")):
        raise ValueError(f"{address}: files are only fetched over https, where nobody can change them on the way.")


def _only_one(target: Path) -> AbstractContextManager[Any]:
    """Let one process at a time fetch a file; the others wait."""
    from huggingface_hub.utils import WeakFileLock  # takes a while to import and is needed for downloads only

    return WeakFileLock(target.with_name(f".{target.name}.lock"))


def _fetch_all(address: str, state: _Progress, tries: int) -> None:
    if os.environ.get(OFFLINE_VARIABLE, "0").lower() in ("1", "true", "yes", "on"):
        raise DownloadError(f"{address} was not fetched, because ${OFFLINE_VARIABLE} is set.")
    left = tries
    while True:
        before = state.arrived
        try:
            return _fetch(address, state)
        except _Cut as cut:
            left = tries if state.arrived > before else left - 1
            if left <= 0:
                raise DownloadError(f"{address} could not be fetched: {cut}.") from cut
            logger.warning("%s: %s; going on at byte %d", address, cut, state.arrived)
            time.sleep(min(2.0, 0.1 * 2 ** (tries - left)))


def _fetch(address: str, state: _Progress) -> None:
    """One connection: ask for what is missing and write it."""
    have, version = state.arrived, state.version
    if have and not version:  # it cannot be known whether the rest would belong to it
        state.forget()
        have = 0
    request = urllib.request.Request(address, headers={"User-Agent": "lbvq", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    token = os.environ.get(TOKEN_VARIABLE)
    if token and urlsplit(address).hostname == TOKEN_HOST:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not to where the server sends us
    try:
        with _opener(state).open(request, timeout=SILENCE_S) as response:
            _receive(response, state, have)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            state.forget()
            raise _Cut("what was there before does not belong to this file") from error
        if error.code >= 500 or error.code == http.HTTPStatus.TOO_MANY_REQUESTS:
            raise _Cut(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(f"{address} could not be fetched: {_meaning(error)}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            state.forget()
            raise DownloadError(f"the disk of {state.part.parent} is full; nothing was left there.") from error
        raise _Cut(f"the connection failed ({getattr(error, 'reason', error)})") from error
    except http.client.HTTPException as error:
        raise _Cut(f"the connection broke ({error!r})") from error


def _opener(state: _Progress) -> urllib.request.OpenerDirector:
    class Redirects(urllib.request.HTTPRedirectHandler):
        """Keeps what the Hub says of a file before it sends us to where the file is."""

        def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
            *_, headers, new_address = arguments
            _check_address(new_address)
            _note_checksum(state, headers.get("X-Linked-ETag"))
            return super().redirect_request(*arguments)

    return urllib.request.build_opener(Redirects)


def _note_checksum(state: _Progress, tag: str | None) -> None:
    digits = (tag or "").removeprefix("W/").strip('"')
    if state.checksum is None and re.fullmatch(r"[0-9a-f]{64}", digits):
        state.checksum = Checksum("sha256", digits)


def _receive(response: HTTPResponse, state: _Progress, have: int) -> None:
    if response.headers.get_content_type() == "text/html":
        raise DownloadError(f"{response.url} answered with a web page instead of the file.")
    _note_checksum(state, response.headers.get("X-Linked-ETag"))
    resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and have > 0
    start = have if resumed else 0
    length = response.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    if state.size is not None and total not in (None, state.size):
        state.forget()
        raise DownloadError(f"{response.url} has {total} bytes, {state.size} were expected.")
    _check_space(state, start, total)
    state.version = _version_of(response)
    with (
        open(state.part, "ab" if resumed else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=state.part.name[1:-5], disable=None) as bar,
    ):
        while block := response.read(BLOCK):
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    got = state.arrived
    if total is not None and got < total:
        raise _Cut(f"{got} of {total} bytes arrived")
    state.size = state.size or total


def _version_of(response: HTTPResponse) -> str:
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check_space(state: _Progress, start: int, total: int | None) -> None:
    missing = 0 if total is None else total - start
    free = shutil.disk_usage(state.part.parent).free
    if missing > free:
        state.forget()
        raise DownloadError(
            f"{missing >> 20} MiB are still to come and the disk of {state.part.parent} has {free >> 20} MiB left."
        )


def check_is_no_page(part: Path, source: str) -> None:
    """Throw away a web page that came instead of a file, such as one that asks to sign in."""
    with open(part, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith(_HTML):
        part.unlink()
        raise DownloadError(f"{source} answered with a web page instead of the file; it was thrown away.")


def _check_content(address: str, state: _Progress) -> None:
    """Throw away what is not the file that was asked for."""
    try:
        check_is_no_page(state.part, address)
    except DownloadError:
        state.forget()
        raise
    size = state.arrived
    digest = file_digest(state.part, state.checksum.kind) if state.checksum else ""
    problem = None
    if state.size is not None and size != state.size:
        problem = f"sent {size} bytes, {state.size} were expected"
    elif size == 0:
        problem = "sent an empty file"
    elif state.checksum and not digest.startswith(state.checksum.digits):
        problem = f"sent a file of {state.checksum.kind} {digest[:16]}..., {state.checksum.digits} was expected"
    if problem:
        state.forget()
        raise DownloadError(f"{address} {problem}; it was thrown away.")


def _meaning(error: urllib.error.HTTPError) -> str:
    if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return (
            f"the server answered {error.code}; the file may need an account or an accepted licence "
            f"(a token of the Hugging Face Hub goes into ${TOKEN_VARIABLE})"
        )
    return f"the server answered {error.code} {error.reason}"


def file_digest(path: Path, kind: str = "sha256") -> str:
    """Hash of a file in hexadecimal."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
