"""Shards: .npy files of rows, written in bounded memory, read as memory maps; `Prepared` is a folder of them.

The surprise: a shard's crc32 is of its rows' bytes, not of the file, so it is known while writing; the header
is covered by the checks of size and shape. manifest.json is written last: its presence says that the folder is
complete. It may instead name HDF5 files elsewhere (`adopt.py`), whose rows are finished: ids, loss mask and labels.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from crystal.config import UserError, require
from crystal.data import hdf5
from crystal.data.fim import FimIds

FORMAT = 1
SHARD_ROWS = 65536
BUFFER_BYTES = 1 << 20
HEADER_BYTES = 128
REMEDY = "delete the folder, or run task=prepare again into another one"


def row_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ShardWriter:
    """Rows of one part -> <root>/<folder>/00000.npy, 00001.npy, ... of `shard_rows` rows; holds no file open."""

    def __init__(self, root: Path, folder: str, *, width: int, dtype: np.dtype, shard_rows: int = SHARD_ROWS) -> None:
        self._root, self._folder, self._width, self._dtype, self._shard_rows = root, folder, width, dtype, shard_rows
        self._buffer: list[np.ndarray] = []
        self._buffered = self._written = self._crc = 0
        self.n_rows = 0
        self.shards: list[dict[str, Any]] = []

    def append(self, rows: np.ndarray) -> None:
        """Add rows (k, width)."""
        self.n_rows += len(rows)
        while len(rows):
            room = self._shard_rows - self._written - self._buffered
            self._buffer.append(rows[:room])
            self._buffered += len(rows[:room])
            rows = rows[room:]
            if len(rows) or self._buffered * self._width * self._dtype.itemsize >= BUFFER_BYTES:
                self._flush()
            if len(rows):
                self._end_shard()

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; the shards' entries for the manifest."""
        self._flush()
        if self._written:
            self._end_shard()
        return self.shards

    def _name(self) -> str:
        return f"{self._folder}/{len(self.shards):05d}.npy"

    def _flush(self) -> None:
        if not self._buffered:
            return
        path = self._root / self._name()
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.concatenate(self._buffer).astype(self._dtype, copy=False).tobytes()
        with open(path, "ab") as file:
            if not self._written:
                file.write(_header(self._shard_rows, self._width, self._dtype))
            file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._written += self._buffered
        self._buffer, self._buffered = [], 0

    def _end_shard(self) -> None:
        path = self._root / self._name()
        with open(path, "r+b") as file:
            file.write(_header(self._written, self._width, self._dtype))
        size = path.stat().st_size
        self.shards.append({"file": self._name(), "rows": self._written, "bytes": size, "crc32": self._crc})
        self._written = self._crc = 0


