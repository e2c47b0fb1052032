"""Arrays on disk: .npy files written block by block, and checked.

The surprise: a crc32 is of the data's bytes, not of the file, so it is known while writing; the header is covered by the checks of size and
shape.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from crystal.errors import UserError

HEADER_BYTES = 256
REMEDY = "delete the folder, or run task=prepare again into another one"


class NpyWriter:
    """An array (n, *shape) -> an .npy file, appended block by block; under its own name only when it is closed."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self._shape, self._dtype = path, shape, dtype
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115
        self._file.write(self._header(0))
        self.n = self.crc32 = 0

    def append(self, block: np.ndarray) -> None:
        """Add (k, *shape)."""
        data = np.ascontiguousarray(block, self._dtype).tobytes()
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.n += len(block)

    def close(self) -> dict[str, Any]:
        """The length, size and checksum of the data, for the manifest."""
        self._file.seek(0)
        self._file.write(self._header(self.n))
        self._file.close()
        os.replace(self._temporary, self.path)
        return {"rows": self.n, "bytes": self.path.stat().st_size, "crc32": self.crc32}

    def _header(self, n: int) -> bytes:
        """A version 1.0 .npy header of fixed length, so that it can be written anew when the count is known."""
        text = repr({"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (n, *self._shape)})
        prefix = npy.magic(1, 0) + (HEADER_BYTES - npy.MAGIC_LEN - 2).to_bytes(2, "little")
        assert len(prefix) + len(text) < HEADER_BYTES
        return prefix + text.encode().ljust(HEADER_BYTES - len(prefix) - 1) + b"\n"


def verify_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype, crc32: int) -> None:
    """UserError unless the file is there whole."""
    try:
        rows = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise UserError(f"{path} is corrupt ({error}); expected an .npy file; {REMEDY}") from error
    if rows.shape != shape or rows.dtype != dtype or _crc32(rows) != crc32:
        raise UserError(f"{path} is corrupt; expected {shape} rows with crc32 {crc32}; {REMEDY}")


def _crc32(rows: np.ndarray) -> int:
    crc = 0
    for start in range(0, len(rows), 4096):
        crc = zlib.crc32(rows[start : start + 4096].tobytes(), crc)
    return crc
