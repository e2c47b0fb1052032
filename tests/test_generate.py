from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends.cpu import CpuEngine
from crystal import generate as module
from crystal.checkpoint import latest, read_model
from crystal.config import AdamWConfig, Sampling, UserError
from crystal.data.tokenizer import load_tokenizer
from crystal.engine import TrainSpec
from crystal.generate import Completer, Watch, generate
from crystal.model import decode
from crystal.mup.plan import derive
from crystal.schedule import Piece, Schedule
from tests.shared import LLAMA, needs_sample
from tests.small import random_model, small_batches, small_config

CONFIG = small_config(vocab_size=40)
NONE = -1  # no token has this id: an end of text that never comes


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(CONFIG.vocab_size, (n,), generator=generator).tolist() for n in (7, 1, 12, 3, 3, 10, 2, 5)]


def drawn(model, prompts, *, seeds=None, eos_id=NONE, done=lambda i, ids: False, ended=lambda: None, **changes) -> list[list[int]]:
    sampling = Sampling(**(dict(max_new_tokens=12, temperature=0.0, top_p=1.0, batch_size=3) | changes))
    own = seeds or range(len(prompts))
    return generate(decode.decoder(model, CONFIG), prompts, sampling, seeds=own, eos_id=eos_id, done=done, ended=ended)


@torch.no_grad()
def naive(model, prompt: list[int], n: int, *, eos_id: int = NONE) -> list[int]:
    """Greedy by the book: the whole text through the model for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n:
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token == eos_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_greedy_equals_the_naive_loop(model, prompts):
    assert drawn(model, prompts) == [naive(model, prompt, 12) for prompt in prompts]


def test_the_end_of_text_ends_its_row_only_and_is_left_out(model, prompts):
    eos_id = naive(model, prompts[2], 12)[4]
    expected = [naive(model, prompt, 12, eos_id=eos_id) for prompt in prompts]
    assert len(expected[2]) < 12 and len({len(ids) for ids in expected}) > 1, "rows must end at different places to show something"
    for batch_size in (1, 3, 8):
        assert drawn(model, prompts, eos_id=eos_id, batch_size=batch_size) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_a_prompt_gets_does_not_depend_on_its_batch(model, prompts, temperature):
    alone, three, eight = (drawn(model, prompts, temperature=temperature, top_p=0.95, batch_size=size) for size in (1, 3, 8))
    assert alone == three == eight
    turned = drawn(model, prompts[::-1], temperature=temperature, top_p=0.95, seeds=range(len(prompts))[::-1])
    assert turned[::-1] == alone


def test_seeds_decide_the_draws(model, prompts):
    one, again, other = (drawn(model, prompts, temperature=1.0, seeds=[seed] * len(prompts)) for seed in (1, 1, 2))
    assert one == again != other


def test_done_ends_a_row(model, prompts):
    whole = drawn(model, prompts)
    lengths = [1 + i % 4 for i in range(len(prompts))]
    assert drawn(model, prompts, done=lambda i, ids: len(ids) == lengths[i]) == [ids[:n] for ids, n in zip(whole, lengths, strict=True)]


def test_each_text_says_once_that_it_has_ended(model, prompts):
    ended: list[None] = []
    drawn(model, prompts, done=lambda i, ids: len(ids) == 1 + i % 4, ended=lambda: ended.append(None), batch_size=2)
    assert len(ended) == len(prompts)


def test_a_long_prompt_loses_its_beginning(model):
    prompt = [i % CONFIG.vocab_size for i in range(2 * CONFIG.seq_len)]
    assert drawn(model, [prompt]) == [naive(model, prompt[-(CONFIG.seq_len - 12) :], 12)]


def test_as_many_tokens_as_there_is_room_for(model):
    assert drawn(model, [[3]], max_new_tokens=CONFIG.seq_len - 1) == [naive(model, [3], CONFIG.seq_len - 1)]
    with pytest.raises(UserError, match="max_new_tokens"):
        drawn(model, [[3]], max_new_tokens=CONFIG.seq_len)


def test_one_pass_for_equal_prompts(model, prompts, monkeypatch):
    passed, hidden = [], module.Transformer.hidden

    def counted(self, ids_BT, cache=None, documents_BT=None):
        if ids_BT.shape[1] > 1:
            passed.append(ids_BT[0].tolist())
        return hidden(self, ids_BT, cache, documents_BT)

    monkeypatch.setattr(module.Transformer, "hidden", counted)
    asked = [prompts[0], prompts[2], prompts[0], prompts[0]]
    new = drawn(model, asked, temperature=1.0, batch_size=2)
    assert sorted(passed) == sorted([prompts[0], prompts[2]])
    assert new == [drawn(model, [prompt], temperature=1.0, seeds=[seed])[0] for seed, prompt in enumerate(asked)]
    assert new[0] != new[2] != new[3]


@pytest.fixture(scope="module")
def undecided():
    """Of a model whose tokens come in pairs that differ by about what float32 rounds off: other rounding takes the other one."""
    config = small_config(vocab_size=80, d_model=64, d_ffn=171, seq_len=96)
    model = random_model(config)
    with torch.no_grad():
        table = model.embed.weight
        table[40:] = table[:40] * (1 + 2e-7 * torch.randn(40, 64, generator=torch.Generator().manual_seed(3)))
    return decode.decoder(model, config)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_near_ties_do_not_depend_on_batch_size_order_or_company(undecided, temperature, monkeypatch):
    monkeypatch.setattr(decode, "CPU_STEP", 16)  # texts go from block to block
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randint(40, (1 + i % 29,), generator=generator).tolist() for i in range(64)]

    def new(which, batch_size):
        sampling = Sampling(max_new_tokens=32, temperature=temperature, top_p=0.95, batch_size=batch_size)
        asked = [prompts[i] for i in which]
        return generate(undecided, asked, sampling, seeds=which, eos_id=3, done=lambda i, ids: ids[-1] % 40 == which[i] % 40)

    alone = new(range(64), 1)
    assert {len(ids) for ids in alone} >= {0, 1, 32}, "sequences of all lengths"
    assert 0.2 < sum(token >= 40 for ids in alone for token in ids) / sum(map(len, alone)) < 0.8, "no near ties: this shows nothing"
    assert new(range(64), 8) == new(range(64), 64) == alone
    assert new(range(64)[::-1], 11) == alone[::-1]
    assert new(range(3, 40, 4), 5) == alone[3:40:4]


@pytest.mark.parametrize("sizes", decode.SIZES[1:])
def test_where_products_do_not_agree_others_do(undecided, sizes, monkeypatch):
    monkeypatch.setattr(decode.TiledLinear, "agrees", lambda self, asked: asked == sizes)
    steps = decode.decoder(undecided.model, undecided.config)
    assert steps.sizes == sizes
    sampling = Sampling(max_new_tokens=8, temperature=0.0, top_p=1.0, batch_size=3)
    prompts = [[5, 6], [7], [1, 2, 3], [9]]
    new = generate(steps, prompts, sampling, seeds=range(4), eos_id=NONE)
    assert new == [generate(steps, [prompt], sampling, seeds=[0], eos_id=NONE)[0] for prompt in prompts]


LLAMA_STYLE = {
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]},
}  # fmt: skip


def llama_style(path: Path) -> Path:
    """A tokenizer.json with LLaMA's dummy prefix, whose decoder strips one leading space; characters and bytes are its pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": True}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model} | LLAMA_STYLE))
    return path


