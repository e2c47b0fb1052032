"""A whole synthetic run, written and reported once for all tests that only look at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crystal.report.published import Published, PublishedTable
from crystal.report.write import write_report

from .synthetic import make_run

PUBLISHED = PublishedTable("published: a paper", "Measured by others.", (Published("Published model", 28.38, None),))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a complete three-stage run, with its report."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "tiny-sample")
    assert write_report(folder, published=PUBLISHED) == folder / "report/index.html"
    return folder


@pytest.fixture(scope="session")
def page(whole_run: Path) -> str:
    return (whole_run / "report/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def markdown(whole_run: Path) -> str:
    return (whole_run / "report/report.md").read_text(encoding="utf-8")
