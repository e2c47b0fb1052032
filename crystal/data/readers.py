"""Readers: the files of a corpus -> Documents, streamed in bounded memory.

The surprise: a zstd stream that ends early looks like a short file to most readers; here it is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crystal.config import UserError
from crystal.data.optional import need

READ_BYTES = 1 << 20
READ_ROWS = 64


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `index` is its line (jsonl) or row (parquet) in `file`, from 0."""

    text: str
    source: str
    file: str
    index: int


class Reader(Protocol):
    """What `prepare` asks of a corpus. `code` decides the packing: with room for FIM, or without."""

    code: bool

    def identity(self) -> dict[str, Any]:
        """Class, path, and size in bytes by relative file name: what decides the documents."""

    def files(self) -> list[Path]:
        """The corpus's files in reading order; UserError when there are none."""

    def read(self, file: Path) -> Iterator[Document]:
        """The documents of one of `files()`; UserError naming file and line or row group."""

    def part(self, document: Document) -> str:
        """The train part that the document belongs to."""


class SlimPajama:
    """SlimPajama-627B's layout, `<path>/chunk*/*.jsonl.zst`; parts `<source>/even|odd` by the file's number."""

    code = False

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def identity(self) -> dict[str, Any]:
        return _identity(self, self.path)

    def files(self) -> list[Path]:
        return _listed(self.path, "chunk*/*.jsonl.zst")

    def read(self, file: Path) -> Iterator[Document]:
        name = str(file.relative_to(self.path))
        for index, line in enumerate(_zstd_lines(file)):
            if line.strip():
                text, source = _slimpajama_line(line, f"{file} line {index + 1}")
                yield Document(text, source, name, index)

    def part(self, document: Document) -> str:
        numbers = re.findall(r"\d+", Path(document.file).name)
        if not numbers:
            raise UserError(
                f"{self.path / document.file} has no number in its name; expected names like "
                "example_train_12.jsonl.zst, whose parity splits SlimPajama into even and odd; rename the file"
            )
        return f"{document.source}/{'odd' if int(numbers[-1]) % 2 else 'even'}"


class StarCoder:
    """StarCoderData's layout, `<path>/<language>/*.parquet` with a `content` column; one part per language."""

    code = True

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def identity(self) -> dict[str, Any]:
        return _identity(self, self.path)

    def files(self) -> list[Path]:
        return _listed(self.path, "*/*.parquet")

    def read(self, file: Path) -> Iterator[Document]:
        name, source = str(file.relative_to(self.path)), f"starcoder/{file.parent.name}"
        index = 0
        for group, texts in _parquet_texts(file):
            for text in texts:
                if text is None:
                    raise UserError(f"{file} row group {group}, row {index}: content is null; expected text; mend or remove the file")
                yield Document(text, source, name, index)
                index += 1

    def part(self, document: Document) -> str:
        return document.source


def _identity(reader: Reader, path: Path) -> dict[str, Any]:
    files = {str(file.relative_to(path)): file.stat().st_size for file in reader.files()}
    return {"class": type(reader).__name__, "path": str(path), "files": files}


def _listed(path: Path, pattern: str) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected {path}/{pattern}; give data.root=DIR or the reader's path")
    found = sorted(path.glob(pattern), key=lambda file: _natural(str(file.relative_to(path))))
    if not found:
        raise UserError(f"{path} holds no files {pattern}; expected at least one; give data.root=DIR or the reader's path")
    return found


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key under which file_9 comes before file_10."""
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in re.split(r"([0-9]+)", name) if piece]


def _zstd_lines(path: Path) -> Iterator[bytes]:
    zstandard = need("zstandard")
    rest, line = b"", 1
    try:
        for data in _zstd_chunks(zstandard, path):
            *lines, rest = (rest + data).split(b"\n")
            line += len(lines)
            yield from lines
    except zstandard.ZstdError as error:
        raise UserError(
            f"{path} is truncated or corrupt after line {line - 1} ({error}); expected whole zstd frames; fetch the file again"
        ) from error
    if rest:
        yield rest


def _zstd_chunks(zstandard: Any, path: Path) -> Iterator[bytes]:
    """Decompressed pieces of all frames; ZstdError also where the file ends inside a frame."""
    frame, started = zstandard.ZstdDecompressor().decompressobj(), True  # no frame at all is no file either
    with open(path, "rb") as file:
        while data := file.read(READ_BYTES):
            while data:
                started = True
                yield frame.decompress(data)
                data = b""
                if frame.eof:
                    data = frame.unused_data
                    frame, started = zstandard.ZstdDecompressor().decompressobj(), False
    if started:
        raise zstandard.ZstdError("the file ends inside a frame")


def _slimpajama_line(line: bytes, where: str) -> tuple[str, str]:
    remedy = 'expected {"text": ..., "meta": {"redpajama_set_name": ...}}; fetch the file again or remove the line'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); {remedy}") from error
    meta = record.get("meta") if isinstance(record, dict) else None
    source = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{where} has no text; {remedy}")
    if not isinstance(source, str):
        raise UserError(f"{where} has no meta.redpajama_set_name; {remedy}")
    if not re.fullmatch(r"\w[\w.-]*", source):  # it names a folder
        raise UserError(f"{where} has the set name {source!r}; expected letters, digits, _, . and -; mend or remove the line")
    return _without_lone_surrogates(text), source


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 text can hold: U+FFFD takes its place."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet_texts(path: Path) -> Iterator[tuple[int, list[str | None]]]:
    """(row group, texts) in pieces of at most READ_ROWS rows."""
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({error}); expected one; fetch it again") from error
    with file:
        names = file.schema_arrow.names
        if "content" not in names:
            raise UserError(f"{path} has the columns {', '.join(names)}; expected content among them; check the reader's path")
        kind = str(file.schema_arrow.field("content").type)
        if kind not in ("string", "large_string"):
            raise UserError(f"{path} has content of type {kind}; expected string; check the reader's path")
        for group in range(file.num_row_groups):
            try:
                for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=["content"]):
                    yield group, batch.column(0).to_pylist()
            except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} row group {group} is corrupt ({error}); expected text in content; fetch the file again") from error
