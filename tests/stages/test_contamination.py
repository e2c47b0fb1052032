"""`task=contamination` from the command line: what it finds by stage, what it writes, and with which status it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.code.problems import Problem
from tests.data.conftest import write_parquet

PROMPT = "def weave(ribbons, colours):\n"
SOLUTION = "    banner = [ribbons.pop(colours[shortest]) for shortest in sorted(colours)]\n    return banner + ribbons\n"


class Seamstress:
    """A benchmark of one problem."""

    def problems(self) -> list[Problem]:
        return [Problem("Seamstress/1", PROMPT, preamble=PROMPT, check="", statement=SOLUTION)]


@pytest.fixture(scope="module")
def planted(corpus: Path, tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A configuration whose prepared data hold the problem, of which it does not know, in two documents of Python."""
    pytest.importorskip("numba")
    from crystal.__main__ import main

    root = tmp_path_factory.mktemp("planted")
    shutil.copytree(corpus, root / "corpus")
    texts = [f"x = {n}\n" * 30 + (PROMPT + SOLUTION) * (n in (5, 25)) for n in range(40)]
    write_parquet(root / "corpus" / "starcoderdata" / "python" / "train-00000-of-00001.parquet", texts)
    given = [override for override in tiny_overrides if not override.startswith(("data.root", "data.out", "data.holdout", "~"))]
    given += [f"data.root={root}/corpus", f"data.out={root}/rows", "data.holdout=1e-9"]
    given += ["~data.decontaminate.against.humaneval", "~data.decontaminate.against.mbpp"]
    assert main([*given, "task=prepare"]) == 0
    return given


@pytest.fixture
def check(crystal, planted: list[str]) -> Callable:
    benchmark = "+data.decontaminate.against.seamstress._target_=tests.stages.test_contamination.Seamstress"
    return lambda *arguments: crystal(*planted, "task=contamination", benchmark, *arguments)


def test_hits_are_told_listed_and_an_error(check, planted, tmp_path):
    result = check("stage=2", f"out={tmp_path}/hits.jsonl")
    assert (result.status, len(result.err.splitlines())) == (2, 1)
    assert "error: 2 documents of " in result.err and "hold 1 of 1 problems; expected none; prepare with" in result.err
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()}
    assert rows["part"] == ["documents", "Seamstress"]
    assert rows["starcoder/python"] == ["40", "2"] and rows["starcoder/css"][1] == "0"
    assert "RedPajamaC4/even" not in rows and "RedPajamaC4/odd" in rows
    hits = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [(hit["file"], hit["place"], hit["problem"]) for hit in hits] == [
        ("python/train-00000-of-00001.parquet", place, "Seamstress/1") for place in (5, 25)
    ]
    assert not list(Path(next(o for o in planted if o.startswith("data.out=")).partition("=")[2]).parent.glob(".*")), "left behind"


def test_a_stage_that_trains_on_none_of_it_is_clean(check):
    result = check("stage=1")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1].startswith("none of 1 problems in ")


def test_dry_run_looks_at_nothing(check, tmp_path):
    result = check("dry_run=true", f"out={tmp_path}/hits.jsonl")
    assert result.status == 0 and "would look for 1 problems in " in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("~data.decontaminate.against.seamstress", "without data.decontaminate.against; expected benchmarks"),
        ("data.out=nowhere", "nowhere has no manifest.json"),
        ("out=.", "out=. is there already"),
        ("stage=3 executor=slurm executor.partition=x", "no sbatch"),
    ],
)
def test_what_the_user_can_mend(arguments, words, check, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    result = check(*arguments.split())
    assert (result.status, len(result.err.splitlines()), result.out) == (2, 1, ""), result
    assert words in result.err and result.err.count("; ") >= 2
