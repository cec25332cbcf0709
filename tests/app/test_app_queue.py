"""The queue of `lbvq app`, with workers that wait to be let through."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from app_client import LIMITS

from lbvq.app.jobs import Job, JobQueue


class Gate:
    """A worker that waits to be let through, and notes the order of its jobs."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.started, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self, job: Job) -> dict:
        self.seen.append(job.name)
        self.started.release()
        while not self.open.wait(0.01):
            job.progress("segment", 1, 2)
        job.progress("segment", 2, 2)
        return {"name": job.name}


def queue_of(folder: Path, gates: list[Gate], names: str) -> tuple[JobQueue, list[Job]]:
    queue = JobQueue(gates, LIMITS)
    jobs = []
    for name in names:
        job = Job(folder / name, name, None)
        job.folder.mkdir()
        queue.add(job)
        jobs.append(job)
        if len(jobs) <= len(gates):
            assert gates[0].started.acquire(timeout=30)
    return queue, jobs


def ended(queue: JobQueue, job: Job) -> dict:
    for _ in range(3000):
        if job.state not in ("waiting", "running"):
            return queue.describe(job.id)
        threading.Event().wait(0.01)
    raise TimeoutError(job.state)


def test_jobs_run_one_at_a_time_in_the_order_in_which_they_came(tmp_path):
    gate = Gate()
    queue, jobs = queue_of(tmp_path, [gate], "abc")
    assert [queue.describe(job.id)["state"] for job in jobs] == ["running", "waiting", "waiting"]
    assert [queue.describe(job.id)["ahead"] for job in jobs] == [0, 0, 1]
    with pytest.raises(ValueError, match="2 videos are waiting"):
        queue.add(Job(tmp_path / "d", "d", None))
    gate.open.set()
    assert [ended(queue, job)["result"] for job in jobs] == [{"name": name} for name in "abc"]
    assert gate.seen == ["a", "b", "c"]
    queue.close()


def test_two_devices_run_two_jobs(tmp_path):
    gate = Gate()
    queue, jobs = queue_of(tmp_path, [gate, gate], "abc")
    assert [job.state for job in jobs] == ["running", "running", "waiting"]
    queue.close()


def test_jobs_that_wait_or_run_are_cancelled_and_leave_nothing(tmp_path):
    gate = Gate()
    queue, (running, waiting, last) = queue_of(tmp_path, [gate], "abc")
    queue.cancel(waiting.id)
    queue.cancel(running.id)
    assert ended(queue, waiting)["state"] == ended(queue, running)["state"] == "cancelled"
    assert gate.started.acquire(timeout=30)
    assert gate.seen == ["a", "c"] and last.state == "running"
    gate.open.set()
    assert ended(queue, last)["state"] == "done"
    queue.cancel(last.id)
    assert last.state == "done"  # it has ended
    for _ in range(300):
        if not running.folder.exists() and not waiting.folder.exists():
            break
        threading.Event().wait(0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    queue.close()


def test_a_queue_that_is_closed_stops_its_jobs(tmp_path):
    queue, (running, waiting) = queue_of(tmp_path, [Gate()], "ab")
    queue.close()
    assert running.state == "cancelled" and waiting.state == "waiting"
    with pytest.raises(ValueError, match="try again later"):
        queue.check_room()


def test_a_fault_of_the_program_is_one_sentence_on_the_page_and_whole_in_the_terminal(tmp_path, caplog):
    def broken(job: Job) -> dict:
        raise AssertionError("secret of the program")

    queue = JobQueue([broken], LIMITS)
    job = Job(tmp_path / "a", "a", None)
    queue.add(job)
    assert ended(queue, job)["message"] == "the program itself has failed; the terminal that it runs in shows where."
    assert "secret of the program" in caplog.text
    queue.close()


def test_files_of_the_oldest_jobs_go(tmp_path):
    gate = Gate()
    gate.open.set()
    queue, jobs = JobQueue([gate], replace(LIMITS, kept=2)), []
    for name in "abcd":
        jobs.append(Job(tmp_path / name, name, None))
        jobs[-1].folder.mkdir()
        queue.add(jobs[-1])
        ended(queue, jobs[-1])
    queue.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]
    with pytest.raises(KeyError):
        queue.describe(jobs[0].id)
