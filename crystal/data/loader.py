"""The loader: global sample index -> batch, a pure function of prepared data, mixture entries and seed.

Its whole state is one integer, `samples_seen`. The surprise: even FIM's draws are a function, of the seed, the epoch and the place of a
piece in its document, so a batch is the same from any starting point and on any number of ranks, and a document is permuted the same way
in whichever row, mixture or stage it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from crystal.config import UserError, require
from crystal.data.fim import draws_of, permute_rows, words_of
from crystal.data.mixture import Mixture, Stream, check_weights
from crystal.data.permute import key_of
from crystal.data.prefetch import prefetched
from crystal.data.shards import Prepared, RowView

ORDER = 2  # of the samples and FIM's draws; another number where either changes for the same seed
AHEAD = 8192  # samples that are located at once
GROUP_ROWS = 256  # of small batches so many rows are read and handed over at once


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a stage's mixture: the share `slice` of the rows of each train part that the glob `parts` selects."""

    name: str
    parts: str
    weight: float
    fim: bool = False
    slice: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Change:
    """From the global sample `first_sample` on, the mixture is `entries`. A name that occurs before stands for the same rows."""

    first_sample: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """inputs_BT, labels_BT: int64; mask_BT: float32, 0 where the label does not count, such as padding; not to be written to.

    documents_BT: int32, of which of its row's documents each input is: the number of EOS ids among the inputs before it.
    """

    inputs_BT: np.ndarray
    labels_BT: np.ndarray
    mask_BT: np.ndarray
    documents_BT: np.ndarray | None = None


def to_batch(rows: np.ndarray, pad_id: int) -> Batch:
    """Rows (B, T + 1) -> inputs, labels shifted by one, mask; rows (B, 3, T) are inputs, mask, labels already."""
    if rows.ndim == 3:
        return Batch(rows[:, 0].astype(np.int64), rows[:, 2].astype(np.int64), rows[:, 1].astype(np.float32))
    # Padding is at a row's end, so most batches show at a glance that they have none. Contiguous, for engines would have to copy views.
    padded = pad_id in rows[:, -1].tolist()
    mask = (rows[:, 1:] != pad_id).astype(np.float32) if padded else _ones(len(rows), rows.shape[1] - 1)
    return Batch(rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64), mask)


@lru_cache(maxsize=4)
def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def documents_of(inputs: np.ndarray, eos_id: int) -> np.ndarray:
    """Of which of its row's documents each input (B, T) is, int32: the number of EOS ids before it."""
    ends = inputs == eos_id
    return np.cumsum(ends, axis=1, dtype=np.int32) - ends


def resolve_entries(
    entries: Sequence[Entry], prepared: Prepared, *, empty_source: str = "error", fim_style: str = "lossless"
) -> tuple[list[Entry], list[str]]:
    """Entries that have rows, and the names of those without, whose weight went to the others in proportion.

    On rows that the files hold finished, FIM is done: there an entry's `fim` becomes false. UserError for bad weights, doubled names,
    a bad slice, FIM on rows not packed for its style or finished without it, and, with "error", an entry without rows.
    """
    if len({entry.name for entry in entries}) < len(entries):
        raise UserError(f"the mixture's names are {', '.join(e.name for e in entries)}; expected each once; rename an entry")
    check_weights({entry.name: entry.weight for entry in entries})
    for entry in entries:
        _check_entry(entry, prepared, fim_style)
    entries = [replace(entry, fim=entry.fim and not prepared.finished) for entry in entries]
    full = [entry for entry in entries if len(prepared.rows(entry.parts, entry.slice))]
    empty = [entry for entry in entries if entry not in full]
    if empty and (empty_source == "error" or not full):
        entry = empty[0]
        raise UserError(
            f"the mixture entry {entry.name} (parts {entry.parts}, slice {list(entry.slice)}) has no rows in "
            f"{prepared.folder}; expected some of: {', '.join(prepared.train) or 'none'}; "
            "mend the entry, add data, or set data.empty_source=redistribute"
        )
    scale = sum(entry.weight for entry in entries) / sum(entry.weight for entry in full)
    return [replace(entry, weight=entry.weight * scale) for entry in full], [entry.name for entry in empty]


