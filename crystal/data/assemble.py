"""Assemble: encoded files -> the index and the shards of each part.

First every part is planned, from documents' lengths alone; then every shard is filled, each by itself, in any order. The surprise: what
makes a row is decided by the order of the input files and nothing else, so the bytes are the same whoever does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crystal.data.encode import EncodedFile
from crystal.data.index import INDEX, Index, IndexWriter
from crystal.data.npy import NpyWriter
from crystal.data.pack import Plan, packer
from crystal.data.shards import SHARD_ROWS, row_dtype
from crystal.data.tokenizer import load_tokenizer
from crystal.runlog import read_json, write_json

BLOCK_ROWS = 1024
OPEN_FILES = 256  # of the encoded ones: best_fit takes documents of many into a row


@dataclass(frozen=True)
class Layout:
    """What all of `data.out` shares, and where its pieces lie until it is whole."""

    encoded: Path
    out: Path
    width: int
    vocab_size: int
    packing: str
    valid_rows: int
    pad_id: int
    tokenizer_path: Path

    @property
    def dtype(self) -> np.dtype:
        return row_dtype(self.vocab_size)

    def entry_path(self, part: str) -> Path:
        """What is known of a part: its entry in the manifest, but for the shards."""
        return self.encoded.parent / "parts" / f"{part}.json"

    def shard_path(self, part: str, number: int) -> Path:
        return self.encoded.parent / "shards" / part / f"{number:05d}.json"

    def index(self, part: str) -> Index:
        return Index(*(np.load(self.out / part / f"{name}.npy", mmap_mode="r") for name in INDEX))


class Part(NamedTuple):
    """Whether its rows have room for FIM, and the input files that hold documents of it, in order."""

    room: bool
    files: tuple[int, ...]


@dataclass(frozen=True)
class PlanParts:
    """A step: rank r of n plans the parts r, r + n, ... that are not planned."""

    layout: Layout
    parts: dict[str, Part]

    def __call__(self, rank: int, n_tasks: int) -> None:
        for part in list(self.parts)[rank::n_tasks]:
            if not self.layout.entry_path(part).exists():
                self._plan(part, *self.parts[part])

    def _plan(self, part: str, room: bool, files: tuple[int, ...]) -> None:
        made, train = self.layout, part.startswith("train/")
        packing, writer = packer(made.packing, made.width, fim_room=room), IndexWriter(made.out / part)
        counts = {"documents": 0, "tokens": 0, "text_bytes": 0}
        for number in files:
            if not train and writer.n_rows >= made.valid_rows:
                break
            documents = EncodedFile(made.encoded, number).documents(part)
            counts["documents"] += len(documents)
            counts["tokens"] += int(documents["tokens"].sum(dtype=np.int64)) + len(documents)
            counts["text_bytes"] += int(documents["bytes"].sum(dtype=np.int64))
            writer.append(self._limited(packing.add(number, documents), writer.n_rows, train))
        if room or made.packing == "best_fit" or not train:  # the unfinished row of a long stream is not worth its padding
            writer.append(self._limited(packing.finish(), writer.n_rows, train))
        index = {name: {"file": f"{part}/{name}.npy", **entry} for name, entry in writer.close().items()}
        pieces = made.index(part).pieces
        stored = int(pieces["length"].sum(dtype=np.int64))
        counts |= {"dropped_tokens": counts["tokens"] - stored, "tokens": stored} if train else self._stored(part, pieces)
        write_json(made.entry_path(part), counts | {"rows": writer.n_rows, "fim_room": room, "index": index})

    def _limited(self, plan: Plan, n_rows: int, train: bool) -> Plan:
        """Of the validation side, only the first rows are kept."""
        counts = plan.counts if train else plan.counts[: max(0, self.layout.valid_rows - n_rows)]
        return Plan(plan.pieces[: int(counts.sum())], counts)

    def _stored(self, part: str, pieces: np.ndarray) -> dict[str, int]:
        """Documents, tokens and bytes of text in the pieces; of a document that is not all there, those of what is."""
        documents = n_bytes = 0
        tokenizer = _tokenizer(self.layout.tokenizer_path)
        for file, place in np.unique(pieces[["file", "place"]]).tolist():
            mine = pieces[(pieces["file"] == file) & (pieces["place"] == place)]
            ids, document = _ids(self.layout, part, mine), _document(self.layout, part, file, place)
            whole = len(ids) == document["tokens"] + 1
            documents += 1
            n_bytes += int(document["bytes"]) if whole else len(tokenizer.decode(ids).encode())
        return {"documents": documents, "tokens": int(pieces["length"].sum()), "text_bytes": n_bytes, "dropped_tokens": 0}


@dataclass(frozen=True)
class FillShards:
    """A step: rank r of n writes the shards r, r + n, ... of all parts', but for those that are there."""

    layout: Layout
    rows: dict[str, int]  # of each part

    def shards(self) -> list[tuple[str, int]]:
        """Part and number of each."""
        return [(part, number) for part, n_rows in self.rows.items() for number in range(-(-n_rows // SHARD_ROWS))]

    def __call__(self, rank: int, n_tasks: int) -> None:
        for part, number in self.shards()[rank::n_tasks]:
            about = read_json(self.layout.shard_path(part, number), {})
            path = self.layout.out / about.get("file", "")
            if not about or not path.is_file() or path.stat().st_size != about["bytes"]:
                self._fill(part, number)

    def _fill(self, part: str, number: int) -> None:
        made = self.layout
        name, index = f"{part}/{number:05d}.npy", made.index(part)
        writer = NpyWriter(made.out / name, (made.width,), made.dtype)
        end = min((number + 1) * SHARD_ROWS, self.rows[part])
        for first in range(number * SHARD_ROWS, end, BLOCK_ROWS):
            bounds = np.array(index.row_pieces[first : min(first + BLOCK_ROWS, end) + 1])
            pieces = np.array(index.pieces[bounds[0] : bounds[-1]])
            ids = _ids(made, part, pieces)
            lengths = np.add.reduceat(pieces["length"].astype(np.int64), bounds[:-1] - bounds[0])
            rows = np.full((len(lengths), made.width), made.pad_id, made.dtype)
            rows[np.arange(made.width) < lengths[:, None]] = ids
            writer.append(rows)
        write_json(made.shard_path(part, number), {"file": name, **writer.close()})


_tokenizer = lru_cache(maxsize=1)(load_tokenizer)


@lru_cache(maxsize=OPEN_FILES)
def _opened(layout: Layout, part: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A part of an encoded file: DOCUMENT (n,), where each document begins, and the ids."""
    file = EncodedFile(layout.encoded, number)
    documents = np.array(file.documents(part))
    ends = np.cumsum(documents["tokens"].astype(np.int64) + 1)
    return documents, ends - documents["tokens"] - 1, file.ids(part, layout.dtype)


def _document(layout: Layout, part: str, file: int, place: int) -> np.void:
    documents, _, _ = _opened(layout, part, file)
    found: np.void = documents[np.searchsorted(documents["place"], place)]
    return found


def _ids(layout: Layout, part: str, pieces: np.ndarray) -> np.ndarray:
    """The ids of pieces, one behind the other; pieces that lie so in a file are copied at once."""
    found = [np.empty(0, layout.dtype)]
    for run in np.split(pieces, np.flatnonzero(np.diff(pieces["file"].astype(np.int64))) + 1) if len(pieces) else []:
        documents, begins, ids = _opened(layout, part, int(run["file"][0]))
        first = begins[np.searchsorted(documents["place"], run["place"])] + run["start"]
        end = first + run["length"]
        breaks = np.flatnonzero(first[1:] != end[:-1]) + 1
        found += [ids[a:b] for a, b in zip(first[np.r_[0, breaks]], end[np.r_[breaks - 1, len(run) - 1]], strict=True)]
    return np.concatenate(found)
