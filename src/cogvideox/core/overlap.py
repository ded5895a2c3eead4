"""A producer and its consumer at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _CutError(Exception):
    """Ends a consumer whose producer failed."""


def overlap(consume: Callable[[Iterator[T]], R], items: Iterable[T]) -> R:
    """`consume(items)` in a thread of its own, while this thread makes the next of the `items`.

    One item waits at most. What either side raises ends both and is raised here, Ctrl-C included; the
    consumer sees an exception from its iterator then, so that it can clean up, and has ended when this
    returns or raises. A consumer that ends early ends the making of items after the one at work.
    """
    line: SimpleQueue[T | _CutError | None] = SimpleQueue()  # None: the end
    room = Semaphore(1)

    def arrivals() -> Iterator[T]:
        while (item := line.get()) is not None:
            if isinstance(item, _CutError):
                raise item
            room.release()
            yield item

    with ThreadPoolExecutor(1, "consumer") as pool:
        result = pool.submit(consume, arrivals())
        result.add_done_callback(lambda _: room.release())  # nobody waits for a consumer that is gone
        try:
            for item in items:
                room.acquire()
                if result.done():
                    break
                line.put(item)
        except BaseException:
            line.put(_CutError())
            raise
        line.put(None)
        return result.result()