def _check_entry(entry: Entry, prepared: Prepared, fim_style: str) -> None:
    start, end = entry.slice
    if not 0 <= start < end <= 1:
        raise UserError(f"the slice of {entry.name} is {list(entry.slice)}; expected 0 <= start < end <= 1; mend it")
    for part in prepared.parts(entry.parts) if entry.fim else ():
        got, made = f"the entry {entry.name} has fim: true, but", prepared.train[part]
        if prepared.finished:
            require(
                made["fim_rows"] > 0,
                f"{got} no row of {part} holds <fim_prefix>, and rows of HDF5 files are taken as they are",
                "files with fill-in-the-middle in them",
                "write them so, or set fim: false",
            )
        elif fim_style == "lossless":
            remedy = "set fim: false, narrow its parts, or prepare code with data.fim_room=true into another data.out"
            require(made["fim_room"], f"{got} {part} is packed without room for it", "code, packed with room", remedy)
        else:
            remedy = "prepare with data.fim_room=false into another data.out, or set fim.style=lossless"
            require(not made["fim_room"], f"{got} {part} is packed with room", f"full rows, for fim.style={fim_style}", remedy)


class Loader:
    """Batches of one stage. `entries`, and those of `changes`, as `resolve_entries` returns them; `batch_rows` counts all ranks.

    documents: whether batches have `documents_BT`.
    """

    def __init__(
        self, prepared: Prepared, entries: Sequence[Entry], *, seed: int, batch_rows: int, changes: Sequence[Change] = (),
        fim_rate: float = 0.0, spm_rate: float = 0.5, fim_style: str = "lossless", documents: bool = False, rank: int = 0, n_ranks: int = 1,
    ) -> None:  # fmt: skip
        got = f"a batch of {batch_rows} rows on {n_ranks} ranks"
        require(batch_rows >= n_ranks, got, "at least a row on each rank", "raise scale.batch_rows")
        if not (0 <= fim_rate <= 1 and 0 <= spm_rate <= 1):
            raise UserError(f"FIM rates {fim_rate} and {spm_rate}; expected both in [0, 1]; mend the stage's fim")
        self.prepared, self.entries, self.changes, self.seed = prepared, tuple(entries), tuple(changes), seed
        self.batch_rows, self.rank, self.n_ranks, self.documents = batch_rows, rank, n_ranks, documents
        self.fim_rate, self.spm_rate, self.fim_style = fim_rate, spm_rate, fim_style
        mixtures = [self.entries, *(change.entries for change in changes)]
        by_name = dict[str, Entry]()  # numbered as the mixture's streams
        for entry in (entry for some in mixtures for entry in some):
            same = by_name.setdefault(entry.name, entry)
            assert replace(entry, weight=same.weight) == same, "a name stands for the same rows"
        views = {entry.name: prepared.rows(entry.parts, entry.slice) for entry in by_name.values()}
        first, *later = [[Stream(entry.name, len(views[entry.name]), entry.weight) for entry in some] for some in mixtures]
        self.mixture = Mixture(first, seed=seed, changes=[(c.first_sample, some) for c, some in zip(changes, later, strict=True)])
        # All streams' rows, one stream behind the other, are read in one go.
        self._rows = RowView([piece for view in views.values() for piece in view.pieces], prepared.row_shape, prepared.dtype)
        self._firsts = np.cumsum([0, *map(len, views.values())])[:-1]
        with_fim = [(k, entry) for k, entry in enumerate(by_name.values()) if entry.fim and fim_rate > 0]
        self._pieces = {k: prepared.pieces(entry.parts, entry.slice) for k, entry in with_fim}
        self._fim_key, self._crystalcoder = key_of("fim", seed), None
        self._files = np.array([key_of(name) for name in prepared.files] if self._pieces else [], np.uint64)
        if fim_style == "crystalcoder" and self._pieces:
            from crystal.data.fim_crystalcoder import CrystalCoderFim

            self._crystalcoder = CrystalCoderFim(prepared.tokenizer_path, prepared.fim_ids, rate=fim_rate, spm_rate=spm_rate)

    def identity(self) -> dict[str, Any]:
        """What decides the row of every sample index; JSON."""
        return {
            "prepared": self.prepared.fingerprint(),
            "order": ORDER,
            "entries": _listed(self.entries),
            "changes": [{"first_sample": change.first_sample, "entries": _listed(change.entries)} for change in self.changes],
            "seed": self.seed,
            "fim_rate": self.fim_rate,
            "spm_rate": self.spm_rate,
            "fim_style": self.fim_style,
        }

    def fingerprint(self) -> str:
        """sha256 of `identity()`; the batch size and the ranks are not in it."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def rows(self, first_sample: int, n_rows: int) -> np.ndarray:
        """Rows of the samples [first_sample, first_sample + n_rows), FIM applied: (n_rows, *prepared.row_shape)."""
        return self.read(*self.mixture.locate(np.arange(first_sample, first_sample + n_rows, dtype=np.int64)))

    def read(self, streams: np.ndarray, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The rows (n, *prepared.row_shape) of located samples, FIM applied; int64 (n,) each, as `mixture.locate` gives them."""
        result = self._rows[self._firsts[streams] + rows]
        permuted: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # where, the pieces there, how many a row
        for k, view in self._pieces.items():
            here = np.flatnonzero(streams == k)
            if len(here):
                permuted.append((here, *view[rows[here]]))
        if permuted:
            here, pieces, counts = (np.concatenate(column) for column in zip(*permuted, strict=True))
            result[here] = self._permute(result[here], epochs[here], pieces, counts)
        return result

    def _permute(self, rows: np.ndarray, epochs: np.ndarray, pieces: np.ndarray, counts: np.ndarray) -> np.ndarray:
        words = words_of(pieces, key=self._fim_key, epochs=np.repeat(epochs, counts), files=self._files)
        if self._crystalcoder is not None:
            keys = words[np.cumsum(counts) - counts].tolist()  # a row's draws are those of its first piece
            permuted = [self._crystalcoder(row, _generator(key)) for row, key in zip(rows, keys, strict=True)]
            return np.array(permuted, rows.dtype).reshape(rows.shape)
        rates, ids = {"rate": self.fim_rate, "spm_rate": self.spm_rate}, self.prepared.fim_ids
        return permute_rows(rows, pieces["length"].astype(np.int64), counts, draws_of(words), **rates, ids=ids)

    def batch(self, first_sample: int, rows: int) -> Batch:
        """The samples [first_sample, first_sample + rows), whatever the rank."""
        return self.batch_of(self.rows(first_sample, rows))

    def batch_of(self, rows: np.ndarray) -> Batch:
        """Rows as `read` gives them -> a batch."""
        batch = to_batch(rows, self.prepared.fim_ids.pad)
        return replace(batch, documents_BT=documents_of(batch.inputs_BT, self.prepared.eos_id)) if self.documents else batch

    def batches(self, samples_seen: int, n_steps: int) -> Batches:
        """This rank's contiguous cut of `n_steps` global batches."""
        return Batches(self, samples_seen, n_steps)


