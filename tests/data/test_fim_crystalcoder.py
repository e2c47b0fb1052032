"""CrystalCoder's own FIM: what it does, and what it loses, counted. Bit for bit with the published script it was compared once by hand."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal.data.fim import FimIds
from crystal.data.fim_crystalcoder import CrystalCoderFim
from crystal.data.tokenizer import SPACE, load_tokenizer, train_tokenizer
from tests.data.conftest import WORDS
from tests.shared import LLAMA, SHARED_DATA, needs_sample


def code(n: int, lines: int = 20) -> list[str]:
    """Documents of at most so many lines."""
    rng = random.Random(0)
    bodies = ["".join(f"    x += {rng.choice(WORDS)}  # größer\n" for _ in range(rng.randint(1, lines))) for _ in range(n)]
    return [f"def {rng.choice(WORDS)}(x):\n{body}" for body in bodies]


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with LLaMA's pipeline: a space before every text, which decoding takes away, and no splitting into words."""
    path = tmp_path_factory.mktemp("llama") / "tokenizer.json"
    train_tokenizer(code(50), 600, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, content["normalizer"]]}
    content["pre_tokenizer"] = None
    content["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


class Rows:
    """A tokenizer, and documents packed by it as CrystalCoder's were: concatenated, split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokenizer = load_tokenizer(path)
        self.ids = FimIds.of(self.tokenizer.special, self.tokenizer.eos_id)

    def packed(self, texts: list[str], width: int) -> np.ndarray:
        stream = np.concatenate([np.append(self.tokenizer.encode(text), self.ids.eos) for text in texts])
        return stream[: len(stream) // width * width].reshape(-1, width).astype(np.uint16)

    def fim(self, rate: float, spm_rate: float = 0.5) -> CrystalCoderFim:
        return CrystalCoderFim(self.path, self.ids, rate=rate, spm_rate=spm_rate)

    def padded(self, row: np.ndarray, width: int) -> np.ndarray:
        """The row's inputs with room behind them, in which nothing is cut."""
        return np.concatenate([row[:-1], np.full(width - len(row) + 1, self.ids.pad, row.dtype)])

    def segments(self, row: np.ndarray) -> list[np.ndarray]:
        """What stands between EOS ids, padding and empty documents left out."""
        content = row[row != self.ids.pad]
        found = np.split(content, np.flatnonzero(content == self.ids.eos) + 1)
        return [part for part in (part[part != self.ids.eos] for part in found) if len(part)]

    def parts(self, segment: np.ndarray) -> list[np.ndarray]:
        """Prefix (with SPM before the middle, to which it is joined), middle, suffix of a permuted segment."""
        suffix, middle = (int(np.flatnonzero(segment == mark)[0]) for mark in (self.ids.suffix, self.ids.middle))
        return [segment[1:suffix], segment[middle + 1 :], segment[suffix + 1 : middle]]

    def losses(self, rows: np.ndarray, rate: float) -> dict[str, int]:
        """What the transform does to rows: segments that decode to other text, rows that lose the end of their last middle."""
        fim = self.fim(rate)
        counts = dict.fromkeys(("segments", "other_text", "rows", "cut_middle", "lost_tokens"), 0)
        for k, row in enumerate(rows):
            whole = fim(self.padded(row, 2 * len(row)), np.random.default_rng(k))
            for source, result in zip(self.segments(row[:-1]), self.segments(whole), strict=False):
                if result[0] == self.ids.prefix:
                    back = self.tokenizer.decode(np.concatenate(self.parts(result)), skip_special=False)
                    counts["segments"] += 1
                    counts["other_text"] += back != self.tokenizer.decode(source, skip_special=False)
            lost = int((whole[len(row) :] != self.ids.pad).sum()) - 1  # the last is the EOS that ours puts where their label has it
            tail = self.segments(whole)[-1]
            in_middle = tail[0] == self.ids.prefix and 0 < lost <= len(self.parts(tail)[1])
            counts["rows"] += 1
            counts["cut_middle"] += int(in_middle)
            counts["lost_tokens"] += max(0, lost)
        return counts


@pytest.fixture(scope="module", params=["llama-like", pytest.param("llama", marks=needs_sample)])
def rows(request: pytest.FixtureRequest, llama_like: Path) -> Rows:
    return Rows(LLAMA if request.param == "llama" else llama_like)


def test_both_losses_are_there_on_generated_code(rows: Rows) -> None:
    packed = rows.packed(code(100, lines=100), 513)
    counts = rows.losses(packed, 0.9)
    assert counts["rows"] > 50
    assert counts["other_text"] > 0.97 * counts["segments"], counts  # the others have two of their three parts empty
    assert counts["cut_middle"] > 0.5 * counts["rows"], counts


@needs_sample
def test_both_losses_are_there_on_the_sample() -> None:
    import pyarrow.parquet as pq

    llama = Rows(LLAMA)
    file = min((SHARED_DATA / "starcoderdata" / "python").glob("*.parquet"))
    texts = list(islice(pq.read_table(file, columns=["content"]).column(0).to_pylist(), 100))
    counts = llama.losses(llama.packed(texts, 2049)[:60], 0.9)
    assert counts["rows"] == 60
    assert counts["other_text"] == counts["segments"] > 60, counts
    assert counts["cut_middle"] >= 50, counts


def test_a_segment_keeps_its_text_only_where_it_is_not_split(rows: Rows) -> None:
    text = "x = 1"
    row = rows.padded(rows.packed([text, text], len(rows.tokenizer.encode(text)) + 1)[0], 60)
    fim, seen = rows.fim(1.0, spm_rate=0.0), set()
    for seed in range(60):
        parts = rows.parts(rows.segments(fim(row, np.random.default_rng(seed)))[0])
        split = sum(len(part) > 0 for part in parts) > 1
        assert (rows.tokenizer.decode(np.concatenate(parts)) != text) == split
        seen.add(split)
    assert seen == {True, False}


class Fixed:
    """Draws that are known: uniform ones in turn, and always the same two places."""

    def __init__(self, uniform: list[float], places: tuple[int, int]) -> None:
        self.uniform, self.places = iter(uniform), np.array(places)

    def random(self) -> float:
        return next(self.uniform)

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        assert (low, size) == (0, 2) and self.places.max() < high
        return self.places


def test_the_two_orders_an_empty_document_and_the_last_label(rows: Rows) -> None:
    encode, ids = rows.tokenizer.encode, rows.ids
    row = np.concatenate([encode("one = 1"), [ids.eos, ids.eos], encode("two = 2"), [7, ids.pad, ids.pad, ids.pad, ids.pad, ids.pad]])
    draws = [Fixed([0.0, spm, 0.9], (7, 3)) for spm in (0.9, 0.0)]
    psm, spm = (rows.fim(0.5)(row, draw)[: len(row)] for draw in draws)  # type: ignore[arg-type]
    first = [[ids.prefix], encode("one"), [ids.suffix], [ids.middle], encode(" = 1")]
    second = [[ids.prefix], [ids.suffix], [ids.middle], encode("one"), encode(" = 1")]
    rest = [[ids.eos], encode("two = 2"), [7, ids.eos]]
    for got, start in ((psm, first), (spm, second)):
        expected = np.concatenate(start + rest)
        np.testing.assert_array_equal(got, np.append(expected, [ids.pad] * len(row))[: len(row)])


def test_a_row_without_padding_that_is_left_alone_ends_in_the_eos_of_their_last_label(rows: Rows) -> None:
    fim, packed = rows.fim(0.0), rows.packed(code(20), 65)
    for row in packed[packed[:, 0] != rows.ids.eos]:  # such a row begins with an empty document for them
        result = fim(row, np.random.default_rng(0))
        np.testing.assert_array_equal(result[:-1], row[:-1])
        assert result[-1] == rows.ids.eos


@given(st.lists(st.text(max_size=60), min_size=3, max_size=12), st.integers(5, 80), st.integers(0, 99), st.floats(0, 1))
@settings(deadline=None)
def test_text_gives_no_special_token_and_a_row_keeps_its_shape(
    llama_like: Path, texts: list[str], width: int, seed: int, rate: float
) -> None:
    rows = Rows(llama_like)
    fim = rows.fim(rate)
    for row in rows.packed(["<s></s><fim_middle>", *texts], width):
        result = fim(row, np.random.default_rng(seed))
        assert result.shape == row.shape and result.dtype == row.dtype
        assert not np.isin(result, [rows.tokenizer.special["<s>"], rows.tokenizer.special["<unk>"]]).any()
        assert (result == rows.ids.eos).sum() <= (row == rows.ids.eos).sum() + 1
        np.testing.assert_array_equal(result, fim(row, np.random.default_rng(seed)))
