"""Adopt: a folder of HDF5 files -> prepared data whose rows stay where they are; only a manifest and the tokenizer are written.

Every folder that holds files is a part. The surprise: every row is read once all the same, by all cores, to count it and to refuse
before the first step what no model can be trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystal.config import require
from crystal.data.fim import FimIds
from crystal.data.hdf5 import Hdf5Rows, crc32, header, listed
from crystal.data.prepare import copied_tokenizer, make_whole, write_manifest
from crystal.data.shards import Prepared, read_manifest
from crystal.data.tokenizer import Tokenizer, load_tokenizer
from crystal.machine import usable_cores
from crystal.runlog import write_json

TASK_ROWS = 16384  # read by one process at a time
BLOCK_ROWS = 256


def adopt(
    root: Path, out: Path, *, seq_len: int, tokenizer: Path, vocab_size: int, holdout: float, valid_rows: int, label: str,
    progress: Callable[[str], None],
) -> Prepared:  # fmt: skip
    """Prepared data in `out` whose rows are those of the HDF5 files below `root`; at once where it is there already.

    The last `valid_rows` rows of each part, at most the share `holdout` of it, are for validation. UserError, naming the file, for what
    `crystal.data.hdf5` refuses; and where `out` holds something else, or the tokenizer is not that of the files as far as can be told.
    """
    root, out = Path(root).absolute(), Path(out)
    sizes = {_name(file, root): file.stat().st_size for files in listed(root).values() for file in files}
    spec: dict[str, Any] = {
        "seq_len": seq_len,
        "vocab_size": vocab_size,
        "tokenizer": load_tokenizer(tokenizer).sha256,
        "holdout": holdout,
        "valid_rows": valid_rows,
        "readers": [{"class": "Hdf5", "path": str(root), "files": sizes}],
    }
    make_whole(out, spec, lambda work: _write(work / "out", root, spec, tokenizer, label, progress), progress)
    manifest = read_manifest(out)
    if manifest["root"] != str(root):  # the same files, elsewhere
        write_json(out / "manifest.json", manifest | {"root": str(root)})
    return Prepared.open(out, verify=False)


def _write(folder: Path, root: Path, spec: dict[str, Any], source: Path, label: str, progress: Callable[[str], None]) -> None:
    tokenizer = copied_tokenizer(source, folder / "tokenizer.json", spec["vocab_size"])
    count = Count.by(tokenizer, spec["vocab_size"])
    folders = listed(root)
    parts = {name: Hdf5Rows.of(files, seq_len=spec["seq_len"], vocab_size=spec["vocab_size"]) for name, files in folders.items()}
    train, valid = {}, {}
    with ProcessPoolExecutor(usable_cores()) as pool:
        for name, rows in parts.items():
            n_valid = min(spec["valid_rows"], int(spec["holdout"] * len(rows)))
            n_train = len(rows) - n_valid
            shards = _shards(folders[name], rows.lengths, root, pool)
            train[name] = _entry(rows.cut(0, n_train), shards, count, pool)
            if n_valid:
                valid[name] = _entry(rows.cut(n_train, len(rows)), shards, count, pool)
                _refuse_no_text(valid[name], f"{n_valid} rows of {root / name} have no text by {source}")
            progress(f"{root / name}: {n_train} rows, {train[name]['tokens'] / 1e6:.2f} M tokens; {n_valid} rows held out")
            _note_slow(folders[name][0], spec["seq_len"], progress)
    write_manifest(folder, spec, label, tokenizer, {"root": str(root), "train": train, "valid": valid})


@dataclass(frozen=True)
class Count:
    """`count(rows)` -> documents, tokens and bytes of text among the labels that count, and rows with FIM in them."""

    eos_id: int
    prefix_id: int
    text_bytes: np.ndarray  # of each id

    @classmethod
    def by(cls, tokenizer: Tokenizer, vocab_size: int) -> Count:
        text_bytes = np.zeros(vocab_size, np.int64)
        text_bytes[: tokenizer.n_ids] = tokenizer.text_bytes()
        return cls(tokenizer.eos_id, FimIds.of(tokenizer.special, tokenizer.eos_id).prefix, text_bytes)

    def __call__(self, rows: Hdf5Rows) -> np.ndarray:
        counts = np.zeros(4, np.int64)
        for first in range(0, len(rows), BLOCK_ROWS):
            block = rows[np.arange(first, min(first + BLOCK_ROWS, len(rows)))]
            labels = block[:, 2][block[:, 1] == 1]
            with_fim = (block[:, 0] == self.prefix_id).any(axis=1)
            counts += [np.sum(labels == self.eos_id), len(labels), self.text_bytes[labels].sum(), with_fim.sum()]
        return counts


def _entry(rows: Hdf5Rows, shards: list[dict[str, Any]], count: Count, pool: Executor) -> dict[str, Any]:
    """One part's entry in the manifest, for training or for validation."""
    tasks = [rows.cut(first, min(first + TASK_ROWS, len(rows))) for first in range(0, len(rows), TASK_ROWS)]
    counts = sum(pool.map(count, tasks), np.zeros(4, np.int64)).tolist()
    return {
        **dict(zip(("documents", "tokens", "text_bytes", "fim_rows"), counts, strict=True)),
        "rows": len(rows),
        "first_row": rows.start,
        "corpus": rows.corpus,
        "shards": shards,
    }


def _shards(files: list[Path], lengths: tuple[int, ...], root: Path, pool: Executor) -> list[dict[str, Any]]:
    sums = pool.map(crc32, files)
    return [
        {"file": _name(file, root), "length": length, "bytes": file.stat().st_size, "crc32": crc}
        for file, length, crc in zip(files, lengths, sums, strict=True)
    ]


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _refuse_no_text(held_out: dict[str, Any], got: str) -> None:
    """Bits per byte need bytes."""
    require(held_out["text_bytes"] > 0 or not held_out["tokens"], got, "ids of its pieces", "give data.tokenizer=FILE, that of the files")


def _note_slow(file: Path, seq_len: int, progress: Callable[[str], None]) -> None:
    """Rows are read in any order: what is compressed together is decompressed for each of them."""
    found = header(file, seq_len=seq_len)
    if found.chunk_rows > 1 and not found.corpus:
        quicker = f"h5repack -l data:CHUNK=1x3x{seq_len} IN OUT"
        progress(f"{file} compresses {found.chunk_rows} rows together, so reading one takes long; quicker: {quicker}")
