"""Prepare: readers' documents -> tokenizer.json, shards, manifest.json, in one pass, whole or not at all.

Which side a document is on (train or validation) is decided by a hash of its text, so a text that occurs twice is never
on both. The surprise: the paths of the corpora are recorded but not compared: the same files
elsewhere are the same data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystal.config import UserError
from crystal.data.pack import CodePacker, Packer, TextPacker
from crystal.data.readers import Document, Reader
from crystal.data.shards import FORMAT, Prepared, ShardWriter, read_manifest, row_dtype
from crystal.data.tokenizer import ADDED_TOKENS, FIM_PAD, Tokenizer, load_tokenizer, train_tokenizer
from crystal.runlog import write_json

BATCH_CHARACTERS = 1 << 20
SAMPLE_BYTES = 12 << 20  # of text, for training a tokenizer
SAMPLE_FILES = 64  # of each reader
SAMPLE_DOCUMENT_CHARACTERS = 1 << 16
PATHS = {"path"}  # of a spec: recorded, not compared


def prepare(
    readers: Sequence[Reader], out: Path, *, seq_len: int, tokenizer: Path | None, vocab_size: int, holdout: float,
    valid_rows: int, label: str, progress: Callable[[str], None],
) -> Prepared:  # fmt: skip
    """Prepared data in `out`: at once where it is there already for the same corpora and settings.

    `seq_len` in tokens; `tokenizer`: a tokenizer.json, or None to train one of `vocab_size` ids; `holdout`: share of
    the documents for validation; `valid_rows`: at most so many rows of each source. UserError when `out` holds
    something else, the tokenizer has more than `vocab_size` ids, or a corpus cannot be read.
    """
    out = Path(out)
    _check_settings(seq_len, holdout, valid_rows)
    spec: dict[str, Any] = {
        "seq_len": seq_len,
        "vocab_size": vocab_size,
        "tokenizer": "trained" if tokenizer is None else load_tokenizer(tokenizer).sha256,
        "holdout": holdout,
        "valid_rows": valid_rows,
        "readers": [reader.identity() for reader in readers],
    }
    make_whole(out, spec, lambda folder: _write(folder, readers, spec, tokenizer, label, progress), progress)
    return Prepared.open(out, verify=False)


def make_whole(out: Path, spec: dict[str, Any], write: Callable[[Path], None], progress: Callable[[str], None]) -> None:
    """Have `write(folder)` make the data and move it to `out` when it is complete; or find data of the same `spec` there."""
    existing = _existing(out, spec)
    if existing is not None:
        progress(f"{out}: prepared before, {_tokens(existing['train'])} train tokens")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        _move(temporary, out, spec)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_settings(seq_len: int, holdout: float, valid_rows: int) -> None:
    if seq_len < 8:
        raise UserError(f"seq_len is {seq_len}; expected at least 8 tokens; raise scale.seq_len")
    if not 0 <= holdout < 1:
        raise UserError(f"holdout is {holdout}; expected a share in [0, 1); mend it")
    if valid_rows < 0:
        raise UserError(f"valid_rows is {valid_rows}; expected 0 or more; mend data.valid_rows")


def _existing(out: Path, spec: dict[str, Any]) -> dict[str, Any] | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = read_manifest(out)
    differences = list(_differences(manifest["spec"], spec, "spec"))
    if differences:
        raise UserError(
            f"{out} holds data prepared otherwise ({', '.join(differences[:3])}); expected the same settings and files; "
            "set another data.out, or delete the folder"
        )
    return manifest


def _differences(got: Any, expected: Any, key: str) -> Iterator[str]:
    if isinstance(got, dict) and isinstance(expected, dict):
        for name in sorted((got.keys() | expected.keys()) - PATHS):
            yield from _differences(got.get(name), expected.get(name), f"{key}.{name}")
    elif isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        for k, (one, other) in enumerate(zip(got, expected, strict=True)):
            yield from _differences(one, other, f"{key}.{k}")
    elif got != expected:
        yield f"{key} is {_short(got)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, dict | list) else repr(value)


def _move(temporary: Path, out: Path, spec: dict[str, Any]) -> None:
    try:
        os.replace(temporary, out)
    except OSError:
        # Another process was first: its folder serves if it is the same data.
        if _existing(out, spec) is None:
            raise


def _write(
    folder: Path, readers: Sequence[Reader], spec: dict[str, Any], source: Path | None, label: str,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    path, vocab_size = folder / "tokenizer.json", spec["vocab_size"]
    if source is None:
        texts = _sample(readers, spec["holdout"])
        progress(f"training a tokenizer of {vocab_size} ids on {sum(map(len, texts)) / 1e6:.1f} M characters")
        train_tokenizer(texts, vocab_size, path)
        tokenizer = load_tokenizer(path)
    else:
        tokenizer = copied_tokenizer(source, path, vocab_size)
    sinks = _Sinks(folder, tokenizer, spec)
    for reader in readers:
        _encode(reader, sinks, spec["holdout"], progress)
    write_manifest(folder, spec, label, tokenizer, sinks.close())


def copied_tokenizer(source: Path, path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer `source`, copied to `path`; UserError where it has more than `vocab_size` ids."""
    tokenizer = load_tokenizer(source)
    if tokenizer.n_ids > vocab_size:
        raise UserError(
            f"the tokenizer {source} has {tokenizer.n_ids} ids; expected at most vocab_size {vocab_size}; raise data.vocab_size"
        )
    shutil.copyfile(source, path)
    return tokenizer


