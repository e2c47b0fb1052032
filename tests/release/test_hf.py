"""Import and the two exports: the published golden vectors, the way there and back, and what transformers and lm-eval make of an export.

The surprise: a stock export is another model, one head wider; only its logits are the same.
"""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, StableLmForCausalLM

from crystal.checkpoint import read_state
from crystal.config import ModelConfig, Sampling
from crystal.data.tokenizer import load_tokenizer, train_tokenizer
from crystal.generate import Completer, generate
from crystal.model.decode import decoder
from crystal.release.hf import export_crystalcoder, import_checkpoint
from tests.conftest import VOCAB_SIZE
from tests.release.conftest import Saved
from tests.release.precision import EXPORTS, loaded, logit_errors
from tests.shared import PARITY, SHARED_DATA, needs_golden

TOLERANCE = {"crystalcoder": 1e-5, "hf": 1e-4}
SHAPES = [
    dict(),
    dict(d_model=256, n_heads=2, d_ffn=682, n_layers=1, rotary_fraction=0.25),  # CrystalCoder's heads: 128 dims, 32 rotary
    dict(n_heads=1, d_ffn=63), dict(n_heads=8, d_ffn=64, rotary_fraction=1.0), dict(d_model=48, n_heads=3, rotary_fraction=0.125, d_ffn=7),
    dict(parametrization="sp", embedding_scale=1.0, output_alpha=1.0), dict(depth="completep", n_layers=6, base_layers=2),
    dict(parametrization="sp", depth="completep", base_layers=1), dict(rotary_base=50.0, norm_eps=0.1, base_width=96),
]  # fmt: skip


