"""The code-benchmark report: the scores of several checkpoints side by side, of one run or of several.

The surprise: a checkpoint need not be there any more, for a run keeps only its newest; its scores must be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crystal.config import UserError, require
from crystal.report import facts, figures, scores
from crystal.report.published import PublishedTable
from crystal.report.read import Run, Stage, read_heldout, read_run, read_scores
from crystal.report.render import draw, new_environment, write_pages
from crystal.report.scorefile import Heldout, Score, benchmark_name


@dataclass(frozen=True)
class Scored:
    """A checkpoint with its scores, and the run and stage that it is of, where it lies in one."""

    folder: Path
    scores: Mapping[str, Score]
    heldout: Heldout | None
    run: Run | None
    stage: Stage | None

    @property
    def step(self) -> int | None:
        """Updates in its stage, by the folder's name."""
        found = re.fullmatch(r"step-(\d+)", self.folder.name)
        return int(found[1]) if found else None

    @property
    def bits(self) -> Mapping[str, float]:
        """Bits per byte of held-out text by source, where the run was evaluated at this very step."""
        points = self.stage.valid if self.stage else ()
        return next((point.bits_per_byte for point in points if point.step == self.step), {})

    def name(self, *, with_run: bool) -> str:
        if self.run is None or self.stage is None or self.step is None:
            return self.folder.name
        return f"{self.run.name} " * with_run + f"stage {self.stage.name} at step {self.step:,}"


def write_checkpoints_report(folders: Sequence[Path], out: Path, *, published: PublishedTable) -> Path:
    """Write the report on the checkpoints' scores into `out` and return the path of its page.

    Each is compared with the one before it in `folders`. Raises UserError where one was not scored, where a file is damaged, or
    where jinja2 is missing.
    """
    environment = new_environment({})
    checkpoints = read_checkpoints(folders)
    subjects = _subjects(checkpoints)
    plots = {"scores": draw(partial(figures.scores, subjects))}
    told = _context(checkpoints, subjects) | {"scores": scores.section(subjects, published)}
    return write_pages(out, environment, "checkpoints", told, plots, scores.as_json(subjects, published))


def read_checkpoints(folders: Sequence[Path]) -> list[Scored]:
    """The checkpoints' scores. Raises UserError where a checkpoint is named twice, or has none."""
    twice = [folder for i, folder in enumerate(folders) if folder.resolve() in {other.resolve() for other in folders[:i]}]
    require(not twice, f"checkpoints names {twice[0] if twice else ''} twice", "each once", "leave the second out")
    runs: dict[Path, Run] = {}
    return [_read(folder, runs) for folder in folders]


def _read(folder: Path, runs: dict[Path, Run]) -> Scored:
    """One checkpoint's scores: those of `task=evaluate`, and for what that has not scored its stage's, where it is the stage's last."""
    place = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    run = stage = None
    if place.name.startswith("stage") and (place.parent / "run.json").is_file():
        run = runs.get(place.parent) or read_run(place.parent)
        runs[place.parent] = run
        stage = next((stage for stage in run.stages if f"stage{stage.name}" == place.name), None)
    evaluated = place / "evaluations" / folder.name
    found, heldout = read_scores(evaluated), read_heldout(evaluated)
    if stage and stage.summary and stage.summary.checkpoint and Path(stage.summary.checkpoint).name == folder.name:
        found = {**found, **stage.scores} | {name: score for name, score in found.items() if score.rate is not None}
        heldout = heldout or stage.heldout
    if not any(score.rate is not None for score in found.values()):
        require(folder.is_dir(), f"no checkpoint {folder}", "a folder like runs/NAME/stage1/checkpoints/step-00000120", "check the path")
        raise UserError(f"{folder} has no scores; expected them in {evaluated}; run: python -m crystal task=evaluate checkpoint={folder}")
    return Scored(folder, found, heldout, run, stage)


def _subjects(checkpoints: Sequence[Scored]) -> list[scores.Subject]:
    several = len({checkpoint.run.directory if checkpoint.run else checkpoint.folder for checkpoint in checkpoints}) > 1
    names = [checkpoint.name(with_run=several) for checkpoint in checkpoints]
    names = [name if names.count(name) == 1 else str(checkpoint.folder) for name, checkpoint in zip(names, checkpoints, strict=True)]
    return [
        scores.Subject(
            name=name,
            tone=figures.tone(str(i)),
            scores=checkpoint.scores,
            bits=checkpoint.bits,
            heldout=checkpoint.heldout,
            unscored=f"task=evaluate eval=NAME checkpoint={checkpoint.folder} does that",
        )
        for i, (name, checkpoint) in enumerate(zip(names, checkpoints, strict=True), 1)
    ]


def _context(checkpoints: Sequence[Scored], subjects: Sequence[scores.Subject]) -> dict[str, Any]:
    runs = list(dict.fromkeys(checkpoint.run.name if checkpoint.run else checkpoint.folder.name for checkpoint in checkpoints))
    labels = list(dict.fromkeys(checkpoint.run.label for checkpoint in checkpoints if checkpoint.run and checkpoint.run.label))
    names = dict.fromkeys(benchmark_name(name) for subject in subjects for name in subject.scores if subject.scored(name))
    count = f"{len(subjects)} checkpoints" if len(subjects) > 1 else "One checkpoint"
    measured = {checkpoint.run.name: checkpoint.run for checkpoint in checkpoints if checkpoint.run and checkpoint.bits}
    code = [{source: value for source, value in subject.bits.items() if source.startswith(scores.CODE)} for subject in subjects]
    return {
        "title": facts.listed(runs),
        "summary": f"{count}, scored on {facts.listed(list(names))}.",
        "labels": labels,
        "measured": [subject.name for subject, bits in zip(subjects, code, strict=True) if bits],
        "code_rows": facts.changes((subject.name, bits) for subject, bits in zip(subjects, code, strict=True)),
        "files": [
            *((subject.name, score.file) for subject in subjects for score in subject.scores.values()),
            *((subject.name, subject.heldout.file) for subject in subjects if subject.heldout),
            *((name, str(run.directory / "metrics.jsonl")) for name, run in measured.items()),
        ],
        "scores_caption": scores.CAPTION,
        "methods": scores.METHODS,
    }
