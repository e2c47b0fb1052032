"""`task=report checkpoints=[...]` from the command line; the pages themselves are in tests/report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.synthetic import make_run


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last checkpoints of a run of three stages, in the current directory."""
    make_run(tmp_path / "runs/tiny", log_every=20)
    monkeypatch.chdir(tmp_path)
    return [f"runs/tiny/stage{stage}/checkpoints/step-{steps:08d}" for stage, steps in (("1", 150), ("2", 400), ("3", 52))]


def test_side_by_side_with_table_5(crystal, ends: list[str]) -> None:
    result = crystal("task=report", f"checkpoints=[{','.join(ends)}]")
    assert (result.status, result.err) == (0, "") and result.out == "report: runs/scores-report/index.html\n"
    page = Path("runs/scores-report/index.html").read_text()
    assert "StarCoder 15B" in page and "28.01, is the sum, not the mean" in page
    again = crystal("task=report", f"checkpoints=[{','.join(ends)}]")
    assert again.status == 0 and Path("runs/scores-report/index.html").read_text() == page


def test_dry_run_reads_and_writes_nothing(crystal, ends: list[str]) -> None:
    result = crystal("task=report", f"checkpoints=[{ends[0]}]", "out=there", "dry_run=true")
    assert result.status == 0 and "would write there/index.html" in result.out and not Path("there").exists()


@pytest.mark.parametrize(
    ("checkpoints", "out", "said"),
    [
        ("[runs/tiny/stage1/checkpoints/step-1]", "there", "no checkpoint runs/tiny/stage1/checkpoints/step-1; expected a folder like"),
        (
            "[runs/tiny/stage1]",
            "there",
            "has no scores; expected them in runs/tiny/evaluations/stage1; run: python -m crystal task=",
        ),
        ("['']", "there", "an empty name in checkpoints"),
        ("runs/tiny", "there", "expected a list"),
        ("[runs/tiny/stage1/checkpoints/step-00000150]", "file", "file is no folder to write into"),
    ],
)
def test_what_cannot_be_reported_on(crystal, ends: list[str], checkpoints: str, out: str, said: str) -> None:
    Path("file").write_text("")
    result = crystal("task=report", f"checkpoints={checkpoints}", f"out={out}")
    assert result.status == 2 and said in result.err and result.err.count("\n") == 1
    assert not Path("there").exists()
