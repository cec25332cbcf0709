"""Prepare what comes next while the present item is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; while one is used, a thread takes the next, and never more than that.

    An error of `items` is raised where its item would have come. Who stops early waits for the item under way.
    """
    iterator = ((item,) for item in items)  # a tuple each, so that None marks the end
    with ThreadPoolExecutor(1, thread_name_prefix="one_ahead") as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item[0]
