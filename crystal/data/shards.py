"""Shards: .npy files of rows, written in bounded memory, read as memory maps; `Prepared` is a folder of them.

Beside a part's shards lies its index (`index.py`). manifest.json is written last: its presence says that the folder is complete. The
surprise: it may instead name HDF5 files elsewhere (`adopt.py`), whose rows are finished: ids, loss mask and labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from crystal.config import UserError, require
from crystal.data import hdf5
from crystal.data.fim import FimIds
from crystal.data.index import INDEX, Index, PieceView
from crystal.data.npy import REMEDY, verify_npy
from crystal.machine import open_files

FORMAT = 2
SHARD_ROWS = 65536
OPEN_SHARDS = min(open_files() // 2, 1 << 15)  # of one process: a memory map holds its file open


def row_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows [start, end) of one shard, which is opened when one is asked for: a corpus has more shards than a process may open."""

    path: str
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, row: int) -> np.ndarray:
        found: np.ndarray = _kept_open(self.path)[self.start + row]
        return found


@lru_cache(maxsize=OPEN_SHARDS)
def _kept_open(path: str) -> np.ndarray:
    """As a plain array, for a row of a memmap is a memmap, which takes ten times as long to make."""
    return np.asarray(np.load(path, mmap_mode="r"))


class RowView:
    """Rows of several shards as one sequence: `len(view)`, `view[indices]` -> (n, *row_shape), in the shards' dtype."""

    def __init__(self, pieces: Sequence[ShardRows | hdf5.Hdf5Rows], row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.pieces = list(pieces)
        self._row_shape, self._dtype = row_shape, dtype
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """`indices`: int64 (n,), each in [0, len)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"row indices outside [0, {len(self)})")
        piece_of = np.searchsorted(self._ends, indices, side="right")
        inside = indices - self._starts[piece_of]
        if len(indices) and isinstance(self.pieces[0], ShardRows):  # one by one: few rows of a batch share a shard
            rows = [self.pieces[k][row] for k, row in zip(piece_of.tolist(), inside.tolist(), strict=True)]
            return np.concatenate(rows).reshape(len(rows), *self._row_shape)
        result = np.empty((len(indices), *self._row_shape), self._dtype)
        for k in np.unique(piece_of).tolist():
            here = np.flatnonzero(piece_of == k)
            result[here] = self.pieces[k][inside[here]]
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
        self.files: list[str] = manifest.get("files", [])
        self.train: dict[str, dict[str, Any]] = manifest["train"]
        self.valid: dict[str, dict[str, Any]] = manifest["valid"]

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool) -> Prepared:
        """Check that every shard and index is there with its size, and its crc32 too if `verify`; UserError naming the file."""
        folder = Path(folder)
        prepared = cls(folder, read_manifest(folder))
        entries = (*prepared.train.values(), *prepared.valid.values())  # of finished rows, both sides are in the same files
        for shard in {shard["file"]: shard for entry in entries for shard in entry["shards"]}.values():
            prepared._check(shard, prepared.row_shape, prepared.dtype, verify)
        for entry in entries:
            for key, dtype in INDEX.items() if "index" in entry else ():
                prepared._check(entry["index"][key], (), dtype, verify)
        return prepared

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    def parts(self, pattern: str) -> list[str]:
        """The train parts that a glob selects (`*` also matches `/`), in the manifest's order."""
        return [name for name in self.train if fnmatchcase(name, pattern)]

    def rows(self, pattern: str, part_slice: tuple[float, float] = (0.0, 1.0)) -> RowView:
        """Train rows of the parts that `pattern` selects; of each part the share [start, end) of its rows."""
        pieces: list[ShardRows | hdf5.Hdf5Rows] = []
        for name in self.parts(pattern):
            start, end = (round(share * self.train[name]["rows"]) for share in part_slice)
            pieces += self._pieces(self.train[name], start, end)
        return RowView(pieces, self.row_shape, self.dtype)

    def pieces(self, pattern: str, part_slice: tuple[float, float] = (0.0, 1.0)) -> PieceView:
        """The pieces of the rows that `rows` of the same arguments has; rows that other programs made have none."""
        assert not self.finished, "whose documents nobody knows"
        parts = []
        for name in self.parts(pattern):
            entry = self.train[name]
            start, end = (round(share * entry["rows"]) for share in part_slice)
            parts.append((Index(*(np.load(self.root / entry["index"][key]["file"], mmap_mode="r") for key in INDEX)), start, end))
        return PieceView(parts)

    def valid_rows(self, source: str) -> RowView:
        """All validation rows of one source."""
        entry = self.valid[source]
        return RowView(self._pieces(entry, 0, entry["rows"]), self.row_shape, self.dtype)

    def fingerprint(self) -> str:
        """sha256 over names, sizes and checksums of the train shards and their index: the same rows of the same documents."""
        files = [file for entry in self.train.values() for file in (*entry["shards"], *entry.get("index", {}).values())]
        lines = [f"{file['file']} {file['bytes']} {file['crc32']}" for file in files]
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
                pieces.append(ShardRows(str(self.root / shard["file"]), low, high))
            first += shard["rows"]
        return pieces

    def _check(self, shard: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, verify: bool) -> None:
        path = self.root / shard["file"]
        remedy = f"fetch it again, or delete {self.folder} to take it as it is now" if self.finished else REMEDY
        if not path.is_file():
            raise UserError(f"{path} is missing; expected {shard['bytes']} bytes; {remedy}")
        if path.stat().st_size != shard["bytes"]:
            raise UserError(f"{path} has {path.stat().st_size} bytes; expected {shard['bytes']}; {remedy}")
        if verify and self.finished:
            require(hdf5.crc32(path) == shard["crc32"], f"{path} has changed", f"the bytes of crc32 {shard['crc32']}", remedy)
        elif verify:
            verify_npy(path, (shard["rows"], *shape), dtype, shard["crc32"])


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
