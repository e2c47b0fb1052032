"""HDF5 files as Cerebras' ModelZoo writes them, read row by row where they are.

Two layouts of the dataset `data`. Samples, (N, 3, T): input ids, loss mask, labels (shifted already). Corpus, (n,): token ids, the files
of a part one behind the other; row i is made of the T + 1 ids from i T on, as ModelZoo's reader cuts them, so the last label of a row is
the first input of the next. The surprise: rows hold no file. A cache does, which a fork empties, so rows may be pickled and forked.
"""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crystal.config import UserError, require
from crystal.data.optional import need

OPEN_FILES = 64  # of one process; a file that is opened again costs about as much as two rows
CACHE_BYTES = 1 << 20  # of decompressed chunks, for each of them
READ_BYTES = 1 << 24
AGAIN = "write or fetch the file again"


class Header(NamedTuple):
    """What a file says of itself: length along the first axis, layout, rows that are compressed together (0: not compressed)."""

    length: int
    corpus: bool
    chunk_rows: int


@dataclass(frozen=True)
class Hdf5Rows:
    """The rows [start, end) of one part: `len(rows)`, `rows[indices]` -> int32 (n, 3, T): input ids, loss mask, labels.

    `files` in order, `lengths` along their first axes. Reading raises UserError, naming the file, for ids that are none of `vocab_size`,
    masks other than 0 and 1, and what cannot be decompressed.
    """

    files: tuple[str, ...]
    lengths: tuple[int, ...]
    corpus: bool
    seq_len: int
    vocab_size: int
    start: int
    end: int

    @classmethod
    def of(cls, files: Sequence[Path], *, seq_len: int, vocab_size: int) -> Hdf5Rows:
        """All rows of the files; reads their headers alone."""
        headers = [header(file, seq_len=seq_len) for file in files]
        for file, found in zip(files, headers, strict=True):
            got = f"{file} has data of other dimensions than {files[0].name}"
            require(found.corpus == headers[0].corpus, got, "one layout in a folder", "put them into two folders")
        lengths, corpus = tuple(found.length for found in headers), headers[0].corpus
        n_rows = max(0, sum(lengths) - 1) // seq_len if corpus else sum(lengths)
        return cls(tuple(map(str, files)), lengths, corpus, seq_len, vocab_size, 0, n_rows)

    def cut(self, start: int, end: int) -> Hdf5Rows:
        """The rows [start, end) of these."""
        return replace(self, start=self.start + start, end=self.start + end)

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """`indices`: int64 (n,), each in [0, len)."""
        result, T = np.empty((len(indices), 3, self.seq_len), np.int32), self.seq_len
        for place in np.argsort(indices, kind="stable").tolist():
            row = self.start + int(indices[place])
            if self.corpus:
                ids = self._read(row * T, row * T + T + 1)
                result[place, ::2], result[place, 1] = (ids[:-1], ids[1:]), 1
            else:
                result[place] = self._read(row, row + 1)[0]
        return result

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.lengths))

    def _read(self, start: int, end: int) -> np.ndarray:
        """[start, end) along the first axis of all files, one behind the other."""
        found = []
        while start < end:
            k = bisect_right(self._ends, start)
            first, until = self._ends[k] - self.lengths[k], min(end, self._ends[k])
            found.append(_checked(self.files[k], start - first, until - first, self.vocab_size))
            start = until
        return np.concatenate(found)


def listed(root: Path) -> dict[str, list[Path]]:
    """The files NAME.h5 of every folder at or below `root`, links followed, by the folder's relative path; UserError where there are none.

    Folders and files in alphabetical order, which is ModelZoo's.
    """
    folders = {
        Path(folder).relative_to(root).as_posix(): sorted(Path(folder, name) for name in names if name.endswith(".h5"))
        for folder, _, names in os.walk(root, followlinks=True)
    }
    found = {name: folders[name] for name in sorted(folders) if folders[name]}
    require(bool(found), f"{root} holds no *.h5", "files of HDF5 in it or in folders below it", "give data.root=DIR")
    return found


def header(file: Path, *, seq_len: int) -> Header:
    """Look at one file without reading its rows; UserError where its dataset `data` is not rows of `seq_len` tokens, or integers."""
    data = _opened(str(file))
    shape = data.shape
    remedy = f"give scale.seq_len={shape[2]}" if len(shape) == 3 and shape[1] == 3 else "see docs/data.md for the two layouts"
    whole = f"(rows, 3, {seq_len}): input ids, loss mask, labels; or (tokens,)"
    require(len(shape) == 1 or shape[1:] == (3, seq_len), f"{file} has data of shape {shape}", whole, remedy)
    require(data.dtype.kind in "iu", f"{file} has data of type {data.dtype}", "integers", AGAIN)
    corpus, n_examples = len(shape) == 1, data.file.attrs.get("n_examples", shape[0])
    require(corpus or n_examples == shape[0], f"{file} has n_examples {n_examples} and {shape[0]} rows", "the same number", AGAIN)
    return Header(shape[0], corpus, data.chunks[0] if data.chunks else 0)


def crc32(file: Path) -> int:
    """Of all its bytes, as they are."""
    with open(file, "rb") as opened:
        crc = 0
        while data := opened.read(READ_BYTES):
            crc = zlib.crc32(data, crc)
    return crc


def _opened(file: str) -> Any:
    """The file's `data`; its end closes the file."""
    h5py = need("h5py", extra="mdl")
    try:
        data = h5py.File(file, "r", rdcc_nbytes=CACHE_BYTES).get("data")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error}); expected a whole HDF5 file; {AGAIN}") from error
    require(isinstance(data, h5py.Dataset), f"{file} has no dataset data", "one, of ModelZoo's layout", AGAIN)
    return data


_kept_open = lru_cache(maxsize=OPEN_FILES)(_opened)
if hasattr(os, "register_at_fork"):  # an open file must not be inherited
    os.register_at_fork(before=_kept_open.cache_clear)


def _checked(file: str, first: int, end: int, vocab_size: int) -> np.ndarray:
    try:
        block: np.ndarray = _kept_open(file)[first:end]
    except OSError as error:
        raise UserError(f"{file} cannot be read at row {first} ({error}); expected whole chunks; {AGAIN}") from error
    corpus = block.ndim == 1
    ids = block if corpus else block[:, ::2]
    low, high = int(ids.min()), int(ids.max())
    got = f"{file} holds ids from {low} to {high} at {'token' if corpus else 'row'} {first}"
    made_with = "give the data.vocab_size and data.tokenizer that it was made with"
    require(0 <= low <= high < vocab_size, got, f"0 to {vocab_size - 1}", made_with)
    good = corpus or 0 <= int(block[:, 1].min()) <= int(block[:, 1].max()) <= 1
    got = f"{file} has a loss mask at row {first} that is not only 0 and 1"
    require(good, got, "input ids, loss mask, labels in that order", AGAIN)
    return block