def _listed(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [asdict(entry) | {"slice": list(entry.slice)} for entry in entries]


def _generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True)
class Batches:
    """A rank's batches from the global sample `first_sample` on; iterating makes them ahead, by a thread that ends with the iterator."""

    loader: Loader
    first_sample: int
    n_steps: int

    def __iter__(self) -> Generator[Batch, None, None]:
        share = self._cut()[1] - self._cut()[0]
        with closing(prefetched(self._groups())) as groups:
            for rows in groups:
                for first in range(0, len(rows), share):  # made here, of ids that take a fourth of the memory while they wait
                    yield self.loader.batch_of(rows[first : first + share])

    def _cut(self) -> tuple[int, int]:
        """The rank's part of a global batch."""
        loader = self.loader
        return loader.batch_rows * loader.rank // loader.n_ranks, loader.batch_rows * (loader.rank + 1) // loader.n_ranks

    def _groups(self) -> Iterator[np.ndarray]:
        """The rows of several batches at a time."""
        loader, (low, high) = self.loader, self._cut()
        share = high - low
        together, ahead = max(1, GROUP_ROWS // share) * share, max(1, AHEAD // share)
        for step in range(0, self.n_steps, ahead):
            steps = np.arange(step, min(step + ahead, self.n_steps))
            samples = self.first_sample + steps[:, None] * loader.batch_rows + np.arange(low, high)
            located = loader.mixture.locate(samples.ravel())
            for first in range(0, samples.size, together):
                yield loader.read(*(values[first : first + together] for values in located))
