from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.data.fim import DRAWS, FimIds, draws_of, permute_row, permute_rows, split_pieces, unpermute_row, words_of
from crystal.data.pack import PIECE, Plan
from crystal.data.readers import StarCoder
from crystal.data.tokenizer import SPACE, Tokenizer, load_tokenizer, train_tokenizer
from tests.data.packed import packed
from tests.shared import LLAMA, SHARED_DATA, needs_sample

IDS = FimIds(prefix=90, middle=91, suffix=92, pad=93, eos=2)
FILES = np.array([17, 4], np.uint64)
documents = st.lists(st.lists(st.integers(3, 80), max_size=70), min_size=1, max_size=8)
seeds = st.integers(0, 2**32)


def rows_of(docs: list[list[int]], width: int, **how) -> tuple[np.ndarray, Plan]:
    return packed([np.array(doc, np.int64) for doc in docs], width, eos_id=IDS.eos, pad_id=IDS.pad, **how)


def permuted(rows: np.ndarray, plan: Plan, *, seed: int, rate: float, spm_rate: float, ids: FimIds = IDS) -> np.ndarray:
    draws = draws_of(words_of(plan.pieces, key=seed, epochs=np.zeros(len(plan.pieces), np.int64), files=FILES))
    return permute_rows(rows, plan.pieces["length"].astype(np.int64), plan.counts, draws, rate=rate, spm_rate=spm_rate, ids=ids)


def lengths_of(plan: Plan) -> list[list[int]]:
    return [own.tolist() for own in np.split(plan.pieces["length"], np.cumsum(plan.counts)[:-1])]


@given(documents, st.integers(5, 50), st.floats(0, 1), st.floats(0, 1), seeds, st.sampled_from(["split", "best_fit"]))
def test_undone_gives_the_rows_back(docs, width, rate, spm_rate, seed, packing):
    rows, plan = rows_of(docs, width, packing=packing)
    results = permuted(rows.astype(np.uint16), plan, seed=seed, rate=rate, spm_rate=spm_rate)
    assert results.shape == rows.shape and results.dtype == np.uint16
    for row, result, lengths in zip(rows, results, lengths_of(plan), strict=True):
        np.testing.assert_array_equal(unpermute_row(result, lengths, IDS), row)


@given(documents, st.integers(5, 50), seeds)
def test_rate_one_permutes_every_piece_and_rate_zero_none(docs, width, seed):
    rows, plan = rows_of(docs, width)
    every = permuted(rows, plan, seed=seed, rate=1, spm_rate=0.5)
    for token in (IDS.prefix, IDS.suffix, IDS.middle, IDS.eos):
        assert ((every == token).sum(axis=1) == plan.counts).all()
    np.testing.assert_array_equal(permuted(rows, plan, seed=seed, rate=0, spm_rate=0.5), rows)


@given(documents, seeds)
def test_a_row_is_permuted_alone_as_among_others(docs, seed):
    rows, plan = rows_of(docs, 30)
    together = permuted(rows, plan, seed=seed, rate=0.7, spm_rate=0.5)
    draws = draws_of(words_of(plan.pieces, key=seed, epochs=np.zeros(len(plan.pieces), np.int64), files=FILES))
    for row, result, own in zip(rows, together, np.split(draws, np.cumsum(plan.counts)[:-1]), strict=True):
        np.testing.assert_array_equal(permute_row(row, own, rate=0.7, spm_rate=0.5, ids=IDS), result)


def test_the_two_orders():
    row = np.array([10, 11, 12, 13, IDS.eos, IDS.pad, IDS.pad, IDS.pad])
    draws = np.array([[0.0, 0.0, 0.65, 0.25]])  # splits at floor(5 u): 3 and 1
    psm, spm = (permute_row(row, draws, rate=1, spm_rate=spm_rate, ids=IDS) for spm_rate in (0, 1))
    assert psm.tolist() == [IDS.prefix, 10, IDS.suffix, 13, IDS.middle, 11, 12, IDS.eos]
    assert spm.tolist() == [IDS.prefix, IDS.suffix, 13, IDS.middle, 10, 11, 12, IDS.eos]


def test_a_cut_piece_before_another_and_an_empty_document():
    """Best fit may put a document behind the cut piece of another; an empty one is only its EOS."""
    row = np.array([10, 11, 12, IDS.eos, 13, IDS.eos] + 14 * [IDS.pad])
    lengths, draws = np.array([2, 2, 2]), np.full((3, DRAWS), 0.5)
    result = permute_rows(row[None], lengths, np.array([3]), draws, rate=1, spm_rate=0, ids=IDS)[0]
    assert result[:6].tolist() == [IDS.prefix, 10, IDS.suffix, 11, IDS.middle, IDS.eos]
    np.testing.assert_array_equal(unpermute_row(result, lengths.tolist(), IDS), row)
    empty = permute_row(np.array([IDS.eos] + 3 * [IDS.pad]), draws[:1], rate=1, spm_rate=1, ids=IDS)
    assert empty.tolist() == [IDS.prefix, IDS.suffix, IDS.middle, IDS.eos]


def test_rows_without_room_are_an_error():
    with pytest.raises(AssertionError, match="without room"):
        permute_row(np.array([10, 11, 12, IDS.eos]), np.zeros((1, DRAWS)), rate=1, spm_rate=0, ids=IDS)


def within_three_sigma(count: int, n: int, rate: float) -> bool:
    return abs(count - n * rate) <= 3 * math.sqrt(n * rate * (1 - rate))