def _header(rows: int, width: int, dtype: np.dtype) -> bytes:
    """A version 1.0 .npy header of fixed length, so that it can be written anew when the count of rows is known."""
    text = repr({"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)})
    prefix = npy.magic(1, 0) + (HEADER_BYTES - npy.MAGIC_LEN - 2).to_bytes(2, "little")
    return prefix + text.encode().ljust(HEADER_BYTES - len(prefix) - 1) + b"\n"


class RowView:
    """Rows of several shards as one sequence: `len(view)`, `view[indices]` -> (n, *row_shape), in the shards' dtype."""

    def __init__(self, pieces: Sequence[np.ndarray | hdf5.Hdf5Rows], row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._pieces, self._row_shape, self._dtype = list(pieces), row_shape, dtype
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """`indices`: int64 (n,), each in [0, len)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"row indices outside [0, {len(self)})")
        result = np.empty((len(indices), *self._row_shape), self._dtype)
        piece_of = np.searchsorted(self._ends, indices, side="right")
        for k in np.unique(piece_of).tolist():
            here = np.flatnonzero(piece_of == k)
            start = int(self._ends[k]) - len(self._pieces[k])
            result[here] = self._pieces[k][indices[here] - start]
        return result


class Prepared:
    """A folder of prepared data; open it with `Prepared.open`.

    A row is seq_len + 1 ids; or `finished`: (3, seq_len) ids, loss mask and labels, as a file below `root` holds them.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.eos_id: int = manifest["eos_id"]
        self.vocab_size: int = manifest["vocab_size"]
        self.special: dict[str, int] = manifest["special"]
        self.seq_len: int = manifest["spec"]["seq_len"]
        self.finished = "root" in manifest
        self.root = Path(manifest.get("root", folder))
        self.row_shape = (3, self.seq_len) if self.finished else (self.seq_len + 1,)
        self.dtype = np.dtype(np.int32) if self.finished else row_dtype(self.vocab_size)
        self.fim_ids = FimIds.of(self.special, self.eos_id)
        self.train: dict[str, dict[str, Any]] = manifest["train"]
        self.valid: dict[str, dict[str, Any]] = manifest["valid"]

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool) -> Prepared:
        """Check that every shard is there with its size, and its crc32 too if `verify`; UserError naming the file."""
        folder = Path(folder)
        prepared = cls(folder, read_manifest(folder))
        entries = (*prepared.train.values(), *prepared.valid.values())  # of finished rows, both sides are in the same files
        for shard in {shard["file"]: shard for entry in entries for shard in entry["shards"]}.values():
            prepared._check(shard, verify)
        return prepared

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    def parts(self, pattern: str) -> list[str]:
        """The train parts that a glob selects (`*` also matches `/`), in the manifest's order."""
        return [name for name in self.train if fnmatchcase(name, pattern)]

    def rows(self, pattern: str, part_slice: tuple[float, float] = (0.0, 1.0)) -> RowView:
        """Train rows of the parts that `pattern` selects; of each part the share [start, end) of its rows."""
        pieces: list[np.ndarray | hdf5.Hdf5Rows] = []
        for name in self.parts(pattern):
            start, end = (round(share * self.train[name]["rows"]) for share in part_slice)
            pieces += self._pieces(self.train[name], start, end)
        return RowView(pieces, self.row_shape, self.dtype)

    def valid_rows(self, source: str) -> RowView:
        """All validation rows of one source."""
        entry = self.valid[source]
        return RowView(self._pieces(entry, 0, entry["rows"]), self.row_shape, self.dtype)

    def fingerprint(self) -> str:
        """sha256 over the train shards' names, sizes and checksums: the same rows in the same place."""
        lines = [f"{s['file']} {s['bytes']} {s['crc32']}" for entry in self.train.values() for s in entry["shards"]]
        if self.finished:  # how much of the files is trained on, and how a corpus is cut, is in no checksum
            lines += [f"{name} {entry['rows']} {self.seq_len}" for name, entry in self.train.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _pieces(self, entry: dict[str, Any], start: int, end: int) -> list[Any]:
        if self.finished:
            files = tuple(str(self.root / shard["file"]) for shard in entry["shards"])
            lengths = tuple(shard["length"] for shard in entry["shards"])
            first = entry["first_row"]
            return [hdf5.Hdf5Rows(files, lengths, entry["corpus"], self.seq_len, self.vocab_size, first + start, first + end)]
        pieces, first = [], 0
        for shard in entry["shards"]:
            low, high = max(start - first, 0), min(end - first, shard["rows"])
            if low < high:
                pieces.append(np.load(self.root / shard["file"], mmap_mode="r")[low:high])
            first += shard["rows"]
        return pieces

    def _check(self, shard: dict[str, Any], verify: bool) -> None:
        path = self.root / shard["file"]
        remedy = f"fetch it again, or delete {self.folder} to take it as it is now" if self.finished else REMEDY
        if not path.is_file():
            raise UserError(f"{path} is missing; expected {shard['bytes']} bytes; {remedy}")
        if path.stat().st_size != shard["bytes"]:
            raise UserError(f"{path} has {path.stat().st_size} bytes; expected {shard['bytes']}; {remedy}")
        if verify and self.finished:
            require(hdf5.crc32(path) == shard["crc32"], f"{path} has changed", f"the bytes of crc32 {shard['crc32']}", remedy)
        elif verify:
            _verify_npy(path, (shard["rows"], *self.row_shape), self.dtype, shard["crc32"])


def _verify_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype, crc32: int) -> None:
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of prepared data; UserError where there is none, or not a whole one."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{folder} has no manifest.json; expected a folder of prepared data; run task=prepare") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected a manifest; {REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(f"{path} has format {got}; expected {FORMAT}; {REMEDY}")
    missing = {"spec", "label", "eos_id", "vocab_size", "special", "train", "valid", "tokenizer_sha256"} - manifest.keys()
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}; expected a whole manifest; {REMEDY}")
    return manifest
