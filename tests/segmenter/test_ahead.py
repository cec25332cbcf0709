"""Items are prepared a few ahead of their use, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mask2former.ahead import ahead


def is_a_thread_left() -> bool:
    return any(thread.name.startswith("ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [1, 3, 9])
def test_items_come_in_order_and_none_is_an_item(count):
    assert list(ahead([1, None, 0, "x"], count)) == [1, None, 0, "x"]
    assert list(ahead([], count)) == []
    assert not is_a_thread_left()


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_items_are_taken_in_advance_and_no_more(count):
    taken, enough = [], threading.Event()

    def items() -> Iterator[int]:
        for item in range(9):
            taken.append(item)
            if item == count:
                enough.set()
            yield item

    source = ahead(items(), count)
    assert next(source) == 0
    assert enough.wait(60)  # the next ones are taken while the first is used
    for wanted in range(1, 5):
        assert next(source) == wanted
        assert len(taken) <= wanted + 1 + count
    source.close()
    assert not is_a_thread_left()


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_comes_where_its_item_would_and_ends_the_thread(count):
    def items() -> Iterator[str]:
        yield "good"
        yield "good, too"
        raise ValueError("damaged frame 2")

    source = ahead(items(), count)
    assert [next(source), next(source)] == ["good", "good, too"]
    with pytest.raises(ValueError, match="damaged frame 2"):
        next(source)
    assert not is_a_thread_left()


def test_whoever_stops_early_lets_go_of_the_items():
    ended = []

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            ended.append(True)

    for _ in ahead(items(), 3):
        break
    assert ended and not is_a_thread_left()


def test_an_interrupt_while_an_item_is_worked_on_ends_the_thread():
    with pytest.raises(KeyboardInterrupt):
        for _ in ahead(range(100), 3):
            raise KeyboardInterrupt
    assert not is_a_thread_left()
