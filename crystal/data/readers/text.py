"""Text in lines of JSON (SlimPajama's layout or any other) and in files of its own.

The surprise: a compressed stream that ends early looks like a short file to most readers; here it is damage.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, Any

from crystal.config import UserError, require
from crystal.data.optional import need
from crystal.data.readers.document import Broken, Document, check_source
from crystal.data.readers.files import Files

READ_BYTES = 1 << 17  # compressed; of 1 MiB at once, what comes out no longer fits the caches: less than half the speed
LINE_BYTES = 1 << 30
HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # as JSON spells it, whether its other half is there or not
ZSTD_WINDOW_BYTES = 1 << 31  # the most that `zstd --long` writes
SLIMPAJAMA = 'expected {"text": ..., "meta": {"redpajama_set_name": ...}}; fetch the file again or remove the line'


@dataclass(frozen=True)
class SlimPajama:
    """SlimPajama-627B's layout, `<path>/chunk*/*.jsonl.zst`; parts `<set name>/even|odd` by the last number in the file's name.

    clean: as of `cleaner`.
    """

    path: str
    clean: str | None = None
    code = False

    def __post_init__(self) -> None:
        cleaner(self.clean)

    def identity(self) -> dict[str, Any]:
        return {"class": "SlimPajama", **asdict(self), "files": self._files.sizes()}

    def files(self) -> list[str]:
        return list(self._files.sizes())

    def read(self, file: str) -> Iterator[Document | Broken]:
        return _documents(self._files, file, _text_and_set, cleaner(self.clean), SLIMPAJAMA)

    def part(self, document: Document) -> str:
        numbers = re.findall("[0-9]+", PurePosixPath(document.file).name)
        if not numbers:
            raise UserError(
                f"{self._files.name(document.file)} has no number in its name; expected names like "
                "example_train_12.jsonl.zst, whose parity splits SlimPajama into even and odd; rename the file"
            )
        return f"{document.source}/{'odd' if int(numbers[-1]) % 2 else 'even'}"

    @property
    def _files(self) -> Files:
        return Files(self.path, "chunk*/*.jsonl.zst")


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line, with the text under the key `text`; files `*.jsonl` or `*.json`, alone or with .gz or .zst; one part."""

    path: str
    source: str = "text"
    pattern: str = "**/*.jsonl*"
    text: str = "text"
    code: bool = False
    clean: str | None = None

    def __post_init__(self) -> None:
        check_source(self.source)
        cleaner(self.clean, code=self.code)

    def identity(self) -> dict[str, Any]:
        return {"class": "JsonLines", **asdict(self), "files": self._sizes()}

    def files(self) -> list[str]:
        return list(self._sizes())

    def read(self, file: str) -> Iterator[Document | Broken]:
        remedy = f"expected {json.dumps({self.text: '...'})}; mend or remove the line"
        return _documents(self._files, file, self._text_and_source, cleaner(self.clean), remedy)

    def part(self, document: Document) -> str:
        return document.source

    def _text_and_source(self, record: dict[str, Any]) -> tuple[str, str]:
        return _text(record, self.text), self.source

    def _sizes(self) -> dict[str, int]:
        sizes = self._files.sizes()
        for name in sizes:
            known = re.search(r"\.jsonl?(\.gz|\.zst)?$", name) is not None
            expected = "names that end in .jsonl or .json, alone or with .gz or .zst"
            require(known, f"{self._files.name(name)} has an unknown ending", expected, f"narrow the pattern {self.pattern}")
        return sizes

    @property
    def _files(self) -> Files:
        return Files(self.path, self.pattern)


@dataclass(frozen=True)
class TextFolder:
    """Every file is one document, in UTF-8 with U+FFFD for what is none; one part."""

    path: str
    source: str
    pattern: str = "**/*"
    code: bool = False
    clean: str | None = None

    def __post_init__(self) -> None:
        check_source(self.source)
        cleaner(self.clean, code=self.code)

    def identity(self) -> dict[str, Any]:
        return {"class": "TextFolder", **asdict(self), "files": self._files.sizes()}

    def files(self) -> list[str]:
        return list(self._files.sizes())

    def read(self, file: str) -> Iterator[Document | Broken]:
        with self._files.opened(file) as handle:
            text = handle.read().decode("utf-8", "replace")
        yield Document(cleaner(self.clean)(text), self.source, file, 0)

    def part(self, document: Document) -> str:
        return document.source

    @property
    def _files(self) -> Files:
        return Files(self.path, self.pattern)


