"""Prepare what comes next while the present item is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

FRAMES_AHEAD = 3  # decoded frames of a video that wait for the network; the others need no memory

Item = TypeVar("Item")


def ahead(items: Iterable[Item], count: int = 1) -> Generator[Item, None, None]:
    """The same items; while one is used, a thread takes the next `count`, and never more than that.

    An error of `items` is raised where its item would have come. Who stops early waits for the item under way, and then
    the thread is gone.
    """
    iterator = ((item,) for item in items)  # a tuple each, so that None marks the end
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        coming = deque(pool.submit(next, iterator, None) for _ in range(count))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, iterator, None))
            yield item[0]
    finally:
        pool.shutdown(cancel_futures=True)
        iterator.close()  # lets go of `items`