def write_manifest(folder: Path, spec: dict[str, Any], label: str, tokenizer: Tokenizer, more: dict[str, Any]) -> None:
    """`more`: the entries of each part under "train" and "valid", and where the shards are if elsewhere."""
    manifest = {
        "format": FORMAT,
        "spec": spec,
        "label": label,
        "eos_id": tokenizer.eos_id,
        "vocab_size": spec["vocab_size"],
        "tokenizer_sha256": tokenizer.sha256,
        "special": {name: tokenizer.special[name] for name in ADDED_TOKENS},
        **more,
    }
    write_json(folder / "manifest.json", manifest)


def _encode(reader: Reader, sinks: _Sinks, holdout: float, progress: Callable[[str], None]) -> None:
    """One pass over a corpus; a line of progress when a folder of it is done."""
    files = reader.files()
    batch: list[Document] = []
    n_characters = n_documents = 0
    for k, file in enumerate(files):
        for document in reader.read(file):
            if not document.text:
                continue
            batch.append(document)
            n_characters += len(document.text)
            n_documents += 1
            if n_characters >= BATCH_CHARACTERS:
                sinks.add(reader, batch, holdout)
                batch, n_characters = [], 0
        if k + 1 == len(files) or files[k + 1].parent != file.parent:
            sinks.add(reader, batch, holdout)
            batch, n_characters = [], 0
            progress(f"{file.parent}: {n_documents} documents, {_tokens(sinks.train_counts())} train tokens so far")
            n_documents = 0


def _is_held_out(text: str, holdout: float) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < holdout * 2**64


def _tokens(entries: dict[str, dict[str, Any]]) -> str:
    return f"{sum(entry['tokens'] for entry in entries.values()) / 1e6:.2f} M"


def _sample(readers: Sequence[Reader], holdout: float) -> list[str]:
    """The first train documents of evenly spaced files, an equal share of SAMPLE_BYTES for each reader and file."""
    texts = []
    for reader in readers:
        files = reader.files()
        chosen = [files[k] for k in sorted({round(k) for k in np.linspace(0, len(files) - 1, SAMPLE_FILES)})]
        quota = SAMPLE_BYTES / len(readers) / len(chosen)
        for file in chosen:
            taken = 0
            for document in reader.read(file):
                if taken >= quota:
                    break
                if not _is_held_out(document.text, holdout):
                    texts.append(document.text[:SAMPLE_DOCUMENT_CHARACTERS])
                    taken += len(texts[-1])
    return texts


