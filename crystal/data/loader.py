"""The loader: global sample index -> batch, a pure function of prepared data, mixture entries and seed.

Its whole state is one integer, `samples_seen`. The surprise: even FIM's draws come from a counter-based generator keyed
by (seed, stream, epoch, row), so a batch is the same from any starting point and on any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from crystal.config import UserError
from crystal.data.fim import permute_row
from crystal.data.mixture import Mixture, Stream, check_weights
from crystal.data.permute import key_of
from crystal.data.shards import Prepared

PREFETCH = 4  # batches
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a stage's mixture: the share `slice` of the rows of each train part that the glob `parts` selects."""

    name: str
    parts: str
    weight: float
    fim: bool = False
    slice: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """inputs_BT, labels_BT: int64; mask_BT: float32, 0 where the label does not count, such as padding."""

    inputs_BT: np.ndarray
    labels_BT: np.ndarray
    mask_BT: np.ndarray


def to_batch(rows: np.ndarray, pad_id: int) -> Batch:
    """Rows (B, T + 1) -> inputs, labels shifted by one, mask; rows (B, 3, T) are inputs, mask, labels already."""
    if rows.ndim == 3:
        return Batch(rows[:, 0].astype(np.int64), rows[:, 2].astype(np.int64), rows[:, 1].astype(np.float32))
    labels = rows[:, 1:].astype(np.int64)
    return Batch(rows[:, :-1].astype(np.int64), labels, (labels != pad_id).astype(np.float32))


def resolve_entries(entries: Sequence[Entry], prepared: Prepared, *, empty_source: str = "error") -> tuple[list[Entry], list[str]]:
    """Entries that have rows, and the names of those without, whose weight went to the others in proportion.

    On rows that the files hold finished, FIM is done: there an entry's `fim` becomes false. UserError for bad weights, doubled names,
    a bad slice, FIM on rows without room for it or finished without it, and, with "error", an entry without rows.
    """
    if len({entry.name for entry in entries}) < len(entries):
        raise UserError(f"the mixture's names are {', '.join(e.name for e in entries)}; expected each once; rename an entry")
    check_weights({entry.name: entry.weight for entry in entries})
    for entry in entries:
        _check_entry(entry, prepared)
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


def _check_entry(entry: Entry, prepared: Prepared) -> None:
    start, end = entry.slice
    if not 0 <= start < end <= 1:
        raise UserError(f"the slice of {entry.name} is {list(entry.slice)}; expected 0 <= start < end <= 1; mend it")
    for part in prepared.parts(entry.parts) if entry.fim else ():
        got = f"the entry {entry.name} has fim: true, but"
        if prepared.finished and not prepared.train[part]["fim_rows"]:
            raise UserError(
                f"{got} no row of {part} holds <fim_prefix>, and rows of HDF5 files are taken as they are; expected files with "
                "fill-in-the-middle in them; write them so, or set fim: false"
            )
        if not prepared.finished and not prepared.train[part]["fim_room"]:
            raise UserError(f"{got} {part} is text, packed without room for it; expected code; set fim: false or narrow its parts")


class Loader:
    """Batches of one stage. `entries` as `resolve_entries` returns them; `batch_rows` counts all ranks."""

    def __init__(
        self, prepared: Prepared, entries: Sequence[Entry], *, seed: int, batch_rows: int,
        fim_rate: float = 0.0, spm_rate: float = 0.5, rank: int = 0, n_ranks: int = 1,
    ) -> None:  # fmt: skip
        if batch_rows < 1 or batch_rows % n_ranks:
            raise UserError(f"a batch of {batch_rows} rows on {n_ranks} ranks; expected a multiple of the ranks; mend scale.batch_rows")
        if not (0 <= fim_rate <= 1 and 0 <= spm_rate <= 1):
            raise UserError(f"FIM rates {fim_rate} and {spm_rate}; expected both in [0, 1]; mend the stage's fim")
        self.prepared, self.entries, self.seed, self.batch_rows = prepared, tuple(entries), seed, batch_rows
        self.fim_rate, self.spm_rate, self.rank, self.n_ranks = fim_rate, spm_rate, rank, n_ranks
        self._views = [prepared.rows(entry.parts, entry.slice) for entry in entries]
        self._keys = [key_of("fim", seed, entry.name) for entry in entries]
        streams = [Stream(e.name, len(view), e.weight) for e, view in zip(entries, self._views, strict=True)]
        self.mixture = Mixture(streams, seed=seed)

    def identity(self) -> dict[str, Any]:
        """What decides the row of every sample index; JSON."""
        return {
            "prepared": self.prepared.fingerprint(),
            "entries": [asdict(entry) | {"slice": list(entry.slice)} for entry in self.entries],
            "seed": self.seed,
            "fim_rate": self.fim_rate,
            "spm_rate": self.spm_rate,
        }

    def fingerprint(self) -> str:
        """sha256 of `identity()`; the batch size and the ranks are not in it."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def rows(self, first_sample: int, n_rows: int) -> np.ndarray:
        """Rows of the samples [first_sample, first_sample + n_rows), FIM applied: (n_rows, *prepared.row_shape)."""
        streams, epochs, rows = self.mixture.locate(np.arange(first_sample, first_sample + n_rows, dtype=np.int64))
        result = np.empty((n_rows, *self.prepared.row_shape), np.int64)
        for k in np.unique(streams).tolist():
            here = np.flatnonzero(streams == k)
            result[here] = self._views[k][rows[here]]
            if self.entries[k].fim and self.fim_rate > 0:
                for i in here.tolist():
                    result[i] = self._fim(result[i], k, int(epochs[i]), int(rows[i]))
        return result

    def batch(self, first_sample: int, rows: int) -> Batch:
        """The samples [first_sample, first_sample + rows), whatever the rank."""
        return to_batch(self.rows(first_sample, rows), self.prepared.fim_ids.pad)

    def batches(self, samples_seen: int, n_steps: int) -> Batches:
        """This rank's contiguous cut of `n_steps` global batches."""
        return Batches(self, samples_seen, n_steps)

    def _fim(self, row: np.ndarray, k: int, epoch: int, index: int) -> np.ndarray:
        # The lowest counter word counts the draws themselves; the row and epoch sit above it.
        counter = np.array([0, index, epoch, 0], np.uint64)
        bits = np.random.Philox(counter=counter, key=np.array([self._keys[k], 0], np.uint64))
        rng = np.random.Generator(bits)
        return permute_row(row, rate=self.fim_rate, spm_rate=self.spm_rate, rng=rng, ids=self.prepared.fim_ids)


@dataclass(frozen=True)
class Batches:
    """A rank's batches from the global sample `first_sample` on; iterating makes them ahead, by a thread that ends with the iterator."""

    loader: Loader
    first_sample: int
    n_steps: int

    def __iter__(self) -> Generator[Batch, None, None]:
        loader = self.loader
        share = loader.batch_rows // loader.n_ranks
        first = self.first_sample + loader.rank * share
        return prefetched(loader.batch(first + step * loader.batch_rows, share) for step in range(self.n_steps))


def prefetched(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches, PREFETCH ahead; an error in the thread is raised at its place in the order."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=work, name="crystal-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
