"""Cerebras systems, so far without one: what the SDK can say of a train step without a cluster. It builds no Engine yet.

The surprise: nothing here imports the SDK. It pins torch 2.4.0 and lives in an environment of its own (`make .venv-cerebras/.complete`),
whose interpreter runs `backends.cerebras.lowering` as a process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystal.config import UserError, require, require_positive
from crystal.engine import TrainSpec

ROOT = Path(__file__).parents[2]  # where `crystal` and `backends` are found
MAKE_IT = "make .venv-cerebras/.complete makes it (Python 3.11, Linux, x86-64), or give backend.python=PATH"


@dataclass
class CerebrasBackend:
    """python: the SDK environment's interpreter. n_systems: CS systems that share a batch; null: 16 where they can, otherwise 1.

    dtype: of the compute, with dynamic loss scaling but for bfloat16. precision_level: the SDK's optimization_level, 0 (exact) to 2.
    """

    name: str = "cerebras"
    python: str = ".venv-cerebras/bin/python"
    n_systems: int | None = None
    dtype: str = "cbfloat16"
    precision_level: int = 1

    def __post_init__(self) -> None:
        known = ("cbfloat16", "bfloat16", "float16")
        require(self.dtype in known, f"backend.dtype={self.dtype}", ", ".join(known), "mend backend.dtype")
        require(self.precision_level in (0, 1, 2), f"backend.precision_level={self.precision_level}", "0, 1 or 2", "CrystalCoder had 1")
        if self.n_systems is not None:
            require_positive("backend", {"n_systems": self.n_systems})

    def systems(self, batch_rows: int) -> int:
        """How many systems share a batch of so many rows. Raises UserError where they cannot."""
        n = self.n_systems or (16 if batch_rows % 16 == 0 else 1)
        require(batch_rows % n == 0, f"backend.n_systems={n}", f"a divisor of scale.batch_rows={batch_rows}", "mend one of them")
        return n

    def environment(self) -> dict[str, str]:
        """The variables for a process of the SDK's environment, which looks for its own programs on the path."""
        programs = Path(self.python).absolute().parent
        return os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONPATH": str(ROOT)}

    def lower(self, spec: TrainSpec, artifacts: Path) -> dict[str, Any]:
        """What `backends.cerebras.lowering` finds of a train step, in a process of the SDK's environment that works in `artifacts`.

        `artifacts` is made anew. Raises UserError where there is no such environment; "wrong" of what is returned says what did not lower.
        """
        interpreter = Path(self.python).absolute()
        require(interpreter.exists(), f"no {self.python}", "the Python of an environment with cerebras-pytorch 2.10.0", MAKE_IT)
        shutil.rmtree(artifacts, ignore_errors=True)  # or an earlier module would be read
        artifacts.mkdir(parents=True)
        told = {
            "model": asdict(spec.model), "adamw": asdict(spec.adamw), "pieces": [asdict(piece) for piece in spec.schedule.pieces],
            "batch_rows": spec.batch_rows, "n_systems": self.systems(spec.batch_rows), "dtype": self.dtype,
            "precision_level": self.precision_level,
        }  # fmt: skip
        (artifacts / "step.json").write_text(json.dumps(told, indent=2))
        found = artifacts / "found.json"
        with open(artifacts / "log.txt", "w") as log:
            subprocess.run(
                [interpreter, "-m", "backends.cerebras.lowering", "step.json", found.name], cwd=artifacts, env=self.environment(),
                stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if not found.exists():
            last = (artifacts / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"lowering ended early ({' '.join(last)}); expected a verdict; see {artifacts / 'log.txt'}")
        verdict: dict[str, Any] = json.loads(found.read_text())
        return verdict
