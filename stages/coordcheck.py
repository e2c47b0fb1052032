"""task=coordcheck: the sizes of activations and of their changes, in models of many widths or depths, and what they say of muP.

The surprise: what stands beside the configured model is read from the other file of `conf/parametrization`, so that each number has one
place.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from crystal.config import Config, ModelConfig, UserError, require
from crystal.model.cost import train_flops_per_token
from crystal.mup.options import CoordCheckConfig, sized
from crystal.runlog import clock, write_text
from stages.out import refuse_unwritable
from stages.tasks import local_backend

if TYPE_CHECKING:
    from crystal.mup.coordcheck import Record
    from crystal.mup.slopes import Verdict


def coordcheck(config: Config) -> None:
    """Write records, picture and verdict of the configured model and of what stands beside it. UserError where the first does not pass."""
    options = coordcheck_options(config)
    models, out = compared_models(config.model, options), Path(config.out or f"{config.run.dir}/coordcheck-{options.over}")
    refuse_unwritable(out, "matplotlib", "PIL")
    name = config.backend["name"]
    require(
        name != "cerebras", f"task=coordcheck with backend={name}", "a backend whose weights can be looked at", "give backend=cpu or cuda"
    )
    backend = local_backend(config)
    if config.dry_run:
        return print(f"{cost_of(models, options, backend.flops_per_s())} into {out}")
    from crystal.mup.coordcheck import Mode, Trial, fixed_batch, run_trial
    from crystal.mup.plan import derive

    batch, mode, records = fixed_batch(options, seed=config.run.seed), Mode(backend.name, lambda spec: backend.build(spec, before={})), []
    for name, variant in models.items():
        for model in variant:
            t0 = time.perf_counter()
            trial = Trial(name, model, derive(model))
            records += run_trial(trial, mode, batch, options, first_seed=config.run.seed, adamw=config.optim)
            took_s = time.perf_counter() - t0
            print(f"{name}: width {model.d_model}, {model.n_layers} layers, {options.seeds} seeds: {took_s:.1f} s", file=sys.stderr)
    command = ["python", "-m", "crystal", *HydraConfig.get().overrides.task]
    verdict = write_findings(records, options, out, provenance(mode.facts, command))[0]
    if verdict.outcome != "passes":
        raise UserError(f"{verdict}; expected {expected_and_remedy(verdict, config.model, options)}")


def expected_and_remedy(verdict: Verdict, model: ModelConfig, options: CoordCheckConfig) -> str:
    """The end of the line on a verdict that is no pass, for the weightiest of its reasons."""
    keeps_sizes = model.parametrization == "mup" if options.over == "width" else model.depth == "completep"
    theory, switch = {"width": ("muP", "parametrization=mup"), "depth": ("CompleteP", "model.depth=completep")}[options.over]
    mend = f"mend the multipliers, or lower coordcheck.lr.{options.over}" if keeps_sizes else f"give {switch}"
    return {
        "engine": "the plain model's; mend the backend's forward pass, or give backend=cpu backend.dtype=float32",
        "exponent": f"{theory}'s exponents; {mend}",
        "rate": f"changes that can be measured; raise coordcheck.lr.{options.over}",
        "spread": f"slopes that are clear; let coordcheck.{options.over}s reach further",
    }[next(iter(verdict.reasons))]


def provenance(facts: Mapping[str, Any], command: Sequence[str]) -> str:
    """What made the findings, on what. No date, so that the same findings make the same page."""
    import torch

    from stages.record import git_commit

    where = f"{facts['dtype']} on {facts['device']}, processes: {facts['ranks']}, threads of each: {facts['threads']}"
    return f"Made by `{shlex.join(command)}` at commit {git_commit() or 'unknown'} with torch {torch.__version__}, {where}."


def write_findings(records: Sequence[Record], options: CoordCheckConfig, out: Path, provenance: str) -> list[Verdict]:
    """Write the records and what is made of them, and print the verdicts, which are returned."""
    from crystal.mup.coordcheck import to_csv
    from crystal.mup.coordcheck_plots import draw
    from crystal.mup.slopes import judge, markdown

    write_text(out / "records.csv", to_csv(records))
    verdicts = judge(records, options.over)
    page = markdown(verdicts, options.over, options.rate, provenance)
    write_text(out / "verdict.md", page)
    (out / "sizes.png").write_bytes(draw(records, verdicts, options.over))
    print(f"{page}\nrecords, verdict and picture: {out}")
    return verdicts


def coordcheck_options(config: Config) -> CoordCheckConfig:
    """The typed options; OmegaConf's error names a key of a wrong type."""
    typed = OmegaConf.merge({"coordcheck": OmegaConf.structured(CoordCheckConfig)}, {"coordcheck": config.coordcheck})
    options = OmegaConf.to_object(typed.coordcheck)
    assert isinstance(options, CoordCheckConfig)
    require(config.run.seed >= 0, f"run.seed={config.run.seed}", "a whole number of at least 0", "mend run.seed")
    return options


def compared_models(model: ModelConfig, options: CoordCheckConfig) -> dict[str, list[ModelConfig]]:
    """By name the configured model, which is judged, and what stands beside it, both at every size."""
    return {name: [sized(variant, options, *size) for size in options.sizes] for name, variant in _variants(model, options).items()}


def _variants(model: ModelConfig, options: CoordCheckConfig) -> dict[str, ModelConfig]:
    if options.over == "depth":
        other = {"none": "completep", "completep": "none"}[model.depth]
        return {model.depth: model, other: replace(model, depth=other)}
    other = {"mup": "sp", "sp": "mup"}[model.parametrization]
    numbers = OmegaConf.create((files("conf") / "parametrization" / f"{other}.yaml").read_text(encoding="utf-8"))
    return {model.parametrization: model, other: replace(model, **{str(key): value for key, value in numbers.items()})}


def cost_of(models: Mapping[str, Sequence[ModelConfig]], options: CoordCheckConfig, flops_per_s: float) -> str:
    """What the check would train, and for how long."""
    every = [model for variant in models.values() for model in variant]
    tokens = options.batch_rows * options.seq_len * max(options.steps)
    took_s = options.seeds * tokens * sum(map(train_flops_per_token, every)) / flops_per_s
    return f"would train {options.seeds * len(every)} models ({', '.join(models)}) up to step {max(options.steps)}, about {clock(took_s)},"
