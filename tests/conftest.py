"""Loggers are left as they were, and a skip whose reason is not in `expected_skips.ALLOWED` is a failure."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator

import pytest
from expected_skips import complaint, is_expected


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--allow-skips", action="store_true", help="do not fail on skips that are not expected")


def pytest_configure() -> None:
    """Take the signals that tests send as in a terminal: shells start jobs in the background with some ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_IGN:
        signal.signal(hang_up, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Generator[None, None, None]:
    """A run that a test sets up keeps its log for itself; the tests after it see what is logged."""
    loggers = [logging.getLogger(name) for name in ("lbvq", "mask2former")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return report if item.config.getoption("--allow-skips") else _failed_if_unexpected(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return report if collector.config.getoption("--allow-skips") else _failed_if_unexpected(report)


def _failed_if_unexpected(report):
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else None
    if reason is not None and not hasattr(report, "wasxfail") and not is_expected(reason):
        report.outcome, report.longrepr = "failed", complaint(reason)
    return report
