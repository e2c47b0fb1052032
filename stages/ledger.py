"""task=ledger: what a step of a stage is made of, and which steps and checkpoints a document is in.

Steps count from 0 in each stage, as those of task=replay. The surprise: the run is not asked, except whether its checkpoints are of this
configuration; so steps that are still to come are told as well, and there need not be a run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystal.config import Config, require
from crystal.data.ledger import Ledger, Seen, document_of
from crystal.data.loader import Loader
from crystal.data.shards import Prepared
from crystal.data.tokenizer import Tokenizer, load_tokenizer
from crystal.runlog import read_json, write_text
from stages.loading import loader_of
from stages.out import new_out
from stages.recipes import Recipe, recipe

LINE_CHARACTERS = 72  # of a piece's text on the terminal
LINE_TOKENS = 96  # so many of its ids are decoded for that


@dataclass(frozen=True)
class Course:
    """A configured stage with its order."""

    made: Recipe
    loader: Loader

    @property
    def name(self) -> str:
        return self.made.stage.name

    @property
    def n_samples(self) -> int:
        return self.made.n_steps * self.loader.batch_rows

    def step_of(self, seen: Seen) -> int:
        return seen.sample // self.loader.batch_rows


Found = list[tuple[Course, Seen]]


def ledger(config: Config) -> None:
    """Print the documents of step=N, or the steps and checkpoints that saw document=FILE:PLACE; to out= with all of their text."""
    recipes = _asked(config)
    out = None if config.out is None else new_out(config, "file")
    if config.dry_run:
        asked = f"step={config.step}" if config.step is not None else f"document={config.document}"
        print(f"would look up {asked} in {config.data.out} and print it, or write it to out=FILE.jsonl")
        return
    prepared = Prepared.open(config.data.out, verify=False)
    got = f"{config.data.out} holds rows of {prepared.seq_len} tokens"
    require(prepared.seq_len == config.scale.seq_len, got, f"scale.seq_len={config.scale.seq_len}", "give the run's scale and data.out")
    numbers, place = ([], 0) if config.document is None else _document(config.document, prepared)
    courses = [Course(made, loader_of(config, prepared, made)[0]) for made in recipes]
    for course in courses:
        _refuse_other_run(config, course)
    found = _of_document(courses, numbers, place) if config.step is None else _of_step(config, courses[0], config.step)
    if out is None:
        _show(found, prepared)
    else:
        _write(found, prepared, out)
    if config.document is not None:
        _show_checkpoints(config, courses, found)


def _asked(config: Config) -> list[Recipe]:
    """The stages of the question. UserError for one that has no answer."""
    both = "one of step=N and document=FILE:PLACE"
    got = "task=ledger with " + ("neither step nor document" if config.step is None else "step and document")
    require((config.step is None) != (config.document is None), got, both, "give one")
    recipes = [recipe(stage, config.scale) for stage in config.stages.values()]
    if config.step is None:
        require(config.rank is None and config.ranks == 1, "rank or ranks with document", "them with step=N", "leave them out")
        return recipes
    require(len(recipes) == 1, f"step={config.step} with {len(recipes)} stages", "the stage whose step it is", "give stage=1, 2 or 3")
    n_steps, rows = recipes[0].n_steps, config.scale.batch_rows
    require(0 <= config.step < n_steps, f"step={config.step} of stage {recipes[0].stage.name}", f"0 to {n_steps - 1}", "mend step")
    require(0 < config.ranks <= rows, f"ranks={config.ranks}", f"1 to the {rows} rows of a batch", "mend ranks")
    given = config.rank is not None or config.ranks == 1
    require(given, f"ranks={config.ranks} without rank", "the rank whose rows to print", "give rank=R, or leave ranks out")
    require(0 <= (config.rank or 0) < config.ranks, f"rank={config.rank}", f"0 to {config.ranks - 1}", "give ranks=N, or mend rank")
    return recipes


def _document(name: str, prepared: Prepared) -> tuple[list[int], int]:
    """The input files that `name` may mean, and the place. UserError where no row for training holds such a document."""
    known, remedy = not prepared.finished, "ask for step=N, which says file and row"
    require(known, f"document={name}, but {prepared.folder} is of HDF5 files", "rows whose documents are known", remedy)
    numbers, place = document_of(prepared.files, name)
    held = any(len(prepared.pieces(part).rows_of(number, place)) for number in numbers for part in prepared.train)
    remedy = "it may be held out, left out (contamination.jsonl, duplicates) or not in that file"
    require(held, f"document={name} is in no row for training", "one that is", remedy)
    return numbers, place


def _of_step(config: Config, course: Course, step: int) -> Found:
    rank, n_ranks, rows = config.rank or 0, config.ranks, course.loader.batch_rows
    samples = step * rows + np.arange(rows * rank // n_ranks, rows * (rank + 1) // n_ranks)
    return [(course, seen) for seen in Ledger(course.loader).seen(samples)]


def _of_document(courses: list[Course], numbers: list[int], place: int) -> Found:
    found = []
    for course in courses:
        asked, files = Ledger(course.loader), {course.loader.prepared.files[number] for number in numbers}
        samples = np.unique(np.concatenate([asked.samples_of(number, place, course.n_samples) for number in numbers]))
        found += [(course, seen) for seen in asked.seen(samples) if seen.file in files and seen.place == place]
    return found


def _show(found: Found, prepared: Prepared) -> None:
    """A line for each sample, below it one for each piece in it."""
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    before = None
    for course, seen in found:
        if before != (course, seen.sample):
            before = course, seen.sample
            where = f"stage {course.name}, step {course.step_of(seen):,}, sample {seen.sample:,}"
            print(f"{where}: {seen.entry}, epoch {seen.epoch}, row {seen.row:,}")
        tokens = "" if seen.start is None or seen.end is None else f" tokens {seen.start:,} to {seen.end - 1:,}"
        line = json.dumps(_text(seen.ids[:LINE_TOKENS], tokenizer, prepared), ensure_ascii=False)
        short = line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}..."
        print(f"  {seen.source} {seen.file}:{seen.place}{tokens}{f' {seen.fim}' if seen.fim else ''} {short}")


def _write(found: Found, prepared: Prepared, out: Path) -> None:
    """A line of JSON for each piece, with all of its text."""
    tokenizer, lines = load_tokenizer(prepared.tokenizer_path), []
    for course, seen in found:
        record = {
            "stage": course.name, "step": course.step_of(seen), "sample": seen.sample, "entry": seen.entry, "epoch": seen.epoch,
            "row": seen.row, "source": seen.source, "file": seen.file, "place": seen.place, "start": seen.start, "end": seen.end,
            "fim": seen.fim, "text": _text(seen.ids, tokenizer, prepared),
        }  # fmt: skip
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(out, "".join(lines))
    print(f"{len(lines):,} pieces of documents: {out}")


def _text(ids: np.ndarray, tokenizer: Tokenizer, prepared: Prepared) -> str:
    """Of rows that other programs made with their sentinels, since these alone tell where a document ends and what is permuted."""
    return tokenizer.decode(ids[ids != prepared.fim_ids.pad], skip_special=not prepared.finished)


def _checkpoints(config: Config, stage: str) -> list[tuple[Path, dict[str, Any]]]:
    """The stage's checkpoints in the run's directory, oldest first, with their states. Their names say that they are whole."""
    found = sorted((Path(config.run.dir) / f"stage{stage}" / "checkpoints").glob("step-*"))
    return [(path, read_json(path / "state.json", {})) for path in found]


def _refuse_other_run(config: Config, course: Course) -> None:
    """UserError where the run's checkpoints are of another order than the configured one, as far as they have come."""
    now = course.loader.identity()
    for path, state in _checkpoints(config, course.name):
        n_samples = state["samples_seen"]
        theirs, ours = (
            data | {"changes": [change for change in data.get("changes", []) if change["first_sample"] < n_samples]}
            for data in (state["data"], now)
        )
        different = [key for key in ours if theirs.get(key) != ours[key]]
        different += ["batch_rows"] if n_samples != state["step"] * course.loader.batch_rows else []
        got = f"{path} was trained on another order ({', '.join(different)} differ)"
        require(not different, got, "that of this configuration", "give the run's own configuration, or another run.dir")


def _show_checkpoints(config: Config, courses: list[Course], found: Found) -> None:
    """Which checkpoints have seen a document that is in `found`; a stage knows what the one that it started from knew."""
    first_steps = {course.name: course.step_of(seen) for course, seen in reversed(found)}
    knowing: set[str] = set()
    for course in courses:
        first = first_steps.get(course.name)
        inherited = config.init_from is None and course.made.stage.starts_from in knowing
        if inherited or first is not None:
            knowing.add(course.name)
        if first is None:
            print(f"stage {course.name}: not in its {course.made.n_steps:,} steps")
        for path, state in _checkpoints(config, course.name):
            if inherited or (first is not None and first < state["step"]):
                print(f"seen by {path}")
