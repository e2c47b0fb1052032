"""The training loop itself on the SDK's device for systems, from a checkpoint, traced and lowered, not run.

python -m tests.cerebras.traced DATA DTYPE KIND: in the working folder, from a checkpoint of that kind of files at step 7.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from backends.cerebras import CerebrasBackend
from backends.cerebras.engine import CerebrasEngine
from crystal import checkpoint, mdl
from crystal.config import AdamWConfig, ModelConfig
from crystal.data.loader import Entry, Loader
from crystal.data.shards import Prepared
from crystal.engine import TrainSpec
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive
from crystal.optim import param_groups
from crystal.schedule import Piece, Schedule
from crystal.train import Cadence, train

SMALL = ModelConfig(name="small", d_model=64, n_layers=2, n_heads=2, d_ffn=170, vocab_size=320, seq_len=32)


def write_checkpoint(spec: TrainSpec, kind: str) -> Path:
    """A folder with the initial weights and the moments of 7 updates."""
    model = Transformer(SMALL)
    weights = dict(model.named_parameters())
    moments = {"exp_avg": 0.5, "exp_avg_sq": 0.25}
    adamw = {
        name: {"step": torch.tensor(7.0)} | {key: torch.full_like(weight, value) for key, value in moments.items()}
        for name, weight in weights.items()
    }
    optimizer = {"step_count": 7, "adamw": adamw}
    if kind == "pt":
        torch.save(model.state_dict(), "weights.pt")
        torch.save(optimizer, "optimizer.pt")
    else:
        lazy = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: mdl.Lazy(t.shape, t.dtype, t.detach), (weights, optimizer))
        groups = param_groups(model.named_parameters(), spec.plan, spec.adamw)
        mdl.write(Path(checkpoint.MDL), mdl.laid_out(*lazy, groups, (0.9, 0.95)))
    return Path()


def main(folder: Path, dtype: str, kind: str) -> None:
    spec = TrainSpec(SMALL, derive(SMALL), AdamWConfig(), Schedule([Piece(0.0, 0.01, 2.5), Piece(0.01, 0.001, 50)]), 8, seed=1)
    loader = Loader(Prepared.open(folder, verify=False), [Entry("code", "code", 1.0)], seed=1, batch_rows=8)
    options = CerebrasBackend(dtype=dtype, artifact_dir="artifacts", folders=[str(folder)]).options()
    engine = CerebrasEngine(spec, options, mode="validate")
    engine.load(write_checkpoint(spec, kind), optimizer=True)
    assert engine.step_count == 7

    def never(*_: Any) -> Any:
        raise AssertionError("closures run on a cluster only")

    train(
        engine, loader, stage="1", n_steps=20, cadence=Cadence(1, 5, 5), metrics=SimpleNamespace(log=never, sync=never), validate=None,
        save=never, pending=[],
    )  # type: ignore[arg-type]  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
