"""`task=import source=params.yaml` and `task=export format=params` on the command line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import crystal.__main__ as command_line
from crystal.config import Config
from crystal.runlog import flattened
from stages.params_yaml.names import OPTIONAL
from stages.params_yaml.read import read
from tests.stages.released import PHASES, needs_released
from tests.stages.test_params_yaml import UNKNOWN, example
from tests.test_conf import composed


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Training is not done: the configurations that would have been trained by are in this list."""
    seen: list[Config] = []
    task = command_line.run_task

    def run(config: Config, composed: Any, command: list[str]) -> int:
        return seen.append(config) or 0 if config.task == "train" else task(config, composed, command)

    monkeypatch.setattr(command_line, "run_task", run)
    return seen


def test_import_gives_a_configuration_to_train_by(crystal, runs: list[Config], tmp_path: Path) -> None:
    path, out = example(tmp_path), tmp_path / "new folder" / "imported.yaml"
    result = crystal("task=import", f"source={path}", f"out={out}")
    assert (result.status, result.err) == (0, "")
    assert re.findall(r"^  (\S+)$", result.out, flags=re.MULTILINE) == UNKNOWN
    assert crystal(f"config={out}").status == 0
    assert crystal(f"config={out}", "run.seed=3", "stages.2.fim.rate=0.1", "tokens=5e9").status == 0
    params, _ = read(path, composed("model=7b"))
    first, second = runs
    assert (first.model, first.optim, first.stages, first.run.seed) == (params.model, params.optim, {"2": params.stage}, params.seed)
    scale = (first.scale.batch_rows, first.scale.seq_len, first.scale.log_every, first.scale.save_every, first.scale.tokens)
    assert scale == (96, 1024, 5, 50, None)
    assert (second.run.seed, second.stages["2"].fim.rate, second.scale.tokens) == (3, 0.1, 5_000_000_000)


@needs_released
@pytest.mark.parametrize("phase", ["1", "2", "3"])
def test_an_imported_released_file_is_the_configured_stage(phase: str, crystal, runs: list[Config], tmp_path: Path) -> None:
    out = tmp_path / "imported.yaml"
    result = crystal("task=import", f"source={PHASES}/phase{phase}.yaml", f"out={out}")
    assert (result.status, result.err) == (0, "")
    assert crystal(f"config={out}").status == 0
    expected = composed("model=7b", f"stage={phase}")
    imported = runs[0]
    assert imported == replace(expected, scale=replace(expected.scale, log_every=1, save_every=imported.scale.save_every))


@needs_released
@pytest.mark.parametrize("phase", ["1", "2", "3"])
def test_an_exported_stage_is_the_released_file(phase: str, crystal, tmp_path: Path) -> None:
    out = tmp_path / "params.yaml"
    result = crystal("task=export", "format=params", f"stage={phase}", "model=7b", f"out={out}")
    assert (result.status, result.err) == (0, "")
    assert out.read_text().startswith("# Made by Crystal")
    ours, theirs = ({**document} for document in map(yaml.safe_load, (out.read_text(), (PHASES / f"phase{phase}.yaml").read_text())))
    for document in (ours, theirs):  # the order of the sources is the configuration's
        document["train_input"]["mixture"] = {source.pop("data_dir"): source for source in document["train_input"]["mixture"]}
    ours, theirs = dict(flattened(ours)), dict(flattened(theirs))
    differ = {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}
    assert differ == {"runconfig.log_steps"} | ({"runconfig.checkpoint_steps"} if phase != "3" else set())
    assert all(key.rpartition(".")[2] in OPTIONAL for key in ours.keys() - theirs.keys())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("task=import source=params.yaml", "task=import without out; expected a file to write"),
        ("task=import source=params.yaml out=config.yaml", "out=config.yaml; expected a configuration of its own name"),
        ("task=import source=params.yaml out=new.yml", "out=new.yml; expected a configuration of its own name in .yaml"),
        ("task=import source=params.yaml out=params.yaml", "out=params.yaml is there already"),
        ("task=export format=params stage=2 out=params.yaml", "out=params.yaml is there already"),
        ("task=import source=nosuch.yaml out=new.yaml", "nosuch.yaml cannot be read"),
        ("task=import source=wrong.yaml out=new.yaml", "wrong.yaml: no model.max_position_embeddings"),
        ("task=import source=damaged.yml out=new.yaml", "damaged.yml is no YAML"),
        ("task=import source=params.yaml out=wrong.yaml/new.yaml", "the path cannot be used"),
        ("task=export format=params", "without out"),
        ("task=export format=params out=new.yaml", "format=params of the stages 1, 2, 3; expected one stage"),
        ("task=export format=params out=new.yaml stage=2", "a learning-rate piece of"),
        ("task=export format=params out=new.yaml stage=2 model=7b parametrization=sp", "model.parametrization=sp; expected mup"),
        (
            "task=export format=params out=new.yaml stage=2 model=7b stages.2.mixture.C4.parts=mine/*",
            "parts=mine/*; expected RedPajama",
        ),
        ("task=export format=params out=new.yaml stage=2 model=7b model.rotary_base=5e5", "model.rotary_base=500000.0; expected 10000.0"),
        ("config=nosuch.yaml", "config=nosuch.yaml"),
        ("config=wrong.yaml", "expected a file whose defaults begin with config and end with _self_"),
        ("config=damaged.yml", "expected a YAML file"),
    ],
)
def test_what_the_user_can_mend(arguments: str, words: str, crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example(tmp_path)
    Path("wrong.yaml").write_text("a: 1\n")
    Path("damaged.yml").write_text("model: [1\nb: {")
    before = sorted(tmp_path.rglob("*"))
    result = crystal(*arguments.split())
    assert (result.status, len(result.err.splitlines())) == (2, 1), result
    assert result.err.startswith("error: ") and words in result.err and result.err.count("; ") >= 2, result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", ["task=import source=params.yaml", "task=export format=params stage=1 model=7b"])
def test_dry_run_writes_nothing(arguments: str, crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example(tmp_path)
    result = crystal(*arguments.split(), "out=new.yaml", "dry_run=true")
    assert (result.status, result.err) == (0, "")
    assert "would write new.yaml" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
