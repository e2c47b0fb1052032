"""Every command of the README does what it says, at the size of a test; every file that it names is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.shared import SDK_PYTHON

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCORES = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
SMALLER = {
    "task=contamination": ["data.decontaminate.against.mbpp=null"],
    "eval=humaneval": ["eval.limit=2"],
    "sweep=lr": ["scale.lr_factor=0.1,0.2", "run.seed=1", "hydra/launcher=basic"],
    "task=coordcheck": ["coordcheck.widths=[64,256]", "coordcheck.n_layers=1", "coordcheck.steps=[1,3]", "coordcheck.seeds=2"],
}
AS_THEY_ARE = {"task=plan", "task=replay", "task=validate", "task=doctor", "--help", "dry_run=true"}
MBPP = {"text": "Add.", "code": "def add(a, b):\n    return a + b", "test_setup_code": "", "test_list": ["assert add(1, 2) == 3"]}


def commands(page: str) -> list[list[str]]:
    """Those in the blocks of a page, without `python -m crystal`."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", page, flags=re.DOTALL))
    return [shlex.split(line, comments=True)[3:] for line in blocks.splitlines() if line.startswith("python -m crystal")]


COMMANDS = commands(README)


def key(argument: str) -> str:
    return argument.partition("=")[0]


def test_commands_were_found():
    assert [] in COMMANDS and ["stage=2", "backend=cuda"] in COMMANDS and len(COMMANDS) >= 9


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command(command: list[str], crystal, corpus, trained, tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [argument.replace("=DIR", f"={corpus}") for argument in command]
    sized = [*tiny_overrides, *(o for argument in command for o in SMALLER.get(argument, []))]
    if not AS_THEY_ARE & set(command):
        shutil.copytree(trained, tmp_path / "runs" / "tiny-crystalcoder")  # where stage 2 finds stage 1, and a checkpoint is the newest
        given = {key(argument) for argument in command}
        command += [o for o in sized if key(o) not in given and not ("backend" in given and key(o).startswith("backend."))]
    if "backend=cerebras" in command and SDK_PYTHON.exists():
        command.append(f"backend.python={SDK_PYTHON}")
    result = crystal(*command)
    if "backend=cuda" in command and result.status == 2:
        assert result.err.startswith("error: backend=cuda with ") and "NVIDIA GPU" in result.err
    elif "backend=cerebras" in command and not SDK_PYTHON.exists():  # make cerebras-check has it
        assert (result.status, result.err.partition(";")[0]) == (2, "error: no .venv-cerebras/bin/python")
    else:
        assert (result.status, bool(result.out)) == (0, True), result.err


@pytest.mark.parametrize("command", commands(SCORES), ids=" ".join)
def test_command_of_the_page_on_scores(command: list[str], crystal, trained, tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "tiny-crystalcoder")
    checkpoints = [str(path) for path in sorted(Path("runs/tiny-crystalcoder/stage1/checkpoints").iterdir())[-2:]]
    sample = {"task_id": "HumanEval/53", "completion": "    return x + y\n"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample))
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(MBPP | {"task_id": number}) + "\n" for number in (2, 3, 4, 11)))
    given = {key(argument) for argument in command}
    sized = [*["eval.limit=1"] * ("task=score" not in command), *(o for o in tiny_overrides if key(o) not in given)]
    if "task=report" in command:
        command = [argument.replace("[DIR,DIR]", f"[{','.join(checkpoints)}]") for argument in command]
        for folder in checkpoints:
            assert crystal("task=evaluate", f"checkpoint={folder}", *sized, "eval=humaneval").status == 0
    result = crystal(*command, *sized)
    assert (result.status, bool(result.out)) == (0, True), result.err
    if "task=score" in command:
        assert "pass@1 100.00%" in result.out


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
