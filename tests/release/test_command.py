"""task=import and task=export on the command line: what they print, what they refuse, and that nothing is left behind then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crystal.checkpoint import latest
from tests.release.test_shards import Trap
from tests.test_errors import assert_refused, files_below


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crystal) -> Path:
    """A current directory with checkpoint/ (the end of a run) and hf/ (its export in the published layout)."""
    monkeypatch.chdir(tmp_path)
    last = latest(trained / "stage3" / "checkpoints")
    assert last is not None
    shutil.copytree(last, "checkpoint")
    result = crystal("task=export", "checkpoint=checkpoint", "format=crystalcoder", "out=hf")
    assert result.status == 0 and "exported checkpoint, format=crystalcoder dtype=float32: " in result.out
    return tmp_path


def test_there_and_back_and_to_a_prompt(place: Path, crystal) -> None:
    assert "imported hf: " in crystal("task=import", "source=hf", "out=deep/below/back").out
    assert crystal("task=export", "checkpoint=deep/below/back", "out=stock", "dtype=bfloat16").status == 0
    assert json.loads(Path("stock/config.json").read_text())["model_type"] == "stablelm"
    prompt = ("task=generate", "prompt=ka", "eval.max_new_tokens=8")
    assert crystal(*prompt, "checkpoint=deep/below/back").out == crystal(*prompt, "checkpoint=checkpoint").out
    weights = [torch.load(path / "weights.pt", weights_only=True) for path in (place / "checkpoint", place / "deep/below/back")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_dry_run_writes_nothing(place: Path, crystal) -> None:
    before = files_below(place)
    assert "would import hf: tiny, " in crystal("task=import", "source=hf", "out=back", "dry_run=true").out
    assert (
        "would export checkpoint, format=hf dtype=float32: tiny, "
        in crystal("task=export", "checkpoint=checkpoint", "out=new", "dry_run=true").out
    )
    assert files_below(place) == before


def test_imported_weights_start_a_stage_but_bring_no_optimizer(place: Path, crystal, tiny_overrides: list[str]) -> None:
    assert crystal("task=import", "source=hf", "out=back").status == 0
    before = files_below(place)
    command = [*tiny_overrides, "run.dir=run", "stage=3", "init_from=back"]
    assert_refused(crystal(*command, "stages.3.optimizer=carry"), "optimizer=carry from back", "stages.3.optimizer=fresh")
    assert files_below(place) == before
    assert crystal(*command).status == 0


def config_says(**changes: object) -> None:
    path = Path("hf/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_become(change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file("hf/model.safetensors")
    change(tensors)
    save_file(tensors, "hf/model.safetensors")


def sharded(*, gone: bool) -> None:
    torch.save(load_file("hf/model.safetensors"), "hf/a.bin")
    os.remove("hf/model.safetensors")
    Path("hf/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "a.bin", "y": "b.bin"} if gone else {"x": "a.bin"}}))


def trapped() -> None:
    torch.save({"transformer.wte.weight": Trap(Path("sprung"))}, "hf/pytorch_model.bin")
    os.remove("hf/model.safetensors")


WTE, UP = "transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"
IMPORT = "task=import source=hf out=back"
EXPORT = "task=export checkpoint=checkpoint out=new"
# Name, what is done, command line, words.
REFUSED: list[tuple[str, Callable[[], object], str, str]] = [
    ("no source", lambda: None, "task=import out=back", "without a source, source="),
    ("no out", lambda: None, "task=import source=hf", "task=import without out, a folder to write, out=PATH"),
    ("out is there", lambda: Path("back").mkdir(), IMPORT, "out=back is there already"),
    ("no such folder", lambda: None, "task=import source=nowhere out=back", "nowhere/config.json, Hugging Face folder"),
    ("no weights", lambda: os.remove("hf/model.safetensors"), IMPORT, "hf has no weights, model.safetensors or pytorch_model.bin"),
    ("another model", lambda: config_says(model_type="llama"), IMPORT, "model_type=llama, model_type=crystalcoder"),
    ("another activation", lambda: config_says(activation_function="gelu"), IMPORT, "activation_function=gelu"),
    ("half a layer", lambda: config_says(n_layer=1.5), IMPORT, "hf/config.json: n_layer=1.5, a whole number above 0"),
    ("deep below", lambda: os.remove("hf/model.safetensors"), "task=import source=hf out=deep/below/back", "hf has no weights"),
    ("deep and late", lambda: tensors_become(lambda t: t.pop(UP)), "task=import source=hf out=deep/below/back", f"hf lacks {UP}"),
    ("an empty out", lambda: None, "task=import source=nowhere out=", "out is empty"),
    ("out is there, the source is not", lambda: Path("back").mkdir(), "task=import source=nowhere out=back", "out=back is there"),
    ("missing shard", lambda: sharded(gone=True), IMPORT, "hf has no b.bin"),
    ("a trap", trapped, IMPORT, "hf/pytorch_model.bin is not read"),
    ("another shape", lambda: tensors_become(lambda t: t.update({UP: t[UP].T.contiguous()})), IMPORT, f"{UP} is (64, 32), (32, 64)"),
    ("a strange tensor", lambda: tensors_become(lambda t: t.update({"x.y": torch.ones(2)})), IMPORT, "hf holds x.y, no other"),
    ("a missing tensor", lambda: tensors_become(lambda t: t.pop(UP)), IMPORT, f"hf lacks {UP}"),
    ("an untied head", lambda: tensors_become(lambda t: t.update({"lm_head.weight": -t[WTE]})), IMPORT, "lm_head.weight is not"),
    ("whole numbers", lambda: tensors_become(lambda t: t.update({UP: t[UP].int()})), IMPORT, f"{UP}, torch.int32, quantisation"),
    ("no tokenizer", lambda: os.remove("hf/tokenizer.json"), IMPORT, "no hf/tokenizer.json, data.tokenizer=FILE"),
    ("a bad tokenizer", lambda: Path("hf/tokenizer.json").write_text("{}"), IMPORT, "hf/tokenizer.json is not a tokenizer.json"),
    ("no checkpoint", lambda: None, "task=export checkpoint=hf out=new", "hf has no file COMPLETE"),
    ("no export's out", lambda: None, "task=export checkpoint=checkpoint", "task=export without out"),
    ("export's out is there", lambda: Path("new").mkdir(), EXPORT, "out=new is there already"),
    ("no such format", lambda: None, f"{EXPORT} format=gguf", "format=gguf, hf, crystalcoder"),
    ("no such dtype", lambda: None, f"{EXPORT} dtype=int8", "dtype=int8, float32, bfloat16"),
    ("a damaged checkpoint", lambda: Path("checkpoint/weights.pt").write_bytes(b"x"), EXPORT, "checkpoint/weights.pt, damaged"),
]


@pytest.mark.parametrize(("breaks", "arguments", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused(breaks: Callable[[], object], arguments: str, words: str, place: Path, crystal) -> None:
    breaks()
    before = files_below(place)
    assert_refused(crystal(*arguments.split()), *words.split(", "))
    assert files_below(place) == before
    assert not list(place.glob(".*.tmp")) and not Path("deep").exists()


def test_a_tokenizer_with_more_ids_than_the_model(place: Path, crystal, corpus: Path) -> None:
    config = json.loads(Path("hf/config.json").read_text()) | {"vocab_size": 351}
    del config["crystal"]
    Path("hf/config.json").write_text(json.dumps(config))
    assert_refused(crystal(*IMPORT.split()), "352 ids", "at most the model's 351")
    assert_refused(crystal(*IMPORT.split(), f"data.tokenizer={corpus}/tokenizer/tokenizer.json"), "352 ids", "at most the model's 351")


def test_a_good_folder_in_shards_of_bin(place: Path, crystal) -> None:
    sharded(gone=False)
    assert crystal(*IMPORT.split()).status == 0


def test_a_model_without_a_name_gets_its_folders(place: Path, crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads(Path("hf/config.json").read_text())
    del config["crystal"]
    Path("hf/config.json").write_text(json.dumps(config))
    monkeypatch.chdir("hf")
    assert "imported .: hf, " in crystal("task=import", "source=.", "out=../back").out
