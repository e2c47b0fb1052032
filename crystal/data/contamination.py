"""Contamination: prepared rows -> the problems of benchmarks in the documents that they are made of.

Documents are put together again from their pieces, wherever packing has cut them and put the parts. The surprise: a stretch of rows looks
beyond its ends, at the rows that may hold more of its documents; a document belongs to the stretch that holds its first piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crystal.data.fim import unpermute_row
from crystal.data.index import INDEX, Index
from crystal.data.ledger import file_row
from crystal.data.loader import Entry
from crystal.data.shards import Prepared
from crystal.data.tokenizer import load_tokenizer
from crystal.runlog import write_json

if TYPE_CHECKING:
    from crystal.data.decontaminate import Decontaminator

STRETCH_TOKENS = 1 << 26  # for one item of work
BATCH_TOKENS = 1 << 20  # in memory as text at once


class Stretch(NamedTuple):
    """The rows [first, end) of a train part, of which [low, high) are trained on."""

    part: str
    first: int
    end: int
    low: int
    high: int


class Found(NamedTuple):
    """A document, or what a row holds of it: its file, its place there and its ids."""

    file: str
    place: int
    ids: np.ndarray


def stretches(prepared: Prepared, entries: Sequence[Entry]) -> list[Stretch]:
    """What some entries of mixtures train on, each row once, cut into pieces of work."""
    slices = {name: [entry.slice for entry in entries if name in prepared.parts(entry.parts)] for name in prepared.train}
    n_rows, found = max(1, STRETCH_TOKENS // prepared.seq_len), []
    for part, wanted in slices.items():
        for low, high in _merged([(round(a * prepared.train[part]["rows"]), round(b * prepared.train[part]["rows"])) for a, b in wanted]):
            found += [Stretch(part, first, min(first + n_rows, high), low, high) for first in range(low, high, n_rows)]
    return found


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


@dataclass(frozen=True)
class Check:
    """A step: rank r of n looks through the stretches r, r + n, ... that have no file yet in `folder`.

    Of stretch k, k.json: {"documents": how many, "hits": [{"file", "place", "part", "problem", "kind", "where"}]}.
    """

    data: Path
    stretches: list[Stretch]
    decontaminator: Decontaminator
    folder: Path

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def __call__(self, rank: int, n_tasks: int) -> None:
        todo = [number for number in range(rank, len(self.stretches), n_tasks) if not self.path(number).exists()]
        prepared = Prepared.open(self.data, verify=False) if todo else None
        for number in todo:
            assert prepared is not None
            write_json(self.path(number), self._looked_through(prepared, self.stretches[number]))

    def _looked_through(self, prepared: Prepared, stretch: Stretch) -> dict[str, Any]:
        tokenizer, n_documents, hits = load_tokenizer(prepared.tokenizer_path), 0, []
        for batch in documents_of(prepared, stretch):
            n_documents += len(batch)
            for document, found in zip(batch, self.decontaminator.hits([tokenizer.decode(d.ids) for d in batch]), strict=True):
                hits += [{"file": document.file, "place": document.place, "part": stretch.part, **asdict(hit)} for hit in found]
        return {"documents": n_documents, "hits": hits}


def documents_of(prepared: Prepared, stretch: Stretch) -> Iterator[list[Found]]:
    """The documents whose first piece is in the stretch, about BATCH_TOKENS at once; of finished rows what stands between EOS ids."""
    if prepared.finished:
        yield from _between_eos(prepared, stretch)
        return
    rows, files = prepared.rows(stretch.part), prepared.train[stretch.part]["index"]
    index = Index(*(np.load(prepared.root / files[key]["file"], mmap_mode="r") for key in INDEX))
    pieces, row_of, offsets, firsts = _whole(index, stretch)
    sizes = np.add.reduceat(pieces["length"].astype(np.int64), firsts) if len(firsts) else np.empty(0, np.int64)
    batches = np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH_TOKENS)) + 1
    ends = np.append(firsts, len(pieces))
    for documents in np.split(np.arange(len(firsts)), batches):
        some = slice(ends[documents[0]], ends[documents[-1] + 1]) if len(documents) else slice(0, 0)
        there, which = np.unique(row_of[some], return_inverse=True)
        lengths = pieces["length"][some].astype(np.int64)
        begins = which * prepared.row_shape[0] + offsets[some] - np.cumsum(lengths) + lengths
        ids = rows[there].ravel()[np.repeat(begins, lengths) + np.arange(int(lengths.sum()))]
        heads = pieces[firsts[documents]]
        texts = np.split(ids, np.cumsum(sizes[documents]))[:-1]
        yield [Found(prepared.files[head["file"]], int(head["place"]), text) for head, text in zip(heads, texts, strict=True)]


def _whole(index: Index, stretch: Stretch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of the stretch's documents, by document and in its order: the pieces, their rows, where they begin there; first ones."""
    first, end = _window(index, stretch)
    bounds = np.array(index.row_pieces[first : end + 1])
    pieces = np.array(index.pieces[bounds[0] : bounds[-1]])
    row_of = np.repeat(np.arange(first, end), np.diff(bounds))
    offsets = np.cumsum(pieces["length"], dtype=np.int64) - pieces["length"]
    offsets -= np.repeat(offsets[bounds[:-1] - bounds[0]], np.diff(bounds))
    order = np.lexsort((pieces["start"], pieces["place"], pieces["file"]))
    pieces, row_of, offsets = pieces[order], row_of[order], offsets[order]
    head = np.append(True, pieces[["file", "place"]][1:] != pieces[["file", "place"]][:-1])
    mine = (row_of >= stretch.first) & (row_of < stretch.end)
    kept = np.repeat(mine[head], np.diff(np.append(np.flatnonzero(head), len(head))))
    return pieces[kept], row_of[kept], offsets[kept], np.flatnonzero(head[kept])


