"""Watch: a line of progress every so often while other processes encode files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crystal.data.encode import InputFile
from crystal.runlog import clock

EVERY_S = 15.0


@contextmanager
def watched(files: Sequence[InputFile], encoded: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Tell how much of the input `encoded` holds, how fast it grows and how long the rest will take; once more at the end."""
    sizes, ended = {f"{file.number:06d}": file.bytes for file in files}, threading.Event()

    def done() -> tuple[int, int]:
        found = [sizes[path.stem] for path in encoded.glob("*.json") if path.stem in sizes]
        return len(found), sum(found)

    (_, before), t0, total = done(), time.monotonic(), sum(sizes.values())

    def tell() -> None:
        n, n_bytes = done()
        dt_s = time.monotonic() - t0
        speed = (n_bytes - before) / dt_s
        left = f", about {clock((total - n_bytes) / speed)} left" if 0 < n_bytes < total and speed else ""
        progress(f"encoded {n:,} of {len(sizes):,} files, {n_bytes / 1e6:,.1f} MB in {clock(dt_s)}, {speed / 1e6:,.1f} MB/s{left}")

    def work() -> None:
        while not ended.wait(EVERY_S):
            tell()

    thread = threading.Thread(target=work, name="crystal-watch", daemon=True)
    thread.start()
    try:
        yield
        tell()
    finally:
        ended.set()
        thread.join()
