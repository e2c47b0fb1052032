"""Parquet with one document a row, as StarCoderData has it.

The surprise: texts are read as bytes and decoded one by one, so that a row that is not UTF-8 does not take its batch with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from crystal.config import UserError, require
from crystal.data.optional import need
from crystal.data.readers.document import Broken, Document
from crystal.data.readers.files import Files, one_line

READ_ROWS = 64
REMEDY = "expected text in content; fetch the file again, or mend or remove it"
READ_BYTES = 1 << 20  # of a column at once, not all that a row group has of it


@dataclass(frozen=True)
class StarCoder:
    """StarCoderData's layout, `<path>/<language>/*.parquet` with a `content` column; one part per language."""

    path: str
    code = True

    def identity(self) -> dict[str, Any]:
        return {"class": "StarCoder", **asdict(self), "files": self._files.sizes()}

    def files(self) -> list[str]:
        return list(self._files.sizes())

    def read(self, file: str) -> Iterator[Document | Broken]:
        source = f"starcoder/{PurePosixPath(file).parent.name}"
        with self._files.opened(file) as handle:
            for row, text in _contents(handle, self._files.name(file)):
                if isinstance(text, str):
                    yield Document(text, source, file, row)
                else:
                    yield self._files.broken(file, text.where, f"{text.where}: {text.what}", REMEDY)

    def part(self, document: Document) -> str:
        return document.source

    @property
    def _files(self) -> Files:
        return Files(self.path, "*/*.parquet")


class _Bad(NamedTuple):
    """What is wrong in the place of a text: where, and what."""

    where: str
    what: str


def _contents(handle: IO[bytes], name: str) -> Iterator[tuple[int, str | _Bad]]:
    """(row in the file, its content) of all rows; behind a damaged row group comes the next."""
    arrow, file = need("pyarrow"), _opened(handle, name)
    end = 0
    for group in range(file.num_row_groups):
        row, end = end, end + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=["content"]):
                for data in batch.column(0).cast(arrow.large_binary()).to_pylist():
                    yield row, _text(data, f"row group {group}, row {row}")
                    row += 1
        except (arrow.ArrowException, OSError) as error:
            _refuse_trouble(error)
            yield row, _Bad(f"row group {group}", f"is corrupt from row {row} on ({one_line(error)})")


def _opened(handle: IO[bytes], name: str) -> Any:
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(handle, buffer_size=READ_BYTES, pre_buffer=False)
    except (arrow.ArrowException, OSError) as error:
        _refuse_trouble(error)
        raise UserError(f"{name} is not a whole Parquet file ({one_line(error)}); expected one; fetch it again") from error
    names = file.schema_arrow.names
    require("content" in names, f"{name} has the columns {', '.join(names)}", "content among them", "check the reader's path")
    kind = str(file.schema_arrow.field("content").type)
    require(kind in ("string", "large_string"), f"{name} has content of type {kind}", "string", "check the reader's path")
    return file


def _text(data: bytes | None, where: str) -> str | _Bad:
    if data is None:
        return _Bad(where, "content is null")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return _Bad(where, f"content is not UTF-8 ({error})")


def _refuse_trouble(error: Exception) -> None:
    """Raise again what the disk or the network reported: only those errors have a number, and they are no damage of the file."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
