"""The coordinate check: its sizes and slopes by hand, right muP passed and every broken multiplier flagged in every mode, its manners."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.cpu import CpuEngine
from benchmarks.coordcheck import broken, main, run_mode
from crystal.engine import Engine, TrainSpec
from crystal.mup.coordcheck import KINDS, Mode, Record, Trial, activations, fixed_batch, read_csv, run_trial, sized, to_csv
from crystal.mup.plan import derive
from crystal.mup.slopes import TOLERANCE, Verdict, expected, judge, markdown, slopes
from crystal.schedule import Piece, Schedule
from stages.coordcheck import coordcheck_options
from tests.small import random_model, small_batches, small_config
from tests.test_conf import composed

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "coordcheck"
SMALL = ["task=coordcheck", "coordcheck.widths=[64,256]", "coordcheck.n_layers=1", "coordcheck.steps=[1]", "coordcheck.seeds=2"]
ON_ONE_THREAD = ["backend=cpu", "backend.threads=1", "backend.dtype=float32"]
BROKEN = ["readout", "hidden lr", "hidden init", "1/d"]


def synthetic(exponent: float, *, kind: str = "residual", step: int = 1, seed: int = 1, over: str = "width") -> list[Record]:
    """Sizes 3 x^exponent for x in 2, 4, 16; of an early block too, which has another exponent and must not matter."""
    records = []
    for x in (16, 2, 4):
        shape = (x, 5) if over == "width" else (7, x)
        for module, own in ((f"blocks.{shape[1] - 1}", exponent), ("blocks.0", 9.0)):
            records.append(Record("mup", "eager", *shape, seed, step, kind, module, "change", 3.0 * x**own))
    return records


@pytest.mark.parametrize("over", ["width", "depth"])
@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.3, 1.0])
def test_a_power_law_has_its_exponent(exponent: float, over: str) -> None:
    records = synthetic(exponent, over=over) + synthetic(exponent + 0.2, seed=2, over=over)
    [slope] = slopes(records, over)
    assert (slope.mean, slope.spread) == (pytest.approx(exponent + 0.1), pytest.approx(0.2 / 2**0.5))
    assert slope.right == (abs(exponent + 0.1) <= TOLERANCE)


def test_logits_are_judged_by_themselves() -> None:
    ranges = {(kind, step): expected(kind, step, "width") for kind in KINDS for step in (0, 1)}
    assert {key for key, range_ in ranges.items() if range_ != (0, 0)} == {
        (f"{k} logits", s) for k in ("attention", "readout") for s in (0, 1)
    }
    assert ranges["readout logits", 0] == (-0.5, -0.5) and ranges["readout logits", 1] == (-0.5, 0)
    assert {expected(kind, step, "depth") for kind in KINDS for step in (0, 1)} == {(0, 0)}


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_what_is_not_a_number_is_wrong(size: float) -> None:
    [slope] = slopes([*synthetic(0.0)[2:], synthetic(0.0)[0]._replace(size=size)], "width")
    assert not slope.right


def judged(*, change: float = 0.5, gap: float = 1e-7, dtype: str = "float32") -> Verdict:
    """The verdict on a model whose final hidden states change by that much and whose engine's loss is off by that much."""
    about = [("mup", "eager", width, 2, 1, step) for width in (2, 4) for step in (0, 1)]
    records = [Record(*a, "final hidden", "norm_out", "change" if a[-1] else "value", change if a[-1] else 1.0) for a in about]
    [verdict] = judge([*records, *(Record(*a, "loss", dtype, "gap", gap) for a in about)], "width")
    return verdict


def test_a_check_in_which_nothing_moves_fails() -> None:
    assert judged().wrong == []
    assert "change by 0.01 of their size" in str(judged(change=0.01))


