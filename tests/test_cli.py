"""The command line: what reaches Hydra reaches it whole, one run has one directory, and the user's directory stays clean."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import crystal.__main__ as command_line
from crystal.cli import GROUPS, choices, help_page, quoted, swept_keys
from crystal.config import Config, UserError

CONF = Path(__file__).parents[1] / "conf"
ONE_WIDTH = "-m sweep=lr hydra/launcher=basic model.d_model=64 scale.lr_factor=0.2"
ONE_POINT = "model.d_model=64,scale.lr_factor=0.2,run.seed="
SPECIAL = "'\"\\${}[](),=:@-+~#!*?&|<>% \t\n\r.0aé中🙂"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Nothing is run: what would have been is in this list. The current directory is new and empty."""
    monkeypatch.chdir(tmp_path)
    seen: list[Config] = []
    monkeypatch.setattr(command_line, "run_task", lambda config, composed, command: seen.append(config) or 0)
    return seen


@pytest.mark.parametrize(
    ("given_argument", "expected"),
    [
        ("stage=2", "stage='2'"),
        ("stage=1,2,3", "stage='1','2','3'"),
        ("stage=[1,3]", "stage=['1','3']"),
        ("stage='2'", "stage='2'"),
        ('stage="2"', 'stage="2"'),
        ("stage=all", "stage=all"),
        ("model=7b,100m", "model=7b,100m"),
        ("data=null", "data='null'"),
        ("run.seed=2", "run.seed=2"),
        ("stages.2.tokens=5", "stages.2.tokens=5"),
        ("prompt=x = 1, y", "prompt='x = 1, y'"),
        ("prompt=it's", "prompt='it\\'s'"),
        ("prompt=a\\", "prompt='a\\\\'"),
        ("prompt=${x}", "prompt='\\${x}'"),
        ("suffix=", "suffix=''"),
        ("prompts=2", "prompts=2"),
        ("-m", "-m"),
    ],
)
def test_what_hydra_gets(given_argument: str, expected: str) -> None:
    assert quoted([given_argument]) == [expected]


@dataclass
class Texts:
    """The two keys that hold free text, alone: so composing takes a hundredth of a second."""

    prompt: str | None = None
    suffix: str | None = None


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(SPECIAL) | st.text(), suffix=st.text(SPECIAL))
@example(prompt="", suffix="'")
@example(prompt="\\${a}\\\\'", suffix="\\\\\\")
@example(prompt="null", suffix="1e3")
@example(prompt="\\\n", suffix="")
@example(prompt="def f(x):\n    return {x: '${y}'}\n", suffix="# ,[=")
def test_any_text_arrives_unchanged(prompt: str, suffix: str) -> None:
    assume(not any(text.startswith("@") or text == "-" for text in (prompt, suffix)))
    ConfigStore.instance().store("texts", Texts)
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("texts", overrides=quoted([f"prompt={prompt}", f"suffix={suffix}"])))
    assert config == Texts(prompt, suffix)


def test_texts_from_a_file_and_from_stdin(runs: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "@at the start, 'quotes' and ${braces}, it\\'s\r\n- and é\n"
    Path("prompt.py").write_bytes(text.encode())
    monkeypatch.setattr(sys, "stdin", io.StringIO("-" + text))
    assert command_line.main(["task=generate", "prompt=@prompt.py", "suffix=-"]) == 0
    assert (runs[0].prompt, runs[0].suffix) == (text, "-" + text)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="prompt=@.*weights.*expected a text file"):
        quoted([f"prompt=@{tmp_path}/weights"])


@pytest.mark.parametrize(
    ("arguments", "stages", "backend"),
    [
        ("stage=2 backend=cpu", [["2"]], "cpu"),
        ("stage=1", [["1"]], "auto"),
        ("-m stage=1,2,3", [["1"], ["2"], ["3"]], "auto"),
        ("--multirun stage=3,1", [["3"], ["1"]], "auto"),
        ("stage=[1,2]", [["1", "2"]], "auto"),
        ("backend=cuda", [["1", "2", "3"]], "cuda"),
    ],
)
def test_stages_by_their_digits(runs: list[Config], arguments: str, stages: list[list[str]], backend: str) -> None:
    assert command_line.main(arguments.split()) == 0
    assert [list(config.stages) for config in runs] == stages
    assert {config.backend["name"] for config in runs} == {backend}
    assert {config.run.dir for config in runs} == {"runs/tiny-sample"}


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        ("scale.lr_factor=3", ["runs/tiny-sample"]),
        ("-m scale.lr_factor=0.3,1", ["runs/tiny-sample,scale.lr_factor=0.3", "runs/tiny-sample,scale.lr_factor=1"]),
        ("-m stage=1,2 tokens=5e6", ["runs/tiny-sample", "runs/tiny-sample"]),
        ("-m stage=1,2 run.seed=1,2", [f"runs/tiny-sample,run.seed={seed}" for seed in (1, 2, 1, 2)]),
        ("-m model=tiny,40m scale=minutes", ["runs/tiny-sample", "runs/40m-sample"]),
        ("-m model=tiny,40m scale=minutes run.dir=out", ["out,model=tiny", "out,model=40m"]),
        ("-m init_from=a/b,'c' stage=1", ["runs/tiny-sample,init_from=a_b", "runs/tiny-sample,init_from=c"]),
        ("-m run.seed=range(1,3)", ["runs/tiny-sample,run.seed=1", "runs/tiny-sample,run.seed=2"]),
        (f"{ONE_WIDTH} run.seed=1,2", [f"runs/proxy-sample-lr/mup/{ONE_POINT}{seed}" for seed in (1, 2)]),
        (f"{ONE_WIDTH} run.seed=1 parametrization=mup,sp run.dir=out", [f"out/{name}/{ONE_POINT}1" for name in ("mup", "sp")]),
        ("task=transfer sweep=lr", ["runs/proxy-sample-lr"]),
    ],
)
def test_where_the_points_of_a_sweep_live(runs: list[Config], arguments: str, folders: list[str]) -> None:
    assert command_line.main(arguments.split()) == 0
    assert [config.run.dir for config in runs] == folders