def some_ids(config: ModelConfig) -> Tensor:
    """Ids (3, 20), the last 18 of the vocabulary among them: the added tokens, of which transformers knows one as padding."""
    ids = torch.randint(config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    ids[0, 2:] = torch.arange(config.vocab_size - 18, config.vocab_size)
    return ids


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_same_checkpoint(got: Path, expected: Path) -> None:
    ours, theirs = weights(got), weights(expected)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_state(got)["model"] == read_state(expected)["model"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The published golden folder with a tokenizer."""
    folder = tmp_path / "published"
    shutil.copytree(PARITY / "hf", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    train_tokenizer([Path(__file__).read_text()], 320, folder / "tokenizer.json")
    return folder


@needs_golden
@pytest.mark.parametrize("form", ["bin", "safetensors", "half"])
@torch.no_grad()
def test_the_golden_logits_of_the_published_code(published: Path, tmp_path: Path, form: str) -> None:
    bins = sorted(published.glob("*.bin"))
    if form != "bin":
        for file in bins:
            tensors = {name: value.clone() for name, value in torch.load(file, weights_only=True).items() if name != "lm_head.weight"}
            converted = {name: value.half() if form == "half" else value for name, value in tensors.items()}
            save_file(converted, file.with_suffix(".safetensors"))
            file.unlink()
        index = json.loads((published / "pytorch_model.bin.index.json").read_text())
        placed = {name: file.replace(".bin", ".safetensors") for name, file in index["weight_map"].items()}
        (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    import_checkpoint(published, tmp_path / "checkpoint", tokenizer=None)
    completer = Completer.load(tmp_path / "checkpoint", device="cpu")
    golden = dict(np.load(PARITY / "golden.npz"))
    logits = completer.model(torch.from_numpy(golden["input_ids"]).long())
    assert (logits - torch.from_numpy(golden["logits"])).abs().max() < (0.02 if form == "half" else 1e-5)
    row = golden["input_ids"][0][:9].tolist()
    (new,) = generate(decoder(completer.model, completer.config), [row], Sampling(12, 0.0, 1.0, 1), seeds=[1], eos_id=-1)
    for t in range(len(new)):
        assert completer.model(torch.tensor([row + new[:t]]))[0, -1].argmax() == new[t]


@needs_golden
@torch.no_grad()
def test_the_published_model_through_transformers(published: Path, tmp_path: Path) -> None:
    import_checkpoint(published, tmp_path / "checkpoint", tokenizer=None)
    golden = {name: torch.from_numpy(value) for name, value in np.load(PARITY / "golden.npz").items() if value.dtype.kind in "fi"}
    for kind, export in EXPORTS.items():
        export(tmp_path / "checkpoint", tmp_path / kind, dtype="float32")
        out = loaded(tmp_path / kind, kind)(golden["input_ids"].long(), labels=golden["input_ids"].long())
        assert (out.logits - golden["logits"]).abs().max() < TOLERANCE[kind]
        assert out.loss.item() == pytest.approx(golden["loss"].item(), abs=1e-5)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_there_and_back_is_bitwise(saved: Saved, tmp_path: Path, changes: dict) -> None:
    folder, config, _ = saved(**changes)
    assert export_crystalcoder(folder, tmp_path / "out", dtype="float32") == config
    assert import_checkpoint(tmp_path / "out", tmp_path / "back", tokenizer=None) == config
    assert_same_checkpoint(tmp_path / "back", folder)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
@torch.no_grad()
def test_logits_and_loss(saved: Saved, tmp_path: Path, kind: str, changes: dict) -> None:
    folder, config, model = saved(**changes)
    EXPORTS[kind](folder, tmp_path / "out", dtype="float32")
    theirs, ids = loaded(tmp_path / "out", kind), some_ids(config)
    assert (type(theirs) is StableLmForCausalLM) == (kind == "hf") == (not list((tmp_path / "out").glob("*.py")))
    expected = model(ids)
    assert (theirs(ids).logits - expected).abs().max() < TOLERANCE[kind]
    labels = ids.masked_fill(ids % 5 == 0, -100)
    loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert theirs(ids, labels=labels).loss.item() == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("kind", EXPORTS)
@torch.no_grad()
def test_cache_padding_and_generation(saved: Saved, tmp_path: Path, kind: str) -> None:
    folder, config, model = saved(n_layers=3, seq_len=40)
    EXPORTS[kind](folder, tmp_path / "out", dtype="float32")
    theirs, ids = loaded(tmp_path / "out", kind), some_ids(config)
    theirs.generation_config.eos_token_id = None
    greedy = dict(max_new_tokens=15, do_sample=False)
    cached, uncached = (theirs.generate(ids, use_cache=use, **greedy)[:, 20:].tolist() for use in (True, False))
    assert cached == uncached == generate(decoder(model, config), ids.tolist(), Sampling(15, 0.0, 1.0, 3), seeds=[1] * 3, eos_id=-1)
    pads = [0, 3, 11]  # on the left, one row each
    padded = torch.stack([torch.cat((torch.full((n,), 7), row[: 20 - n])) for n, row in zip(pads, ids, strict=True)])
    mask = torch.stack([(torch.arange(20) >= n).long() for n in pads])
    logits, new = theirs(padded, attention_mask=mask).logits, theirs.generate(padded, attention_mask=mask, **greedy)[:, 20:]
    for n, row, got, drawn in zip(pads, ids, logits, new, strict=True):
        alone = theirs(row[None, : 20 - n]).logits[0]
        assert (got[n:] - alone).abs().max() < 1e-5
        assert drawn.tolist() == theirs.generate(row[None, : 20 - n], **greedy)[0, 20 - n :].tolist()


@torch.no_grad()
def test_hidden_states_and_kept_logits_of_our_own_code(saved: Saved, tmp_path: Path) -> None:
    folder, config, model = saved(n_layers=3)
    export_crystalcoder(folder, tmp_path / "out", dtype="float32")
    theirs, ids = loaded(tmp_path / "out", "crystalcoder"), some_ids(config)
    out = theirs(ids, output_hidden_states=True, logits_to_keep=2)
    assert len(out.hidden_states) == 4 and (out.hidden_states[-1] - model.hidden(ids)).abs().max() < 1e-5
    assert (out.logits - model(ids)[:, -2:]).abs().max() < 1e-5
    assert (theirs(inputs_embeds=theirs.get_input_embeddings()(ids)).logits - model(ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "changes", [dict(d_model=256, n_heads=2, d_ffn=682, n_layers=4, rotary_fraction=0.25, base_width=256), *SHAPES[3:7]]
)
def test_the_stock_export_takes_bfloat16_as_well_as_the_published_layout(saved: Saved, tmp_path: Path, changes: dict) -> None:
    folder, _, _ = saved(**changes)
    errors = logit_errors(folder, tmp_path, dtype="bfloat16")
    assert errors["hf"][0] < 1.3 * errors["crystalcoder"][0] < 0.03, errors


def test_bfloat16_comes_back_rounded(saved: Saved, tmp_path: Path) -> None:
    folder, _, _ = saved()
    export_crystalcoder(folder, tmp_path / "out", dtype="bfloat16")
    import_checkpoint(tmp_path / "out", tmp_path / "back", tokenizer=None)
    assert all(torch.equal(tensor, weights(folder)[name].bfloat16().float()) for name, tensor in weights(tmp_path / "back").items())


@pytest.mark.parametrize("kind", EXPORTS)
def test_the_tokenizer_gives_crystals_ids(saved: Saved, tmp_path: Path, kind: str) -> None:
    folder, _, _ = saved()
    files = [folder / "tokenizer.json"]
    texts = ["", " ", "\n\n\tx", "é 日本 ▁", "a < / s >", Path(__file__).with_name("sevenb.py").read_text()]
    if SHARED_DATA.is_dir():
        files.append(SHARED_DATA / "tokenizer" / "tokenizer.json")
        problems = map(json.loads, gzip.decompress((SHARED_DATA / "eval" / "HumanEval.jsonl.gz").read_bytes()).splitlines())
        texts += [text for problem in problems for text in (problem["prompt"], problem["canonical_solution"])]
    for number, file in enumerate(files):
        (folder / "tokenizer.json").write_bytes(file.read_bytes())
        (folder / "COMPLETE").write_text("{}")  # nothing to check
        out = tmp_path / f"out{number}"
        EXPORTS[kind](folder, out, dtype="float32")
        ours, again = load_tokenizer(file), load_tokenizer(out / "tokenizer.json")
        theirs = AutoTokenizer.from_pretrained(out, trust_remote_code=kind == "crystalcoder")
        for text in texts:
            ids = ours.encode(text).tolist()
            assert theirs(text).input_ids == ids == again.encode(text).tolist()
            assert theirs.decode(ids) == ours.decode(ids)
        names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "</s>"]
        assert theirs("".join(names)).input_ids == [ours.special[name] for name in names]
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 2, ours.special["<fim_pad>"])
        assert theirs.model_max_length == 24 and len(theirs) == ours.n_ids


@pytest.mark.parametrize("kind", EXPORTS)
@torch.no_grad()
def test_lm_eval_gives_crystals_log_probabilities(saved: Saved, tmp_path: Path, kind: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder, config, model = saved(seq_len=64)
    EXPORTS[kind](folder, tmp_path / "out", dtype="float32")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    pairs = [("ka to", " miren"), ("perba", "ul"), ("def f(x):", "\n    return x"), ("", "sho ing"), ("to", " mi ren ul sho per")]
    judge = HFLM(pretrained=str(tmp_path / "out"), device="cpu", batch_size=2, trust_remote_code=kind == "crystalcoder")
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (context, continuation), (got, greedy) in zip(pairs, judge.loglikelihood(requests), strict=True):
        before = tokenizer.encode(context).tolist() or [tokenizer.eos_id]
        ids = before + tokenizer.encode(context + continuation).tolist()[len(tokenizer.encode(context)) :]
        log_p = model(torch.tensor([ids]))[0].log_softmax(-1)[len(before) - 1 : -1]
        new = torch.tensor(ids[len(before) :])
        assert got == pytest.approx(log_p.gather(1, new[:, None]).sum().item(), abs=1e-3)
        assert greedy == bool((log_p.argmax(-1) == new).all())


def test_an_imported_checkpoint_generates_and_says_where_it_is_from(saved: Saved, tmp_path: Path) -> None:
    folder, config, _ = saved(seq_len=64)
    export_crystalcoder(folder, tmp_path / "out", dtype="float32")
    import_checkpoint(tmp_path / "out", tmp_path / "back", tokenizer=folder / "tokenizer.json")
    state = read_state(tmp_path / "back")
    assert state == {"step": 0, "weights_only": True, "model": asdict(config), "imported_from": str(tmp_path / "out")}
    ours, theirs = (Completer.load(path, device="cpu") for path in (folder, tmp_path / "back"))
    sampling = Sampling(8, 0.0, 1.0, 1)
    assert theirs.complete(["ka"], sampling, stops=[()], seeds=[1]) == ours.complete(["ka"], sampling, stops=[()], seeds=[1])
    between = dict(stops=[()], seeds=[1])
    assert theirs.infill([("ka", "to")], sampling, **between) == ours.infill([("ka", "to")], sampling, **between)
    assert config.vocab_size == VOCAB_SIZE
