"""The queue: one job at a time for every device, in the order in which they came."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbvq.app.limits import Limits
from lbvq.engine.user_errors import user_sentence

_OWN_FAULT = "the program itself has failed; the terminal that it runs in shows where."
_PATIENCE = 10.0  # seconds that a job may take to notice that it is cancelled when the queue is closed

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """A job was told to stop."""


class QueueFull(ValueError):
    """There are too many jobs."""


@dataclass
class Job:
    """One video to be segmented.

    Attributes:
        folder: of its files, which nobody else writes to; their names do not depend on what users say.
        name: of the video as the user calls it, only to be shown.
        settings: as `lbvq.app.offers.Settings`.
        id: nobody can guess it, and who knows it may see the job.
        state: waiting, running, done, failed or cancelled.
        stage, done, total: what a running job is at; total 0 is not known.
        message: why it failed, one sentence.
        result: what was found, for the page.
    """

    folder: Path
    name: str
    settings: Any
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: str = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    result: dict[str, Any] | None = None
    is_cancelled: bool = False

    @property
    def upload(self) -> Path:
        """The file that came in."""
        return self.folder / "upload"

    def progress(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Note how far the job is; raises `Cancelled` when it shall stop."""
        if self.is_cancelled:
            raise Cancelled
        self.stage, self.done, self.total = stage, done, total

    def in_words_of_user(self, text: str) -> str:
        """A message with the user's name of the video instead of where it is kept."""
        return text.replace(str(self.upload), self.name).replace(str(self.folder), "the folder of this job")

    def sentence(self, error: Exception) -> str:
        """What to say of an error; one of ours is shown in the terminal only."""
        text = user_sentence(error)
        if text is None:
            logger.error("A job has failed.", exc_info=error)
            return _OWN_FAULT
        return self.in_words_of_user(text)


Work = Callable[[Job], dict[str, Any]]


class JobQueue:
    """Does jobs in threads, one for each of `workers`; a worker takes a job and returns its result.

    A worker calls `job.progress` often, and leaves its files in `job.folder`.
    """

    def __init__(self, workers: Sequence[Work], limits: Limits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._is_closed = False
        self._threads = [threading.Thread(target=self._serve, args=(work,), daemon=True) for work in workers]
        for thread in self._threads:
            thread.start()

    def check_room(self) -> None:
        """Raise `QueueFull` when no further job would be taken."""
        with self._changed:
            if self._is_closed or len(self._waiting) >= self._limits.waiting:
                raise QueueFull(f"{len(self._waiting)} videos are waiting already; try again later.")

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue, which owns its folder from then on; `QueueFull` when there is no room."""
        with self._changed:
            self.check_room()
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify()

    def find(self, job_id: str) -> Job:
        """The job of an id; KeyError when there is none."""
        with self._changed:
            return self._jobs[job_id]

    def describe(self, job_id: str) -> dict[str, Any]:
        """What a page shows of a job; KeyError when there is none."""
        with self._changed:
            job = self._jobs[job_id]
            ahead = self._waiting.index(job) if job in self._waiting else 0
            keys = ("id", "name", "state", "stage", "done", "total", "message", "result")
            return {**{key: getattr(job, key) for key in keys}, "ahead": ahead, "is_cancelled": job.is_cancelled}

    def cancel(self, job_id: str) -> None:
        """Stop a job that waits or runs; one that has ended stays as it is. KeyError when there is none."""
        with self._changed:
            job = self._jobs[job_id]
            job.is_cancelled = True
            is_waiting = job in self._waiting
            if is_waiting:
                self._waiting.remove(job)
        if is_waiting:
            self._end(job, "cancelled")

    def close(self) -> None:
        """Stop all jobs; waits a little for those that run."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs.values():
                job.is_cancelled = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=_PATIENCE)

    def _serve(self, work: Work) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                job = self._waiting.popleft()
                job.state = "running"
            self._do(work, job)

    def _do(self, work: Work, job: Job) -> None:
        try:
            result = work(job)
        except Cancelled:
            self._end(job, "cancelled")
        except Exception as error:
            self._end(job, "failed", message=job.sentence(error))
        else:
            self._end(job, "done", result=result)

    def _end(self, job: Job, state: str, message: str = "", result: dict[str, Any] | None = None) -> None:
        """Note how a job has ended; files of failed jobs go at once, those of others when there are too many."""
        with self._changed:
            job.message, job.result, job.state = message, result, state
            ended = [each for each in self._jobs.values() if each.state in ("done", "failed", "cancelled")]
            too_old = ended[: max(0, len(ended) - self._limits.kept)]
            for each in too_old:
                del self._jobs[each.id]
        for each in [*too_old, *([] if state == "done" else [job])]:
            shutil.rmtree(each.folder, ignore_errors=True)