@pytest.fixture(params=["trained", "llama-style", pytest.param("llama", marks=needs_sample)])
def completer(request, corpus, tmp_path) -> Completer:
    """A completer whose model is never asked: `scripted` stands in for `generate`."""
    path = {
        "trained": lambda: corpus / "tokenizer" / "tokenizer.json", "llama-style": lambda: llama_style(tmp_path / "tokenizer.json"),
        "llama": lambda: LLAMA,
    }[request.param]()  # fmt: skip
    return Completer(None, CONFIG, load_tokenizer(path))


@pytest.fixture
def scripted(monkeypatch, completer):
    """`scripted(text)` makes every completion the ids of `text`, unless it is ended early; returns the prompts that were asked."""
    asked: list[list[int]] = []

    def script(text: str) -> list[list[int]]:
        line_end = completer.tokenizer.encode("\n").tolist()
        answer = completer.tokenizer.encode("\n" + text).tolist()[len(line_end) :]

        def fake(steps, prompts, sampling, *, done, ended, seeds, eos_id):
            asked.extend(map(list, prompts))
            results = []
            for i in range(len(prompts)):
                n = next((n for n in range(1, len(answer)) if done(i, answer[:n])), len(answer))
                results.append(answer[:n])
            return results

        monkeypatch.setattr(module, "generate", fake)
        monkeypatch.setattr(module, "decoder", lambda model, config: None)
        return asked

    return script


GREEDY = Sampling(max_new_tokens=9, temperature=0.0, top_p=1.0, batch_size=3)


@pytest.mark.parametrize("text", ["    return x\n", " + 1", "x", "\n    y", "größer"])
def test_a_completion_keeps_its_leading_spaces(completer, scripted, text):
    scripted(text)
    assert completer.complete(["def f(x):\n"], GREEDY, stops=[()], seeds=[0]) == [text]


def test_a_completion_alone_reads_as_its_tokens_do(completer):
    line_end, both = (completer.tokenizer.encode(text).tolist() for text in ("\n", "\n    return x"))
    assert completer.alone("    return x") == completer.tokenizer.decode(both[len(line_end) :])


def test_prompts_begin_with_the_end_of_a_text(completer, scripted):
    """As rows do in training: documents are joined by the end-of-text token."""
    asked, tokenizer = scripted("x"), completer.tokenizer
    completer.complete(["def f(", ""], GREEDY, stops=[(), ()], seeds=[0, 0])
    assert asked == [[tokenizer.eos_id, *tokenizer.encode("def f(").tolist()], [tokenizer.eos_id]]


