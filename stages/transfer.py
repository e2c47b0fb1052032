"""`task=transfer`: read a sweep's points, say whether the optimum transfers, and write the report."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from crystal.config import Config, require
from crystal.mup import transfer_report
from crystal.mup.sweep import as_csv, from_csv, read_sweep
from crystal.mup.transfer import analyse
from crystal.runlog import write_text
from stages.out import refuse_unwritable


def transfer(config: Config) -> None:
    """The points of sweep=NAME (or run.dir=, or source=records.csv) to a verdict, a report and the large model's values in out=, anew."""
    if config.source is None:
        source = Path(config.run.dir)
        sweep, folder = read_sweep(source), Path(config.out or source / "transfer")
    else:
        require(config.out is not None, "task=transfer with source= and without out", "a folder to write", "give out=PATH")
        source, folder = Path(config.source), Path(str(config.out))
        sweep = from_csv(source)
    outcomes = [analyse(sweep.key, list(group)) for _, group in groupby(sweep.points, key=lambda point: point.parametrization)]
    refuse_unwritable(folder, "matplotlib")
    if config.dry_run:
        print(f"would write the transfer of {sweep.key} over {len(sweep.points)} points of {source} to {folder}")
        return
    files = transfer_report.files(outcomes, sweep.provenance) | {"records.csv": as_csv(sweep)}
    for name, text in files.items():
        write_text(folder / name, text)
    if transfer_report.VALUES not in files:
        (folder / transfer_report.VALUES).unlink(missing_ok=True)  # of an earlier report
    for made in outcomes:
        print(f"{transfer_report.table(made)}\n{transfer_report.verdict(made)}\n")
    values = folder / transfer_report.VALUES if transfer_report.VALUES in files else "not written"
    print(f"report: {folder / 'report.md'}; values for the large model: {values}")
