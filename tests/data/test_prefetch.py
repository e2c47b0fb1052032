from __future__ import annotations

import threading
import time

import pytest

from crystal.data.prefetch import prefetched


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "crystal-prefetch"]


@pytest.mark.parametrize("pause_s", [0, 0.02])
def test_items_keep_their_order_whoever_makes_them(pause_s):
    """The thread, for a consumer that is away between two of them; else the consumer itself."""
    makers = []

    def items():
        for number in range(30):
            makers.append(threading.current_thread().name)
            yield number

    found = []
    for number in prefetched(items()):
        found.append(number)
        time.sleep(pause_s)
    assert found == list(range(30))
    assert (makers.count("crystal-prefetch") > 20) == (pause_s > 0)


@pytest.mark.parametrize("pause_s", [0, 0.02])
def test_an_error_is_raised_at_its_place(pause_s):
    def items():
        yield from range(3)
        raise ZeroDivisionError

    found = []
    with pytest.raises(ZeroDivisionError):
        for number in prefetched(items()):
            found.append(number)
            time.sleep(pause_s)
    assert found == [0, 1, 2] and prefetch_threads() == []


@pytest.mark.parametrize("pause_s", [0, 0.02])
def test_no_thread_is_left_when_the_consumer_stops_early(pause_s):
    numbers = prefetched(iter(range(10**9)))
    assert next(numbers) == 0 and len(prefetch_threads()) == 1
    time.sleep(pause_s)
    numbers.close()
    assert prefetch_threads() == []
