"""What the SDK makes of Crystal's train step, in the SDK's own environment: `make cerebras-check`. Each step is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from backends.cerebras import CerebrasBackend, lowering
from backends.cerebras.step import place, scaled, schedule
from crystal.config import AdamWConfig, Config, ModelConfig
from crystal.engine import TrainSpec
from crystal.mup.plan import derive
from crystal.schedule import Piece, Schedule
from stages.recipes import recipe
from tests.small import small_spec

pytest.importorskip("cerebras.pytorch", reason="needs the Cerebras SDK's environment: make cerebras-check")
ROOT = Path(lowering.__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml") if path.stem != "base")
SMALL = ModelConfig(name="small", d_model=64, n_layers=2, n_heads=2, d_ffn=170, vocab_size=512, seq_len=64)


def composed(*overrides: str) -> Config:
    """What `python -m crystal OVERRIDES` would be configured with."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    import crystal.__main__  # noqa: F401 (registers the schema)

    with initialize_config_module("conf", version_base="1.3"):
        made = OmegaConf.to_object(compose("config", [*overrides, "data=crystalcoder", "data.root=."]))
    assert isinstance(made, Config)
    return made


def step_of(config: Config, stage: str) -> TrainSpec:
    schedule = recipe(config.stages[stage], config.scale).schedule
    return TrainSpec(config.model, derive(config.model), config.optim, schedule, config.scale.batch_rows, seed=1)


@pytest.mark.parametrize("model", PRESETS)
def test_every_preset_lowers(model: str, tmp_path: Path) -> None:
    config = composed(f"model={model}", "scale=published")
    found = CerebrasBackend(python=sys.executable).lower(step_of(config, "1"), tmp_path)
    assert found["wrong"] == []
    assert found["operations"]["LayerNorm"] == 2 * config.model.n_layers + 1
    assert found["state_bytes"] > 12 * found["parameters"]  # weights and two moments, float32
    if model == "7b":
        assert found["parameters"] == 6_575_278_720
        assert found["memory_bytes"] < 2e9


@pytest.mark.parametrize("stage", ["2", "3"])
def test_the_published_step_lowers_with_every_schedule(stage: str, tmp_path: Path) -> None:
    found = CerebrasBackend(python=sys.executable).lower(step_of(composed("model=7b"), stage), tmp_path)
    assert (found["wrong"], found["parameters"]) == ([], 6_575_278_720)
    assert found["memory_bytes"] < 2e9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_lower(dtype: str, tmp_path: Path) -> None:
    found = CerebrasBackend(python=sys.executable, dtype=dtype).lower(small_step(), tmp_path)
    assert found["wrong"] == []


def test_attention_within_documents_lowers(tmp_path: Path) -> None:
    backend = CerebrasBackend(python=sys.executable)
    full, document = (backend.lower(small_step(), tmp_path / name, documents=name == "document") for name in ("full", "document"))
    assert document["wrong"] == [] and document["operations"]["Compare"] > full["operations"]["Compare"]


def small_step() -> TrainSpec:
    schedule = recipe(composed("model=tiny").stages["1"], composed("model=tiny").scale).schedule
    return TrainSpec(SMALL, derive(SMALL), AdamWConfig(), schedule, batch_rows=4, seed=1)


IN_THE_MODEL = ["erfinv", "nonzero", "polar", "fft", "svd", "item", "boolean_index", "checkpoint"]
IN_THE_STEP = ["foreach_clip", "torch_adamw", "muon"]


@pytest.mark.parametrize("name", IN_THE_MODEL + IN_THE_STEP)
def test_what_no_system_runs_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    backend = CerebrasBackend(python=sys.executable, artifact_dir="artifacts")
    told = {
        "model": asdict(SMALL), "adamw": asdict(AdamWConfig()), "pieces": [{"start": 0.0, "end": 0.012, "n_steps": 86}],
        "batch_rows": 4, "documents": False, "mode": "validate", "options": asdict(backend.options()),
    }  # fmt: skip
    (tmp_path / "step.json").write_text(json.dumps(told))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cerebras.broken", name, "step.json", "found.json"], cwd=tmp_path, env=backend.environment().variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (tmp_path / "found.json").exists(), done.stderr[-2000:]
    (wrong, *_) = json.loads((tmp_path / "found.json").read_text())["wrong"]
    assert ("tests/cerebras/broken.py:" if name in IN_THE_MODEL else ".py:") in wrong


def test_the_steps_own_rates_are_those_of_every_other_backend(tmp_path: Path) -> None:
    """Of each group of a model of muP's width 2, while a traced step trains it on the SDK's CPU by the published first stage's schedule."""
    made, spec = recipe(composed("model=7b").stages["1"], composed("model=7b").scale).schedule, small_spec()
    command = [sys.executable, "-m", "tests.cerebras.rates", json.dumps([asdict(piece) for piece in made.pieces]), "1001"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rates = json.loads(done.stdout.splitlines()[-1])
    mults = sorted({plan.lr_mult for plan in spec.plan.values()})
    assert mults == [0.5, 1.0] and len(rates) == 1001
    for step in (0, 1, 86, 87, 1000):
        assert sorted(set(rates[step])) == pytest.approx(sorted({made.lr(step) * mult for mult in mults}), rel=1e-6, abs=2e-9), step


def test_learning_rates_are_those_of_every_other_backend() -> None:
    """Of each group, after 0, 1, 86, 87 and 1,000 updates, read from the SDK's own scheduler, which computes in float32.

    Also of a scaled-down schedule, whose pieces are no whole steps, beyond its end, and of a scheduler put to a place.
    """
    import cerebras.pytorch as cstorch
    import torch

    cstorch.backend("CPU")
    mults, odd = [1.0, 0.0625], Schedule([Piece(0.0, 0.01, 0.34), Piece(0.02, 0.01, 12.5), Piece(0.01, 0.002, 20.7)])
    published = {stage: recipe(each, composed("model=7b").scale).schedule for stage, each in composed("model=7b").stages.items()}
    for made, steps in [*((made, (0, 1, 86, 87, 276, 277, 1000)) for made in published.values()), (odd, range(40))]:
        groups = scaled([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_mult": mult} for mult in mults])
        optimizer = cstorch.optim.AdamW(groups, lr=0.0)
        scheduler, expected = schedule(optimizer, made.pieces), [[made.lr(step) * mult for mult in mults] for step in range(1001)]
        for step in range(max(steps) + 1):
            if step in steps:
                assert [float(lr) for lr in scheduler.get_last_lr()] == pytest.approx(expected[step], rel=1e-6, abs=2e-9), step
            scheduler.step()
        for step in steps:
            place(scheduler, step)
            scheduler.update_last_value()
            assert [float(lr) for lr in scheduler.get_last_lr()] == pytest.approx(expected[step], rel=1e-6, abs=2e-9), step
