"""Export: the rows that a stage trains on -> HDF5 files as Cerebras' ModelZoo reads them.

A folder holds data-00000.h5 and so on; the dataset `data` of each is int32 (n, 3, T): what `Batch` has as inputs, mask and labels, with
fill-in-the-middle in it. The surprise: these are always samples, never the corpus layout, in which a row's last label is the next row's
first input; Crystal's rows are seq_len + 1 ids of their own, so one id between two rows would be trained on that was not.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from crystal.data.disk import Disk
from crystal.data.loader import Loader
from crystal.data.optional import need
from crystal.machine import usable_cores

FILE_ROWS = 65536
BLOCK_ROWS = 256
LEVEL = 4  # of gzip, as h5py's and so ModelZoo's tools
SAMPLE_ROWS = 64  # compressed to say how large a folder will be
ROW_BYTES, FILE_BYTES = 56, 5000  # of HDF5's own, by measurement


@dataclass(frozen=True)
class Folder:
    """`read(loader, indices)` gives the rows int64 (n,) of [0, n_rows) as the loader has them."""

    name: str
    n_rows: int
    read: Callable[[Loader, np.ndarray], np.ndarray]

    @property
    def n_files(self) -> int:
        return -(-self.n_rows // FILE_ROWS)


def in_order(loader: Loader, n_samples: int) -> list[Folder]:
    """The first `n_samples` samples one behind the other, and what is held out."""
    return [Folder("train", n_samples, _samples), *_held_out(loader)]


def by_entry(loader: Loader, n_samples: int) -> list[Folder]:
    """The rows of each entry of the mixture in their own order, and what is held out.

    Once; with fill-in-the-middle, which is drawn anew in every epoch, for each epoch that `n_samples` begin.
    """
    assert not loader.changes, "a mixture of folders has the same weights from beginning to end"
    folders, epochs = [], loader.mixture.epochs(n_samples)
    for number, (entry, stream) in enumerate(zip(loader.entries, loader.mixture.streams, strict=True)):
        n_epochs = max(1, math.ceil(epochs[entry.name])) if entry.fim and loader.fim_rate > 0 else 1
        folders.append(Folder(f"train/{entry.name}", n_epochs * stream.n_rows, partial(_epochs, number)))
    return folders + _held_out(loader)


def _samples(loader: Loader, indices: np.ndarray) -> np.ndarray:
    return loader.read(*loader.mixture.locate(indices))


def _epochs(stream: int, loader: Loader, indices: np.ndarray) -> np.ndarray:
    return loader.read(np.full_like(indices, stream), *np.divmod(indices, loader.mixture.streams[stream].n_rows))


def _held_out(loader: Loader) -> list[Folder]:
    counts = {name: entry["rows"] for name, entry in loader.prepared.valid.items()}
    return [Folder(f"valid/{name}", n_rows, partial(_valid, name)) for name, n_rows in counts.items() if n_rows]


def _valid(source: str, loader: Loader, indices: np.ndarray) -> np.ndarray:
    return loader.prepared.valid_rows(source)[indices]


def read_samples(loader: Loader, folder: Folder, indices: np.ndarray) -> np.ndarray:
    """The rows int64 (n,) of a folder as its files have them: int32 (n, 3, T)."""
    batch = loader.batch_of(folder.read(loader, indices))
    return np.stack([array.astype(np.int32) for array in (batch.inputs_BT, batch.mask_BT, batch.labels_BT)], axis=1)


def estimated_bytes(loader: Loader, folder: Folder) -> int:
    """Of all files of a folder, to a few hundredths: what evenly spaced rows of it take."""
    indices = np.unique(np.linspace(0, folder.n_rows - 1, SAMPLE_ROWS).astype(np.int64))
    sizes = [len(zlib.compress(_shuffled(sample), LEVEL)) for sample in read_samples(loader, folder, indices)]
    return round(folder.n_rows * (ROW_BYTES + sum(sizes) / len(sizes))) + folder.n_files * FILE_BYTES


def _shuffled(sample: np.ndarray) -> bytes:
    """First bytes first, as HDF5's shuffle."""
    return sample.view(np.uint8).reshape(-1, sample.itemsize).T.tobytes()


def write_folders(loader: Loader, folders: Sequence[Folder], out: Path, progress: Callable[[str], None]) -> int:
    """Write every file of `folders` into `out` by all cores; returns their bytes. Raises OSError where the disk is full."""
    need("h5py", extra="mdl")
    tasks = [(folder, number) for folder in folders for number in range(folder.n_files)]
    total = 0
    with ProcessPoolExecutor(min(usable_cores(), len(tasks))) as pool:
        for path, size in pool.map(partial(_write_file, _opener(loader), out), *zip(*tasks, strict=True)):
            progress(f"{path}: {size / 1e6:,.1f} MB")
            total += size
    return total


def _opener(loader: Loader) -> Callable[[], Loader]:
    """Opens the loader in another process; its memory maps themselves would travel as copies."""
    return partial(
        Loader, loader.prepared, loader.entries, seed=loader.seed, batch_rows=loader.batch_rows, changes=loader.changes,
        fim_rate=loader.fim_rate, spm_rate=loader.spm_rate, fim_style=loader.fim_style,
    )  # fmt: skip


def _write_file(opened: Callable[[], Loader], out: Path, folder: Folder, number: int) -> tuple[str, int]:
    """File `number` of a folder, in chunks of one row, which are read in any order; returns its name and size.

    HDF5's shuffle before gzip makes files a quarter smaller in two thirds of the time; every HDF5 library reads it.
    """
    h5py, loader = need("h5py", extra="mdl"), opened()
    first, end = number * FILE_ROWS, min((number + 1) * FILE_ROWS, folder.n_rows)
    shape = (3, loader.prepared.seq_len)
    name = f"{folder.name}/data-{number:05d}.h5"
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with Disk(path, "w+b") as disk, h5py.File(disk, "w") as file:
        file.attrs["n_examples"] = end - first
        options = {"chunks": (1, *shape), "shuffle": True, "compression": "gzip", "compression_opts": LEVEL}
        data = file.create_dataset("data", (end - first, *shape), np.int32, **options)
        for low in range(first, end, BLOCK_ROWS):
            indices = np.arange(low, min(low + BLOCK_ROWS, end))
            data[indices[0] - first : indices[-1] + 1 - first] = read_samples(loader, folder, indices)
            if disk.error is not None:
                break
    return name, path.stat().st_size
