"""A sweep's points: read from the run directories they left, kept as a CSV file that says where they are from.

The surprise: nothing says what a sweep varied. It is the one setting besides width and seed in which its points differ.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from crystal.config import UserError, require
from crystal.runlog import flattened, read_json, read_lines

LAST_SHARE = 0.1  # of the steps: a point's loss is the mean over the last tenth, whose rows, in the first epoch, it has never seen
FOLLOWS = ("model.d_model", "model.n_heads", "model.d_ffn", "seed")  # what a sweep varies besides its one hyperparameter
HELD = ("scale.lr_factor", "model.init_std", "model.embedding_scale", "model.output_alpha")  # what another sweep would vary
RUN_FIRST = "python -m crystal -m sweep=lr runs one; then give sweep=lr, run.dir=DIR or source=records.csv"


@dataclass(frozen=True)
class Point:
    """One run. loss in nats per token; inf where it diverged."""

    parametrization: str
    width: int
    value: float
    seed: int
    loss: float


@dataclass(frozen=True)
class Sweep:
    """The points, sorted; key: the setting that `Point.value` is of."""

    key: str
    points: list[Point]
    provenance: str  # one line

    def __post_init__(self) -> None:
        counts = Counter(astuple(point)[:4] for point in self.points)
        twice = [at for at, n in counts.items() if n > 1]
        require(not twice, f"two points of {twice[:1]}", "one run a parametrization, width, value and seed", "leave one out")
        bad = [p for p in self.points if not (p.width > 0 and 0 < p.value < math.inf and p.loss > 0)]
        require(not bad, f"{bad[:1]}", f"positive numbers, since the scale of {self.key} is logarithmic", "leave such points out")


def read_sweep(folder: Path) -> Sweep:
    """The finished points in folder/PARAMETRIZATION/. Raises UserError where there are none or more than one key was swept."""
    found = [(path.parent, _settings(path.parent)) for path in sorted(folder.glob("*/*/numbers.json"))]
    found = [(path, settings) for path, settings in found if "model.parametrization" in settings]
    finished = [(path, settings, loss) for path, settings in found if (loss := _final_loss(path)) is not None]
    got = f"{folder} with {len(found)} points, none of them finished" if found else f"no points in {folder}"
    require(bool(finished), got, "a sweep's folder", RUN_FIRST)

    keys = set()
    for name in {path.parent for path, _ in found}:
        keys |= _differing([settings for path, settings in found if path.parent == name]) - set(FOLLOWS)
    got = f"{folder} differs in {', '.join(sorted(keys)) or 'nothing'}"
    require(len(keys) == 1, got, "points that differ in one key", "keep one sweep a folder")
    (key,) = keys
    values = [str(settings[key]) for _, settings, _ in finished]
    require(all(map(_is_number, values)), f"{key} has the values {', '.join(sorted(set(values))[:3])}", "numbers", "sweep a number")
    points = [
        Point(settings["model.parametrization"], settings["model.d_model"], float(settings[key]), settings["seed"], loss)
        for _, settings, loss in finished
    ]
    held = {name: {str(settings.get(name)) for _, settings, _ in finished} for name in HELD if name != key}
    said = ", ".join(f"{name}={' or '.join(sorted(values))}" for name, values in held.items())
    return Sweep(key, sorted(points, key=astuple), f"{_provenance([path for path, _, _ in finished])} At {said}.")


def _settings(point: Path) -> dict[str, Any]:
    """Every setting that decides a point's numbers, by dotted key."""
    stages = {path.parent.name.removeprefix("stage"): read_json(path, {}) for path in sorted(point.glob("stage*/numbers.json"))}
    return dict(flattened(read_json(point / "numbers.json", {}) | {"stages": stages}))


