"""What the report says: sentences and tables made from a `Run`, the same for the page and for the Markdown.

The surprise: nothing here is invented to fill a gap. What a run has not written is None, or a sentence that says so.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crystal.report.axes import si
from crystal.report.read import BASELINES, HELD_OUT, HELDOUT, Baselines, Run, Source, Stage, headline_first
from crystal.report.scorefile import benchmark_name

REPEATED = 4.0  # epochs; beyond about four, repeated data is worth less than new (Muennighoff et al. 2023)
BENCHMARKS = ("humaneval", "mbpp")  # what every stage's end is expected to score


@dataclass(frozen=True)
class Tile:
    """A headline number; `note` says after what, or why there is none."""

    label: str
    value: str | None
    note: str


@dataclass(frozen=True)
class Cell:
    """A source at one point: bits per byte, and the change since the last point that measured it."""

    value: float
    change: float | None


def listed(items: Sequence[str]) -> str:
    """'1', '1 and 2', '1, 2 and 3'."""
    return " and ".join([*([", ".join(items[:-1])] if items[:-1] else []), *items[-1:]])


def named(names: Sequence[str]) -> str:
    """'stage 1'; 'stages 1, 2 and 3'; others as they are."""
    numbers = [name.removeprefix("stage ") for name in names]
    if len(names) > 1 and all(number != name and number.isdecimal() for number, name in zip(numbers, names, strict=True)):
        return f"stages {listed(numbers)}"
    return listed(names)


def stages_named(stages: Iterable[Stage]) -> str:
    return named([f"stage {stage.name}" for stage in stages])


def shown(value: Any) -> str:
    """A recorded value on one line: lists as JSON, tables as 'key value, ...'."""
    if value is None:
        return "not recorded"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list | bool):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def progress(run: Run) -> str:
    """Which stages are complete and which are not."""
    done = [stage for stage in run.stages if stage.summary]
    left = [stage for stage in run.stages if not stage.summary]
    said = [f"{stages_named(done)} complete"] if done else []
    said += [f"{stages_named(left)} not complete (running, or stopped)"] if left else []
    return ", ".join(said) or "no stage begun"


def summary(run: Run) -> str:
    """The run in one sentence."""
    model = run.facts.get("model")
    model = model if isinstance(model, Mapping) else {}
    shape = [f"{model[key]} {word}" for key, word in (("n_layers", "layers"), ("d_model", "wide")) if key in model]
    named = f"the {model['name']} model" if "name" in model else "a model"
    size = [f"{si(run.n_parameters)} parameters"] if run.n_parameters else []
    about = ", ".join([*size, *shape])
    device = run.facts.get("device")
    where = f" on {shown(device)}" if device else ""
    sentence = f"{named}{f' ({about})' if about else ''} trained on {si(run.tokens)} tokens{where}: {progress(run)}."
    return sentence[0].upper() + sentence[1:]


def tiles(run: Run) -> list[Tile]:
    """The four headline numbers."""
    facts = run.facts
    size = Tile("parameters", si(run.n_parameters) if run.n_parameters else None, exact(run.n_parameters))
    rows, length = facts.get("batch_rows"), facts.get("seq_len")
    known = isinstance(rows, int) and isinstance(length, int)
    batch = f"batches of {rows:,} \u00d7 {length:,} tokens" if known else "batch not recorded"
    tokens = Tile("tokens trained", si(run.tokens) if run.tokens else None, batch)
    return [size, tokens, _held_out_tile(run), _score_tile(run)]


def exact(count: int | None) -> str:
    return "not recorded" if count is None else f"{count:,} exactly"


def _held_out_tile(run: Run) -> Tile:
    label = "held-out Python"
    for stage in reversed(run.stages):
        for point in reversed(stage.valid):
            if HELD_OUT in point.bits_per_byte:
                when = "at the end of" if point is stage.valid[-1] and stage.summary else "so far in"
                note = f"bits per byte {when} stage {stage.name}; lower is better"
                return Tile(label, f"{point.bits_per_byte[HELD_OUT]:.3f}", note)
    return Tile(label, None, "not evaluated yet")


def _score_tile(run: Run) -> Tile:
    label = "HumanEval pass@1"
    for stage in reversed(run.stages):
        score = stage.scores.get("humaneval")
        if score and score.rate is not None and score.ci95:
            low, high = (100 * end for end in score.ci95)
            of = "" if score.whole else f"of the first {score.problems_total} problems, "
            note = f"{of}after stage {stage.name}; 95 % interval {low:.1f} to {high:.1f} %"
            return Tile(label, f"{100 * score.rate:.1f} %", note)
    return Tile(label, None, "not scored yet")


def percent(share: float) -> str:
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def stage_sentence(stage: Stage) -> str:
    """What a stage did: steps, tokens, loss, where its weights came from, and its fill-in-the-middle."""
    finite = [point for point in stage.train if math.isfinite(point.loss)]
    losses = ""
    if finite:
        tail = finite[-max(1, len(finite) // 25) :]
        mean = sum(point.loss for point in tail) / len(tail)
        losses = f"Training loss {finite[0].loss:.3f} at the first logged step, {mean:.3f} as the mean of the last 4 %. "
    done = stage.summary
    if done is None:
        steps = f"at step {stage.train[-1].step:,}" if stage.train else "no step logged"
        return f"Not complete: {steps}, {stage.tokens:,} tokens so far. {losses}Its mixture is written at its end."
    weights = f"Weights from {done.init_from}" if done.init_from else "Weights freshly drawn"
    optimizer = {"fresh": ", optimizer fresh", "carry": ", optimizer state carried over"}.get(done.optimizer or "", "")
    fim = "No fill-in-the-middle."
    if done.fim_rate:
        spm = f", suffix first in {percent(done.fim_spm)} of them" if done.fim_spm is not None else ""
        fim = f"Fill-in-the-middle in {percent(done.fim_rate)} of the documents of the sources marked FIM{spm}."
    return f"{done.steps:,} steps, {done.tokens:,} tokens. {losses}{weights}{optimizer}. {fim}"


def parts(source: Source) -> str:
    """What of a source was used, to stand behind its name: '/even', or ' (3 parts)'."""
    first = source.parts[0] if source.parts else source.name
    if len(source.parts) > 1:
        return f" ({len(source.parts)} parts)"
    return first.removeprefix(source.name) if first.startswith(source.name) else f" ({first})"


def over_repeated(stage: Stage) -> list[str]:
    """Names of the sources that the stage went over more than `REPEATED` times."""
    return [source.name for source in stage.summary.mixture if source.epochs > REPEATED] if stage.summary else []


def validation_rows(run: Run) -> dict[str, dict[str, Cell]]:
    """source -> stage -> cell, from the last evaluation of each stage."""
    return changes((stage.name, stage.valid[-1].bits_per_byte) for stage in run.stages if stage.valid)


def changes(measured: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, Cell]]:
    """source -> name -> cell, from (name, source -> bits per byte) in their order; the headline source comes first."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, values in measured:
        for source, value in values.items():
            row = rows.setdefault(source, {})
            before = next(reversed(row.values()), None)
            row[name] = Cell(value, value - before.value if before else None)
    return dict(sorted(rows.items(), key=lambda item: headline_first(item[0])))