@pytest.mark.parametrize(("rate", "spm_rate"), [(0.9, 0.5), (0.3, 0.5), (0.5, 0.1)])
def test_rates_are_met(rate, spm_rate):
    n = 40_000
    rows, plan = rows_of([[5] * 9] * n, 131)
    draws = draws_of(words_of(plan.pieces, key=3, epochs=np.ones(n, np.int64), files=FILES))
    draws[:, 2:] = 0.5 + draws[:, 2:] / 2  # no empty prefix, which would hide the order
    result = permute_rows(rows, plan.pieces["length"].astype(np.int64), plan.counts, draws, rate=rate, spm_rate=spm_rate, ids=IDS).ravel()
    prefixes = np.flatnonzero(result == IDS.prefix)
    assert within_three_sigma(len(prefixes), n, rate)
    assert within_three_sigma(int((result[prefixes + 1] == IDS.suffix).sum()), len(prefixes), spm_rate)


def test_draws_depend_on_seed_epoch_and_every_part_of_the_piece():
    pieces = np.zeros(6, PIECE)
    pieces["file"][1], pieces["place"][2], pieces["start"][3], pieces["length"][5] = 1, 1, 1, 9
    words = words_of(pieces, key=7, epochs=np.array([0, 0, 0, 0, 1, 0]), files=FILES)
    assert len(set(words.tolist())) == 5 and words[5] == words[0]
    assert words_of(pieces[:1], key=8, epochs=np.zeros(1, np.int64), files=FILES)[0] != words[0]


def test_draws_are_uniform_and_independent():
    pieces = np.zeros(100_000, PIECE)
    pieces["place"] = np.arange(len(pieces))
    draws = draws_of(words_of(pieces, key=1, epochs=np.zeros(len(pieces), np.int64), files=FILES))
    assert draws.shape == (len(pieces), DRAWS) and draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        assert abs(np.histogram(column, 10, (0, 1))[0] - 10_000).max() < 400
    neighbours = np.concatenate([draws[:-1], draws[1:]], axis=1)
    assert abs(np.corrcoef(neighbours.T) - np.eye(2 * DRAWS)).max() < 0.015


FRAGMENTS = [
    "def f(x):",
    "    return x",
    " ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "self.",
    "größer",
    "日本語",
    "👩\u200d👧",
    "</s>",
    "<fim_middle>",
    "e\u0301",
]


def random_text(rng: random.Random) -> str:
    """Code-like text with what breaks tokenizers: of 0 or 1 characters, CRLF, tabs, emoji, any code point, bytes that are no UTF-8."""
    if rng.random() < 0.05:
        return rng.choice(["", "a", "\n", " ", "\t", "é", "🙂", "\r\n", "\x00"])
    parts = []
    for _ in range(rng.randint(1, 30)):
        code_point = rng.choice([rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])
        no_utf8 = rng.randbytes(5).decode("utf-8", errors="replace")
        parts.append(rng.choice([*FRAGMENTS, chr(code_point), no_utf8]))
    return "".join(parts)


def inverted(texts: list[str], tokenizer: Tokenizer, width: int, spm_rate: float) -> None:
    """Every text comes back exactly from rows of which every piece was permuted."""
    ids = FimIds.of(tokenizer.special, tokenizer.eos_id)
    encoded = tokenizer.encode_batch(texts)
    rows, plan = packed(encoded, width, eos_id=ids.eos, pad_id=ids.pad)
    results = permuted(rows, plan, seed=1, rate=1, spm_rate=spm_rate, ids=ids)
    assert ((results == ids.middle).sum(axis=1) == plan.counts).all()
    found: list[list[np.ndarray]] = [[] for _ in texts]
    lengths, places = lengths_of(plan), np.split(plan.pieces["place"], np.cumsum(plan.counts)[:-1])
    for result, own_lengths, own_places in zip(results, lengths, places, strict=True):
        row = unpermute_row(result, own_lengths, ids)
        for place, piece in zip(own_places, np.split(row, np.cumsum(own_lengths)), strict=False):
            found[place].append(piece)
    for text, tokens, pieces in zip(texts, encoded, found, strict=True):
        whole = np.concatenate(pieces)
        assert whole[-1] == ids.eos and np.array_equal(whole[:-1], tokens)
        if spm_rate == 0:  # equal ids have equal texts: decoded once; SPACE and a space are one in the tokenizer itself
            assert tokenizer.decode(whole[:-1]) == text.replace(SPACE, " ")


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    rng = random.Random(1)
    train_tokenizer([random_text(rng) for _ in range(500)], 500, path)
    return load_tokenizer(path)


@pytest.mark.parametrize("spm_rate", [0, 1])
def test_ten_thousand_random_documents_come_back(small_tokenizer, spm_rate):
    rng = random.Random(2)
    inverted([random_text(rng) for _ in range(10_000)], small_tokenizer, 129, spm_rate)


@needs_sample
@pytest.mark.parametrize("spm_rate", [0, 1])
def test_ten_thousand_real_documents_come_back(spm_rate):
    reader = StarCoder(str(SHARED_DATA / "starcoderdata"))
    texts = [document.text for file in reader.files() for document in reader.read(file)]
    assert len(texts) >= 10_000
    inverted(texts[:10_000], load_tokenizer(LLAMA), 2049, spm_rate)


@given(st.lists(st.lists(st.integers(3, 80), max_size=30), min_size=1, max_size=5))
def test_pieces_are_told_apart_by_their_ends(docs):
    rows, plan = rows_of(docs, 40)
    for row, lengths in zip(rows, lengths_of(plan), strict=True):
        assert [len(piece) for piece in split_pieces(row, IDS)] == lengths
