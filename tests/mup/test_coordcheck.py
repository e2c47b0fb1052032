"""The coordinate check: its sizes by hand, right muP passed and every broken multiplier flagged in every mode, its manners."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.cpu import CpuEngine
from benchmarks.coordcheck import RANKS, broken, main, run_mode
from crystal.engine import Engine, TrainSpec
from crystal.mup.coordcheck import KINDS, Mode, Record, Trial, activations, fixed_batch, read_csv, run_trial, to_csv
from crystal.mup.options import sized
from crystal.mup.plan import derive
from crystal.mup.slopes import RULE, Verdict, judge, markdown
from crystal.schedule import Piece, Schedule
from stages.coordcheck import coordcheck_options
from tests.mup.test_slopes import synthetic
from tests.small import random_model, small_batches, small_config
from tests.test_conf import composed

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "coordcheck"
SMALL = ["task=coordcheck", "coordcheck.widths=[64,256]", "coordcheck.n_layers=1", "coordcheck.steps=[1]", "coordcheck.seeds=2"]
ON_ONE_THREAD = ["backend=cpu", "backend.threads=1", "backend.dtype=float32"]
BROKEN = ["readout", "hidden lr", "hidden init", "1/d"]


def test_records_survive_the_file(tmp_path: Path) -> None:
    records = [*synthetic(0.3), *synthetic(1.0, seed=2)]
    (tmp_path / "records.csv").write_text(to_csv(records))
    back = read_csv(tmp_path / "records.csv")
    assert [record[:-1] for record in back] == [record[:-1] for record in records]
    assert [record.size for record in back] == pytest.approx([record.size for record in records], rel=1e-4)


def test_the_batch_follows_zipfs_law() -> None:
    options = dataclasses.replace(coordcheck_options(composed(*SMALL)), batch_rows=200, seq_len=500)
    batch, again, other = (fixed_batch(options, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(batch.inputs_BT, again.inputs_BT) and not np.array_equal(batch.inputs_BT, other.inputs_BT)
    assert np.array_equal(batch.inputs_BT[:, 1:], batch.labels_BT[:, :-1])
    counts = np.bincount(batch.inputs_BT.ravel(), minlength=options.vocab_size)
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1) and counts[0] / counts[9] == pytest.approx(10, rel=0.15)


def test_activations_are_the_models() -> None:
    """Attention's output is made again from what was kept as its logits; the others are looked at from one another."""
    config = small_config(n_layers=3)
    model, [batch] = random_model(config), small_batches(config, 1)
    batch = dataclasses.replace(batch, mask_BT=np.ones_like(batch.mask_BT))
    found, loss = activations(config, model.state_dict(), batch)
    assert {kind for kind, _ in found} == set(KINDS)
    assert {module for kind, module in found if kind in ("residual", "attention logits")} == {"blocks.0", "blocks.2"}
    with torch.no_grad():
        ids_BT, labels_BT, mask_BT = map(torch.from_numpy, (batch.inputs_BT, batch.labels_BT, batch.mask_BT))
        assert loss == pytest.approx(model(ids_BT, labels_BT, mask_BT).item() / ids_BT.numel(), rel=1e-5)
        x_BTD, block = found["embedding", "embed"], model.blocks[0]
        assert torch.equal(x_BTD, model.embed(ids_BT) * config.embedding_scale)
        n_tokens = config.seq_len
        logits_BHTT = torch.full((len(ids_BT), config.n_heads, n_tokens, n_tokens), -torch.inf)
        logits_BHTT[..., torch.ones(n_tokens, n_tokens).tril() == 1] = found["attention logits", "blocks.0"]
        v_BHTK = block.attn.v(block.norm_attn(x_BTD)).unflatten(-1, (config.n_heads, -1)).transpose(1, 2)
        attended = block.attn.out((logits_BHTT.softmax(-1) @ v_BHTK).transpose(1, 2).flatten(-2))
        torch.testing.assert_close(attended, found["attention output", "blocks.0"])
        torch.testing.assert_close(block.ffn.down(found["ffn hidden", "blocks.0"]), found["ffn output", "blocks.0"])
        summed = x_BTD + found["attention output", "blocks.0"] + found["ffn output", "blocks.0"]
        torch.testing.assert_close(summed, found["residual", "blocks.0"])
        torch.testing.assert_close(model.norm_out(found["residual", "blocks.2"]), found["final hidden", "norm_out"])
        torch.testing.assert_close(model.logits(found["final hidden", "norm_out"]), found["readout logits", "readout"])