def cleaner(clean: str | None, *, code: bool = False) -> Callable[[str], str]:
    """What makes a text clean: null, nothing; "nfc", Unicode's NFC; "ftfy", that and ftfy's repairs, as Cerebras' ModelZoo has it
    (`ftfy.fix_text(text, normalization="NFC")`). UserError for another name, and for code, whose bytes are its meaning: ftfy turns
    `&lt;` into `<` and curly quotes into straight ones. CrystalCoder's published configuration has it on for StarCoder all the same.
    """
    require(clean in (None, "nfc", "ftfy"), f"a reader's clean={clean}", "null, nfc or ftfy", "mend it")
    require(clean is None or not code, f"a reader of code has clean={clean}", "null, as code is taken as it is", "leave clean out")
    if clean == "ftfy":
        fix_text = need("ftfy").fix_text
        return lambda text: fix_text(text, normalization="NFC")
    return (lambda text: unicodedata.normalize("NFC", text)) if clean else lambda text: text


def _documents(
    files: Files, file: str, fields: Callable[[dict[str, Any]], tuple[str, str]], clean: Callable[[str], str], remedy: str
) -> Iterator[Document | Broken]:
    """The records of lines; `fields(record)` gives text and source, or a ValueError that says what is wrong with it."""
    open_frame, damage = _compression(file)
    index = -1
    with files.opened(file) as handle:
        try:
            for index, line in enumerate(_lines(_chunks(handle, open_frame), files.name(file))):
                if not line.strip():
                    continue
                try:
                    text, source = fields(_record(line))
                    if HALF_A_PAIR.search(line):
                        text = _without_lone_surrogates(text)
                    yield Document(clean(text), source, file, index)
                except ValueError as error:
                    yield files.broken(file, f"line {index + 1}", f"line {index + 1} {error}", remedy)
        except (damage, EOFError) as error:
            what = f"is truncated or corrupt after line {index + 1} ({error})"
            yield files.broken(file, f"line {index + 2}", what, "expected a whole stream; fetch the file again")


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode().removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    return record if isinstance(record, dict) else {}


def _text(record: dict[str, Any], key: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise ValueError(f"has no {key}")
    return text


def _text_and_set(record: dict[str, Any]) -> tuple[str, str]:
    text, meta = _text(record, "text"), record.get("meta")
    source = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    if not isinstance(source, str):
        raise ValueError("has no meta.redpajama_set_name")
    if not _names_a_folder(source):
        raise ValueError(f"has the set name {source!r}, not one of letters, digits, _, . and -")
    return text, source


@lru_cache(64)
def _names_a_folder(source: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*", source) is not None


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 text can hold: U+FFFD takes its place."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _compression(file: str) -> tuple[Callable[[], Any] | None, type[Exception]]:
    """By the name's ending: what begins a frame (a member of gzip), or None; and the error of a damaged one."""
    if file.endswith(".zst"):
        zstandard = need("zstandard")
        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj, zstandard.ZstdError
    return (lambda: zlib.decompressobj(wbits=31)) if file.endswith(".gz") else None, zlib.error


def _chunks(handle: IO[bytes], open_frame: Callable[[], Any] | None) -> Iterator[bytes]:
    """The bytes of all frames; EOFError where the file ends inside one, or has none."""
    if open_frame is None:
        yield from iter(lambda: handle.read(READ_BYTES), b"")
        return
    frame, whole = open_frame(), False
    while data := handle.read(READ_BYTES):
        while data:
            yield frame.decompress(data)
            data, whole = b"", frame.eof
            if whole:
                data, frame = frame.unused_data, open_frame()
    if not whole:
        raise EOFError("the file ends inside a frame")


def _lines(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Lines without their ends; UserError for one of more than LINE_BYTES.

    A line in many chunks is joined once: joined with each of them, it would cost its length squared.
    """
    begun: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            yield b"".join(begun)
            begun = [rest.pop()]
            yield from rest
        if sum(map(len, begun)) > LINE_BYTES:
            raise UserError(f"{name} has a line of over {LINE_BYTES >> 20} MiB; expected one JSON object a line; write each to its own")
    if last := b"".join(begun):
        yield last
