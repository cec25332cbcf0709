"""Answers a browser: one page, its files, and jobs. Nothing that a browser says becomes a path.

A page of another site cannot use this server: it does not know the token that our page carries, it is refused by its
Origin, it may read no answer (there is no CORS header), and a name of its own that is made to point here (DNS
rebinding) is refused by the Host header.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lbvq.app.jobs import Job, JobQueue, QueueFull
from lbvq.app.limits import Limits, open_upload, receive
from lbvq.app.offers import Offers, shown_name
from lbvq.app.work import CVAT, RESULTS, VIDEO
from lbvq.engine.user_errors import user_sentence

TOKEN_HEADER = "X-Lbvq-Token"
MAX_CONNECTIONS = 64
_PAGE = Path(__file__).parent / "page"
_JSON = "application/json"
_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
}
_RESULT_TYPES = {VIDEO: "video/mp4", RESULTS: _JSON, CVAT: "application/xml"}
_JOB = re.compile(r"/jobs/([0-9a-f]{32})")
_JOB_FILE = re.compile(rf"/jobs/([0-9a-f]{{32}})/({'|'.join(map(re.escape, _RESULT_TYPES))})")
_CANCEL = re.compile(r"/jobs/([0-9a-f]{32})/cancel")
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_UNREAD = 2**20  # bytes of a refused upload that are taken, so that the browser reads the answer

logger = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that is not done, with what to say of it."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class AppServer(ThreadingHTTPServer):
    """Listens at an address; `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, host: str, port: int, *, jobs: JobQueue, offers: Offers, limits: Limits, folder: Path) -> None:
        """Args:
        host, port: where to listen; port 0 is any free one.
        jobs: does the work.
        offers: what can be chosen.
        limits: of what comes in.
        folder: that the jobs get folders in.
        """
        self.jobs, self.offers, self.limits, self.folder = jobs, offers, limits, folder
        self.token = secrets.token_urlsafe(32)
        self.names = host_names(host)
        self.uploads = threading.BoundedSemaphore(limits.uploads)
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        page = {path: ((_PAGE / name).read_bytes(), kind) for path, (name, kind) in _PAGE_FILES.items()}
        html, kind = page["/"]
        self.page = {**page, "/": (html.replace(b"{{token}}", self.token.encode()), kind)}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise ValueError(f"cannot listen at {host}:{port} ({error}); choose another --port.") from error

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the next one in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are no news."""
        logger.debug("A connection broke.", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request; the connection is closed after it."""

    server: AppServer
    server_version, sys_version = "lbvq", ""
    timeout = 20.0  # seconds that a browser may be silent

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *_: Any) -> None:
        """Requests are not worth a line each, and hold what browsers say."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: a method we do not have, a request that is none."""
        self._send_json({"error": f"this request is not understood ({code})."}, HTTPStatus(code))

    # -- routes

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path in self.server.page:
            return self._send(*self.server.page[path])
        if path == "/offers":
            limits = self.server.limits
            shown = {"num_bytes": limits.num_bytes, "seconds": limits.seconds, "frames": limits.frames}
            return self._send_json({**self.server.offers.describe(), "limits": shown})
        if found := _JOB.fullmatch(path):
            return self._send_json(self._known(self.server.jobs.describe, found[1]))
        if found := _JOB_FILE.fullmatch(path):
            return self._send_file(self._known(self.server.jobs.find, found[1]), found[2])
        raise _no_such_page()

    def _post(self) -> None:
        self._check_sender()
        url = urlsplit(self.path)
        if found := _CANCEL.fullmatch(url.path):
            self._known(self.server.jobs.cancel, found[1])
            return self._send_json(self._known(self.server.jobs.describe, found[1]))
        if url.path == "/jobs":
            return self._take_upload(url.query)
        raise _no_such_page()

    def _take_upload(self, query: str) -> None:
        chosen = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
        settings, length = self.server.offers.settings(chosen), self._length()
        self.server.jobs.check_room()
        if not self.server.uploads.acquire(blocking=False):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many uploads at a time; try again in a moment.")
        job = Job(self.server.folder / secrets.token_hex(16), shown_name(chosen.get("name", "")), settings)
        try:
            self._fill(job, length)
            self.server.jobs.add(job)
        except BaseException:
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        finally:
            self.server.uploads.release()
        self._send_json(self.server.jobs.describe(job.id), HTTPStatus.CREATED)

    def _fill(self, job: Job, length: int) -> None:
        job.folder.mkdir()
        self.connection.settimeout(self.server.limits.stall_seconds)
        receive(self.rfile, length, job.upload, self.server.limits)
        try:
            open_upload(job.upload, self.server.limits).close()
        except Exception as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, job.sentence(error)) from error

    # -- checks

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _is_named(hosts[0], self.server.names):
            raise Refusal(HTTPStatus.FORBIDDEN, "this server is not known under that name; use the address it printed.")

    def _check_sender(self) -> None:
        """Only our own page may change anything."""
        token = self.headers.get(TOKEN_HEADER, "").encode()
        origin = self.headers.get("Origin")
        is_ours = origin is None or urlsplit(origin).netloc == self.headers["Host"]
        if not is_ours or not hmac.compare_digest(token, self.server.token.encode()):
            raise Refusal(HTTPStatus.FORBIDDEN, "this did not come from the page of this server; reload the page.")

    def _length(self) -> int:
        """Bytes of the body, which the request has to tell."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) != 1:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the upload does not say how long it is.")
        if not re.fullmatch(r"[0-9]{1,15}", lengths[0]) or int(lengths[0]) == 0:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the file is empty.")
        if int(lengths[0]) > self.server.limits.num_bytes:
            limit = self.server.limits.num_bytes / 2**20
            sentence = f"the file is too large: {int(lengths[0]) / 2**20:.1f} MB, at most {limit:g} MB are taken."
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
        return int(lengths[0])

    @staticmethod
    def _known(ask: Callable[[str], Any], job_id: str) -> Any:
        try:
            return ask(job_id)
        except KeyError:
            raise Refusal(HTTPStatus.NOT_FOUND, "this job is gone; its files are not kept any longer.") from None

    # -- answers

    def _answer(self, route: Callable[[], None]) -> None:
        """Run a route; whatever goes wrong is one sentence."""
        try:
            self._check_host()
            route()
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.sentence)
        except TimeoutError:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the upload stood still for too long.")
        except ConnectionError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except QueueFull as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception as error:
            sentence = user_sentence(error)
            if sentence is None:
                logger.exception("A request has failed.")
            status = HTTPStatus.INTERNAL_SERVER_ERROR if sentence is None else HTTPStatus.BAD_REQUEST
            self._refuse(status, sentence or "the program itself has failed; its terminal shows where.")

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        """Say why, and take some of what still comes, since a browser that is cut off while sending reads nothing."""
        self.close_connection = True
        try:
            self._send_json({"error": sentence}, status)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1.0)
            left = _UNREAD
            while left > 0 and (block := self.connection.recv(2**16)):
                left -= len(block)
        except OSError:
            return  # the browser is gone

    def _send_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), _JSON, status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._begin(status, kind, len(body))
        self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str, length: int, **more: str) -> None:
        self.send_response(status)
        lengths = {"Content-Type": kind, "Content-Length": str(length)}
        for name, value in {**_HEADERS, **lengths, **more}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _send_file(self, job: Job, name: str) -> None:
        """A result, or the part of it that a player asks for."""
        try:
            file = open(job.folder / name, "rb")
        except FileNotFoundError:
            raise Refusal(HTTPStatus.NOT_FOUND, "this job has no such file.") from None
        with file:
            size = file.seek(0, 2)
            part = _asked_part(self.headers.get("Range", ""), size)
            first, end = part or (0, size)
            file.seek(first)
            # without a name, so that the link's own one counts
            more = {"Accept_Ranges": "bytes", "Content_Disposition": "inline" if name == VIDEO else "attachment"}
            if part:
                more["Content_Range"] = f"bytes {first}-{end - 1}/{size}"
            self._begin(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, _RESULT_TYPES[name], end - first, **more)
            while first < end and (block := file.read(min(2**16, end - first))):
                self.wfile.write(block)
                first += len(block)


def host_names(host: str) -> frozenset[str] | None:
    """Names that a server at an address of this computer alone goes by; None: it is open to others."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if is_local(host) else None


def is_local(host: str) -> bool:
    """Whether only this computer reaches a server that listens at `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_named(header: str, names: frozenset[str] | None) -> bool:
    """Whether a Host header is one of ours; a server that is open takes addresses and the name of this computer."""
    try:
        name = (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return False
    if names is not None:
        return name in names
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", socket.gethostname().lower())
    return True


def _asked_part(header: str, size: int) -> tuple[int, int] | None:
    """(first, end) of the bytes that a Range header asks for; None for all."""
    found = _RANGE.fullmatch(header)
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, end = max(0, size - int(found[2])), size
    else:
        first, end = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
    return (first, end) if first < end else None


def _no_such_page() -> Refusal:
    return Refusal(HTTPStatus.NOT_FOUND, "there is no such page.")
