"""A run directory as typed dataclasses; what a run has not written yet is None or empty, never a guess.

The surprise: a stage without a summary.json is in the run all the same, with whatever its metrics tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystal.config import UserError
from crystal.report.fields import Fields, read_json
from crystal.report.metrics import TrainPoint, ValidPoint, read_metrics
from crystal.report.scorefile import Heldout, Score, read_score

BASELINES, HELDOUT = "baselines.json", "heldout.json"  # among the scores, and of another form
HELD_OUT = "starcoder/python"  # the source of the headline: HumanEval and MBPP are Python


@dataclass(frozen=True)
class Source:
    """One entry of a stage's mixture as it was drawn: `samples` rows out of `rows`, that is `epochs` times over."""

    name: str
    parts: tuple[str, ...]
    weight: float
    rows: int
    samples: int
    epochs: float
    fim: bool


@dataclass(frozen=True)
class Summary:
    """A complete stage's own account."""

    steps: int
    tokens: int
    init_from: str | None
    optimizer: str | None
    checkpoint: str | None
    fim_rate: float | None
    fim_spm: float | None
    mixture: tuple[Source, ...]
    redistributed: tuple[str, ...]


@dataclass(frozen=True)
class Baselines:
    """Losses on one held-out source, nats per token: two counting models against the trained one."""

    source: str
    unigram: float
    bigram: float
    model: float


@dataclass(frozen=True)
class Stage:
    """`start` is where the stage begins on the run's token axis; `summary` is None until the stage is complete."""

    name: str
    start: int
    train: tuple[TrainPoint, ...]
    valid: tuple[ValidPoint, ...]
    summary: Summary | None
    scores: Mapping[str, Score]
    heldout: Heldout | None
    baselines: Baselines | None

    @property
    def tokens(self) -> int:
        """Tokens trained in this stage, as far as the files tell."""
        last = max((point.tokens for points in (self.train, self.valid) for point in points), default=0)
        return self.summary.tokens if self.summary else last

    @property
    def end(self) -> int:
        return self.start + self.tokens


@dataclass(frozen=True)
class Side:
    """One side of the prepared data, summed over its parts."""

    documents: int
    tokens: int
    text_bytes: int


@dataclass(frozen=True)
class Run:
    """Everything the report reads. `facts` is run.json; `torn` says that the last metrics line was cut off."""

    directory: Path
    name: str
    facts: Mapping[str, Any]
    n_parameters: int | None
    label: str | None
    train_data: Side | None
    valid_data: Side | None
    stages: tuple[Stage, ...]
    torn: bool

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)


def read_run(directory: Path) -> Run:
    """Read a run directory, whatever part of it has been written.

    Raises UserError where there is no run.json, or where a file is damaged.
    """
    facts = read_json(directory / "run.json")
    if facts is None:
        got = "has no run.json" if directory.is_dir() else "is not a folder"
        raise UserError(f"{directory} {got}; expected the directory of a run; give it as run.dir=DIR")
    data = read_json(directory / "data.json")
    train, valid, torn = read_metrics(directory / "metrics.jsonl")
    folders = {path.name.removeprefix("stage") for path in directory.glob("stage[0-9]*") if path.is_dir()}
    stages: list[Stage] = []
    for name in sorted(folders | train.keys() | valid.keys(), key=natural):
        start = stages[-1].end if stages else 0
        points = tuple(train.get(name, ())), tuple(valid.get(name, ()))
        stages.append(_read_stage(directory / f"stage{name}", name, start, *points))
    return Run(
        directory=directory,
        name=facts.maybe_text("name") or directory.resolve().name,
        facts=facts.value,
        n_parameters=facts.maybe_count("n_parameters"),
        label=data.maybe_text("label") if data else None,
        train_data=_read_side(data, "train"),
        valid_data=_read_side(data, "valid"),
        stages=tuple(stages),
        torn=torn,
    )


def headline_first(source: str) -> tuple[bool, str]:
    """A sorting key for sources: the headline's own, then by name."""
    return source != HELD_OUT, source.lower()


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key that puts HumanEval/9 before HumanEval/10."""
    pieces = re.findall(r"\d+|\D+", text)
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces)


def _read_side(data: Fields | None, key: str) -> Side | None:
    parts = [data.child(key).child(name) for name in data.child(key).value] if data else []
    totals = [sum(part.count(unit) for part in parts) for unit in ("documents", "tokens", "text_bytes")]
    return Side(*totals) if parts else None


def _read_stage(folder: Path, name: str, start: int, train: tuple[TrainPoint, ...], valid: tuple[ValidPoint, ...]) -> Stage:
    summary = read_json(folder / "summary.json")
    baselines = read_json(folder / "scores" / BASELINES)
    return Stage(
        name=name,
        start=start,
        train=train,
        valid=valid,
        summary=_summary(summary) if summary and summary.maybe_text("status") == "complete" else None,
        scores=read_scores(folder / "scores"),
        heldout=read_heldout(folder / "scores"),
        baselines=_baselines(baselines) if baselines else None,
    )


def read_scores(folder: Path) -> dict[str, Score]:
    """benchmark -> its scores, from the files of a folder."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name not in (BASELINES, HELDOUT)]
    scores = [read_score(fields) for fields in map(read_json, files) if fields]
    return {score.benchmark: score for score in scores}


def read_heldout(folder: Path) -> Heldout | None:
    """What was measured beside the scores of a folder."""
    fields = read_json(folder / HELDOUT)
    if not fields:
        return None
    return Heldout(str(fields.file), *(fields.child(key).maybe_number("bits_per_byte") for key in ("python", "canonical")))


def _summary(fields: Fields) -> Summary:
    mixture = tuple(
        Source(
            name=entry.text("name"),
            parts=entry.words("parts"),
            weight=entry.number("weight"),
            rows=entry.count("rows"),
            samples=entry.count("samples"),
            epochs=entry.number("epochs"),
            fim=entry.flag("fim"),
        )
        for entry in fields.children("mixture")
    )
    fim = fields.child("fim")
    return Summary(
        steps=fields.count("steps"),
        tokens=fields.count("tokens"),
        init_from=fields.maybe_text("init_from"),
        optimizer=fields.maybe_text("optimizer"),
        checkpoint=fields.maybe_text("checkpoint"),
        fim_rate=fim.maybe_number("rate"),
        fim_spm=fim.maybe_number("spm"),
        mixture=mixture,
        redistributed=fields.words("redistributed"),
    )


def _baselines(fields: Fields) -> Baselines:
    losses = (fields.child(name).number("loss") for name in ("unigram", "bigram", "model"))
    return Baselines(fields.text("source"), *losses)
