"""Prepare: readers' documents -> tokenizer.json, shards, indices, manifest.json; whole or not at all.

Passes, each a step that an executor runs in as many tasks as it likes: leave out duplicates, encode, plan, fill. The surprise: a kill loses
nothing. The work lies beside `out` under a name that its settings make, and the same command takes up what is whole there. The paths of
the corpora are recorded but not compared: the same files elsewhere are the same data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal.data.assemble import FillShards, Layout, Part, PlanParts
from crystal.data.encode import Encode, EncodedFile, InputFile, is_held_out
from crystal.data.executors import Executor, Here, Step
from crystal.data.pack import PACKINGS
from crystal.data.readers import Document, Reader
from crystal.data.shards import FORMAT, Prepared, read_manifest
from crystal.data.tokenizer import ADDED_TOKENS, FIM_PAD, Tokenizer, load_tokenizer, train_tokenizer
from crystal.data.watch import watched
from crystal.errors import UserError, require
from crystal.runlog import read_json, write_json, write_text

if TYPE_CHECKING:
    from crystal.data.decontaminate import Decontaminator

SAMPLE_BYTES = 12 << 20  # of text, for training a tokenizer
SAMPLE_FILES = 64  # of each reader
SAMPLE_DOCUMENT_CHARACTERS = 1 << 16
PATHS = {"path"}  # of a spec: recorded, not compared


@dataclass(frozen=True)
class Settings:
    """What decides the rows, besides the documents and the tokenizer.

    `seq_len` in tokens; `holdout`: share of the documents for validation; `valid_rows`: at most so many rows of each source; `packing`
    and `fim_room`: see `crystal.data.pack`; `dedup`: None, "exact" or "minhash"; `contaminated`: "drop" documents that hold a benchmark's
    problem, "report" them only, or "ignore" it; `on_broken`: "stop" at a record that cannot be read, or "skip" it.
    """

    seq_len: int
    vocab_size: int
    holdout: float
    valid_rows: int
    packing: str = "split"
    fim_room: bool = True
    dedup: str | None = None
    contaminated: str = "drop"
    on_broken: str = "stop"

    def __post_init__(self) -> None:
        require(self.seq_len >= 8, f"seq_len is {self.seq_len}", "at least 8 tokens", "raise scale.seq_len")
        require(0 <= self.holdout < 1, f"holdout is {self.holdout}", "a share in [0, 1)", "mend data.holdout")
        require(self.valid_rows >= 0, f"valid_rows is {self.valid_rows}", "0 or more", "mend data.valid_rows")
        dedup, contaminated, on_broken = (None, "exact", "minhash"), ("drop", "report", "ignore"), ("stop", "skip")
        for name, known in {"packing": PACKINGS, "dedup": dedup, "contaminated": contaminated, "on_broken": on_broken}.items():
            value = getattr(self, name)
            words = ["null" if choice is None else choice for choice in known]
            require(value in known, f"data.{name}={value}", " or ".join(words), f"mend data.{name}")


def prepare(
    readers: Sequence[Reader], out: Path, settings: Settings, *, tokenizer: Path | None, label: str, progress: Callable[[str], None],
    executor: Executor | None = None, decontaminator: Decontaminator | None = None,
) -> Prepared:  # fmt: skip
    """Prepared data in `out`: at once where it is there already for the same corpora and settings.

    `tokenizer`: a tokenizer.json, or None to train one of `vocab_size` ids. UserError when `out` holds something else, the tokenizer has
    more ids than that, or a corpus cannot be read.
    """
    identities = [reader.identity() for reader in readers]
    spec: dict[str, Any] = {name: value for name, value in asdict(settings).items() if name != "on_broken"}
    spec["tokenizer"] = "trained" if tokenizer is None else load_tokenizer(tokenizer).sha256
    spec["decontaminate"] = None if decontaminator is None else decontaminator.identity()
    spec["readers"] = identities
    sizes = [(k, name, size) for k, identity in enumerate(identities) for name, size in identity["files"].items()]
    files = [InputFile(number, k, name, size) for number, (k, name, size) in enumerate(sizes)]

    def write(work: Path) -> None:
        _Work(work, readers, files, settings, executor or Here(), decontaminator, progress).write(spec, tokenizer, label)

    make_whole(Path(out), spec, write, progress)
    return Prepared.open(out, verify=False)


@dataclass(frozen=True)
class _Work:
    """The work on one `out`, in a folder that a restart finds again; `folder`/out is what is moved into place."""

    folder: Path
    readers: Sequence[Reader]
    files: Sequence[InputFile]
    settings: Settings
    executor: Executor
    decontaminator: Decontaminator | None
    progress: Callable[[str], None]

    def write(self, spec: dict[str, Any], source: Path | None, label: str) -> None:
        """Everything but the move."""
        self._forget_other_files(trained=source is None)
        out, settings = self.folder / "out", self.settings
        tokenizer = self._tokenizer(source, out / "tokenizer.json")
        size = sum(file.bytes for file in self.files)
        self.progress(f"{len(self.files):,} files, {size / 1e6:,.1f} MB; tokenizing by {tokenizer.engine}")
        self._encode(out / "tokenizer.json")
        layout = Layout(
            self.folder / "encoded", out, settings.seq_len + 1, settings.vocab_size, settings.packing, settings.valid_rows,
            tokenizer.special[FIM_PAD], out / "tokenizer.json",
        )  # fmt: skip
        parts = self._parts()
        self._run(PlanParts(layout, parts), len(parts), "plan")
        entries = {part: read_json(layout.entry_path(part), {}) for part in parts}
        fill = FillShards(layout, {part: entry["rows"] for part, entry in entries.items()})
        self._run(fill, len(fill.shards()), "fill")
        for part, number in fill.shards():
            entries[part].setdefault("shards", []).append(read_json(layout.shard_path(part, number), {}))
        sides: dict[str, dict[str, Any]] = {"train": {}, "valid": {}}
        for part, entry in entries.items():
            side, _, name = part.partition("/")
            sides[side][name] = {"shards": []} | entry
        write_manifest(out, spec, label, tokenizer, {"files": [file.name for file in self.files], **sides, "left_out": self._reports(out)})
        for stray in out.rglob("*.tmp"):  # of tasks that were killed
            stray.unlink()

    def _forget_other_files(self, *, trained: bool) -> None:
        """Where an input file has changed since, what was made of all files is made again; what was made of each other one stays."""
        given = {"files": [[file.name, file.bytes] for file in self.files]}
        if read_json(self.folder / "files.json", {}) != given:
            for name in ("parts", "shards", "out", "removed", *(("encoded",) if trained else ())):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / "tokenizer.json").unlink(missing_ok=True)
            write_json(self.folder / "files.json", given)

    def _tokenizer(self, source: Path | None, path: Path) -> Tokenizer:
        path.parent.mkdir(parents=True, exist_ok=True)
        if source is not None:
            return copied_tokenizer(source, path, self.settings.vocab_size)
        kept = self.folder / "tokenizer.json"  # of an earlier start: the encoded files are its
        if not kept.exists():
            texts = _sample(self.readers, self.settings.holdout)
            self.progress(f"training a tokenizer of {self.settings.vocab_size} ids on {sum(map(len, texts)) / 1e6:.1f} M characters")
            train_tokenizer(texts, self.settings.vocab_size, kept)
        return copied_tokenizer(kept, path, self.settings.vocab_size)

    def _encode(self, tokenizer_path: Path) -> None:
        settings, removed = self.settings, None
        if settings.dedup is not None:
            from crystal.data.dedup import leave_out

            removed = self.folder / "removed"
            leave_out(self.readers, removed, mode=settings.dedup, run=self._run)
        if self.decontaminator is not None:
            self.decontaminator.hits([])  # compiled once, before there are many processes
        encoded = self.folder / "encoded"
        step = Encode(
            self.readers, self.files, encoded, tokenizer_path, settings.vocab_size, settings.holdout, settings.on_broken,
            self.decontaminator, settings.contaminated, removed,
        )  # fmt: skip
        with watched(self.files, encoded, self.progress):
            self._run(step, len(self.files), "encode")

    def _parts(self) -> dict[str, Part]:
        """The parts of all encoded files, in order."""
        rooms, numbers = dict[str, bool](), dict[str, list[int]]()
        for file in self.files:
            for part, entry in EncodedFile(self.folder / "encoded", file.number).about["parts"].items():
                room = entry["code"] and self.settings.fim_room
                other = f"{part} is code by one reader and text by another"
                require(rooms.setdefault(part, room) == room, other, "one or the other", "give one of them another source")
                numbers.setdefault(part, []).append(file.number)
        return {part: Part(rooms[part], tuple(numbers[part])) for part in sorted(rooms)}

    def _reports(self, out: Path) -> dict[str, int]:
        """Write contamination.jsonl and broken.jsonl, a line for each hit and each skipped record; how many documents it was."""
        lines: dict[str, list[str]] = {"contamination": [], "broken": []}
        documents = {"duplicates": 0, "contaminated": 0, "broken": 0}
        for file in self.files:
            about = EncodedFile(self.folder / "encoded", file.number).about
            for name, found in (("contamination", about["hits"]), ("broken", about["broken"])):
                lines[name] += [json.dumps({"file": file.name, **line}, ensure_ascii=False) for line in found]
            documents["duplicates"] += about["removed"]
            documents["broken"] += len(about["broken"])
            documents["contaminated"] += len({hit["place"] for hit in about["hits"]})
        for name, found in lines.items():
            write_text(out / f"{name}.jsonl", "".join(line + "\n" for line in found))
        if any(documents.values()):
            kept = " (reported, not left out)" if self.settings.contaminated == "report" else ""
            found = [f"{n:,} {name}{kept if name == 'contaminated' else ''}" for name, n in documents.items() if n]
            self.progress(f"documents left out: {', '.join(found)}")
        return documents

    def _run(self, step: Step, n_items: int, name: str) -> None:
        if n_items:
            logs = self.folder / "logs"
            self.executor.run(step, n_items, logs / f"{len(list(logs.glob('*'))):03d}-{name}")


def make_whole(out: Path, spec: dict[str, Any], write: Callable[[Path], None], progress: Callable[[str], None]) -> None:
    """Have `write(work)` make the data in work/out and move it to `out`; or find data of the same `spec` there.

    The folder `work` is the same for the same settings, whatever the corpora's files, and stays where `write` fails after something.
    """
    existing, work = _existing(out, spec), out.with_name(f".{out.name}.{_key(spec)}.work")
    if existing is not None:
        shutil.rmtree(work, ignore_errors=True)  # where a kill came right behind the move
        progress(f"{out}: prepared before, {_tokens(existing['train'])} train tokens")
        return
    try:
        (work / "out").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.out={out} cannot be made ({error.strerror}); expected a folder to write into; give another") from error
    try:
        write(work)
        _move(work / "out", out, spec)
    finally:
        if out.exists() or not any((work / "encoded").glob("*.json")):
            shutil.rmtree(work, ignore_errors=True)
        else:
            progress(f"what is done stays in {work}; the same command goes on with it")


def _key(spec: dict[str, Any]) -> str:
    readers = [{name: value for name, value in reader.items() if name not in ("files", *PATHS)} for reader in spec["readers"]]
    return hashlib.sha256(json.dumps(spec | {"readers": readers, "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:8]


def _existing(out: Path, spec: dict[str, Any]) -> dict[str, Any] | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = (out / "manifest.json").is_file()
    require(found, f"{out} has no manifest.json, so it is something else", "prepared data or nothing there", "give another data.out")
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
                if isinstance(document, Document) and document.text is not None and not is_held_out(document, holdout):
                    texts.append(document.text[:SAMPLE_DOCUMENT_CHARACTERS])
                    taken += len(texts[-1])
    return texts
