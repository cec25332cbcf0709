"""Signals end a command between two pieces of work; what is complete by then is written."""

from __future__ import annotations

import signal
import threading

import pytest

from lbvq.cli.interrupt import Interrupts

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_a_piece_of_work_a_signal_interrupts_at_once(number):
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(number)
    assert interrupts.received == number and interrupts.exit_code == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_piece_of_work_is_ended_first(number):
    done = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.shielded():
        signal.raise_signal(number)
        done.append(interrupts.received)
    assert done == [number]


def test_the_second_signal_does_not_wait():
    done = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.shielded():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        done.append("never")
    assert done == []


def test_waiting_inside_of_a_piece_of_work_can_be_interrupted():
    with Interrupts() as interrupts, interrupts.shielded():
        with pytest.raises(KeyboardInterrupt), interrupts.waiting():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # the work goes on; another signal is the second
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_came_before_waiting_is_not_forgotten():
    with Interrupts() as interrupts, interrupts.shielded():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts.waiting():
            pass


def test_a_signal_that_was_acted_upon_raises_nothing():
    with Interrupts() as interrupts, interrupts.shielded():
        signal.raise_signal(signal.SIGTERM)
        interrupts.acknowledge()
    assert interrupts.exit_code == 128 + signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_signals_stay_as_they_are():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert interrupts.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
