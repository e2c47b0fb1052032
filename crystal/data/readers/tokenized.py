"""Corpora that are token ids already: Megatron-LM's indexed datasets, and plain arrays of ids.

The surprise: nothing here knows a tokenizer. Megatron's documents are given as they are, with the EOS that `--append-eod` put at their
ends; those of an array, which the EOS alone tells apart, without it. Whether the ids are those of a vocabulary is for who has one to see.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from crystal.config import UserError, require
from crystal.data.readers.document import Broken, Document, check_source
from crystal.data.readers.files import Files, one_line

READ_BYTES = 1 << 22
DOCUMENT_IDS = 1 << 28  # more than the ids of any document: where there are so many without an EOS, the EOS is another
CHECK = "check the reader's path, or fetch the file again"
ALL = "expected all of its ids; fetch the file again"

# NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py: _INDEX_HEADER, version, dtype code, counts; DType (4 of whose 8 are no ids)
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
INDEXED_DOCUMENTS = 1 << 16  # whose index is read at once


@dataclass(frozen=True)
class Megatron:
    """Megatron-LM's indexed datasets, `<name>.bin` of ids beside `<name>.idx`; one part."""

    path: str
    source: str
    code: bool = False

    def __post_init__(self) -> None:
        check_source(self.source)

    def identity(self) -> dict[str, Any]:
        return {"class": "Megatron", **asdict(self), "files": self._sizes()}

    def files(self) -> list[str]:
        return list(self._sizes())

    def read(self, file: str) -> Iterator[Document | Broken]:
        index_file = file[:-3] + "idx"
        with self._files.opened(index_file) as index, self._files.opened(file) as tokens:
            dtype, lengths = _indexed(index, _size(tokens), self._files.name(index_file))
            for number, length in enumerate(lengths):
                data = tokens.read(length * dtype.itemsize)
                if len(data) < length * dtype.itemsize:
                    what = f"ends in document {number}, before what its .idx lists"
                    yield self._files.broken(file, f"document {number}", what, ALL)
                    return
                yield Document(None, self.source, file, number, _ids(data, dtype))

    def part(self, document: Document) -> str:
        return document.source

    def _sizes(self) -> dict[str, int]:
        """Bytes of each .bin, those of its .idx included."""
        sizes = self._files.sizes()
        for name in sizes:
            other = name[:-3] + {"bin": "idx", "idx": "bin"}[name[-3:]]
            require(other in sizes, f"{self._files.name(name)} is alone", f"{other} beside it", "fetch that too, or remove this one")
        return {name: size + sizes[name[:-3] + "idx"] for name, size in sizes.items() if name.endswith(".bin")}

    @property
    def _files(self) -> Files:
        return Files(self.path, "**/*.bin|**/*.idx")


@dataclass(frozen=True)
class TokenArray:
    """Files of uint16 or uint32 ids in one dimension, each document with `eos_id` behind it; one part.

    dtype: null for `**/*.npy`, which say it themselves; "uint16" or "uint32" for `**/*.bin` of nothing but ids, as nanoGPT has them.
    """

    path: str
    source: str
    eos_id: int = 2
    dtype: str | None = None
    code: bool = False

    def __post_init__(self) -> None:
        check_source(self.source)
        known = self.dtype in (None, "uint16", "uint32")
        require(known, f"a reader's dtype={self.dtype}", "null for .npy, uint16 or uint32 for .bin", "mend it")
        require(self.eos_id >= 0, f"a reader's eos_id={self.eos_id}", "an id of 0 or more", "give the id that is behind each document")

    def identity(self) -> dict[str, Any]:
        return {"class": "TokenArray", **asdict(self), "files": self._files.sizes()}

    def files(self) -> list[str]:
        return list(self._files.sizes())

    def read(self, file: str) -> Iterator[Document | Broken]:
        number = 0
        begun: list[np.ndarray] = []  # of a document, what earlier pieces of the file hold
        with self._files.opened(file) as handle:
            dtype, n_bytes = self._layout(handle, self._files.name(file))
            while n_bytes and (data := handle.read(min(n_bytes, READ_BYTES))):
                n_bytes -= len(data)
                ids = _ids(data[: len(data) - len(data) % dtype.itemsize], dtype)
                start = 0
                for end in np.flatnonzero(ids == self.eos_id).tolist():
                    yield Document(None, self.source, file, number, np.concatenate([*begun, ids[start:end]]))
                    number, begun, start = number + 1, [], end + 1
                begun.append(ids[start:])
                got = f"{self._files.name(file)} has more than {DOCUMENT_IDS} ids without eos_id={self.eos_id} among them"
                require(sum(map(len, begun)) <= DOCUMENT_IDS, got, "it behind each document", "give the reader's eos_id")
        if n_bytes:
            yield self._files.broken(file, f"document {number}", f"ends in document {number}, {n_bytes} bytes too early", ALL)
        elif any(map(len, begun)):
            yield Document(None, self.source, file, number, np.concatenate(begun))

    def part(self, document: Document) -> str:
        return document.source

    @property
    def _files(self) -> Files:
        return Files(self.path, "**/*.bin" if self.dtype else "**/*.npy")

    def _layout(self, handle: IO[bytes], name: str) -> tuple[np.dtype, int]:
        """Type and bytes of the ids that begin where `handle` is left."""
        if self.dtype:
            dtype = np.dtype(self.dtype).newbyteorder("<")
            return dtype, -(-_size(handle) // dtype.itemsize) * dtype.itemsize
        try:
            header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(handle)]
            shape, _, dtype = header(handle)
        except (ValueError, KeyError) as error:
            raise UserError(f"{name} is not an .npy file ({one_line(error)}); expected one; fetch or write it again") from error
        good = len(shape) == 1 and dtype.kind == "u" and dtype.itemsize in (2, 4)
        require(good, f"{name} has {dtype} in the shape {shape}", "uint16 or uint32 in one dimension", "write its ids so")
        return dtype, shape[0] * dtype.itemsize


