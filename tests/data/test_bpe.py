"""The fast tokenizer has the ids of `tokenizers`, on LLaMA's file where the sample is and on small ones that are harder than it."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal.data import bpe
from crystal.data.bpe import BYTE_TOKENS, SPACE, Bpe, contents, obstacle
from crystal.data.tokenizer import ADDED_TOKENS, BASE_TOKENS, Tokenizer, load_tokenizer
from tests.data.conftest import WORDS
from tests.shared import LLAMA, SHARED_DATA, needs_sample

pytest.importorskip("numba")
CODE = [f"def {word}(x, y):\r\n    return x + {n}\t# größer, 日本  ok\n\n" for n, word in enumerate(WORDS)]


def llama_like(path: Path, *, prepend: bool) -> Path:
    """Learned with no pre-tokenizer at all, so that pieces reach across spaces and lines, as LLaMA's never do."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [tokenizers.normalizers.Replace(" ", SPACE)]
    learner.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend(SPACE), *steps] if prepend else steps)
    names = [*BASE_TOKENS, *BYTE_TOKENS]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=names, limit_alphabet=60, show_progress=False)
    learner.train_from_iterator(CODE, trainer)
    content = json.loads(learner.to_str())
    content["added_tokens"] = content["added_tokens"][: len(BASE_TOKENS)]
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(llama_like(tmp_path_factory.mktemp("bpe") / "tokenizer.json", prepend=True))


@pytest.fixture(scope="module", params=["small", "no prefix", pytest.param("llama", marks=needs_sample)])
def tokenizer(request: pytest.FixtureRequest, small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "no prefix":
        return load_tokenizer(llama_like(tmp_path_factory.mktemp("bpe") / "tokenizer.json", prepend=False))
    return small if request.param == "small" else load_tokenizer(LLAMA)


def by_package(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer._inner.encode_batch(texts, add_special_tokens=False)]


def check(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.engine == "numba"
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == by_package(tokenizer, texts)


ODD = "\0\x01\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"  # where UTF-8 gets longer
ALPHABETS = [" ", " \n\r\t", SPACE + " ab", "</s><fim_pad>0x1 ", "ab(_)=1.", "日本ö😀\u200d\u0301 ", ODD]
PARTS = [*WORDS, *BASE_TOKENS, *ADDED_TOKENS, *BYTE_TOKENS[:12], " ", "  ", "\r\n", "\t", SPACE, "é", "e\u0301", "(", "):"]
mixed = st.lists(st.sampled_from(PARTS))
any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(ALPHABETS).flatmap(st.text) | mixed.map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_text, max_size=4))
def test_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    check(tokenizer, texts)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ALPHABETS).flatmap(lambda alphabet: st.text(alphabet, min_size=1, max_size=9)), st.integers(2, 3000))
def test_pieces_of_any_length(tokenizer: Tokenizer, text: str, times: int) -> None:
    check(tokenizer, [text * times])


def test_bytes_that_are_no_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    check(tokenizer, [rng.randbytes(rng.randrange(200)).decode("utf-8", "replace") for _ in range(200)])


def test_every_pair_of_pieces(tokenizer: Tokenizer) -> None:
    """A thousand pieces of the vocabulary, each behind many others."""
    pieces = sorted(json.loads(tokenizer._inner.to_str())["model"]["vocab"])
    rng = random.Random(1)
    check(tokenizer, ["".join(rng.choices(pieces, k=40)) for _ in range(1000)])


@needs_sample
def test_ten_thousand_real_documents() -> None:
    from crystal.data.readers import SlimPajama, StarCoder

    def texts(reader: Any) -> Iterator[str]:
        return (document.text[:2000] for file in reader.files() for document in reader.read(file))

    prose = islice(texts(SlimPajama(str(SHARED_DATA / "slimpajama" / "train"))), 4000)
    documents = [*prose, *islice(texts(StarCoder(str(SHARED_DATA / "starcoderdata"))), 6000)]
    assert len(documents) == 10_000
    check(load_tokenizer(LLAMA), documents)


def test_a_megabyte_without_a_cut(tokenizer: Tokenizer) -> None:
    """In n**2 steps, hours."""
    letters = "".join(random.Random(0).choices("etaoinshr", k=1 << 20))
    check(tokenizer, [letters])


def test_the_memory_has_a_limit(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "MAX_PIECES", 16)
    own = Bpe.of(small._inner)
    assert own is not None
    emptied, before = 0, 0
    for text in CODE + CODE[::-1]:
        assert [ids.tolist() for ids in own.encode_batch([text])] == by_package(small, [text])
        now = int(own._memory.used[0])
        emptied, before = emptied + (now < before), now
        assert now <= 16 and (own._memory.slots[:, 0] != 0).sum() == now
    assert emptied > 5