def cpu(spec: TrainSpec) -> CpuEngine:
    return CpuEngine(spec, dtype="float32", threads=1)


def small_trial(build: Callable[[TrainSpec], Engine]) -> list[Record]:
    """Right muP at widths 32 and 64 from seeds 1 and 2 after 1 and 3 steps, in engines of that making."""
    config = composed(*SMALL, "coordcheck.steps=[1,3]")
    options, records = coordcheck_options(config), []
    for width in (32, 64):
        model = sized(config.model, options, width, 1)
        mode, batch = Mode("eager", build), fixed_batch(options, seed=1)
        records += run_trial(Trial("mup", model, derive(model)), mode, batch, options, first_seed=1, adamw=config.optim)
    return records


def test_a_record_is_the_mean_size_of_what_an_engine_makes() -> None:
    config = composed(*SMALL)
    options = coordcheck_options(config)
    model, batch = sized(config.model, options, 64, 1), fixed_batch(options, seed=1)
    assert (model.head_dim, model.d_ffn, model.seq_len, model.vocab_size) == (16, 170, 64, 1024)
    engine = cpu(TrainSpec(model, derive(model), config.optim, Schedule([Piece(options.rate, options.rate, 1)]), 8, seed=2))
    before = activations(model, engine.state_dict(), batch)[0]["residual", "blocks.0"]
    for device_batch in engine.feed([batch] * 3, 3):
        assert engine.step(device_batch).lr == options.rate
    change = activations(model, engine.state_dict(), batch)[0]["residual", "blocks.0"] - before
    found = {record[3:-1]: record.size for record in small_trial(cpu) if record.width == 64}
    assert found[1, 2, 0, "residual", "blocks.0", "value"] == pytest.approx(before.abs().mean().item(), rel=1e-6)
    assert found[1, 2, 3, "residual", "blocks.0", "change"] == pytest.approx(change.abs().mean().item(), rel=1e-6)


def test_a_multiplier_lost_in_the_engine_alone_is_flagged() -> None:
    """The weights lead to nothing unusual in the plain model; the losses differ, even by the least of the multipliers."""

    def build(spec: TrainSpec) -> CpuEngine:
        engine = cpu(spec)
        engine.model.blocks[0].attn.scale *= spec.model.head_dim**0.5
        return engine

    assert ["engine" in judge(small_trial(how), "width")[0].reasons for how in (cpu, build)] == [False, True]


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    out = tmp_path_factory.mktemp("eager")
    assert main("eager", *SMALL, f"out={out}") == 0
    made_by = (out / "verdict.md").read_text(encoding="utf-8").splitlines()[2]
    assert made_by.startswith("Made by `python -m benchmarks.coordcheck eager task=coordcheck 'coordcheck.widths=[64,256]'")
    return judge(read_csv(out / "records.csv"), "width")


def test_right_mup_passes_and_every_broken_multiplier_is_flagged(eager: list[Verdict]) -> None:
    assert [verdict.variant for verdict in eager] == ["mup", "sp", *BROKEN]
    assert [verdict.outcome for verdict in eager] == ["passes", *["fails"] * 5]
    # Where a break must show, whatever else it disturbs.
    shows = {
        "readout": "readout logits at init",
        "hidden lr": "residual change at 1",
        "hidden init": "ffn hidden at init",
        "1/d": "attention logits at init",
    }
    for verdict in eager[2:]:
        assert any(line.startswith(shows[verdict.variant]) for line in verdict.reasons["exponent"]), verdict


