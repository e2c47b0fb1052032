"""Fills the templates: `report/index.html`, which needs nothing else, and `report/report.md` with its plots beside it.

The surprise: the page carries every plot twice, for wide and narrow screens, and a stylesheet picks; no script runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal.config import UserError
from crystal.report import facts, figures, scores
from crystal.report.axes import si, standalone
from crystal.report.read import Run, Stage, benchmark_name, read_run
from crystal.report.scores import Published
from crystal.runlog import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Published", "write_report"]

HERE = Path(__file__).parent
FIGURES: dict[str, Callable[[Run, int], str | None]] = {
    "training": figures.training,
    "validation": figures.validation,
    "scores": figures.scores,
}


@dataclass(frozen=True)
class Figure:
    """One plot, for the page's column and for a phone's."""

    wide: str
    narrow: str


def write_report(run_dir: Path, *, published: Sequence[Published]) -> Path:
    """Write the report of the run in `run_dir` and return the path of its page.

    `published` are rows to read the scores against, in percent. Raises UserError where `run_dir` is not a run, where
    one of its files is damaged, or where jinja2 is missing.
    """
    environment = _environment()
    run = read_run(run_dir)
    drawn = {name: _draw(draw, run) for name, draw in FIGURES.items()}
    told = _context(run, published)
    report = run_dir / "report"
    palette = (HERE / "palette.css").read_text(encoding="utf-8")
    for name, figure in drawn.items():
        if figure:
            write_text(report / f"{name}.svg", standalone(figure.wide, palette))
    write_text(report / "report.md", environment.get_template("report.md.j2").render(told, figures=drawn))
    from markupsafe import Markup  # a part of jinja2

    styles = {"palette": Markup(palette), "css": Markup((HERE / "page.css").read_text(encoding="utf-8"))}
    inline = {name: figure and Figure(Markup(figure.wide), Markup(figure.narrow)) for name, figure in drawn.items()}
    page = environment.get_template("report.html.j2").render(told, figures=inline, **styles)
    write_text(report / "index.html", page)
    return report / "index.html"


def _draw(draw: Callable[[Run, int], str | None], run: Run) -> Figure | None:
    wide, narrow = draw(run, figures.WIDE), draw(run, figures.NARROW)
    return Figure(wide, narrow) if wide and narrow else None


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError:
        raise UserError("jinja2 is not installed; the report needs it; pip install 'crystal-trainer[report]'") from None

    def breakable(name: str) -> Markup:
        """A long source name that may break where its parts meet."""
        return Markup("<wbr>").join(escape(piece) for piece in re.split(r"(?<=/)|(?<=[a-z]{4})(?=[A-Z])", name))

    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=lambda name: bool(name and ".html" in name)
    )
    environment.filters.update(
        breakable=breakable,
        shown=facts.shown,
        tone=figures.tone,
        parts=facts.parts,
        stage_sentence=facts.stage_sentence,
        mixture_notes=mixture_notes,
        measured_at=measured_at,
        thousands="{:,}".format,
        signed=lambda change: f"{change:+.3f}".replace("-", "\N{MINUS SIGN}"),
        excerpt=scores.excerpt,
        fenced=fenced,
        cell=lambda value: value.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " "),
    )
    return environment


def fenced(code: str) -> str:
    """A Markdown code block whose fence is longer than any in the code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}\n{code}\n{fence}"


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


def _context(run: Run, published: Sequence[Published]) -> dict[str, Any]:
    columns = scores.score_columns(run)
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
        "score_columns": [benchmark_name(name) for name in columns],
        "score_table": scores.score_table(run, published),
        "score_sentences": scores.overlap_remarks(run) + scores.score_gaps(run),
        "protocols": scores.protocols(run),
        "samples": scores.sample_problems(run),
        "samples_note": scores.samples_note(run),
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
        "scores_caption": "Dot: pass@1. Bar: its 95 % interval. Where intervals overlap, a difference is not shown.",
        "provenance_note": "Sums, means, differences and percentages are computed from these files. Published "
        "scores are given for reference and were not measured here.",
        "nothing": {
            "training": "No training step with a finite loss has been logged yet.",
            "validation": "No held-out text has been evaluated yet.",
            "baselines": "No unigram and bigram baselines were written for this run.",
            "samples": "No completions yet: no benchmark has been scored.",
        },
    }
