"""Duplicates that were planted are left out but for the first; whoever runs the steps, and after a kill."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.data import dedup
from crystal.data.dedup import Exact, Minhash, leave_out
from crystal.data.readers import Broken, Document
from crystal.errors import UserError
from tests.data.conftest import WORDS

pytest.importorskip("datatrove")


@dataclass(frozen=True)
class Texts:
    """A reader of what it is given: by file, a text, ids or (None) a broken record at each place."""

    contents: dict[str, list[Any]]
    code: bool = False

    def identity(self) -> dict[str, Any]:
        return {"class": "Texts", "files": dict.fromkeys(self.contents, 1)}

    def files(self) -> list[str]:
        return list(self.contents)

    def read(self, file: str) -> Iterator[Document | Broken]:
        for index, content in enumerate(self.contents[file]):
            if content is None:
                yield Broken(file, f"line {index + 1}", "broken")
            elif isinstance(content, str):
                yield Document(content, "text", file, index)
            else:
                yield Document(None, "text", file, index, ids=np.array(content))

    def part(self, document: Document) -> str:
        return document.source


def words(n: int, seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=n)


def changed(text: str, n: int, seed: int) -> str:
    """`n` of the words replaced, and the layout changed."""
    rng, found = random.Random(seed), text.split()
    for place in rng.sample(range(len(found)), n):
        found[place] = "other"
    return ",\n".join(word.capitalize() for word in found)


LONG = [" ".join(words(300, seed)) for seed in range(40)]
SHORT = ["one two", "three", "!?"]
FIRST = Texts(
    {
        "a": [LONG[0], LONG[1], None, LONG[2], "", SHORT[0], LONG[1]],
        "b": ["", LONG[3], changed(LONG[0], 3, 0), SHORT[2], None, None, LONG[4], LONG[3]],
        "empty": [],
    }
)
SECOND = Texts(
    {
        "a": [changed(LONG[4], 2, 1), *LONG[5:40], LONG[0], SHORT[1]],
        "d": [SHORT[1], SHORT[0], changed(LONG[5], 150, 2), SHORT[2], [5, 6, 7]],
    }
)
THIRD = Texts({"e": [[7, 8], [5, 6, 7], [5, 6], "5 6 8"]})
READERS = (FIRST, SECOND, THIRD)
EXACT = [[6], [7], [], [36], [0, 1, 3], [1]]
NEAR = [[6], [2, 7], [], [0, 36], [0, 1], [1]]


def by(n_tasks: int) -> Callable[[dedup.Step, int, str], None]:
    """The steps one after the other, each from its pickle as in another process."""

    def run(step: dedup.Step, n_items: int, name: str) -> None:
        for rank in reversed(range(n_tasks)):
            pickle.loads(pickle.dumps(step))(rank, n_tasks)

    return run


def left_out(folder: Path, n_files: int = 6) -> list[list[int]]:
    assert sorted(path.name for path in folder.glob("*.npy")) == [f"{k:06d}.npy" for k in range(n_files)]
    found = [np.load(folder / f"{k:06d}.npy") for k in range(n_files)]
    assert all(places.dtype == np.uint64 for places in found)
    return [places.tolist() for places in found]


@pytest.mark.parametrize(("mode", "expected"), [("exact", EXACT), ("minhash", NEAR)])
@pytest.mark.parametrize("n_tasks", [1, 4, 30])
def test_all_but_the_first_are_left_out_whatever_the_number_of_tasks(
    tmp_path: Path, mode: str, expected: list[list[int]], n_tasks: int
) -> None:
    leave_out(READERS, tmp_path, mode=mode, run=by(n_tasks))
    assert left_out(tmp_path) == expected
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "what led there is not kept"


@pytest.mark.parametrize("seed", range(5))
def test_the_first_of_a_cluster_stays_whatever_datatrove_takes_for_its_root(tmp_path: Path, seed: int) -> None:
    """A chain of near duplicates, the later ones more like each other than like the first."""
    chain = [LONG[0]]
    for k in range(12):
        chain.append(changed(chain[-1], 4, k))
    order = random.Random(seed).sample(range(13), 13)
    reader = Texts({f"file {k}": [LONG[20 + k], chain[order[k]]] for k in range(13)})
    leave_out([reader], tmp_path, mode="minhash", run=by(1))
    places = left_out(tmp_path, 13)
    assert places[0] == []
    assert sum(map(len, places)) >= 10 and all(found in ([], [1]) for found in places)


@dataclass(frozen=True)
class Counted(Texts):
    reads: list[str] = field(default_factory=list)

    def read(self, file: str) -> Iterator[Document | Broken]:
        self.reads.append(file)
        return super().read(file)


@pytest.mark.parametrize("mode", ["exact", "minhash"])
def test_killed_anywhere_and_started_again_it_goes_on(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start may move one file more than the one before until it is killed."""
    leave_out(READERS, tmp_path / "whole", mode=mode, run=by(1))
    move, left = os.replace, 0

    def replace_some(source: Path, target: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        move(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    reads: list[str] = []
    readers = [Counted(reader.contents, reads=reads) for reader in READERS]
    for n_starts in range(1, 100):
        left = n_starts
        with suppress(KeyboardInterrupt):
            leave_out(readers, tmp_path / "killed", mode=mode, run=lambda step, n_items, name: step(0, 1))
            break
    assert n_starts > 3
    assert left_out(tmp_path / "killed") == left_out(tmp_path / "whole")
    assert len(reads) <= 6 + n_starts, "a start may waste the one file in which it is killed"
    leave_out(readers, tmp_path / "killed", mode=mode, run=lambda step, n_items, name: pytest.fail("all is there"))


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(1, 6))
def test_shingles_are_the_set_of_n_grams(letters: list[str], n: int) -> None:
    shingles = Minhash(n_grams=n).shingles("; ".join(letters).upper())
    width = min(n, len(letters))
    grams = {tuple(letters[k : k + width]) for k in range(len(letters) - width + 1)} if letters else set()
    assert shingles.shape == (len(grams), 1) and shingles.dtype == np.uint64


def test_a_signature_in_blocks_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shingles = Minhash().shingles(" ".join(words(3000, 1)))
    minhash = pytest.importorskip("datatrove.pipeline.dedup.minhash")
    signer = minhash.MinhashDedupSignature("memory://none", dedup._config(Minhash()), language=dedup._no_words())
    monkeypatch.setattr(dedup, "BLOCK_SHINGLES", 100)
    assert Minhash().signature(shingles, signer.get_signature) == signer.get_signature(shingles)


def test_the_share_found_follows_the_formula() -> None:
    """Pairs of known similarity: their buckets agree as often as s^hashes says, within 4 sigma."""
    minhash = pytest.importorskip("datatrove.pipeline.dedup.minhash")
    method = replace(Minhash(), hashes=4)
    signer = minhash.MinhashDedupSignature("memory://none", dedup._config(method), language=dedup._no_words())
    rng, agreed, n = np.random.default_rng(0), 0, 0
    for _ in range(150):
        shingles = rng.integers(0, 1 << 63, size=(1300, 1), dtype=np.uint64)
        one, other = (method.signature(part, signer.get_signature) for part in (shingles[:1200], shingles[100:]))
        agreed += sum(a == b for a, b in zip(one, other, strict=True))
        n += method.buckets
    expected = (1100 / 1300) ** method.hashes
    assert abs(agreed / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 0.01


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.dedup=fuzzy; expected exact, minhash or null; mend it"):
        leave_out(READERS, tmp_path, mode="fuzzy", run=by(1))


def test_too_few_files_that_may_be_open_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup.resource, "getrlimit", lambda kind: (100, 1000))
    with pytest.raises(UserError, match="1000 files may be open at once here; expected 1064"):
        dedup._allow_open(1000)
    raised = []
    monkeypatch.setattr(dedup.resource, "setrlimit", lambda kind, limits: raised.append(limits))
    dedup._allow_open(936)
    dedup._allow_open(20)
    assert raised == [(1000, 1000)]


class Failing(Texts):
    def read(self, file: str) -> Iterator[Document | Broken]:
        raise UserError("the file is away; expected it; fetch it")


def test_nothing_reaches_the_terminal_and_what_goes_wrong_is_raised(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    leave_out(READERS, tmp_path / "quiet", mode="minhash", run=by(1))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match="the file is away"):
        leave_out([Failing({"a": []})], tmp_path / "failing", mode="exact", run=by(1))


def test_exact_takes_nothing_but_equal_texts() -> None:
    assert Exact().shingles("").size == 0
    assert not np.array_equal(Exact().shingles("a"), Exact().shingles("a "))
    assert (Exact().shingles("a") < 1 << 60).all()
