"""Checkpoints to the SDK's files, to safetensors, and back, on the command line: every bit stays, and training goes on as if nothing were.

The surprise: no SDK is needed. That what is written here is the SDK's own form is proven by tests/cerebras/test_mdl_sdk.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.cpu import CpuEngine
from backends.cuda.engine import ShardedEngine
from crystal import checkpoint, mdl
from crystal.checkpoint import latest, read_optimizer, read_state, read_weights
from crystal.release import convert
from crystal.runlog import read_lines
from tests.conftest import VOCAB_SIZE
from tests.small import small_batches, small_spec
from tests.test_errors import assert_refused, files_below
from tests.test_mdl import read, same

pytest.importorskip("h5py", reason="needs the extra mdl")
SHAPE = f"model.vocab_size={VOCAB_SIZE} data.vocab_size={VOCAB_SIZE} model.d_model=32 model.n_layers=1 model.n_heads=2 model.d_ffn=64"
BARE = f"task=import source=lone/model.mdl out=back scale.seq_len=64 {SHAPE}"
LONE = f"{BARE} data.tokenizer=checkpoint/tokenizer.json"


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with checkpoint/, the end of a run's stage 2."""
    monkeypatch.chdir(tmp_path)
    last = latest(trained / "stage2" / "checkpoints")
    assert last is not None
    shutil.copytree(last, "checkpoint")
    return tmp_path


@pytest.fixture
def done(crystal) -> Callable[[str], str]:
    """Runs a command line that must succeed; returns what it printed."""

    def run(line: str) -> str:
        result = crystal(*line.split())
        assert result.status == 0, result.err
        return result.out

    return run


def contents(folder: Path | str) -> dict[str, Any]:
    """All tensors of a checkpoint, with names in order, for theirs has no meaning."""

    def in_order(tree: Any) -> Any:
        return {key: in_order(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree

    return in_order({"weights": read_weights(Path(folder)), "optimizer": read_optimizer(Path(folder))})


def assert_same_checkpoint(ours: str, theirs: str, **added: str) -> None:
    expected = contents(theirs)
    assert expected["optimizer"]["adamw"] and expected["optimizer"]["step_count"] == 16
    assert same(contents(ours), expected)
    assert read_state(Path(ours)) == read_state(Path(theirs)) | added
    assert Path(ours, "tokenizer.json").read_bytes() == Path(theirs, "tokenizer.json").read_bytes()


def test_to_the_sdk_and_back(place: Path, done) -> None:
    assert "exported checkpoint, format=cerebras dtype=float32: tiny, " in done("task=export checkpoint=checkpoint format=cerebras out=cs")
    assert sorted(path.name for path in Path("cs").iterdir()) == ["COMPLETE", "checkpoint.mdl", "state.json", "tokenizer.json"]
    assert_same_checkpoint("cs", "checkpoint")
    done("task=export checkpoint=cs format=crystal out=back")
    assert sorted(path.name for path in Path("back").iterdir()) == sorted(path.name for path in Path("checkpoint").iterdir())
    assert_same_checkpoint("back", "checkpoint")
    done("task=export checkpoint=back format=cerebras out=again")
    assert same(read(Path("again/checkpoint.mdl")), read(Path("cs/checkpoint.mdl")))
    done("task=import source=cs/checkpoint.mdl out=imported")
    assert_same_checkpoint("imported", "checkpoint", imported_from="cs/checkpoint.mdl")


def test_to_safetensors_and_back(place: Path, done) -> None:
    done("task=export checkpoint=checkpoint format=safetensors out=st")
    names = ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"]
    assert sorted(path.name for path in Path("st").iterdir()) == names, "and no COMPLETE: no backend loads it"
    stored, expected = load_file("st/optimizer.safetensors"), contents("checkpoint")
    assert same(dict(sorted(load_file("st/model.safetensors").items())), dict(sorted(expected["weights"].items())))
    assert stored["embed.weight.step"].item() == 16, "of its stage, whose optimizer is fresh"
    assert stored["norm_out.bias.exp_avg"].equal(expected["optimizer"]["adamw"]["norm_out.bias"]["exp_avg"])
    done("task=import source=st out=back")
    assert_same_checkpoint("back", "checkpoint", imported_from="st")


def test_the_file_has_what_the_sdk_wants_of_an_optimizer(place: Path, done) -> None:
    state = json.loads(Path("checkpoint/state.json").read_text())
    adamw = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.2, "clip_norm": 1.0}
    shutil.copytree("checkpoint", "other")
    (Path("other") / "COMPLETE").unlink()
    checkpoint.seal(Path("other"), state | {"optim": adamw}, tokenizer=Path("checkpoint/tokenizer.json"))
    done("task=export checkpoint=other format=cerebras out=cs")
    tree = read(Path("cs/checkpoint.mdl"))
    groups, states = tree["optimizer"]["param_groups"], tree["optimizer"]["state"]
    assert [i for group in groups for i in group["params"]] == list(states) == list(range(len(tree["model"])))
    assert {name for group in groups for name in group["names"]} == tree["model"].keys()
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2} and {group["betas"] for group in groups} == {(0.8, 0.95)}
    assert all(group["eps"] == 1e-8 for group in groups) and (tree["global_step"], tree["adam_step"]) == (16, 16)
    for group in groups:
        assert group["adjust_learning_rate"] == group["lr_mult"]
        for i, name in zip(group["params"], group["names"], strict=True):
            assert states[i]["beta1_power"].equal(mdl.beta_power(0.8, 16)) and states[i]["exp_avg"].shape == tree["model"][name].shape


