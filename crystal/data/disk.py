"""A file for HDF5 to write into.

The surprise: HDF5 loses the errors of a full disk, or says them again for each of its buffers, or crashes at the end of the process. So
they are kept from it, and raised when it has done.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Disk(io.FileIO):
    """`with Disk(path, "w+b") as disk, h5py.File(disk, "w") as file`: its end raises the first OSError, which `error` is before."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        with self._kept():
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._kept():
            super().truncate(size)
        return size or 0

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self.error is not None:
            raise self.error
