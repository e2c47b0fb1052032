"""Duplicates: which documents to leave out because an earlier one, of any input file, has the same text or nearly the same.

By datatrove's MinHash (Broder 1997): signatures for each file, equal ones found bucket by bucket, pairs joined into clusters. The
surprise: `exact` goes the same way with one bucket, in which the signature is the text's digest, because datatrove's own exact pass
hashes to 64 bits and keeps the lowest place of any file. Of a cluster its MinHash keeps the root of a tree; here it is the first
document, by file and place, so that neither the executor nor the number of tasks shows in what is left.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from crystal.data.optional import need
from crystal.data.readers import Document, Reader
from crystal.errors import require

WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a word's place in its n-gram is told apart
BLOCK_SHINGLES = 512  # hashed at once: datatrove's table of all of a document's would not fit any cache, nor for a book the memory
READ_RECORDS = 64  # of each file's signatures at once
OTHER_FILES = 64  # that a process has open

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Minhash:
    """Near duplicates: documents that agree in all `hashes` minima of any of the `buckets`; FineWeb's numbers (arXiv 2406.17557).

    Two of Jaccard similarity s do with probability 1 - (1 - s^hashes)^buckets: 0.92 at 0.8, 0.56 at 0.7, 0.05 at 0.5. The sets are of
    `n_grams` words in lower case; a shorter document is one n-gram, and one without words no duplicate.
    """

    n_grams: int = 5
    buckets: int = 14
    hashes: int = 8

    def shingles(self, text: str) -> np.ndarray:
        """uint64 (n, 1), one hash for each n-gram."""
        words = np.array([_word(word) for word in WORD.findall(text.lower())], np.uint64)
        n = min(self.n_grams, len(words))
        total = np.zeros(len(words) - n + 1 if n else 0, np.uint64)
        for k in range(n):
            total = total * FACTOR + words[k : k + len(total)]
        return np.unique(total)[:, None]

    def signature(self, shingles: np.ndarray, minima: Callable[[np.ndarray], list[list[int]]]) -> list[list[int]]:
        """`hashes` numbers for each bucket; `minima` is datatrove's for some of the shingles."""
        blocks = [minima(shingles[k : k + BLOCK_SHINGLES]) for k in range(0, len(shingles), BLOCK_SHINGLES)]
        lowest: list[list[int]] = np.min(np.array(blocks, np.uint64), axis=0).tolist()
        return lowest


@dataclass(frozen=True)
class Exact:
    """Equal texts, by 120 bits of a digest. An empty text is no duplicate."""

    n_grams, buckets, hashes = 0, 1, 2

    def shingles(self, text: str) -> np.ndarray:
        """uint64 (2, 1), the digest; (0, 1) of no text."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest() if text else b""
        return np.frombuffer(digest, "<u8")[:, None] >> np.uint64(4)  # datatrove takes nothing above 2^61

    def signature(self, shingles: np.ndarray, minima: Callable[[np.ndarray], list[list[int]]]) -> list[list[int]]:
        """The digest as the only bucket's."""
        return [shingles[:, 0].tolist()]


Method = Minhash | Exact


@lru_cache(1 << 18)
def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def leave_out(
    readers: Sequence[Reader], folder: Path, *, mode: str, run: Callable[[Step, int, str], None], minhash: Minhash | None = None
) -> None:
    """Write `folder`/<number>.npy for every input file of all `readers`: sorted uint64 `Document.index`es of what to leave out.

    `mode`: "exact" or "minhash". `run(step, n_items, name)` is to call `step(rank, n_tasks)` for every rank below n_tasks, which the
    caller chooses. Killed and called again, it goes on behind the last file or bucket that was done; `folder` belongs to one set of
    files and one mode. Broken records count as places without a document. Tokenized documents are compared by their ids.
    """
    require(mode in ("exact", "minhash"), f"data.dedup={mode}", "exact, minhash or null", "mend it")
    method = Exact() if mode == "exact" else minhash or Minhash()
    files = [(k, file) for k, reader in enumerate(readers) for file in reader.files()]
    outputs = [folder / f"{number:06d}.npy" for number in range(len(files))]
    if all(path.exists() for path in outputs):
        return
    run(Sign(tuple(readers), tuple(files), folder, method), len(files), "signatures")
    run(Match(len(files), folder, method), method.buckets, "duplicates")
    run(Choose(outputs, folder, method), 1, "clusters")
    for name in ("signatures", "signed", "pairs", "scratch"):
        shutil.rmtree(folder / name)