def _ids(data: bytes, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)


def _size(handle: IO[bytes]) -> int:
    """Bytes of a file that is at its beginning, and stays there."""
    n_bytes = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    return n_bytes


def _indexed(index: IO[bytes], bin_bytes: int, name: str) -> tuple[np.dtype, Iterator[int]]:
    """The ids' type and the number of them in each document; UserError where an index is damaged, or that of other ids."""
    n_bytes, header = _size(index), index.read(HEADER.size)
    require(len(header) == HEADER.size and header.startswith(MAGIC), f"{name} is no index of Megatron-LM", repr(MAGIC), CHECK)
    _, version, code, n_sequences, n_ends = HEADER.unpack(header)
    require(version == 1, f"{name} has version {version}", "1, the only one", CHECK)
    require(code in DTYPES, f"{name} has ids of the type {code}", f"one of {', '.join(map(str, DTYPES))}", CHECK)
    dtype, tables = np.dtype(DTYPES[code]), HEADER.size + 12 * n_sequences + 8 * n_ends
    whole = n_ends > 0 and n_bytes in (tables, tables + n_sequences)  # of images and text, each sequence has a byte that says which
    require(whole, f"{name} has {n_bytes} bytes", f"the {tables} that its header speaks of", "fetch it again")
    listed = 0
    if n_sequences:
        last = HEADER.size + 4 * n_sequences
        listed = int(_table(index, "<i8", last + 8 * (n_sequences - 1), 1)[0])
        listed += int(_table(index, "<i4", last - 4, 1)[0]) * dtype.itemsize
    require(listed >= bin_bytes, f"{name} lists {listed} bytes of ids", f"the {bin_bytes} of its .bin", "fetch both again")
    return dtype, _lengths(index, n_sequences, n_ends - 1, dtype.itemsize, name)


def _lengths(index: IO[bytes], n_sequences: int, n_documents: int, itemsize: int, name: str) -> Iterator[int]:
    """Ids in each document: those of its sequences, which are checked to lie one behind the other."""
    pointers_at = HEADER.size + 4 * n_sequences
    sequence = n_bytes = 0
    for first in range(0, n_documents, INDEXED_DOCUMENTS):
        ends = _table(index, "<i8", pointers_at + 8 * (n_sequences + first), min(INDEXED_DOCUMENTS, n_documents - first) + 1)
        good = ends[0] == sequence and ends[-1] <= n_sequences and bool((np.diff(ends) >= 0).all())
        require(good, f"{name} has documents that overlap or go too far", f"sequences up to {n_sequences} in order", "fetch it again")
        sequence, n_here = int(ends[-1]), int(ends[-1] - ends[0])
        lengths = _table(index, "<i4", HEADER.size + 4 * int(ends[0]), n_here).astype(np.int64)
        begins = np.concatenate(([0], np.cumsum(lengths)))
        good = np.array_equal(_table(index, "<i8", pointers_at + 8 * int(ends[0]), n_here), n_bytes + begins[:-1] * itemsize)
        require(good and bool((lengths >= 0).all()), f"{name} contradicts itself", "sequences one behind the other", "fetch it again")
        n_bytes += int(begins[-1]) * itemsize
        yield from np.diff(begins[ends - ends[0]]).tolist()


def _table(handle: IO[bytes], dtype: str, offset: int, count: int) -> np.ndarray:
    handle.seek(offset)
    return np.frombuffer(handle.read(count * np.dtype(dtype).itemsize), dtype)
