"""task=report: the run's report, or with checkpoints=[...] their scores side by side."""

from __future__ import annotations

from pathlib import Path

from crystal.config import Config, require
from stages.out import refuse_unwritable
from stages.published import TABLE_5

SIDE_BY_SIDE = "runs/scores-report"


def report(config: Config) -> None:
    """Write the report. Raises UserError where there is nothing to report on, or where it cannot be written."""
    if config.checkpoints:
        return report_checkpoints(config)
    from crystal.report.write import write_report

    if config.dry_run:
        print(f"would write {config.run.dir}/report/index.html and report.md")
        return
    print(f"report: {write_report(Path(config.run.dir), published=TABLE_5)}")


def report_checkpoints(config: Config) -> None:
    """The code-benchmark report over `config.checkpoints`, into out=DIR; every run of it writes the same files again."""
    from crystal.report.checkpoints import read_checkpoints, write_checkpoints_report

    folders, out = [Path(name) for name in config.checkpoints], Path(config.out or SIDE_BY_SIDE)
    require("" not in config.checkpoints, "an empty name in checkpoints", "folders of checkpoints", "give checkpoints=[DIR,DIR]")
    refuse_unwritable(out)
    if config.dry_run:
        read_checkpoints(folders)
        print(f"would write {out}/index.html, report.md and scores.json from the scores of {', '.join(config.checkpoints)}")
        return
    print(f"report: {write_checkpoints_report(folders, out, published=TABLE_5)}")
