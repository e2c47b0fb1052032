"""The training loop itself on the SDK's device for systems, traced and lowered, not run: python -m tests.cerebras.traced DATA DTYPE."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from backends.cerebras import CerebrasBackend
from backends.cerebras.engine import CerebrasEngine
from crystal.config import AdamWConfig, ModelConfig
from crystal.data.loader import Entry, Loader
from crystal.data.shards import Prepared
from crystal.engine import TrainSpec
from crystal.mup.plan import derive
from crystal.schedule import Piece, Schedule
from crystal.train import Cadence, train

SMALL = ModelConfig(name="small", d_model=64, n_layers=2, n_heads=2, d_ffn=170, vocab_size=320, seq_len=32)


def main(folder: Path, dtype: str) -> None:
    spec = TrainSpec(SMALL, derive(SMALL), AdamWConfig(), Schedule([Piece(0.0, 0.01, 2.5), Piece(0.01, 0.001, 50)]), 8, seed=1)
    loader = Loader(Prepared.open(folder, verify=False), [Entry("code", "code", 1.0)], seed=1, batch_rows=8)
    options = CerebrasBackend(dtype=dtype, artifact_dir="artifacts", folders=[str(folder)]).options()
    engine = CerebrasEngine(spec, options, mode="validate")
    engine.step_count = 7  # as after a resume

    def never(*_: Any) -> Any:
        raise AssertionError("closures run on a cluster only")

    train(
        engine, loader, stage="1", n_steps=20, cadence=Cadence(1, 5, 5), metrics=SimpleNamespace(log=never, sync=never), validate=None,
        save=never, pending=[],
    )  # type: ignore[arg-type]  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
