from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.tokenizer import ADDED_TOKENS, SPACE, Tokenizer, load_tokenizer, train_tokenizer
from tests.data.conftest import WORDS
from tests.shared import LLAMA, needs_sample

TEXTS = [f"def {word}(x):\n    return x + 7  # the </s> <fim_pad> <0x0A>\n" for word in WORDS] + ["größer, 日本"] * 9
BASE = ("<unk>", "<s>", "</s>")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter(TEXTS), 330, path)
    return load_tokenizer(path)


@pytest.fixture(scope="module", params=["trained", pytest.param("llama", marks=needs_sample)])
def tokenizer(request: pytest.FixtureRequest, trained: Tokenizer) -> Tokenizer:
    return trained if request.param == "trained" else load_tokenizer(LLAMA)


def test_layout_of_a_trained_one(trained):
    assert trained.n_ids == 330
    assert [trained.special[name] for name in BASE] == [0, 1, 2]
    assert [trained.special[name] for name in ADDED_TOKENS] == list(range(330 - 18, 330))
    assert trained.encode("\x07").tolist() == [3 + 7]  # a byte piece
    assert len(trained.encode("return")) < 6, "nothing was learned"


@needs_sample
def test_llama_gets_the_added_tokens_in_order():
    llama = load_tokenizer(LLAMA)
    assert llama.n_ids == 32018 and llama.eos_id == 2
    assert [llama.special[name] for name in ADDED_TOKENS] == list(range(32000, 32018))
    assert llama.encode("def f():").tolist() == [822, 285, 7295]


def test_text_never_gives_a_special_token(tokenizer):
    special = set(tokenizer.special.values())
    for name in (*BASE, *ADDED_TOKENS, "<0x0A>"):
        for text in (name, f" {name} ", f"x{name}y", name * 2, f"\n{name}"):
            ids = tokenizer.encode(text)
            assert not special & set(ids.tolist()), text
            assert tokenizer.decode(ids) == text


def test_special_tokens_decode_as_asked(tokenizer):
    ids = [*tokenizer.encode("hello").tolist(), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special=False) == "hello</s>"


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from("<>/s0xA1fim_pad \n\t\r{}" + SPACE)))
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(SPACE, " ")


def test_same_texts_same_file(tmp_path, trained):
    train_tokenizer(iter(TEXTS), 330, tmp_path / "again.json")
    assert load_tokenizer(tmp_path / "again.json").sha256 == trained.sha256


def test_a_batch_is_its_texts(tokenizer):
    batch = tokenizer.encode_batch(TEXTS[:5])
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text).tolist() for text in TEXTS[:5]]


def test_another_process_has_the_same_one(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    text = "a </s><fim_pad> of text\n"
    assert again.encode_batch([text])[0].tolist() == tokenizer.encode(text).tolist()
    assert (again.engine, again.sha256) == (tokenizer.engine, tokenizer.sha256)


def test_errors(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_tokenizer(tmp_path / "bad.json")
    with pytest.raises(UserError, match="lower vocab_size"):
        train_tokenizer(iter(["ab"]), 500, tmp_path / "few.json")
    with pytest.raises(UserError, match="too small; expected at least 278"):
        train_tokenizer(iter(["ab"]), 100, tmp_path / "few.json")
    assert not (tmp_path / "few.json").exists()