def test_whatever_reads_a_checkpoint_reads_the_sdks_files(place: Path, done) -> None:
    done("task=export checkpoint=checkpoint format=cerebras out=cs")
    texts = {done(f"task=generate prompt=ka eval.max_new_tokens=8 checkpoint={folder}") for folder in ("checkpoint", "cs")}
    assert len(texts) == 1
    for form in ("hf", "crystalcoder"):
        for folder in ("checkpoint", "cs"):
            done(f"task=export checkpoint={folder} format={form} out={form}-{folder}")
        assert files_below(Path(f"{form}-cs")) == files_below(Path(f"{form}-checkpoint"))


@pytest.mark.parametrize("optimizer", ["carry", "fresh"])
def test_a_stage_that_starts_from_it_takes_the_same_steps(place: Path, done, tiny_overrides: list[str], optimizer: str) -> None:
    done("task=export checkpoint=checkpoint format=cerebras out=cs")
    for start in ("checkpoint", "cs"):
        done(" ".join([*tiny_overrides, f"run.dir=run-{start} stage=3 init_from={start} stages.3.optimizer={optimizer}"]))
    ours, theirs = (contents(latest(Path(f"run-{start}/stage3/checkpoints"))) for start in ("cs", "checkpoint"))
    assert same(ours, theirs)


def test_a_run_resumed_from_it_gives_the_same_bits(trained: Path, place: Path, done, tiny_overrides: list[str]) -> None:
    """Stage 2 goes on from step 12, which a Cerebras system might have saved."""
    shutil.copytree(trained, "run")
    shutil.rmtree("run/stage3")
    Path("run/stage2/summary.json").unlink()
    shutil.rmtree("run/stage2/checkpoints/step-00000016")
    shutil.move("run/stage2/checkpoints/step-00000012", "taken")
    done("task=export checkpoint=taken format=cerebras out=run/stage2/checkpoints/step-00000012")
    assert "going on from step 12" in done(" ".join([*tiny_overrides, "run.dir=run stage=2"]))
    assert same(contents("run/stage2/checkpoints/step-00000016"), contents("checkpoint"))
    losses = [[line["loss"] for line in read_lines(run / "metrics.jsonl") if line["stage"] == "2"] for run in (Path("run"), trained)]
    assert losses[0] == losses[1]


def test_both_engines_load_it(tmp_path: Path, tokenizer_file: Path) -> None:
    spec, batches = small_spec(), small_batches(small_spec().model, 6)

    def engines() -> list[CpuEngine | ShardedEngine]:
        options = {"dtype": torch.float32, "compiled": False, "micro_rows": None}
        return [CpuEngine(spec, dtype="float32", threads=1), ShardedEngine(spec, device=torch.device("cpu"), **options)]

    def losses(engine: CpuEngine | ShardedEngine, first: int, end: int) -> list[float]:
        return [float(engine.step(batch).loss) for batch in engine.feed(iter(batches[first:end]), end - first)]

    for kind, (first, second) in enumerate(zip(engines(), engines(), strict=True)):
        losses(first, 0, 3)
        state = {"model": vars(spec.model)}
        saved = checkpoint.save(tmp_path / f"{kind}", first, state, tokenizer=tokenizer_file, keep=1)
        convert.export_checkpoint(saved, tmp_path / f"cs{kind}", kind="cerebras")
        second.load(tmp_path / f"cs{kind}", optimizer=True)
        assert second.step_count == 3 and losses(second, 3, 6) == losses(first, 3, 6)
    torch.distributed.destroy_process_group()


