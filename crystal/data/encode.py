"""Encode: each input file -> the token ids of its documents, part by part; the pass of `prepare` that does the work.

Of input file k there is then ids.bin: every part's ids one behind the other, EOS behind each document; documents.npy: their
places, tokens and bytes, part by part; and k.json, written last, that says where each part stands. The surprise: which
side a document is on (train or validation) is decided by a hash of its text, so a text that occurs twice is never on both.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal.data.pack import DOCUMENT
from crystal.data.readers import Broken, Document, Reader
from crystal.data.shards import row_dtype
from crystal.data.tokenizer import FIM_PAD, Tokenizer, load_tokenizer
from crystal.errors import UserError, require
from crystal.runlog import write_json

if TYPE_CHECKING:
    from crystal.data.decontaminate import Decontaminator

BATCH_CHARACTERS = 1 << 20
SPOOL_BYTES = 1 << 24  # of a part's ids, in memory
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """Input file `number` of all readers': `name`, of `bytes`, is read by `reader`."""

    number: int
    reader: int
    name: str
    bytes: int


@dataclass(frozen=True)
class Encode:
    """The pass as a step: rank r of n encodes the files r, r + n, ... of those that are not done."""

    readers: Sequence[Reader]
    files: Sequence[InputFile]
    folder: Path  # where the encoded files go
    tokenizer_path: Path
    vocab_size: int
    holdout: float
    on_broken: str
    decontaminator: Decontaminator | None
    contaminated: str
    removed: Path | None  # a file NNNNNN.npy of places to leave out for each input file

    def __call__(self, rank: int, n_tasks: int) -> None:
        for file in self.files[rank::n_tasks]:
            removed = self._removed(file.number)
            made_of = [file.name, file.bytes, zlib.crc32(removed.tobytes())]
            if not EncodedFile(self.folder, file.number).is_made_of(made_of):
                self._encode(file, frozenset(removed.tolist()), made_of)

    def _removed(self, number: int) -> np.ndarray:
        return np.empty(0, np.uint64) if self.removed is None else np.load(self.removed / f"{number:06d}.npy")

    def _encode(self, file: InputFile, removed: frozenset[int], made_of: list[Any]) -> None:
        reader, parts = self.readers[file.reader], _Parts(row_dtype(self.vocab_size))
        n_removed, broken, hits = 0, list[dict[str, str]](), list[dict[str, Any]]()
        for batch in self._batches(reader, file, broken):
            kept = [document for document in batch if document.index not in removed]
            n_removed += len(batch) - len(kept)
            found = self._hits(kept)
            hits += [{"place": d.index, "part": reader.part(d), **asdict(hit)} for d, some in zip(kept, found, strict=True) for hit in some]
            clean = kept if self.contaminated == "report" else [d for d, some in zip(kept, found, strict=True) if not some]
            for document, ids in zip(clean, self._ids(clean), strict=True):
                side = "valid" if is_held_out(document, self.holdout) else "train"
                part = document.source if side == "valid" else reader.part(document)
                parts.add(f"{side}/{part}", document, ids, self._text_bytes(document), self._tokenizer.eos_id, code=reader.code)
        made = {"made_of": made_of, "removed": n_removed, "broken": broken, "hits": hits}
        parts.write(EncodedFile(self.folder, file.number), made)

    def _batches(self, reader: Reader, file: InputFile, broken: list[dict[str, str]]) -> Iterator[list[Document]]:
        """Documents that are not empty, about BATCH_CHARACTERS at a time; what is broken stops here, or is listed."""
        batch: list[Document] = []
        size = 0
        for document in reader.read(file.name):
            if isinstance(document, Broken):
                if self.on_broken == "stop":
                    raise UserError(f"{document.line}, or give data.on_broken=skip")
                broken.append({"where": document.where, "reason": document.line})
                continue
            n = len(document.text) if document.text is not None else len(document.ids)  # type: ignore[arg-type]
            if n:
                batch.append(document)
                size += n
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        yield batch

    def _hits(self, documents: list[Document]) -> list[list[Any]]:
        if self.decontaminator is None:
            return [[] for _ in documents]
        return self.decontaminator.hits([d.text if d.text is not None else self._tokenizer.decode(d.ids) for d in documents])  # type: ignore[arg-type]

    def _ids(self, documents: list[Document]) -> list[np.ndarray]:
        texts = iter(self._tokenizer.encode_batch([d.text for d in documents if d.text is not None]))
        return [next(texts) if d.text is not None else self._checked(d) for d in documents]

    def _checked(self, document: Document) -> np.ndarray:
        """The ids of a document that was tokenized already, without the EOS at its end."""
        ids = document.ids
        assert ids is not None
        low, high = int(ids.min()), int(ids.max())
        got = f"{document.file} document {document.index} holds ids from {low} to {high}"
        remedy = "give the data.tokenizer and data.vocab_size that it was made with"
        require(0 <= low <= high < self.vocab_size, got, f"0 to {self.vocab_size - 1}", remedy)
        ids = ids[:-1] if ids[-1] == self._tokenizer.eos_id else ids
        ends = np.isin(ids, [self._tokenizer.eos_id, self._tokenizer.special[FIM_PAD]])
        got = f"{document.file} document {document.index} has an end of document or padding inside"
        require(not ends.any(), got, "ids of one text", "give the reader the eos_id that ends its documents")
        return ids

    def _text_bytes(self, document: Document) -> int:
        if document.text is not None:
            return len(document.text.encode())
        return int(self._bytes_of_ids[document.ids].sum())

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_path)

    @cached_property
    def _bytes_of_ids(self) -> np.ndarray:
        sizes = np.zeros(self.vocab_size, np.int64)
        sizes[: self._tokenizer.n_ids] = self._tokenizer.text_bytes()
        return sizes

    def __getstate__(self) -> dict[str, Any]:  # a tokenizer is loaded anew in each process
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