@dataclass(frozen=True)
class Sign:
    """Signatures of each input file, sorted, in signatures/bucket_<bucket>/<number>.minhash.sig; signed/<number>: all are there."""

    readers: tuple[Reader, ...]
    files: tuple[tuple[int, str], ...]  # reader, name
    folder: Path
    method: Method

    def __call__(self, rank: int, n_tasks: int) -> None:
        for number in range(rank, len(self.files), n_tasks):
            signed = self.folder / "signed" / f"{number:06d}"
            if not signed.exists():
                self._sign(number)
                signed.parent.mkdir(parents=True, exist_ok=True)
                signed.touch()

    def _sign(self, number: int) -> None:
        k, file = self.files[number]
        with _Scratch(self.folder, f"file-{number}") as scratch:
            signer = _datatrove("pipeline.dedup.minhash").MinhashDedupSignature(str(scratch), _config(self.method), language=_no_words())
            minima = signer.get_signature
            signer.get_shingles = self.method.shingles
            signer.get_signature = lambda shingles: self.method.signature(shingles, minima)
            signer.run(_documents(self.readers[k], file), rank=number)
            for path in scratch.glob("bucket_*/*"):
                place = self.folder / "signatures" / path.parent.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)


@dataclass(frozen=True)
class Match:
    """Pairs of documents with equal signatures in a bucket, as pairs/<bucket>_00.dups."""

    n_files: int
    folder: Path
    method: Method

    def __call__(self, rank: int, n_tasks: int) -> None:
        for bucket in range(rank, self.method.buckets, n_tasks):
            name = f"{bucket:05d}_00.dups"
            if (self.folder / "pairs" / name).exists():
                continue
            _allow_open(self.n_files)
            with _Scratch(self.folder, f"bucket-{bucket}") as scratch:
                matcher = _datatrove("pipeline.dedup.minhash").MinhashDedupBuckets(
                    str(self.folder / "signatures"), str(scratch), config=_config(self.method), lines_to_buffer=READ_RECORDS
                )
                matcher.run(rank=bucket, world_size=self.method.buckets)
                (self.folder / "pairs").mkdir(exist_ok=True)
                os.replace(scratch / name, self.folder / "pairs" / name)


@dataclass(frozen=True)
class Choose:
    """Of each cluster of pairs all but the first document, as <number>.npy; one task, which holds all duplicates in memory."""

    outputs: list[Path]
    folder: Path
    method: Method

    def __call__(self, rank: int, n_tasks: int) -> None:
        if rank:
            return
        _allow_open(2 * len(self.outputs))
        with _Scratch(self.folder, "clusters") as scratch:
            cluster = _datatrove("pipeline.dedup.minhash").MinhashDedupCluster(
                str(self.folder / "pairs"), str(scratch), config=_config(self.method), save_cluster_id=True, lines_to_buffer=READ_RECORDS
            )
            with redirect_stderr(io.StringIO()):  # its progress bar
                cluster.run()
            self._write(scratch)

    def _write(self, scratch: Path) -> None:
        """Clusters are numbered in the order of their first documents: one that is not above all before it has been seen."""
        n_seen = 0
        for number, output in enumerate(self.outputs):
            found = scratch / f"{number:06d}.clusters"
            places, clusters = np.fromfile(found, "<u4").reshape(-1, 2).T if found.exists() else np.empty((2, 0), "<u4")
            highest = np.maximum.accumulate(np.concatenate([[n_seen], clusters + 1]))
            temporary = scratch / output.name
            np.save(temporary, places[clusters < highest[:-1]].astype(np.uint64))
            os.replace(temporary, output)
            n_seen = int(highest[-1])


class _Scratch:
    """A folder that is new on entry and gone on exit; what is done is moved out of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / "scratch" / name

    def __enter__(self) -> Path:
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir(parents=True)
        return self._path

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._path)


def _documents(reader: Reader, file: str) -> Iterator[Any]:
    """datatrove's documents, one for each place of the file: it counts them, so where there is none comes an empty one."""
    document_of = _datatrove("data").Document
    n = 0
    for found in reader.read(file):
        if not isinstance(found, Document):
            continue
        for _ in range(n, found.index):
            yield document_of("", "")
        n = found.index + 1
        yield document_of(found.text if found.ids is None else " ".join(map(str, found.ids.tolist())), "")


def _config(method: Method) -> Any:
    hashes = _datatrove("utils.hashing").HashConfig(hash_fc="sha1")  # not used, and the default wants xxhash
    minhash = _datatrove("pipeline.dedup.minhash")
    return minhash.MinhashConfig(n_grams=method.n_grams, num_buckets=method.buckets, hashes_per_bucket=method.hashes, hash_config=hashes)


def _no_words() -> Any:
    """A splitter into words that splits nothing: `Minhash.shingles` does, and datatrove's own want spaCy or NLTK."""
    return _datatrove("utils.word_tokenizers").WhitespaceTokenizer()


def _datatrove(module: str) -> Any:
    """A module of datatrove, whose log stays off the terminal."""
    need("datatrove")
    need("loguru").logger.disable("datatrove")
    return need(f"datatrove.{module}")


def _allow_open(n_files: int) -> None:
    """datatrove opens the signatures of all input files at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_files + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        enough = hard == resource.RLIM_INFINITY or wanted <= hard
        require(enough, f"{hard} files may be open at once here", f"{wanted}, to compare those of the corpora", "raise ulimit -Hn")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
