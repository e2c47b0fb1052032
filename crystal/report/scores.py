"""Scores as the report tells them: one table with intervals and what was published beside it, comparisons, gaps, protocols.

The surprise: a stage's end and a checkpoint are told by the same code; both are a `Subject`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from crystal.report import compare
from crystal.report.facts import named, shown
from crystal.report.published import Published, PublishedTable, average_remarks, code_average
from crystal.report.read import HELD_OUT
from crystal.report.scorefile import Heldout, Score, benchmark_name

CODE = "starcoder/"  # sources of code begin with it
LISTED = 12  # task ids on the page; all are in scores.json
UNTOLD = ("key",)  # of a protocol: a checksum that says whether to score again

CAPTION = "Dot: pass@1. Bar: its 95 % interval (Wilson's). A comparison of two is sharper than their intervals: it is paired."
BITS = "Bits per byte, of held-out Python, all held-out code and HumanEval's own solutions, move long before pass@1 does."
METHODS = (
    "p: exact McNemar test over the problems that changed. Intervals of differences: bootstrap over problems, paired. "
    "Each comparison is judged alone, at the 5 % level: of twenty pairs that do not differ, about one would seem to."
)


@dataclass(frozen=True)
class Subject:
    """What was scored: the end of a stage, or a checkpoint.

    `bits` are bits per byte of held-out text by source at that point, where training measured them; `heldout` what was measured with
    the scores. `tone` is its colour; `unscored` says why, or what to do, where it has no scores of the benchmark NAME.
    """

    name: str
    tone: str
    scores: Mapping[str, Score]
    bits: Mapping[str, float]
    heldout: Heldout | None
    unscored: str

    @property
    def python_bits(self) -> float | None:
        return self.bits.get(HELD_OUT, self.heldout.python if self.heldout else None)

    @property
    def solution_bits(self) -> float | None:
        return self.heldout.solutions if self.heldout else None

    def scored(self, benchmark: str) -> Score | None:
        score = self.scores.get(benchmark)
        return score if score and score.rate is not None else None


class Entry(NamedTuple):
    """One place in a table."""

    value: str
    notes: tuple[str, ...] = ()


class Row(NamedTuple):
    name: str
    cells: list[Entry]
    notes: tuple[str, ...] = ()


class Column(NamedTuple):
    """One column of the table of scores: what stands in it for a subject, and for a published model."""

    name: str
    own: Callable[[Subject], Entry]
    published: Callable[[Published], Entry]
    note: str = ""


class Pair(NamedTuple):
    """Neighbouring scores of a benchmark: their comparison, or why there is none."""

    benchmark: str
    before: str
    after: str
    found: compare.Comparison | str


@dataclass(frozen=True)
class Section:
    """Everything a page says about scores."""

    columns: list[str]
    rows: list[Row]
    published: list[Row]
    notes: list[str]
    comparisons: list[Row]
    language_columns: list[str]
    language: list[Row]
    gaps: list[str]
    protocols: list[str]


def section(subjects: Sequence[Subject], table: PublishedTable, expected: Sequence[str] = ()) -> Section:
    """What there is to say about `subjects`, in their order; `expected` benchmarks have a place even where nobody was scored."""
    columns = _columns(subjects, list(dict.fromkeys((*expected, *_benchmarks(subjects, code=True)))))
    heading = [Row(table.name, [Entry("")] * len(columns))] if table.rows else []
    language = _benchmarks(subjects, code=False)
    return Section(
        columns=[column.name for column in columns],
        rows=[Row(subject.name, [column.own(subject) for column in columns]) for subject in subjects],
        published=heading + [Row(model.name, [column.published(model) for column in columns]) for model in table.rows],
        notes=[*(column.note for column in columns if column.note), table.source, *average_remarks(table)],
        comparisons=[_comparison(pair) for pair in neighbours(subjects)],
        language_columns=[subject.name for subject in subjects],
        language=[Row(_task(subjects, name), [_score(name, subject) for subject in subjects]) for name in language],
        gaps=gaps(subjects, expected),
        protocols=protocols(subjects),
    )


def _benchmarks(subjects: Iterable[Subject], *, code: bool) -> list[str]:
    """Names of what somebody was scored on."""
    scores = [score for subject in subjects for score in subject.scores.values()]
    return sorted({score.benchmark for score in scores if score.rate is not None and score.is_code == code})


def _columns(subjects: Sequence[Subject], benchmarks: Sequence[str]) -> list[Column]:
    columns = [Column(benchmark_name(name), partial(_score, name), partial(_published, name)) for name in benchmarks]
    if {"humaneval", "mbpp"} <= set(benchmarks):
        columns.append(Column("code average", _average, lambda model: _percent(code_average(model.humaneval, model.mbpp))))
    if any(subject.python_bits or subject.solution_bits for subject in subjects):
        columns.append(Column("Python, bits per byte", _bits, lambda model: Entry("–"), BITS))
    return columns


def _score(benchmark: str, subject: Subject) -> Entry:
    score = subject.scored(benchmark)
    if score is None or score.rate is None:
        return Entry("–", ("not scored",))
    interval = [f"95 %: {100 * score.ci95[0]:.2f} to {100 * score.ci95[1]:.2f}"] if score.ci95 else []
    more = [f"pass@{k}: {100 * rate:.2f}" for k, rate in score.pass_at_k.items() if k != "1"]
    value = f"{100 * score.rate:.2f}" if 0 <= score.rate <= 1 else f"{score.rate:.4g}"
    return Entry(value, (*interval, *_counted(score), *more))


def _counted(score: Score) -> list[str]:
    if score.passed is None or score.problems_total is None:
        return []
    if score.samples_per_problem == 1:
        return [f"{score.passed} of {'' if score.whole else 'the first '}{score.problems_total} problems"]
    first = "" if score.whole else " of the first problems"
    return [f"{score.passed} of {score.samples_per_problem} \N{MULTIPLICATION SIGN} {score.problems_total} completions{first}"]


def _published(benchmark: str, model: Published) -> Entry:
    return _percent({"humaneval": model.humaneval, "mbpp": model.mbpp}.get(benchmark))


def _percent(value: float | None) -> Entry:
    return Entry("–" if value is None else f"{value + 1e-9:.2f}")  # up, where the mean of two decimals is half way


def _average(subject: Subject) -> Entry:
    humaneval, mbpp = (score.rate if score and score.whole else None for score in map(subject.scored, ("humaneval", "mbpp")))
    mean = code_average(humaneval, mbpp)
    return _percent(None if mean is None else 100 * mean)


def _bits(subject: Subject) -> Entry:
    code = [value for source, value in subject.bits.items() if source.startswith(CODE)]
    mean = [f"mean of {len(code)} code sources: {sum(code) / len(code):.3f}"] if len(code) > 1 else []
    solutions = [] if subject.solution_bits is None else [f"HumanEval solutions: {subject.solution_bits:.3f}"]
    python = "–" if subject.python_bits is None else f"{subject.python_bits:.3f}"
    return Entry(python, tuple(mean + solutions) or (("not measured",) if python == "–" else ()))


def _task(subjects: Sequence[Subject], benchmark: str) -> str:
    """A language benchmark with what it is measured in."""
    score = next(score for subject in subjects if (score := subject.scored(benchmark)))
    shots = "" if score.shots is None else f", {score.shots} shots"
    return f"{benchmark_name(benchmark)} ({score.metric}{shots})"


def neighbours(subjects: Sequence[Subject]) -> list[Pair]:
    """Each code score with the one before it, benchmark by benchmark."""
    pairs = []
    for benchmark in _benchmarks(subjects, code=True):
        scored = [(subject.name, score) for subject in subjects if (score := subject.scored(benchmark))]
        for (before, first), (after, second) in pairwise(scored):
            pairs.append(Pair(benchmark, before, after, compare.unlike(first, second) or compare.compare(first, second)))
    return pairs


def _comparison(pair: Pair) -> Row:
    """Change, problems gained, problems lost, verdict."""
    about, found = f"{benchmark_name(pair.benchmark)}, {pair.before} to {pair.after}", pair.found
    if isinstance(found, str):
        return Row(about, [*[Entry("–")] * 3, Entry("not compared", (found,))])
    counts = [Entry(str(len(tasks))) for tasks in (found.gained, found.lost)]
    tasks = tuple(f"{word} {_capped(tasks)}" for word, tasks in (("gained", found.gained), ("lost", found.lost)) if tasks)
    return Row(about, [Entry(compare.points(found.difference)), *counts, Entry(compare.verdict(found), (compare.evidence(found),))], tasks)


def _capped(tasks: Sequence[str]) -> str:
    more = [f"and {len(tasks) - LISTED} more"] if len(tasks) > LISTED else []
    return ", ".join([*tasks[:LISTED], *more])


def gaps(subjects: Sequence[Subject], expected: Sequence[str] = ()) -> list[str]:
    """One sentence for each thing that was not scored, with its reason."""
    found: dict[tuple[str, str], list[str]] = {}
    names = sorted({*expected, *(name for subject in subjects for name in subject.scores)})
    for subject in subjects:
        for name in names:
            score = subject.scores.get(name)
            if score is None:
                found.setdefault((name, subject.unscored.replace("NAME", name)), []).append(subject.name)
            elif score.rate is None:
                reason = (score.reason or f"its status is {score.status}").rstrip(".")
                found.setdefault((name, reason), []).append(subject.name)
    return [
        f"{benchmark_name(name)} was not scored after {named(after)}: {reason}."
        for (name, reason), after in sorted(found.items(), key=lambda gap: gap[0][0])
    ]


def protocols(subjects: Sequence[Subject]) -> list[str]:
    """How each benchmark was run; who by, where not all did it alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for benchmark in [*_benchmarks(subjects, code=True), *_benchmarks(subjects, code=False)]:
        for subject in subjects:
            if score := subject.scored(benchmark):
                alike.setdefault((benchmark, _protocol(score)), []).append(subject.name)
    variants = Counter(name for name, _ in alike)
    return [
        f"{benchmark_name(name)} protocol{f' ({named(who)})' if variants[name] > 1 else ''}: {said}."
        for (name, said), who in alike.items()
    ]  # fmt: skip