def _differing(settings: Sequence[dict[str, Any]]) -> set[str]:
    keys = {key for each in settings for key in each}
    return {key for key in keys if len({str(each.get(key)) for each in settings}) > 1}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _final_loss(point: Path) -> float | None:
    """The mean training loss over the last tenth of the steps; inf after a divergence; None where the point is not finished."""
    summaries = [read_json(path, {}) for path in point.glob("stage*/summary.json")]
    if len(summaries) != 1:
        return None
    (summary,) = summaries
    if summary["status"] == "diverged":
        return math.inf
    first = (1 - LAST_SHARE) * summary["steps"]
    lines = [line for line in read_lines(point / "metrics.jsonl") if line["kind"] == "train"]
    losses = [line["loss"] for line in lines if line["step"] > first]
    require(bool(losses), f"{point} has no losses", f"a finished point's metrics.jsonl, up to step {summary['steps']}", "delete the point")
    before = max((line["step"] for line in lines if line["step"] <= first), default=0)
    got = f"{point} has a loss that is the mean of more than the last tenth of its steps"
    require(
        before > first - 1,
        got,
        f"scale.log_every of at most {int(LAST_SHARE * summary['steps'])}",
        "sweep again with that, in another run.dir",
    )
    return float(np.mean(losses))


def _provenance(points: Sequence[Path]) -> str:
    """How many runs of what, by which code on what machine; all that they differ in is named."""
    facts: dict[str, set[str]] = {}
    for point in points:
        numbers, run = read_json(point / "numbers.json", {}), read_json(point / "run.json", {})
        (steps,) = [read_json(path, {})["steps"] for path in point.glob("stage*/summary.json")]
        model, scale = numbers["model"], numbers["scale"]
        for name, value in {
            "steps": steps, "tokens": f"{scale['batch_rows'] * scale['seq_len']:,}", "model": model["name"], "layers": model["n_layers"],
            "head_dim": model["d_model"] // model["n_heads"], "data": numbers["data"], "torch": run.get("versions", {}).get("torch"),
            **{key: run.get(key) for key in ("git", "dtype", "device")},
        }.items():  # fmt: skip
            facts.setdefault(name, set()).add(str(value))
    said = {name: ", ".join(sorted(values)) for name, values in facts.items()}
    return (
        "{n} runs of {steps} steps of {tokens} tokens, model {model} ({layers} layers, heads of {head_dim}), data {data}; "
        "commit {git}, torch {torch}, {dtype} on {device}."
    ).format(n=len(points), **said)


def as_csv(sweep: Sweep) -> str:
    """A comment line of where the points are from, then one line a point with the swept key as a column."""
    out = io.StringIO()
    out.write(f"# {sweep.provenance}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([sweep.key if field.name == "value" else field.name for field in fields(Point)])
    writer.writerows(astuple(point) for point in sweep.points)
    return out.getvalue()


def from_csv(path: Path) -> Sweep:
    """What `as_csv` wrote, in any order of lines. Raises UserError, naming the line, where it is something else."""
    try:
        comment, *lines = path.read_text(encoding="utf-8").splitlines()
        (*before, key, seed, loss), *rows = csv.reader(lines)
        if not comment.startswith("#") or (*before, seed, loss) != ("parametrization", "width", "seed", "loss"):
            raise ValueError("other columns")
    except (OSError, ValueError) as error:
        wanted = "the records.csv of a transfer: a comment, and the columns parametrization, width, a key, seed and loss"
        raise UserError(f"source={path} ({error}); expected {wanted}; check the path") from error
    points = []
    for number, row in ((number, row) for number, row in enumerate(rows, 3) if row):
        try:
            name, width, value, seed, loss = row
            points.append(Point(name, int(width), float(value), int(seed), float(loss)))
        except ValueError as error:
            raise UserError(f"source={path}, line {number}: {','.join(row)} ({error}); expected {lines[0]}; mend that line") from error
    require(bool(points), f"source={path} without points", "one a line", RUN_FIRST)
    return Sweep(key, sorted(points, key=astuple), comment.removeprefix("#").strip())
