"""Harvest: real text and code of this Python installation, in the formats of SlimPajama and StarCoderData.

It lets the whole pipeline run with no download. The surprise: no file is used twice. A hash sets a quarter of the
Python files aside for their docstrings, which become text; the others are code. `prose.STAND_INS` says
what stands in for what.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystal.config import UserError
from crystal.data.optional import need
from crystal.data.prose import STAND_INS, docstrings, is_prose, language_reference, without_headers

LABEL = "stand-in: text and code of this Python installation; not SlimPajama, not StarCoderData"
LANGUAGES = {
    ".py": "python", ".html": "html", ".htm": "html", ".css": "css", ".js": "javascript", ".mjs": "javascript",
    ".ts": "typescript", ".c": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".hpp": "cpp", ".cu": "cuda",
    ".cuh": "cuda", ".sh": "shell", ".bash": "shell", ".fish": "shell", ".ps1": "powershell", ".bat": "batchfile",
    ".pyx": "cython", ".pxd": "cython", ".proto": "protocol-buffer", ".cmake": "cmake", ".tcl": "tcl", ".java": "java",
    ".go": "go", ".rs": "rust", ".f90": "fortran", ".sql": "sql", ".tex": "tex",
}  # fmt: skip
# With half of the headers, the GitHub slice.
OTHER_FILES = {".pyi", ".toml", ".cfg", ".ini", ".yaml", ".yml", ".json", ".in"}
PROSE_FILES = {".md", ".rst", ".txt"}
NOT_PROSE = re.compile(r"licen[cs]e|copying|notice|top_level|entry_points|requirements|sources|record|installed|vendor", re.I)
NOT_OURS = re.compile(r"/(__pycache__|_vendor|vendored|third_party|node_modules|pydoc_data)/|\.min\.|/eval/|human_?eval|mbpp", re.I)
TESTS = re.compile(r"/(tests?|testing)/|/(test_[^/]*|[^/]*_test|conftest)\.py$")
GENERATED = re.compile(r"generated (by|from|file)|auto-?generated|do not (edit|modify)", re.I)
COMPILED = (".so", ".pyd", ".dylib", ".dll")

MIN_BYTES, MAX_BYTES = 100, 256 * 1024
MAX_MEAN_LINE, MAX_LINE, MIN_ALPHANUMERIC = 100, 1000, 0.25  # StarCoder's filters (arXiv 2305.06161, section 3)
LOOK_CHARACTERS = 4000  # of a file, for shares of characters
PYTHON_SHARE = 2 / 3  # of the code; at most half of it the standard library, a tenth tests, a tenth any one package
LANGUAGE_SHARE = 1 / 4  # of the other code, for any one language
TEXT_SHARES = {
    "RedPajamaCommonCrawl": 0.40, "RedPajamaC4": 0.25, "RedPajamaGithub": 0.10, "RedPajamaWikipedia": 0.08,
    "RedPajamaBook": 0.07, "RedPajamaArXiv": 0.05, "RedPajamaStackExchange": 0.05,
}  # fmt: skip
MINED_BYTES = 12 << 20  # of Python source parsed for docstrings
SLIMPAJAMA_FILES = 8


@dataclass(frozen=True, slots=True)
class _File:
    root: str
    name: str  # behind a word for its root: the same on every machine with this installation
    package: str
    pure: bool  # the package has no compiled modules
    order: bytes

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name.partition("/")[2])

    @property
    def base(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.base)[1].lower()


def harvest(
    out: str | Path, *, max_code_bytes: int = 24_000_000, max_text_bytes: int = 10_000_000, seed: int = 0
) -> dict[str, dict[str, int]]:
    """Write `out`/slimpajama/train/chunk1, `out`/starcoderdata/<language> and README.md.

    Returns {source: {"documents", "bytes"}}. The same installation and seed give the same bytes. Whole or not at all.
    UserError when `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists; expected a new folder to harvest into; delete it or name another")
    files = _installation(seed)
    code, text = _Budget(), _Budget()
    _gather_code(files, code, max_code_bytes)
    _gather_text(files, text, max_text_bytes)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write_text(temporary, text)
        _write_code(temporary, code)
        counts = text.counts() | {f"starcoder/{language}": count for language, count in code.counts().items()}
        (temporary / "README.md").write_text(_readme(counts), encoding="utf-8")
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


class _Budget:
    """Texts by source, each once, while there is room for them."""

    def __init__(self) -> None:
        self.taken: dict[str, list[tuple[str, str, str]]] = defaultdict(list)  # source -> (name, package, text)
        self.bytes: dict[str, int] = defaultdict(int)  # by source, and by whatever else is capped
        self._seen: set[bytes] = set()

    def take(self, source: str, name: str, package: str, text: str, limits: dict[str, float]) -> None:
        """Keep the text unless it was seen, or one of the `limits` (bytes by key) would be passed."""
        size, digest = len(text.encode()), hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._seen or any(self.bytes[key] + size > limit for key, limit in limits.items()):
            return
        self._seen.add(digest)
        self.taken[source].append((name, package, text))
        for key in limits:
            self.bytes[key] += size

    def counts(self) -> dict[str, dict[str, int]]:
        return {
            source: {"documents": len(texts), "bytes": sum(len(text.encode()) for _, _, text in texts)}
            for source, texts in sorted(self.taken.items())
            if texts
        }


def _installation(seed: int) -> list[_File]:
    """Every file of the standard library, site packages and headers, ordered by a hash, pure packages first."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    sites = sorted({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
    shared = [Path(sys.prefix, "share", "doc")]
    roots = [
        ("stdlib", stdlib),
        *(("site-packages", site) for site in sites),
        ("include", Path(sysconfig.get_path("include"))),
    ]
    files = []
    for root_name, root in [*roots, *(("doc", path) for path in shared)]:
        names = sorted(_walk(root))
        compiled = {name.split("/")[0] for name in names if name.endswith(COMPILED)}
        for name in names:
            package = name.split("/")[0] if root_name == "site-packages" else root_name
            order = hashlib.blake2b(f"{seed}/{root_name}/{name}".encode(), digest_size=8).digest()
            pure = root_name != "site-packages" or package not in compiled
            files.append(_File(str(root), f"{root_name}/{name}", package, pure, order))
    return sorted(files, key=lambda file: (not file.pure, file.order))


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in ("site-packages", "__pycache__")]
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in names:
            yield name if inside == "." else f"{inside}/{name}"


def _is_mined(file: _File) -> bool:
    """Set aside for text: a quarter of the Python files, by hash."""
    return file.order[0] % 4 == 0


def _gather_code(files: list[_File], budget: _Budget, max_bytes: int) -> None:
    python, other = max_bytes * PYTHON_SHARE, max_bytes * (1 - PYTHON_SHARE)
    for file in files:
        language = _language(file)
        if language is None or (language == "python" and _is_mined(file)):
            continue
        if language == "python":
            limits = {"python": python, f"package {file.package}": python / (2 if file.package == "stdlib" else 10)}
            if TESTS.search(file.name):
                limits["tests"] = python / 10
        else:
            limits = {"other": other, language: other * LANGUAGE_SHARE}
        if any(budget.bytes[key] >= limit - MIN_BYTES for key, limit in limits.items()):
            continue
        text = _read(file)
        if text is not None and is_code(text):
            budget.take(language, file.name, file.package, text, limits)


def _language(file: _File) -> str | None:
    suffix = file.suffix
    if NOT_OURS.search(f"/{file.name}"):
        return None
    if suffix == ".h" and file.order[0] % 2:
        return "c" if file.package in ("include", "numpy") else "cpp"
    return LANGUAGES.get(suffix)


def is_code(text: str) -> bool:
    """StarCoder's filters: short lines, enough letters and digits; and nothing generated."""
    lines = text.split("\n")
    head = text[:LOOK_CHARACTERS]
    alphanumeric = sum(map(str.isalnum, head)) / len(head)
    return (
        len(text) / len(lines) <= MAX_MEAN_LINE
        and max(map(len, lines)) <= MAX_LINE
        and alphanumeric >= MIN_ALPHANUMERIC
        and not GENERATED.search(text[:1000])
    )


def _read(file: _File) -> str | None:
    """The text of a file that is UTF-8 and of a usual size, else None."""
    try:
        if not MIN_BYTES <= os.path.getsize(file.path) <= MAX_BYTES:
            return None
        return Path(file.path).read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None


def _gather_text(files: list[_File], budget: _Budget, max_bytes: int) -> None:
    mined, limits = 0, {source: max_bytes * share for source, share in TEXT_SHARES.items()}
    for file in files:
        if NOT_OURS.search(f"/{file.name}") or TESTS.search(file.name):
            continue
        found: Iterable[tuple[str, str]] = ()
        if file.suffix == ".py":
            if _is_mined(file) and mined < MINED_BYTES and (text := _read(file)):
                mined += len(text)
                found = docstrings(text, file.name)
        elif (source := _text_source(file)) and budget.bytes[source] < limits[source] - MIN_BYTES and (text := _read(file)):
            found = _whole_file(file, source, text)
        for source, text in found:
            budget.take(source, file.name, file.package, text, {source: limits[source]})
    for text in language_reference():
        budget.take("RedPajamaBook", "pydoc_data", "stdlib", text, {"RedPajamaBook": limits["RedPajamaBook"]})


def _text_source(file: _File) -> str | None:
    """Package descriptions and documentation stand in for the crawl, small other files for the GitHub slice."""
    suffix = file.suffix
    if file.base == "METADATA" or (suffix in PROSE_FILES and not NOT_PROSE.search(file.name)):
        return "RedPajamaCommonCrawl"
    return "RedPajamaGithub" if suffix in OTHER_FILES or (suffix == ".h" and _language(file) is None) else None


def _whole_file(file: _File, source: str, text: str) -> Iterator[tuple[str, str]]:
    text = without_headers(text) if file.base == "METADATA" else text
    if is_code(text) if source == "RedPajamaGithub" else is_prose(text):
        yield source, text


def _write_text(root: Path, budget: _Budget) -> None:
    """Eight files, every source spread over all of them, its documents in the order of a hash."""
    zstandard = need("zstandard")
    folder = root / "slimpajama" / "train" / "chunk1"
    folder.mkdir(parents=True)
    lines: list[list[tuple[str, str]]] = [[] for _ in range(SLIMPAJAMA_FILES)]
    for source in TEXT_SHARES:
        for k, (_, _, text) in enumerate(budget.taken[source]):
            record = json.dumps({"text": text, "meta": {"redpajama_set_name": source}}, ensure_ascii=False)
            lines[k % SLIMPAJAMA_FILES].append((hashlib.sha256(record.encode()).hexdigest(), record))
    for k, records in enumerate(lines):
        data = "".join(f"{record}\n" for _, record in sorted(records)).encode()
        (folder / f"example_train_{k}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))


def _write_code(root: Path, budget: _Budget) -> None:
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    for language, texts in sorted(budget.taken.items()):
        path = root / "starcoderdata" / language / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        columns: dict[str, Any] = {
            "max_stars_repo_path": arrow.array([name for name, _, _ in texts], arrow.string()),
            "max_stars_repo_name": arrow.array([package for _, package, _ in texts], arrow.string()),
            "max_stars_count": arrow.nulls(len(texts), arrow.int64()),
            "id": arrow.array([str(k) for k in range(len(texts))], arrow.string()),
            "content": arrow.array([text for _, _, text in texts], arrow.string()),
        }
        parquet.write_table(arrow.table(columns), path, row_group_size=1000)


def _readme(counts: dict[str, dict[str, int]]) -> str:
    code = "source files of installed packages"
    rows = [
        f"| {source} | {count['documents']:,} | {count['bytes']:,} | {STAND_INS.get(source, code)} |" for source, count in counts.items()
    ]
    return (
        f"# Harvested data\n\n{LABEL[0].upper()}{LABEL[1:]}.\n"
        "Results from training on it say nothing about a model trained on those.\n"
        "The texts keep the licences of the packages that they come from.\n\n"
        "| source | documents | bytes | what it really is |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