def verdict(model: float, baseline: float) -> str:
    """Plainly; a loss that is not a number beats nothing."""
    return "beats" if model < baseline else "does not beat"


def baseline_sentence(stage: Stage, baselines: Baselines) -> str:
    against_one, against_two = (verdict(baselines.model, other) for other in (baselines.unigram, baselines.bigram))
    return (
        f"After stage {stage.name}, on held-out {baselines.source}, the model ({baselines.model:.3f} nats per token) "
        f"{against_one} the unigram baseline ({baselines.unigram:.3f}) and "
        f"{against_two} the bigram baseline ({baselines.bigram:.3f})."
    )


def remarks(run: Run) -> list[str]:
    """What a reader must know before the numbers."""
    said = []
    for stage in run.stages:
        bad = next((point for point in stage.train if not math.isfinite(point.loss)), None)
        if bad:
            said.append(f"Stage {stage.name} diverged: the training loss is not finite at step {bad.step}.")
    if run.torn:
        said.append("The last line of metrics.jsonl was cut off (the run was killed while writing it) and is left out.")
    return said


def provenance(run: Run) -> list[tuple[str, str, bool]]:
    """(what it shows, file in the run, whether the file is there)."""
    rows = [
        ("Model, parameters, device, versions, command, date", "run.json"),
        ("Every setting of the last command, resolved", "config.yaml"),
        ("Data label, documents and tokens prepared", "data.json"),
        ("Loss, learning rate and throughput curves; tokens so far; validation at every evaluation", "metrics.jsonl"),
    ]
    for stage in run.stages:
        name, folder = stage.name, f"stage{stage.name}"
        rows.append((f"Stage {name}: settings", f"{folder}/numbers.json"))
        rows.append((f"Stage {name}: mixture, steps, tokens, fill-in-the-middle", f"{folder}/summary.json"))
        for benchmark in dict.fromkeys((*BENCHMARKS, *stage.scores)):
            what = f"{benchmark_name(benchmark)} after stage {name}: scores and completions"
            rows.append((what, f"{folder}/scores/{benchmark}.json"))
        rows.append((f"Stage {name}: bits per byte of HumanEval's solutions", f"{folder}/scores/{HELDOUT}"))
        rows.append((f"Stage {name}: unigram and bigram baselines", f"{folder}/scores/{BASELINES}"))
    return [(what, file, (run.directory / file).is_file()) for what, file in rows]


def run_facts(run: Run) -> list[tuple[str, str]]:
    """What is needed to do it again."""
    keys = ["command", "created", "crystal", "git", "versions", "device", "backend", "dtype", "threads", "ranks"]
    keys += ["scale", "model", "seq_len", "batch_rows"]
    facts = dict(run.facts)
    if isinstance(facts.get("command"), list):
        facts["command"] = shlex.join(map(str, facts["command"]))
    return [(key.replace("_", " "), shown(facts.get(key))) for key in keys]


def created(run: Run) -> str:
    """The day and time the run was begun, as it recorded them; as they stand where they are not ISO 8601."""
    stamp = run.facts.get("created")
    try:
        when = datetime.fromisoformat(str(stamp))
    except ValueError:
        return "date not recorded" if stamp is None else shown(stamp)
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".rstrip()
