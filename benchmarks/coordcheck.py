"""The coordinate check put to the test: it must flag every multiplier that is broken on purpose and pass the right ones, in every mode.

    python -m benchmarks.coordcheck eager|compiled|fully_shard [key=value ...] out=DIR

The surprise: the sharded modes run in processes of their own, over gloo, so that they need no GPU; the engine is the cuda backend's.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import crystal.__main__  # noqa: F401  puts the schema where Hydra finds it
from backends.cpu import CpuBackend
from backends.cuda.engine import ShardedEngine
from crystal.config import Config, ModelConfig
from crystal.engine import TrainSpec
from crystal.mup.coordcheck import Mode, Record, Trial, fixed_batch, read_csv, run_trial, sized, to_csv
from crystal.mup.plan import Plan, derive
from stages.coordcheck import compared, coordcheck_options, write_findings

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
    """The records of every variant, right and broken, at every size."""
    options = coordcheck_options(config)
    batch, records = fixed_batch(options, seed=config.run.seed), []
    for size in options.sizes:
        models = {name: sized(model, options, *size) for name, model in compared(config.model, options).items()}
        variants = {name: (model, derive(model)) for name, model in models.items()} | broken(models["mup"])
        for name, (model, plan) in variants.items():
            records += run_trial(Trial(name, model, plan), mode, batch, options, first_seed=config.run.seed, adamw=config.optim)
            if mode.rank == 0:
                print(f"{name}: width {model.d_model}", file=sys.stderr)
    return records


def run_mode(name: str, config: Config) -> list[Record]:
    """The records of all trials in the mode of that name; sharded ones in a process for each rank."""
    if name == "eager":
        backend = CpuBackend(dtype="float32")
        return findings(config, Mode(name, lambda spec: backend.build(spec, before={})))
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (name, config, Path(folder)), nprocs=RANKS[name])
        return read_csv(Path(folder) / "records.csv")


def _rank(rank: int, name: str, config: Config, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), RANKS[name])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS[name])

    def build(spec: TrainSpec) -> ShardedEngine:
        return ShardedEngine(spec, device=torch.device("cpu"), dtype=torch.float32, compiled=name == "compiled", micro_rows=None)

    records = findings(config, Mode(name, build, rank, RANKS[name]))
    if rank == 0:
        (folder / "records.csv").write_text(to_csv(records))
    dist.destroy_process_group()


def main(name: str, *overrides: str) -> None:
    """Leaves with status 0 where mup passes and nothing else does."""
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=["task=coordcheck", *overrides]))
    assert isinstance(config, Config) and config.out is not None, "out=DIR is missing"
    verdicts = write_findings(run_mode(name, config), coordcheck_options(config), Path(config.out))
    mistaken = [str(verdict) for verdict in verdicts if bool(verdict.wrong) != (verdict.variant != "mup")]
    sys.exit("\n".join(mistaken) or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