def test_an_optimizer_before_its_first_update(tmp_path: Path, tokenizer_file: Path) -> None:
    spec = small_spec(vocab_size=VOCAB_SIZE)
    engine = CpuEngine(spec, dtype="float32", threads=1)
    saved = checkpoint.save(tmp_path / "run", engine, {"model": vars(spec.model)}, tokenizer=tokenizer_file, keep=1)
    for kind in ("cerebras", "safetensors"):
        convert.export_checkpoint(saved, tmp_path / kind, kind=kind)
        convert.import_checkpoint(tmp_path / kind, tmp_path / f"{kind}-back", configured=spec.model, tokenizer=None)
        assert read_optimizer(tmp_path / f"{kind}-back") == {"step_count": 0, "adamw": {}}
    state = read(tmp_path / "cerebras" / "checkpoint.mdl")["optimizer"]["state"][3]
    assert not state["exp_avg"].any() and state["beta2_power"].equal(torch.tensor(0.95)), "what the SDK's AdamW begins with"


def test_weights_without_an_optimizer(place: Path, done, crystal, tiny_overrides: list[str]) -> None:
    done("task=export checkpoint=checkpoint format=crystalcoder out=hf")
    done("task=import source=hf out=bare")
    for form in ("cerebras", "safetensors"):
        done(f"task=export checkpoint=bare format={form} out={form}")
        done(f"task=import source={form} out={form}-back")
        assert not Path(f"{form}-back/optimizer.pt").exists() and read_state(Path(f"{form}-back"))["weights_only"]
        assert same(dict(sorted(read_weights(Path(f"{form}-back")).items())), dict(sorted(read_weights(Path("checkpoint")).items())))
    assert read(Path("cerebras/checkpoint.mdl")).keys() == {"model"}
    command = [*tiny_overrides, "run.dir=run", "stage=3", "init_from=cerebras"]
    assert_refused(crystal(*command, "stages.3.optimizer=carry"), "optimizer=carry from cerebras", "stages.3.optimizer=fresh")
    assert crystal(*command, "stages.3.optimizer=fresh").status == 0


@pytest.fixture
def lone(place: Path, done) -> Path:
    """A .mdl with nothing beside it, as one gets it from elsewhere."""
    done("task=export checkpoint=checkpoint format=cerebras out=cs")
    Path("lone").mkdir()
    shutil.copyfile("cs/checkpoint.mdl", "lone/model.mdl")
    return Path("lone/model.mdl")


def test_a_lone_file_is_of_the_configured_model(place: Path, lone: Path, done, crystal) -> None:
    assert "would import lone/model.mdl: tiny, " in done(f"{LONE} dry_run=true") and not Path("back").exists()
    done(LONE)
    state = {"step": 16, "model": read_state(Path("checkpoint"))["model"], "imported_from": "lone/model.mdl"}
    assert read_state(Path("back")) == state
    assert same(contents("back"), contents("checkpoint"))


def test_a_file_in_bfloat16_becomes_float32(place: Path, lone: Path, done) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in read_weights(Path("checkpoint")).items()}
    mdl.write(lone, {"model": weights})
    done(LONE)
    assert same(dict(sorted(read_weights(Path("back")).items())), {name: weights[name].float() for name in sorted(weights)})


def flipped(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-2000])


def model_becomes(change: Callable[[dict[str, Any]], object]) -> None:
    tree = read(Path("lone/model.mdl"))
    change(tree)
    mdl.write(Path("lone/model.mdl"), tree)


def optimizer_becomes(change: Callable[[dict[str, Any]], object], **besides: str) -> None:
    tensors = load_file("st/optimizer.safetensors")
    change(tensors)
    save_file(tensors, "st/optimizer.safetensors", metadata={"step_count": "16"} | besides)


