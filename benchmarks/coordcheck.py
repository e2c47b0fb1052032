"""The coordinate check put to the test: it must flag every multiplier that is broken on purpose and pass the right ones, in every mode.

    python -m benchmarks.coordcheck eager|compiled|fully_shard [key=value ...] out=DIR

The surprise: all but eager run in processes of their own, over gloo, so that they need no GPU; the engine is the cuda backend's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backends.cpu import CpuBackend
from backends.cuda.engine import ShardedEngine
from crystal.__main__ import complain  # and puts the schema where Hydra finds it
from crystal.cli import one_line
from crystal.config import Config, ModelConfig, UserError, require
from crystal.engine import TrainSpec
from crystal.mup.coordcheck import Mode, Record, Trial, fixed_batch, read_csv, run_trial, to_csv
from crystal.mup.plan import Plan, derive
from crystal.runlog import read_json, write_json, write_text
from stages.coordcheck import compared_models, coordcheck_options, provenance, write_findings
from stages.out import refuse_unwritable

RANKS = {"eager": 1, "compiled": 1, "fully_shard": 2}


class RootHeadDim(ModelConfig):
    """1/sqrt(d) for 1/d."""

    @property
    def attention_scale(self) -> float:
        return self.head_dim**-0.5


def broken(config: ModelConfig) -> dict[str, tuple[ModelConfig, Plan]]:
    """One multiplier wrong in each."""
    plan = derive(config)
    one_lr = {name: replace(own, lr_mult=1.0) for name, own in plan.items()}
    one_std = {name: replace(own, init_std=own.init_std * own.width_mult**0.5) for name, own in plan.items() if own.kind == "matrix"}
    return {
        "readout": (replace(config, output_alpha=config.output_alpha * config.width_mult), plan),
        "hidden lr": (config, one_lr),
        "hidden init": (config, plan | one_std),
        "1/d": (RootHeadDim(**asdict(config)), plan),
    }


def findings(config: Config, mode: Mode) -> list[Record]:
    """The records of every variant, right and broken, at every width."""
    options = coordcheck_options(config)
    batch, records = fixed_batch(options, seed=config.run.seed), []
    compared = compared_models(config.model, options)
    for i in range(len(options.sizes)):
        models = {name: variant[i] for name, variant in compared.items()}
        variants = {name: (model, derive(model)) for name, model in models.items()} | broken(models["mup"])
        for name, (model, plan) in variants.items():
            records += run_trial(Trial(name, model, plan), mode, batch, options, first_seed=config.run.seed, adamw=config.optim)
            if mode.rank == 0:
                print(f"{name}: width {model.d_model}", file=sys.stderr)
    return records


def run_mode(name: str, config: Config) -> tuple[list[Record], dict[str, Any]]:
    """The records of all trials in the mode of that name, and the engines' facts; sharded ones in a process for each rank."""
    if name == "eager":
        backend = CpuBackend(dtype="float32")
        mode = Mode(name, lambda spec: backend.build(spec, before={}))
        return findings(config, mode), mode.facts
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (name, config, Path(folder)), nprocs=RANKS[name])
        return read_csv(Path(folder) / "records.csv"), read_json(Path(folder) / "facts.json", {})


def _rank(rank: int, name: str, config: Config, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), RANKS[name])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS[name])

    def build(spec: TrainSpec) -> ShardedEngine:
        return ShardedEngine(spec, device=torch.device("cpu"), dtype=torch.float32, compiled=name == "compiled", micro_rows=None)

    mode = Mode(name, build, rank, RANKS[name])
    records = findings(config, mode)
    if rank == 0:
        write_text(folder / "records.csv", to_csv(records))
        write_json(folder / "facts.json", mode.facts)
    dist.destroy_process_group()


def checked(name: str, overrides: Sequence[str]) -> tuple[Config, Path]:
    """The configuration and where the findings go. Raises UserError, or Hydra's errors, before anything is trained."""
    require(name in RANKS, f"mode {name or 'missing'}", " or ".join(RANKS), "name one first")
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=["task=coordcheck", *overrides]))
    assert isinstance(config, Config)
    require(config.out is not None, "no out=", "a folder for the findings", "give out=DIR")
    out, options = Path(config.out or ""), coordcheck_options(config)
    require(options.over == "width", "coordcheck.over=depth", "width", "check depths with python -m crystal task=coordcheck")
    shared = options.batch_rows % RANKS[name] == 0
    require(shared, f"coordcheck.batch_rows={options.batch_rows}", f"a multiple of {RANKS[name]} processes", "mend coordcheck.batch_rows")
    compared_models(config.model, options)
    refuse_unwritable(out, "matplotlib", "PIL")
    return config, out


def main(name: str = "", *overrides: str) -> int | str:
    """What to leave with: 0 where mup passes and all else fails, 2 where the options are wrong, and else what was mistaken."""
    try:
        config, out = checked(name, overrides)
    except UserError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(one_line(error))
    records, facts = run_mode(name, config)
    command = ["python", "-m", "benchmarks.coordcheck", name, *overrides]
    verdicts = write_findings(records, coordcheck_options(config), out, provenance(facts, command))
    mistaken = [str(verdict) for verdict in verdicts if verdict.outcome != ("passes" if verdict.variant == "mup" else "fails")]
    return "\n".join(mistaken) or 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