@dataclass(frozen=True)
class EncodedFile:
    """What `Encode` wrote of one input file."""

    folder: Path
    number: int

    @property
    def ids_path(self) -> Path:
        return self.folder / f"{self.number:06d}.bin"

    @property
    def documents_path(self) -> Path:
        return self.folder / f"{self.number:06d}.npy"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number:06d}.json"

    def is_made_of(self, made_of: list[Any]) -> bool:
        """Whether it is there, all of it, and made of that."""
        if not self.path.exists() or self.about["made_of"] != made_of:
            return False
        paths = (self.ids_path, self.documents_path)
        return all(path.exists() and path.stat().st_size == size for path, size in zip(paths, self.about["bytes"], strict=True))

    @cached_property
    def about(self) -> dict[str, Any]:
        """Where each part stands ("parts": {"train/..." or "valid/...": {...}}), and what was left out or hit."""
        about: dict[str, Any] = json.loads(self.path.read_bytes())
        return about

    def documents(self, part: str) -> np.ndarray:
        """DOCUMENT (n,) of one part, by place."""
        entry = self.about["parts"][part]
        first = entry["first_document"]
        return np.load(self.documents_path, mmap_mode="r")[first : first + entry["documents"]]

    def ids(self, part: str, dtype: np.dtype) -> np.ndarray:
        """The ids of one part's documents, EOS behind each; memory-mapped."""
        entry = self.about["parts"][part]
        return np.memmap(self.ids_path, dtype, "r", offset=entry["first_id"] * dtype.itemsize, shape=(entry["ids"],))


class _Parts:
    """One file's documents, sorted into parts as they come."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._ids: dict[str, SpooledTemporaryFile[bytes]] = {}
        self._documents: dict[str, list[tuple[int, int, int]]] = {}
        self._code: dict[str, bool] = {}

    def add(self, part: str, document: Document, ids: np.ndarray, n_bytes: int, eos_id: int, *, code: bool) -> None:
        if part not in self._ids:
            self._ids[part] = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115
            self._documents[part], self._code[part] = [], code
        self._ids[part].write(np.append(ids, eos_id).astype(self._dtype).tobytes())
        self._documents[part].append((document.index, len(ids), n_bytes))

    def write(self, to: EncodedFile, more: dict[str, Any]) -> None:
        """Everything under its own name when it is whole, `to.path` last."""
        to.folder.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"parts": {}, **more}
        first_document = first_id = 0
        suffix = f".{os.getpid()}.tmp"
        temporary = [path.with_name(path.name + suffix) for path in (to.ids_path, to.documents_path)]
        tables = []
        with open(temporary[0], "wb") as file:
            for part in sorted(self._ids):
                documents = np.array(self._documents[part], DOCUMENT)
                tables.append(documents)
                n_ids = int(documents["tokens"].sum(dtype=np.int64)) + len(documents)
                about["parts"][part] = {"code": self._code[part], "first_document": first_document, "documents": len(documents)}
                about["parts"][part] |= {"first_id": first_id, "ids": n_ids}
                first_document, first_id = first_document + len(documents), first_id + n_ids
                self._ids[part].seek(0)
                while data := self._ids[part].read(COPY_BYTES):
                    file.write(data)
        with open(temporary[1], "wb") as file:
            np.save(file, np.concatenate([np.empty(0, DOCUMENT), *tables]))
        about["bytes"] = [path.stat().st_size for path in temporary]
        for path, final in zip(temporary, (to.ids_path, to.documents_path), strict=True):
            os.replace(path, final)
        write_json(to.path, about)


def is_held_out(document: Document, holdout: float) -> bool:
    """Whether a document is for validation: the share `holdout` of all texts, by their hash."""
    content = document.text.encode() if document.text is not None else np.asarray(document.ids, "<i4").tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little") < holdout * 2**64
