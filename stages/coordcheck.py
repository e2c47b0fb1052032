"""task=coordcheck: the sizes of activations and of their changes, in models of many widths or depths, and what they say of muP.

The surprise: what stands beside the configured model is read from the other file of `conf/parametrization`, so that each number has one
place.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from crystal.config import Config, ModelConfig, UserError
from crystal.model.cost import train_flops_per_token
from crystal.mup.options import CoordCheckConfig
from crystal.runlog import clock, write_text
from stages.tasks import chosen_backend

if TYPE_CHECKING:
    from crystal.mup.coordcheck import Record
    from crystal.mup.slopes import Verdict


def coordcheck(config: Config) -> None:
    """Write records, picture and verdict of the configured model and of what stands beside it. UserError where the configured one fails."""
    from crystal.mup.coordcheck import Mode, Trial, fixed_batch, run_trial, sized
    from crystal.mup.plan import derive

    options, backend = coordcheck_options(config), chosen_backend(config)
    models = {name: [sized(model, options, *size) for size in options.sizes] for name, model in compared(config.model, options).items()}
    out = Path(config.out or f"{config.run.dir}/coordcheck-{options.over}")
    if config.dry_run:
        return print(f"{cost_of(models, options, backend.flops_per_s())} into {out}")
    batch, mode, records = fixed_batch(options, seed=config.run.seed), Mode(backend.name, lambda spec: backend.build(spec, before={})), []
    for name, variant in models.items():
        for model in variant:
            t0 = time.perf_counter()
            trial = Trial(name, model, derive(model))
            records += run_trial(trial, mode, batch, options, first_seed=config.run.seed, adamw=config.optim)
            took_s = time.perf_counter() - t0
            print(f"{name}: width {model.d_model}, {model.n_layers} layers, {options.seeds} seeds: {took_s:.1f} s", file=sys.stderr)
    verdict = write_findings(records, options, out)[0]
    if verdict.wrong:
        raise UserError(f"{verdict}; expected the exponents of {out}/verdict.md; mend the multipliers, or lower coordcheck.lr")


def write_findings(records: Sequence[Record], options: CoordCheckConfig, out: Path) -> list[Verdict]:
    """Write the records, then what is made of them, and print the verdicts, which are returned."""
    from crystal.mup.coordcheck import to_csv
    from crystal.mup.coordcheck_plots import draw
    from crystal.mup.slopes import judge, markdown

    write_text(out / "records.csv", to_csv(records))
    verdicts = judge(records, options.over)
    page = markdown(verdicts, options.over, options.lr)
    write_text(out / "verdict.md", page)
    (out / "sizes.png").write_bytes(draw(records, verdicts, options.over))
    print(f"{page}\nrecords, verdict and picture: {out}")
    return verdicts


def coordcheck_options(config: Config) -> CoordCheckConfig:
    """The typed options; OmegaConf's error names a key of a wrong type."""
    typed = OmegaConf.merge({"coordcheck": OmegaConf.structured(CoordCheckConfig)}, {"coordcheck": config.coordcheck})
    options = OmegaConf.to_object(typed.coordcheck)
    assert isinstance(options, CoordCheckConfig)
    return options


def compared(model: ModelConfig, options: CoordCheckConfig) -> dict[str, ModelConfig]:
    """By name the configured model, which is judged, and what stands beside it."""
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
