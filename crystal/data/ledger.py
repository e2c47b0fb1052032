"""The ledger: which documents a sample is made of, and which samples a document is in.

Both come from the index of the prepared data and from the order, which is a function and has an inverse; no log of a run is read, so what
is to come is as plain as what was. The surprise: nothing but the document's own pieces is searched for, so 10^9 rows answer as fast as few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crystal.data.fim import FimIds, split_pieces
from crystal.data.loader import Entry, Loader
from crystal.data.shards import Prepared
from crystal.errors import require


@dataclass(frozen=True, slots=True)
class Seen:
    """A piece of a document in a sample, which is counted from its stage's first and is a row of an entry of the mixture.

    `source`: the train part; `place`: the document's line or row in `file`; `start`, `end`: which ids of the document, EOS its last one;
    `fim`: "PSM" or "SPM" where it is permuted; `ids`: those of the piece, not permuted. Rows that other programs made say only where they
    lie: `place` is then the row in the file, or in the corpus layout its first token, and `ids` is all of it.
    """

    sample: int
    entry: str
    epoch: int
    row: int
    source: str
    file: str
    place: int
    start: int | None
    end: int | None
    fim: str | None
    ids: np.ndarray


class Ledger:
    """Asks the order of one stage, as its loader has it."""

    def __init__(self, loader: Loader) -> None:
        self._loader, self._prepared = loader, loader.prepared
        entries = {entry.name: entry for some in (loader.entries, *(change.entries for change in loader.changes)) for entry in some}
        self._streams = [_Stream(loader.prepared, entries[stream.name]) for stream in loader.mixture.streams]

    def seen(self, samples: np.ndarray) -> Iterator[Seen]:
        """The pieces in the samples (n,), in order."""
        located = self._loader.mixture.locate(samples)
        trained = self._loader.read(*located)
        for sample, number, epoch, row, ids in zip(samples.tolist(), *(values.tolist() for values in located), trained, strict=True):
            stream = self._streams[number]
            part, part_row = stream.part_of(row)
            where = sample, stream.entry.name, epoch, row, part
            if self._prepared.finished:
                file, place = file_row(self._prepared, part, part_row)
                yield Seen(*where, file, place, None, None, None, ids[0])
            else:
                yield from self._pieces(where, stream, ids)

    def samples_of(self, file: int, place: int, n_samples: int) -> np.ndarray:
        """Which of the first `n_samples` hold any of the document at `place` of input file `file`; int64, in order."""
        assert not self._prepared.finished, "whose documents nobody knows"
        mixture, found = self._loader.mixture, [np.empty(0, np.int64)]
        counts = mixture.samples(n_samples)
        for number, stream in enumerate(self._streams):
            rows = stream.pieces.rows_of(file, place)
            n_epochs = -(-counts[stream.entry.name] // len(stream.rows))
            epochs = np.repeat(np.arange(n_epochs), len(rows))
            found.append(mixture.index_of(number, epochs, np.tile(rows, n_epochs)))
        samples = np.concatenate(found)
        return np.sort(samples[(samples >= 0) & (samples < n_samples)])

    def _pieces(self, where: tuple[int, str, int, int, str], stream: _Stream, trained: np.ndarray) -> Iterator[Seen]:
        row = np.array([where[3]])
        pieces, _ = stream.pieces[row]
        ids = np.split(stream.rows[row][0], np.cumsum(pieces["length"], dtype=np.int64))[:-1]
        permuted = stream.entry.fim and self._loader.fim_rate > 0
        orders = _orders(trained, ids, self._prepared.fim_ids, self._loader.fim_style) if permuted else [None] * len(ids)
        for (file, place, start, length), mine, order in zip(pieces.tolist(), ids, orders, strict=True):
            yield Seen(*where, self._prepared.files[file], place, start, start + length, order, mine)


class _Stream:
    """The rows of a mixture's entry, and which part each is of."""

    def __init__(self, prepared: Prepared, entry: Entry) -> None:
        self.entry, self.rows = entry, prepared.rows(entry.parts, entry.slice)
        if not prepared.finished:
            self.pieces = prepared.pieces(entry.parts, entry.slice)
        self._parts = prepared.parts(entry.parts)
        bounds = [[round(share * prepared.train[name]["rows"]) for share in entry.slice] for name in self._parts]
        self._starts, ends = np.array(bounds, np.int64).T
        self._ends = np.cumsum(ends - self._starts)

    def part_of(self, row: int) -> tuple[str, int]:
        """The part's name and the row's number in it."""
        k = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[k], row - int(self._ends[k - 1] if k else 0) + int(self._starts[k])


def _orders(trained: np.ndarray, packed: Sequence[np.ndarray], ids: FimIds, style: str) -> list[str | None]:
    """In which order a row that was trained on has each of the pieces that were packed; None: as it was.

    Read off the row, in which every piece but the last ends in EOS. Of CrystalCoder's style an empty piece has vanished, and what did not
    fit any more.
    """
    there = [k for k, piece in enumerate(packed) if style == "lossless" or piece[0] != ids.eos]
    orders: list[str | None] = [None] * len(packed)
    for k, piece in zip(there, split_pieces(trained, ids), strict=style == "lossless"):
        if piece[0] == ids.prefix:
            orders[k] = "SPM" if ids.suffix in piece[1:2] else "PSM"
    return orders


def file_row(prepared: Prepared, part: str, row: int) -> tuple[str, int]:
    """The HDF5 file that a row begins in, and its row there; in the corpus layout its first token."""
    entry = prepared.train[part]
    first = (entry["first_row"] + row) * (prepared.seq_len if entry["corpus"] else 1)
    ends = np.cumsum([shard["length"] for shard in entry["shards"]])
    k = int(np.searchsorted(ends, first, side="right"))
    return entry["shards"][k]["file"], first - int(ends[k]) + entry["shards"][k]["length"]


def document_of(files: Sequence[str], text: str) -> tuple[list[int], int]:
    """FILE:PLACE -> the numbers of the input files of that name and the place. The end of a name will do where only one file has it."""
    name, _, place = text.rpartition(":")
    got, form = f"document={text}", "FILE:PLACE as task=ledger step=N prints it"
    require(bool(name) and place.isdecimal(), got, form, "give the file, a colon and the line or row in it, from 0")
    found = [k for k, file in enumerate(files) if file == name] or [k for k, file in enumerate(files) if file.endswith(f"/{name}")]
    names = sorted({files[k] for k in found})
    such = f"one of {len(files):,}, such as {''.join(files[:1])}"
    require(bool(names), f"{got}, and no input file is {name}", such, "mend it; task=ledger step=N prints names")
    require(len(names) == 1, f"{got}, and {len(names)} files end so", "one", f"give more of the name, as {names[0]}")
    return found, int(place)
