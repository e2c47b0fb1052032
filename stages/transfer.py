"""`task=transfer`: read a sweep's points, say whether the optimum transfers, and write the report."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from crystal.config import Config, UserError
from crystal.mup import transfer_report
from crystal.mup.transfer import Point, analyse, as_csv, from_csv, read_points
from crystal.runlog import read_json, write_text


def transfer(config: Config) -> None:
    """The points of sweep=NAME (or run.dir=, or source=records.csv) to a verdict, a report and the large model's values in out=."""
    sweep = Path(config.run.dir).parent if config.sweep else Path(config.run.dir)
    source = sweep if config.source is None else Path(config.source)
    folder = Path(config.out) if config.out is not None else sweep / "transfer"
    key, points = read_points(source) if config.source is None else _from_file(source)
    if config.dry_run:
        return print(f"would write the transfer of {key} over {len(points)} points of {source} to {folder}")
    outcomes = [analyse(key, list(group)) for _, group in groupby(points, key=lambda point: point.parametrization)]
    for made in outcomes:
        print(f"{transfer_report.table(made)}\n{transfer_report.verdict(made)}\n")
    write_text(folder / "records.csv", as_csv(key, points))
    transfer_report.write(folder, outcomes, _provenance(source, points))
    return print(f"report: {folder / 'report.md'}")


def _from_file(path: Path) -> tuple[str, list[Point]]:
    try:
        return from_csv(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"source={path} ({error}); expected the records.csv of a transfer; check the path") from error


def _provenance(source: Path, points: list[Point]) -> str:
    """Whence the points: the number of runs and, where their folders are here, the steps, the code and the machine."""
    said = f"{len(points)} runs"
    for path in sorted(source.glob("*/*/run.json"))[:1]:
        run, numbers = read_json(path, {}), read_json(path.with_name("numbers.json"), {})
        (summary,) = [read_json(file, {}) for file in path.parent.glob("stage*/summary.json")] or [{"steps": 0}]
        said += f" of {summary['steps']} steps of {run['batch_rows'] * run['seq_len']:,} tokens, model {run['model']['name']} "
        said += f"({run['model']['n_layers']} layers), data {numbers['data']}; commit {run['git']}, torch {run['versions']['torch']}, "
        said += f"{run['dtype']} on {run['device']}"
    return said + "."