def test_long_pieces_are_known_by_their_bytes(small: Tokenizer) -> None:
    """Each one's hash is made to lead to another one's ids, as if the hashes were equal."""
    own = Bpe.of(small._inner)
    assert own is not None
    texts = ["".join(random.Random(k).choices("retun", k=60)) for k in range(50)]
    own.encode_batch(texts)
    slots = own._memory.slots
    long = np.flatnonzero(slots[:, 0] >> np.uint64(63))
    assert len(long) > 20
    slots[long, 1] = np.roll(slots[long, 1], 1)
    assert [ids.tolist() for ids in own.encode_batch(texts)] == by_package(small, texts)


def without_spaces(content: dict[str, Any]) -> None:
    model = content["model"]
    model["vocab"] = {piece: number for piece, number in model["vocab"].items() if SPACE not in piece}
    model["merges"] = [merge for merge in model["merges"] if SPACE not in "".join(merge)]


def with_a_merge_of(left: str, right: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab.setdefault(left, max(vocab.values()) + 1)
        vocab.setdefault(left + right, max(vocab.values()) + 1)
        content["model"]["merges"].append([left, right])

    return change


def test_a_zero_byte_is_a_character_too(small: Tokenizer, tmp_path: Path) -> None:
    """A piece that begins with it has a key of its own."""
    content = contents(small._inner)
    with_a_merge_of("\0", "e")(content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    check(load_tokenizer(path), ["e\ne\n\0e\n\0\0e\ne\n\0"])


ADDED = {"id": 700, "content": "return", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
HARDER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ignore_merges": lambda content: content["model"].update(ignore_merges=True),
    "dropout": lambda content: content["model"].update(dropout=0.5),
    "end_of_word_suffix": lambda content: content["model"].update(end_of_word_suffix="</w>"),
    "a pre-tokenizer": lambda content: content.update(pre_tokenizer={"type": "Digits", "individual_digits": True}),
    "another normalizer": lambda content: content["normalizer"]["normalizers"].append({"type": "NFKC"}),
    "another post-processor": lambda content: content.update(
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ),
    "added tokens that text may hold": lambda content: content["added_tokens"].append(ADDED),
    "no byte fallback": lambda content: content["model"]["vocab"].pop("<0xE6>"),
    "no piece for a space": without_spaces,
    "two pieces with one id": lambda content: content["model"]["vocab"].update({"\u65e5": content["model"]["vocab"]["e"]}),
    "merges of bytes or of nothing": with_a_merge_of("<0xE6>", "<0x97>"),
}


@pytest.mark.parametrize("what", HARDER)
def test_what_it_cannot_do_goes_to_the_package(what: str, small: Tokenizer, tmp_path: Path) -> None:
    content = json.loads(small._inner.to_str())
    HARDER[what](content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    harder = load_tokenizer(path)
    assert obstacle(contents(harder._inner)) == what
    assert harder.engine == "tokenizers"
    if what != "dropout":
        assert [ids.tolist() for ids in harder.encode_batch(CODE)] == by_package(harder, CODE)


def test_merges_of_nothing_and_other_models(small: Tokenizer) -> None:
    content = contents(small._inner)
    assert obstacle(content) is None
    with_a_merge_of("", "e")(content)
    assert obstacle(content) == "merges of bytes or of nothing"
    assert obstacle(content | {"model": {"type": "Unigram"}}) == "the model Unigram"


def test_special_tokens_that_text_may_hold(small: Tokenizer) -> None:
    inner = pickle.loads(pickle.dumps(small._inner))
    assert not inner.encode_special_tokens
    assert Bpe.of(inner) is None


def test_one_that_disagrees_is_not_used(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bpe._rules
    monkeypatch.setattr(bpe, "_rules", lambda kernels, vocab, merges: right(kernels, vocab, merges[::-1]))
    assert Bpe.of(small._inner) is None


def test_without_numba(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crystal.data.bpe_kernels", None)
    plain = Tokenizer(small._inner, small.sha256)
    assert plain.engine == "tokenizers"
    assert [ids.tolist() for ids in plain.encode_batch(CODE[:9])] == by_package(small, CODE[:9])


def test_where_nothing_can_be_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from crystal.data import bpe_kernels

    right = bpe_kernels.njit

    def njit(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return right(**options)

    monkeypatch.setattr(bpe_kernels, "njit", njit)
    assert bpe_kernels.compiled(lambda x: x + 1)(2) == 3


def test_another_process_compiles_nothing(small: Tokenizer, tmp_path: Path) -> None:
    assert small.engine == "numba"
    path = llama_like(tmp_path / "tokenizer.json", prepend=True)
    program = f"""
from crystal.data.tokenizer import load_tokenizer
from crystal.data.bpe_kernels import encode
assert load_tokenizer({str(path)!r}).engine == "numba"
assert encode.stats.cache_hits and not encode.stats.cache_misses, encode.stats
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
