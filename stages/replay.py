"""`task=replay`: every step of the configured stages without training, one row a step in CSV.

The surprise: nothing is computed here. Steps and rates are the recipe's, multiples those of the optimizer's groups, shares those of the
mixture that would be drawn from, so what is written is what would be trained.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crystal.config import AdamWConfig, Config, ModelConfig, require
from crystal.data.mixture import Mixture, Stream
from crystal.mup.plan import derive, meta_model
from crystal.optim import param_groups, set_lr
from crystal.runlog import write_text
from stages.out import new_out
from stages.params_yaml.read import read
from stages.recipes import Recipe, recipe


@dataclass(frozen=True)
class Course:
    """What is walked: the stages at their scale and one optimizer group for each learning rate, by the kinds of its parameters."""

    model: ModelConfig
    recipes: list[Recipe]
    groups: dict[str, dict]


def replay(config: Config) -> None:
    """Write the steps of the configured stages, or of the params.yaml files of source=, to config.out, and print a summary."""
    out = new_out(config, "file")
    course = _configured(config) if config.source is None else _from_files(config, Path(config.source))
    _show(course)
    n_rows = sum(made.n_steps for made in course.recipes)
    if config.dry_run:
        print(f"would write {n_rows:,} rows to {out}")
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows(course))
    write_text(out, text.getvalue())
    print(f"{n_rows:,} rows: {out}")


def lr_groups(model: ModelConfig, optim: AdamWConfig) -> dict[str, dict]:
    """One of the optimizer's groups for each (learning-rate multiple, weight decay), named by what is in it: "embedding+matrix"."""
    plan = derive(model)
    kinds: dict[tuple[float, float], set[str]] = {}
    found = {}
    for group in param_groups(meta_model(model).named_parameters(), plan, optim):
        key = group["lr_mult"], group["weight_decay"]
        kinds.setdefault(key, set()).update(plan[name].kind for name in group["names"])
        found[key] = group
    named = {"+".join(sorted(kinds[key])): group for key, group in found.items()}
    assert len(named) == len(found), kinds
    return named


def rows(course: Course) -> Iterator[list[str]]:
    """The header, then a row for every step: floats in full, tokens counted from the first stage's beginning to after the step."""
    sources = list(dict.fromkeys(name for made in course.recipes for _, mixture in _phases(made) for name in mixture))
    lr_names, share_names = [f"lr.{name}" for name in course.groups], [f"share.{name}" for name in sources]
    yield ["stage", "step", "tokens", "lr", *lr_names, *share_names, "fim_rate", "spm_rate"]
    tokens, groups = 0, list(course.groups.values())
    for made in course.recipes:
        fim, phases = made.stage.fim, _phases(made)
        for step in range(made.n_steps):
            if phases and step == phases[0][0]:
                shares = phases.pop(0)[1]
                same = [repr(float(value)) for value in (*(shares.get(name, 0.0) for name in sources), fim.rate, fim.spm_rate)]
            lr = made.schedule.lr(step)
            set_lr(groups, lr)
            tokens += made.tokens // made.n_steps
            yield [made.stage.name, str(step), str(tokens), repr(lr), *(repr(group["lr"]) for group in groups), *same]


def _phases(made: Recipe) -> list[tuple[int, dict[str, float]]]:
    """From which step on which shares hold."""
    mixtures = [(0, made.stage.mixture), *((change.from_step, change.mixture) for change in made.stage.changes)]
    return [(step, {name: entry.weight for name, entry in mixture.items()}) for step, mixture in mixtures]


def _configured(config: Config) -> Course:
    recipes = [recipe(stage, config.scale) for stage in config.stages.values()]
    return Course(config.model, recipes, lr_groups(config.model, config.optim))


def _from_files(config: Config, source: Path) -> Course:
    """The stages of params.yaml files: one file, or all *.yaml of a folder in the order of their names."""
    files = sorted(source.glob("*.yaml")) if source.is_dir() else [source]
    require(len(files) > 0, f"source={source} has no *.yaml", "ModelZoo's params.yaml files", "give their folder, or one file")
    read_files = {file: read(file, config) for file in files}
    first, *others = (params for params, _ in read_files.values())
    for file, (params, unknown) in read_files.items():
        same = (params.model, params.optim) == (first.model, first.optim)
        require(same, f"{file} has another model or optimizer", f"those of {files[0]}", "replay it by itself")
        print(f"{file}: stage {params.stage.name}; {len(unknown)} keys not understood (task=import lists them)")
    names = [params.stage.name for params in (first, *others)]
    require(len(set(names)) == len(names), f"{source} holds stages {', '.join(names)}", "each stage once", "take the other file away")
    recipes = [recipe(params.stage, params.scale) for params in (first, *others)]
    return Course(first.model, recipes, lr_groups(first.model, first.optim))


def _show(course: Course) -> None:
    multiples = ", ".join(f"x {group['lr_mult']:.6g} {name}" for name, group in course.groups.items())
    print(f"model {course.model.name}: learning rate {multiples}")
    for made in course.recipes:
        rates = [made.schedule.lr(step) for step in range(made.n_steps)]
        weights = {entry.name: entry.weight for entry in made.entries}
        n_samples = made.tokens // course.model.seq_len
        # A source is drawn equally often however many rows it has.
        drawn = Mixture([Stream(name, 1, weight) for name, weight in weights.items()], seed=0).samples(n_samples)
        off = max(abs(drawn[name] / n_samples - weight) for name, weight in weights.items())
        print(f"stage {made.stage.name}: {made.n_steps:,} steps, {made.tokens:,} tokens, FIM {made.stage.fim.rate:g}")
        print(f"  learning rate {rates[0]:.6g} first, {max(rates):.6g} at step {rates.index(max(rates)):,}, {rates[-1]:.6g} last")
        print(f"  shares of {len(weights)} sources sum to {sum(weights.values()):.12g}; drawn to within {off:.1g} of them")
    steps, tokens = (sum(counts) for counts in zip(*((made.n_steps, made.tokens) for made in course.recipes), strict=True))
    print(f"total: {steps:,} steps, {tokens:,} tokens")