def _protocol(score: Score) -> str:
    kept = {key: value for key, value in score.protocol.items() if key not in UNTOLD}
    kept |= {} if score.seed is None else {"seed": score.seed}
    whose = ", ".join(str(kept.pop(key)) for key in ("name", "source") if key in kept)
    said = [": ".join(filter(None, (whose, shown(kept)))) or "not recorded"]
    said += [f"Problems: {', '.join(filter(None, (score.source, score.version)))}"] if score.source or score.version else []
    said += [f"Sandbox: {score.sandbox.rstrip('.')}"] if score.sandbox else []
    said += [f"Versions: {shown(score.versions)}"] if score.versions else []
    return ". ".join(said)


def as_json(subjects: Sequence[Subject], table: PublishedTable) -> dict[str, Any]:
    """The same in full, for programs: rates are fractions, published ones percent."""
    return {
        "checkpoints": [
            {
                "name": subject.name,
                "bits_per_byte": dict(subject.bits),
                "heldout": vars(subject.heldout) if subject.heldout else None,
                "scores": {name: _facts(score) for name, score in subject.scores.items()},
            }
            for subject in subjects
        ],
        "comparisons": [
            {"benchmark": pair.benchmark, "before": pair.before, "after": pair.after}
            | ({"not_compared": pair.found} if isinstance(pair.found, str) else compare.as_json(pair.found))
            for pair in neighbours(subjects)
        ],
        "published": {"source": table.source, "rows": [row._asdict() for row in table.rows], "remarks": average_remarks(table)},
    }


def _facts(score: Score) -> dict[str, Any]:
    """A score without its completions, and without what it does not say."""
    return {key: value for key, value in vars(score).items() if key != "problems" and value not in (None, {})}