MOMENT = "blocks.0.attn.q.weight.exp_avg"
# Name, what is done, command line, words.
REFUSED: list[tuple[str, Callable[[], object], str, str]] = [
    ("bfloat16", lambda: None, "task=export checkpoint=cs format=crystal dtype=bfloat16 out=new", "dtype=bfloat16 with format=crystal"),
    ("no such format", lambda: None, "task=export checkpoint=cs format=tf out=new", "cerebras, crystal, safetensors, params"),
    ("a damaged checkpoint", lambda: flipped("cs/checkpoint.mdl"), "task=export checkpoint=cs out=new", "cs/checkpoint.mdl, damaged"),
    ("a damaged start", lambda: flipped("cs/checkpoint.mdl"), "task=generate prompt=a checkpoint=cs", "cs/checkpoint.mdl, damaged"),
    ("damaged beside its state", lambda: flipped("cs/checkpoint.mdl"), "task=import source=cs/checkpoint.mdl out=new", "damaged"),
    ("a cut file", lambda: cut("lone/model.mdl"), LONE, "lone/model.mdl cannot be read, truncated file"),
    ("no file", lambda: None, "task=import source=gone.mdl out=back", "gone.mdl cannot be read"),
    ("no tokenizer", lambda: None, BARE, "no lone/tokenizer.json"),
    ("another width", lambda: None, LONE.replace("d_ffn=64", "d_ffn=60"), "lone/model.mdl: blocks.0.ffn.gate.weight is of shape (64, 32)"),
    ("more layers", lambda: None, LONE.replace("n_layers=1", "n_layers=2"), "blocks.1.norm_attn.weight is missing, (32,) in model tiny"),
    ("a tensor more", lambda: model_becomes(lambda t: t["model"].update(x=torch.ones(2))), LONE, "x is of shape (2,), no tensor of that"),
    ("another program's", lambda: model_becomes(lambda t: t.pop("model")), LONE, "lone/model.mdl holds no tensors as its model"),
    ("a pickle", lambda: model_becomes(lambda t: t.update(model={"a": 3})), LONE, "lone/model.mdl holds no tensors as its model"),
    ("no safetensors", lambda: Path("st/model.safetensors").unlink(), "task=import source=st out=back", "st has no weights"),
    ("a moment less", lambda: optimizer_becomes(lambda t: t.pop(MOMENT)), "task=import source=st out=back", f"{MOMENT} is missing"),
    ("no count", lambda: optimizer_becomes(dict, step_count="x"), "task=import source=st out=back", "step_count=x, number of updates"),
    ("no checkpoint", lambda: None, "task=generate prompt=a checkpoint=st", "st has no file COMPLETE"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "arguments", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused(breaks: Callable[[], object], arguments: str, words: str, place: Path, lone: Path, done, crystal) -> None:
    done("task=export checkpoint=checkpoint format=safetensors out=st")
    breaks()
    before = files_below(place)
    assert_refused(crystal(*arguments.split()), *words.split(", "))
    assert files_below(place) == before and not list(place.glob(".*.tmp"))


STREAMS = """
import resource, sys
from pathlib import Path
from crystal.config import ModelConfig
from crystal.release import convert
from tests.release.sevenb import write_sparse_checkpoint
for n_layers in (1, 5):
    root = Path(sys.argv[2]) / str(n_layers)
    config = ModelConfig("wide", d_model=1024, n_layers=n_layers, n_heads=8, d_ffn=2730, vocab_size=1024, seq_len=64)
    write_sparse_checkpoint(root / "checkpoint", config, tokenizer=Path(sys.argv[1]))
    for kind in ("cerebras", "safetensors"):
        convert.export_checkpoint(root / "checkpoint", root / kind, kind=kind)
        convert.import_checkpoint(root / kind, root / f"{kind}-back", configured=config, tokenizer=None)
    print((root / "checkpoint" / "optimizer.pt").stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path, tokenizer_file: Path) -> None:
    """The peak of one process that takes a model of 1 layer there and back, and then one of 5: zeros, in sparse files."""
    command = [sys.executable, "-c", STREAMS, tokenizer_file, tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600)
    assert finished.returncode == 0, finished.stderr
    small, peak_of_small, large, peak = map(int, finished.stdout.split())
    assert large - small > 0.3e9 and peak - peak_of_small < 0.1e9, finished.stdout