class _Sink:
    """Where one part's documents go: packer, writer, counts. `limit`: most rows to keep, on the validation side."""

    def __init__(self, packer: Packer, writer: ShardWriter, tokenizer: Tokenizer, *, fim_room: bool, limit: int | None) -> None:
        self._packer, self._writer, self._tokenizer = packer, writer, tokenizer
        self._fim_room, self._limit = fim_room, limit
        self._stored = 0  # tokens in the rows written so far
        self.documents = self.tokens = self.text_bytes = 0

    @property
    def full(self) -> bool:
        return self._limit is not None and self._writer.n_rows >= self._limit

    def add(self, text: str, tokens: np.ndarray) -> None:
        """Take one document; of one that overruns the limit, the part that is stored is counted."""
        before = self.tokens
        self._append(self._packer.add(tokens))
        self.documents += 1
        self.tokens += len(tokens) + 1
        self.text_bytes += len(text.encode())
        if self.full and self._stored < self.tokens:
            kept = tokens[: self._stored - before]
            self.documents -= len(kept) == 0
            self.tokens = self._stored
            self.text_bytes -= len(text.encode()) - len(self._tokenizer.decode(kept).encode())

    def close(self) -> dict[str, Any]:
        """The part's entry in the manifest; `tokens` are those stored, padding apart."""
        if not self.full and (self._fim_room or self._limit is not None):
            self._append(self._packer.finish())
        return {
            "documents": self.documents,
            "tokens": self._stored,
            "text_bytes": self.text_bytes,
            "dropped_tokens": self.tokens - self._stored,
            "rows": self._writer.n_rows,
            "fim_room": self._fim_room,
            "shards": self._writer.close(),
        }

    def _append(self, rows: np.ndarray) -> None:
        if self._limit is not None:
            rows = rows[: self._limit - self._writer.n_rows]
        self._stored += int((rows != self._tokenizer.special[FIM_PAD]).sum())
        self._writer.append(rows)


class _Sinks:
    """All parts' sinks, made as their first document comes."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, spec: dict[str, Any]) -> None:
        self._folder, self._tokenizer, self._spec = folder, tokenizer, spec
        self._sinks: dict[str, dict[str, _Sink]] = {"train": {}, "valid": {}}

    def add(self, reader: Reader, batch: Sequence[Document], holdout: float) -> None:
        """Encode a batch of documents and put each where it belongs; held-out ones of a full source go nowhere."""
        wanted = []
        for document in batch:
            held_out = _is_held_out(document.text, holdout)
            part = document.source if held_out else reader.part(document)
            sink = self._sink("valid" if held_out else "train", part, reader)
            if not sink.full:
                wanted.append((sink, document.text))
        encoded = self._tokenizer.encode_batch([text for _, text in wanted])
        for (sink, text), tokens in zip(wanted, encoded, strict=True):
            if not sink.full:
                sink.add(text, tokens)

    def train_counts(self) -> dict[str, dict[str, Any]]:
        return {name: {"tokens": sink.tokens} for name, sink in self._sinks["train"].items()}

    def close(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {side: {name: sinks[name].close() for name in sorted(sinks)} for side, sinks in self._sinks.items()}

    def _sink(self, side: str, part: str, reader: Reader) -> _Sink:
        sinks = self._sinks[side]
        if part not in sinks:
            width, dtype = self._spec["seq_len"] + 1, row_dtype(self._spec["vocab_size"])
            packer = (CodePacker if reader.code else TextPacker)(
                width, eos_id=self._tokenizer.eos_id, pad_id=self._tokenizer.special[FIM_PAD], dtype=dtype
            )
            writer = ShardWriter(self._folder, f"{side}/{part}", width=width, dtype=dtype)
            limit = self._spec["valid_rows"] if side == "valid" else None
            sinks[part] = _Sink(packer, writer, self._tokenizer, fim_room=reader.code, limit=limit)
        return sinks[part]