@pytest.mark.parametrize("mode", ["compiled", "fully_shard"])
def test_the_same_verdicts_compiled_and_sharded_over_two_ranks(mode: str, eager: list[Verdict]) -> None:
    records, facts = run_mode(mode, composed(*SMALL))
    verdicts = judge(records, "width")
    assert [(verdict.variant, verdict.mode, verdict.outcome) for verdict in verdicts] == [(v.variant, mode, v.outcome) for v in eager]
    assert (facts["ranks"], facts["dtype"]) == (RANKS[mode], "float32")
    for ours, theirs in zip(verdicts, eager, strict=True):
        assert [slope.mean for slope in ours.slopes] == pytest.approx([slope.mean for slope in theirs.slopes], abs=0.01)


def test_a_broken_model_is_right_but_for_one_multiplier() -> None:
    config = small_config()
    plan, variants = derive(config), broken(config)
    assert list(variants) == BROKEN and config.width_mult == 2
    assert variants["readout"][0].output_scale == 2 * config.output_scale
    assert variants["1/d"][0].attention_scale == config.head_dim**-0.5
    for name, (model, own) in variants.items():
        assert own.keys() == plan.keys()
        assert (model.output_scale == config.output_scale, model.attention_scale == config.attention_scale) == (
            name != "readout",
            name != "1/d",
        )
        for parameter, treatment in own.items():
            was = plan[parameter]
            matrix = was.kind == "matrix"
            lr_mult = 1.0 if name == "hidden lr" else was.lr_mult
            init_std = (
                config.init_std / (4**0.5 if parameter.endswith(("out.weight", "down.weight")) else 1)
                if name == "hidden init" and matrix
                else was.init_std
            )
            assert treatment == dataclasses.replace(was, lr_mult=lr_mult, init_std=pytest.approx(init_std))


def test_completep_passes_over_depth_and_the_plain_residual_fails(crystal, tmp_path: Path) -> None:
    command = ["task=coordcheck", "coordcheck.over=depth", "coordcheck.depths=[4,16]", "coordcheck.d_model=32", "coordcheck.steps=[1]"]
    finished = crystal(*command, *ON_ONE_THREAD, "coordcheck.seeds=2", "model.depth=completep", f"out={tmp_path}")
    assert finished.status == 0, finished.err
    assert "## completep (cpu) passes" in finished.out and "## none (cpu) fails" in finished.out
    verdicts = judge(read_csv(tmp_path / "records.csv"), "depth")
    growth = {verdict.variant: next(s.mean for s in verdict.slopes if (s.kind, s.step) == ("final hidden", 1)) for verdict in verdicts}
    assert growth["none"] > 0.5 > 0.1 > abs(growth["completep"])