def _window(index: Index, stretch: Stretch) -> tuple[int, int]:
    """The rows, as far as they are trained on, that hold the stretch and all fences with documents like its own."""
    begin, end = index.row_pieces[stretch.first], index.row_pieces[stretch.end]
    pieces, fences = index.pieces[begin:end], index.fences
    documents = np.sort(pieces[["file", "place"]], order=("file", "place"))
    low, high = documents[0].tolist(), documents[-1].tolist()
    lows, highs = fences[["low_file", "low_place"]].tolist(), fences[["high_file", "high_place"]].tolist()
    near = [k for k, (one, other) in enumerate(zip(lows, highs, strict=True)) if one <= high and other >= low]
    ends = np.append(fences["row"][1:] + 1, len(index.row_pieces) - 1)
    first = min(stretch.first, int(fences["row"][near[0]]))
    return max(first, stretch.low), min(max(stretch.end, int(ends[near[-1]])), stretch.high)


def _between_eos(prepared: Prepared, stretch: Stretch) -> Iterator[list[Found]]:
    """Rows of the corpus layout go on in the next one, so each batch looks one row further; others stand for themselves."""
    rows, corpus, ids = prepared.rows(stretch.part), prepared.train[stretch.part]["corpus"], prepared.fim_ids
    n_rows = max(1, BATCH_TOKENS // prepared.seq_len)
    for first in range(stretch.first, stretch.end, n_rows):
        end = min(first + n_rows, stretch.end)
        block = rows[np.arange(first, min(end + corpus, stretch.high))]
        runs = [block[:, 0].ravel()] if corpus else [np.append(row[0], row[2, -1]) for row in block]
        found = []
        for number, run in enumerate(runs):
            at = 0
            for piece in np.split(run, np.flatnonzero(run == ids.eos) + 1):
                row = first + (at // prepared.seq_len if corpus else number)
                if row < end and (piece != ids.pad).any():
                    whole = np.append(piece, ids.eos)  # or its middle could not be told from what is cut off
                    found.append(Found(*file_row(prepared, stretch.part, row), unpermute_row(whole, [len(whole)], ids)))
                at += len(piece)
        yield found