def test_stop_strings_end_a_completion_once_they_have_come_up(completer, scripted):
    text = "    return 1\n" + "# a long comment, longer than the window that is searched\n" * 3 + "class A:\n    pass\ndef f():\n"
    scripted(text)
    until_class, until_def, whole = completer.complete(["a", "b", "c"], GREEDY, stops=[("\ndef", "\nclass"), ("\ndef",), ()], seeds=[0] * 3)
    assert text.startswith(until_class) and "\nclass" in until_class and "pass" not in until_class
    assert text.startswith(until_def) and "\ndef" in until_def and "f()" not in until_def
    assert whole == text


@pytest.mark.parametrize("stop", ["\nclass ", "s" * 40, "ö", "é\n", "grüße\n" + "und noch ein Wort " * 9])
def test_stop_strings_of_any_length_over_any_tokens(completer, stop):
    tokenizer = completer.tokenizer
    ids = tokenizer.encode("\nx = 1\n" + stop + "\ny").tolist()[len(tokenizer.encode("\n")) :]
    watch, text = Watch(completer._text, ("never", stop)), ""
    for n in range(1, len(ids) + 1):
        text = completer._text(ids[:n])
        if watch.met(ids[:n]):
            break
        assert stop not in text
    assert stop in text and n < len(ids)


def test_bytes_that_are_no_text_do_not_hide_a_stop_string(completer):
    lone = int(completer.tokenizer.encode("\n\U00010348")[-1])  # the last byte of four
    ids = [lone, lone, *completer.tokenizer.encode("\nclass").tolist()]
    watch = Watch(completer._text, ("class",))
    assert [watch.met(ids[:n]) for n in range(1, len(ids) + 1)] == ["class" in completer._text(ids[:n]) for n in range(1, len(ids) + 1)]


def test_infill_asks_in_prefix_suffix_middle_order(completer, scripted):
    asked, tokenizer = scripted(" middle"), completer.tokenizer
    pairs = [("before(", ")\nafter"), ("", "x")]
    middles = completer.infill(pairs, replace(GREEDY, max_new_tokens=2), stops=[(), ()], seeds=[0, 0])
    assert middles == [" middle"] * 2
    special = tokenizer.special
    assert asked == [
        [
            tokenizer.eos_id, special["<fim_prefix>"], *tokenizer.encode(prefix).tolist(), special["<fim_suffix>"],
            *tokenizer.encode(suffix).tolist(), special["<fim_middle>"],
        ]
        for prefix, suffix in pairs
    ]  # fmt: skip


def test_a_live_engines_completions_are_its_checkpoints(trained):
    folder = latest(trained / "stage3" / "checkpoints")
    config = read_model(folder)
    schedule = Schedule([Piece(0.01, 0.01, 9)])
    engine = CpuEngine(TrainSpec(config, derive(config), AdamWConfig(), schedule, batch_rows=2, seed=9), dtype="float32", threads=1)
    engine.load(folder, optimizer=False)
    live, saved = Completer.of(engine, config, folder / "tokenizer.json", device="cpu"), Completer.load(folder, device="cpu")
    engine.step(next(engine.feed(iter(small_batches(config, 1)), 1)))  # the completer has the weights of then
    prompts, sampling = ["mi", "python(kaper"], replace(GREEDY, temperature=1.0)
    texts = [completer.complete(prompts, sampling, stops=[(), ()], seeds=[1, 2]) for completer in (live, saved)]
    assert texts[0] == texts[1] and not live.model.training
    now = Completer.of(engine, config, folder / "tokenizer.json", device="cpu")
    assert not torch.equal(now.model.embed.weight, live.model.embed.weight)


def test_a_checkpoints_completion_equals_the_naive_loop(trained):
    folder = latest(trained / "stage3" / "checkpoints")
    completer = Completer.load(folder, device="cpu")
    assert not completer.model.training
    prompts, tokenizer = ["mi", "python(kaper"], completer.tokenizer
    texts = completer.complete(prompts, GREEDY, stops=[(), ()], seeds=[0, 0])
    for prompt, text in zip(prompts, texts, strict=True):
        ids = naive(completer.model, [tokenizer.eos_id, *tokenizer.encode(prompt).tolist()], 9, eos_id=tokenizer.eos_id)
        assert text == tokenizer.decode(ids)


def test_infill_drops_the_far_ends_of_what_does_not_fit(completer, scripted):
    asked, special = scripted("x"), completer.tokenizer.special
    completer.infill([("first " * 20 + "last(", ")next" + " end" * 20)], GREEDY, stops=[()], seeds=[0])
    ids = asked[0]
    assert len(ids) == CONFIG.seq_len - GREEDY.max_new_tokens and ids[1] == special["<fim_prefix>"] and ids[-1] == special["<fim_middle>"]
    gap = ids.index(special["<fim_suffix>"])
    assert completer.tokenizer.decode(ids[2:gap]).endswith("t(") and completer.tokenizer.decode(ids[gap + 1 : -1]).lstrip().startswith(")n")
