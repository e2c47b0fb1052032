"""Items made ahead by a thread, which ends with the iterator.

The surprise: the thread works only while the consumer is away. For one that asks again at once, an item is made where it is asked for: two
threads that both want the interpreter are slower than one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

AHEAD = 4  # items
AWAY_S = 0.001  # a consumer that has not asked for so long is doing something else

Item = TypeVar("Item")


def prefetched(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, up to AHEAD of them made before they are asked for; an error is raised at its place in the order."""
    ready: deque[Item | _End] = deque()
    making, asked, stop = threading.Lock(), threading.Event(), threading.Event()

    def make() -> Item | _End:
        try:
            return next(items)
        except BaseException as error:  # kept for its place in the order
            return _End(error)

    def work() -> None:
        while not stop.is_set():
            asked.wait()
            asked.clear()
            stop.wait(AWAY_S)
            while len(ready) < AHEAD and not asked.is_set():
                with making:
                    ready.append(make())

    def item() -> Item | _End:
        if not ready:
            with making:  # what the thread is making, if anything, is next
                return ready.popleft() if ready else make()
        return ready.popleft()

    thread = threading.Thread(target=work, name="crystal-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(found := item(), _End):
            asked.set()
            yield found
        if not isinstance(found.error, StopIteration):
            raise found.error
    finally:
        stop.set()
        asked.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class _End:
    """Of the items: StopIteration, or the error that came instead of the next one."""

    error: BaseException