def test_an_engine_that_computes_something_else_fails() -> None:
    assert "the engine's loss is off by 0.01 at step 0, more than 0.0001 in float32" in str(judged(gap=0.01))
    assert judged(gap=0.01, dtype="bfloat16").wrong == []
    assert judged(gap=0.03, dtype="bfloat16").wrong != []


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
        assert loss == pytest.approx(model(ids_BT, labels_BT, mask_BT).item(), rel=1e-5)
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
    engine = cpu(TrainSpec(model, derive(model), config.optim, Schedule([Piece(options.lr, options.lr, 1)]), 8, seed=2))
    before = activations(model, engine.state_dict(), batch)[0]["residual", "blocks.0"]
    for device_batch in engine.feed([batch] * 3, 3):
        assert engine.step(device_batch).lr == options.lr
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

    off = [[line for line in judge(small_trial(how), "width")[0].wrong if "the engine's loss is off" in line] for how in (cpu, build)]
    assert [len(lines) for lines in off] == [0, 1]


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    out = tmp_path_factory.mktemp("eager")
    with pytest.raises(SystemExit) as left:
        main("eager", *SMALL, f"out={out}")
    assert left.value.code is None
    return judge(read_csv(out / "records.csv"), "width")


def test_right_mup_passes_and_every_broken_multiplier_is_flagged(eager: list[Verdict]) -> None:
    assert [verdict.variant for verdict in eager] == ["mup", "sp", *BROKEN]
    assert [verdict.variant for verdict in eager if not verdict.wrong] == ["mup"]
    # Where a break must show, whatever else it disturbs.
    shows = {
        "readout": "readout logits at init",
        "hidden lr": "residual change at 1",
        "hidden init": "ffn hidden at init",
        "1/d": "attention logits at init",
    }
    for verdict in eager[2:]:
        assert any(line.startswith(shows[verdict.variant]) for line in verdict.wrong), verdict


@pytest.mark.parametrize("mode", ["compiled", "fully_shard"])
def test_the_same_verdicts_compiled_and_sharded_over_two_ranks(mode: str, eager: list[Verdict]) -> None:
    verdicts = judge(run_mode(mode, composed(*SMALL)), "width")
    assert [(verdict.variant, verdict.mode, bool(verdict.wrong)) for verdict in verdicts] == [
        (v.variant, mode, bool(v.wrong)) for v in eager
    ]
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
    assert (folder / "verdict.md").read_text() in finished.out
    assert (folder / "sizes.png").read_bytes().startswith(b"\x89PNG")
    other = crystal(*command, "parametrization=sp", f"out={tmp_path / 'sp'}")
    assert other.status == 2 and other.err.splitlines()[-1].startswith("error: sp (cpu) fails: ")
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
        ("lr=0", "coordcheck.lr=0; expected a finite number above 0"),
        ("seeds=1", "coordcheck.seeds=1; expected at least 2"),
        ("seeds=two", "coordcheck.seeds"),
        ("sed=3", "coordcheck.sed"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(crystal, override: str, said: str) -> None:
    finished = crystal("task=coordcheck", "backend=cpu", f"{'+' * (override == 'sed=3')}coordcheck.{override}")
    assert (finished.status, finished.out) == (2, "")
    assert re.match(f"error: .*{said}", finished.err) and finished.err.count("\n") == 1, finished.err


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/records.csv")), ids=lambda path: path.name)
def test_the_committed_verdicts_are_those_of_the_committed_records(folder: Path) -> None:
    over = "depth" if folder.name == "depth" else "width"
    records = read_csv(folder / "records.csv")
    verdicts = judge(records, over)
    page = (folder / "verdict.md").read_text(encoding="utf-8")
    assert page == markdown(verdicts, over, composed().coordcheck["lr"])
    assert [verdict.variant for verdict in verdicts if not verdict.wrong] == ["completep" if over == "depth" else "mup"]
    if folder.name == "eager":
        assert [verdict.variant for verdict in verdicts] == ["mup", "sp", *BROKEN]
        assert {record.width for record in records} == {64, 128, 256, 512, 1024} and {record.step for record in records} == {0, 1, 3, 10}
        assert len({record.seed for record in records}) >= 4
