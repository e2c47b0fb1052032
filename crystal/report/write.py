"""The report of a run: what it says, from the run's files, and `report/` written.

The surprise: nothing of a run is changed by its report, and the same run gives the same report, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crystal.report import facts, figures, samples, scores
from crystal.report.axes import si
from crystal.report.published import PublishedTable
from crystal.report.read import Run, Stage, read_run
from crystal.report.render import draw, new_environment, write_pages

FIGURES: dict[str, Callable[[Run, int], str | None]] = {"training": figures.training, "validation": figures.validation}


def write_report(run_dir: Path, *, published: PublishedTable) -> Path:
    """Write the report of the run in `run_dir` and return the path of its page.

    `published` are scores to read the run's against. Raises UserError where `run_dir` is not a run, where one of its files is
    damaged, or where jinja2 is missing.
    """
    environment = new_environment(
        {"parts": facts.parts, "stage_sentence": facts.stage_sentence, "mixture_notes": mixture_notes, "measured_at": measured_at}
    )
    run = read_run(run_dir)
    subjects = [stage_subject(stage) for stage in run.stages]
    plots = {name: draw(partial(plot, run)) for name, plot in FIGURES.items()} | {"scores": draw(partial(figures.scores, subjects))}
    told = _context(run) | {"scores": scores.section(subjects, published, expected=facts.BENCHMARKS)}
    return write_pages(run_dir / "report", environment, "report", told, plots, scores.as_json(subjects, published))


def stage_subject(stage: Stage) -> scores.Subject:
    """A stage's end as something that was scored."""
    bits = stage.valid[-1].bits_per_byte if stage.valid else {}
    missing = "no scores were written" if stage.summary else "the stage is not complete"
    return scores.Subject(f"stage {stage.name}", figures.tone(stage.name), stage.scores, bits, stage.heldout, missing)


def measured_at(stage: Stage) -> str:
    """Where on the run's token axis the last evaluation of a stage was made."""
    return f"{'at' if stage.summary else 'so far, at'} {si(stage.start + stage.valid[-1].tokens)} tokens"


def mixture_notes(stage: Stage) -> list[str]:
    """What the numbers of a mixture mean for the reader: repeated sources, weight that was handed on."""
    notes = []
    repeated = facts.over_repeated(stage)
    if repeated:
        notes.append(
            f"More than {facts.REPEATED:g} epochs: {facts.listed(repeated)}. A small sample is being repeated; "
            "what the model learns from it is increasingly that sample by heart."
        )
    gone = stage.summary.redistributed if stage.summary else ()
    if gone:
        has, its = ("has", "Its") if len(gone) == 1 else ("have", "Their")
        notes.append(f"{facts.listed(gone)} {has} no rows in this data. {its} weight went to the other sources.")
    return notes


def _context(run: Run) -> dict[str, Any]:
    return {
        "run": run,
        "summary": facts.summary(run),
        "created": facts.created(run),
        "label": run.label or "the run does not say what it was trained on (no label in data.json).",
        "prepared": _prepared(run),
        "tiles": facts.tiles(run),
        "remarks": facts.remarks(run),
        "repeated": facts.REPEATED,
        "measured": [stage for stage in run.stages if stage.valid],
        "validation_rows": facts.validation_rows(run),
        "counted": [stage for stage in run.stages if stage.baselines],
        "baseline_sentence": facts.baseline_sentence,
        "samples": samples.sample_problems(run),
        "samples_note": samples.samples_note(run),
        "run_facts": facts.run_facts(run),
        "provenance": facts.provenance(run),
        **_captions(),
    }


def _prepared(run: Run) -> str:
    sides = [(run.train_data, "for training"), (run.valid_data, "held out")]
    said = [
        f"{side.documents:,} documents ({side.tokens:,} tokens, {side.text_bytes:,} bytes of text) {purpose}"
        for side, purpose in sides
        if side
    ]
    return f"Prepared: {facts.listed(said)}." if said else "The run has no data.json: its data is not described."


def _captions() -> dict[str, Any]:
    share = facts.percent(figures.SMOOTHING)
    return {
        "training_caption": f"Light: every logged step. Strong: the mean over {share} of a stage's logged steps. "
        "The loss axis is logarithmic. Dotted lines: where a stage begins; it brings another mixture, so losses of "
        "different stages are not comparable.",
        "validation_caption": "Each dot is an evaluation, coloured by its stage; the number is the last. "
        "Bits per byte do not depend on the tokenizer; lower is better.",
        "change_note": "Small: the change since the last stage that measured it; minus is better.",
        "scores_caption": scores.CAPTION,
        "methods": scores.METHODS,
        "provenance_note": "Sums, means, differences and percentages are computed from these files. Published "
        "scores are given for reference and were not measured here.",
        "nothing": {
            "training": "No training step with a finite loss has been logged yet.",
            "validation": "No held-out text has been evaluated yet.",
            "baselines": "No unigram and bigram baselines were written for this run.",
            "samples": "No completions yet: no benchmark has been scored.",
        },
    }