def test_the_command_line(crystal, tmp_path: Path) -> None:
    command = [*SMALL, *ON_ONE_THREAD, f"run.dir={tmp_path}"]
    dry = crystal(*command, "dry_run=true")
    assert dry.status == 0 and "would train 8 models (mup, sp) up to step 1" in dry.out and not list(tmp_path.iterdir())
    finished = crystal(*command)
    assert finished.status == 0, finished.err
    folder = tmp_path / "coordcheck-width"
    assert sorted(path.name for path in folder.iterdir()) == ["records.csv", "sizes.png", "verdict.md"]
    assert "## mup (cpu) passes" in finished.out and "## sp (cpu) fails" in finished.out
    page = (folder / "verdict.md").read_text(encoding="utf-8")
    assert page in finished.out and RULE in page
    made_by = page.splitlines()[2]
    assert made_by.startswith("Made by `python -m crystal task=coordcheck") and f"torch {torch.__version__}, float32 on " in made_by
    assert "coordcheck.seeds=2" in made_by and re.search("at commit ([0-9a-f]{7,}|unknown)", made_by)
    assert (folder / "sizes.png").read_bytes().startswith(b"\x89PNG")
    other = crystal(*command, "parametrization=sp", f"out={tmp_path / 'sp'}")
    last = other.err.splitlines()[-1]
    assert other.status == 2 and last.startswith("error: sp (cpu) fails: ")
    assert last.endswith("; expected muP's exponents; give parametrization=mup")
    # The same two models, whichever is configured.
    ours, theirs = (sorted(read_csv(path / "records.csv")) for path in (folder, tmp_path / "sp"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("over=heads", "coordcheck.over=heads; expected width or depth"),
        ("widths=[64]", r"coordcheck.widths=\[64\]; expected at least 2 whole numbers above 0, each larger than the one before"),
        ("widths=[128,64]", r"coordcheck.widths=\[128, 64\]; expected at least 2"),
        ("widths=[64,64]", r"coordcheck.widths=\[64, 64\]; expected at least 2"),
        ("widths=[64,66]", "66 in coordcheck.widths; expected a multiple of coordcheck.n_heads=4"),
        ("widths=[64,72]", r"model.rotary_fraction=0.25 of 18 head dims is 4.5 dims; expected an even number"),
        ("d_model=66", "66 in coordcheck.d_model; expected a multiple of coordcheck.n_heads=4"),
        ("depths=[0,2]", r"coordcheck.depths=\[0, 2\]; expected at least 2"),
        ("steps=[]", r"coordcheck.steps=\[\]; expected at least 1 whole number above 0"),
        ("steps=[0,1]", r"coordcheck.steps=\[0, 1\]; expected at least 1"),
        ("steps=[3,1]", r"coordcheck.steps=\[3, 1\]; expected at least 1"),
        ("widths=[]", r"coordcheck.widths=\[\]; expected at least 2"),
        ("widths=[0,64]", r"coordcheck.widths=\[0, 64\]; expected at least 2"),
        ("batch_rows=0", "coordcheck.batch_rows=0; expected a finite number above 0"),
        ("vocab_size=1", "coordcheck.vocab_size=1; expected at least 2"),
        ("seeds=0", "coordcheck.seeds=0; expected at least 2"),
        ("lr.width=0", "coordcheck.lr.width=0; expected a finite number above 0"),
        ("lr=1e-3", "coordcheck.lr"),
        ("seeds=1", "coordcheck.seeds=1; expected at least 2"),
        ("seeds=two", "coordcheck.seeds"),
        ("sed=3", "coordcheck.sed"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(crystal, override: str, said: str) -> None:
    finished = crystal("task=coordcheck", "backend=cpu", f"{'+' * (override == 'sed=3')}coordcheck.{override}")
    assert (finished.status, finished.out) == (2, "")
    assert re.match(f"error: .*{said}", finished.err) and finished.err.count("\n") == 1, finished.err


@pytest.mark.parametrize("over_file", ["", "/deeper"])
@pytest.mark.parametrize("dry", ["dry_run=true", "dry_run=false"])
def test_an_out_that_is_no_folder_is_told_before_the_work(crystal, tmp_path: Path, over_file: str, dry: str) -> None:
    (tmp_path / "file").touch()
    finished = crystal(*SMALL, *ON_ONE_THREAD, f"out={tmp_path}/file{over_file}", dry)
    assert (finished.status, finished.out, finished.err.count("\n")) == (2, "", 1)  # a model that is trained would have a line
    assert f"out={tmp_path}/file{over_file}, but {tmp_path}/file is no folder" in finished.err


def test_what_else_is_wrong_is_told_before_the_work(crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*SMALL, *ON_ONE_THREAD, f"run.dir={tmp_path}/run"]
    finished = crystal(*command, "run.seed=-3")
    assert (finished.status, finished.out, finished.err.count("\n")) == (2, "", 1) and "run.seed=-3" in finished.err
    monkeypatch.setitem(sys.modules, "PIL", None)
    finished = crystal(*command)
    assert (finished.status, finished.out) == (2, "")
    assert finished.err == "error: no pillow; expected what draws the picture; run: pip install 'crystal-trainer[report]'\n"
    assert not list(tmp_path.iterdir())


def test_a_rate_at_which_nothing_moves_is_not_to_be_lowered(crystal, tmp_path: Path) -> None:
    finished = crystal(*SMALL, *ON_ONE_THREAD, f"run.dir={tmp_path}", "coordcheck.widths=[32,64]", "coordcheck.lr.width=1e-7")
    said = finished.err.splitlines()[-1]
    assert finished.status == 2 and said.startswith("error: mup (cpu) cannot tell: the final hidden states change by ")
    assert said.endswith("; expected changes that can be measured; raise coordcheck.lr.width")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "mode missing; expected eager or compiled or fully_shard"),
        (["eager"], "no out=; expected a folder"),
        (["eager", "out=OUT", "coordcheck.over=depth"], "coordcheck.over=depth; expected width"),
        (["fully_shard", "out=OUT", "coordcheck.batch_rows=3"], "coordcheck.batch_rows=3; expected a multiple of 2 processes"),
        (["fully_shard", "out=OUT", "coordcheck.widths=[64,72]"], "model.rotary_fraction=0.25 of 18 head dims"),
        (["eager", "out=OUT", "nonsense=1"], "unknown key nonsense"),
    ],
)
def test_the_benchmark_refuses_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str) -> None:
    assert main(*(argument.replace("OUT", str(tmp_path / "out")) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {said}") and captured.err.count("\n") == 1 and not list(tmp_path.iterdir()), captured.err


def test_a_batch_that_is_learnt_by_heart_is_still_judged() -> None:
    """One token of two ids: the loss reaches 0, where no gap can be told in parts of it."""
    config = composed(*SMALL, "coordcheck.steps=[40,41]", "coordcheck.lr.width=0.1")
    options = dataclasses.replace(coordcheck_options(config), batch_rows=1, seq_len=1, vocab_size=2)
    model = sized(config.model, options, 32, 1)
    batch, mode = fixed_batch(options, seed=1), Mode("eager", cpu)
    records = run_trial(Trial("mup", model, derive(model)), mode, batch, options, first_seed=1, adamw=config.optim)
    assert all(record.size < 1e-4 for record in records if record.kind == "loss")


def test_a_wrong_option_is_told_before_torch_is_loaded() -> None:
    """Of the models too: heads of 18 dims cannot rotate a quarter of them."""
    program = "import sys; from crystal.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for wrong in ("coordcheck.widths=[64,72]", "coordcheck.seeds=0"):
        finished = subprocess.run([sys.executable, "-c", program, "task=coordcheck", wrong], capture_output=True, text=True, timeout=120)
        assert finished.stdout.split() == ["2", "False"], finished.stderr


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/records.csv")), ids=lambda path: path.name)
def test_the_committed_verdicts_are_those_of_the_committed_records(folder: Path) -> None:
    over = "depth" if folder.name == "depth" else "width"
    records = read_csv(folder / "records.csv")
    verdicts = judge(records, over)
    page = (folder / "verdict.md").read_text(encoding="utf-8")
    assert page == markdown(verdicts, over, composed().coordcheck["lr"][over], provenance=page.splitlines()[2])
    assert [verdict.variant for verdict in verdicts if verdict.outcome == "passes"] == ["completep" if over == "depth" else "mup"]
    assert [verdict.outcome for verdict in verdicts].count("fails") == len(verdicts) - 1
    if folder.name == "eager":
        assert [verdict.variant for verdict in verdicts] == ["mup", "sp", *BROKEN]
        assert {record.width for record in records} == {64, 128, 256, 512, 1024} and {record.step for record in records} == {0, 1, 3, 10}
        assert len({record.seed for record in records}) >= 4
