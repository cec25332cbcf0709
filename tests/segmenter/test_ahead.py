"""Items are prepared one ahead of their use, and nothing else changes."""

from __future__ import annotations

import threading

import pytest

from mask2former.ahead import one_ahead


def test_items_come_in_order_and_none_is_an_item():
    assert list(one_ahead([1, None, 0, "x"])) == [1, None, 0, "x"]
    assert list(one_ahead([])) == []


def test_one_item_is_taken_in_advance_and_not_two():
    taken, may_take = [], threading.Event()

    def items():
        for item in range(5):
            taken.append(item)
            if item == 1:
                may_take.set()
            yield item

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert may_take.wait(60)  # the second is taken while the first is used
    for wanted in range(1, 4):
        assert next(ahead) == wanted
        assert len(taken) <= wanted + 2
    ahead.close()
    assert not any(thread.name.startswith("one_ahead") for thread in threading.enumerate())


def test_an_error_comes_where_its_item_would_and_ends_the_thread():
    def items():
        yield "good"
        raise ValueError("damaged frame 1")

    ahead = one_ahead(items())
    assert next(ahead) == "good"
    with pytest.raises(ValueError, match="damaged frame 1"):
        next(ahead)
    assert not any(thread.name.startswith("one_ahead") for thread in threading.enumerate())