def test_swept_keys() -> None:
    assert swept_keys(["-m", "stage='1','2'", "run.seed=1", "tokens=1,2", "prompt='a,b'"]) == {"stage", "tokens"}


def test_a_failed_point_of_a_sweep_is_reported_and_the_rest_run(runs: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["-m", "task=plan", "optim.beta1=0.8,1,0.9"]) == 2
    assert [config.optim.beta1 for config in runs] == [0.8, 0.9]
    line = "error: runs/tiny-sample,optim.beta1={}: optim.beta1={}.0; expected a value from 0 to below 1; CrystalCoder has 0.9 and 0.95"
    assert capsys.readouterr().err == line.format(1, 1) + "\n"
    assert command_line.main(["-m", "task=plan", "optim.beta1=2,0.8,1"]) == 2
    assert capsys.readouterr().err == line.format(2, 2) + " (the first of 2 points that failed)\n"


@pytest.mark.parametrize(
    ("values", "line"),
    [("1,2,9", "stage=9; expected one of 1, 2, 3, all; "), ("choice(1,2)", ".*; expected .*; .*stage=1,2"), ("range(1,3)", "stage=.*; ")],
)
def test_a_wrong_choice_stops_a_sweep_before_its_first_point(values: str, line: str, runs: list[Config], capsys) -> None:
    assert (command_line.main(["-m", f"stage={values}"]), runs) == (2, [])
    assert re.fullmatch(f"error: {line}.*\n", capsys.readouterr().err)


def test_after_ctrl_c_a_sweep_does_not_go_on(runs: list[Config], capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(command_line, "run_task", lambda config, composed, command: runs.append(config) or command_line.INTERRUPTED)
    assert (command_line.main(["-m", "run.seed=1,2,3"]), len(runs)) == (130, 1)

    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "run_task", interrupted)
    assert (command_line.main(["task=prepare"]), capsys.readouterr().err) == (130, "stopped; the same command goes on from what is done\n")


def test_help_names_everything_on_one_page(crystal) -> None:
    result = crystal("--help")
    assert (result.status, result.out) == (0, help_page() + "\n")
    words = result.out.split()
    for group in (path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_")):
        assert group in GROUPS and f"{group}=" in words
        assert choices(group).keys() <= set(words), group
        assert all(choices(group).values()), f"a file of {group} does not say what it is"
    assert result.out.count("\n") < 90
    assert max(map(len, result.out.splitlines())) <= 140
    assert "hydra" not in result.out.lower() and crystal("-h", "stage=2").out == result.out


def test_an_unknown_task_lists_what_there_is(crystal) -> None:
    result = crystal("task=nonsense")
    assert result.status == 2
    assert all(task in result.err for task in choices("task")) and {"train", "plan", "doctor"} <= choices("task").keys()


def test_three_stages_one_after_the_other_are_one_run(crystal, tiny_overrides: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert crystal("-m", *tiny_overrides, "stage=1,2,3").status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")) == ["tiny-crystalcoder"]
    assert len(list(tmp_path.glob("runs/tiny-crystalcoder/stage[123]/summary.json"))) == 3
    again = crystal(*tiny_overrides)
    assert (again.status, again.out.count("complete, skipped")) == (0, 3)


def test_looking_leaves_nothing_behind(crystal, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ("task=plan model=7b", "dry_run=true backend=cpu", "task=doctor", "--cfg job", "--help", "task=prepare dry_run=true"):
        result = crystal(*arguments.split())
        assert (result.status, bool(result.out), list(tmp_path.iterdir())) == (0, True, []), arguments


def test_as_a_process(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "crystal", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    plan, wrong = run("task=plan", "model=7b", "stage=2"), run("stage=4")
    assert (plan.returncode, plan.stderr) == (0, "") and "6,575,278,720 parameters" in plan.stdout
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.startswith("error: stage=4; expected")
