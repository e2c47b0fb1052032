"""The Cerebras backend: CS systems, and the SDK's own CPU device, through the real `cerebras.pytorch`.

The surprise: nothing here imports the SDK. It pins torch 2.4.0 and lives in an environment of its own, whose interpreter runs what needs
it as a process: `stages.elsewhere` a stage's training, `backends.cerebras.lowering` a step's compilation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.cerebras.options import Cluster, Csx, Options
from crystal.config import UserError, require
from crystal.engine import Backend, Environment, TrainSpec

if TYPE_CHECKING:
    from backends.cerebras.engine import CerebrasEngine

ROOT = Path(__file__).parents[2]  # where `crystal` and `backends` are found, unless they are installed
HAS_SDK = "import importlib.util, sys; sys.exit(importlib.util.find_spec('cerebras.pytorch') is None)"
MODES = ("train", "compile", "validate")
MAKE_IT = "make .venv-cerebras/.complete makes it (Python 3.11, Linux, x86-64), or give backend.python=PATH"


@dataclass
class CerebrasBackend(Backend):
    """See conf/backend/cerebras.yaml for the meaning of each option, backends/cerebras/options.py for those of `cluster` and `csx`."""

    name: str = "cerebras"
    python: str = ".venv-cerebras/bin/python"
    device: str = "csx"
    mode: str | None = None
    dtype: str = "cbfloat16"
    artifact_dir: str = "cerebras_logs"
    compile_dir: str | None = None
    folders: list[str | None] = field(default_factory=list)
    cluster: Cluster = field(default_factory=Cluster)
    csx: Csx = field(default_factory=Csx)

    def __post_init__(self) -> None:
        require(self.mode is None or self.mode in MODES, f"backend.mode={self.mode}", ", ".join(MODES), "mend backend.mode")
        if not isinstance(self.cluster, Cluster):  # as Hydra instantiates it
            self.cluster = Cluster(**self.cluster)
        if not isinstance(self.csx, Csx):
            self.csx = Csx(**self.csx)
        self.options()

    def options(self) -> Options:
        """What a process of the SDK's environment is told. Raises UserError for values that do not fit."""
        folders = [folder for folder in self.folders if folder]
        return Options(self.device, self.dtype, self.artifact_dir, self.compile_dir, self.cluster, self.csx, folders)

    def build(self, spec: TrainSpec, *, before: Mapping[str, Any]) -> CerebrasEngine:
        """To be called in the SDK's environment."""
        import torch

        from backends.cerebras.engine import CerebrasEngine

        if self.device == "cpu" and before.get("backend") == self.name:
            torch.set_num_threads(before["threads"])
        return CerebrasEngine(spec, self.options())

    def environment(self) -> Environment:
        """The SDK's interpreter, and the variables for it: the SDK looks for its own programs on the path. Raises UserError."""
        found = [path for path in (Path(self.python).absolute(), ROOT / self.python) if path.exists()]
        expected = "the Python of an environment with cerebras-pytorch 2.10.0"
        require(bool(found), f"no {self.python}", expected, MAKE_IT)
        looked = subprocess.run([found[0], "-c", HAS_SDK], capture_output=True, check=False)
        require(looked.returncode == 0, f"{self.python} without cerebras.pytorch", expected, MAKE_IT)
        prepended = {"PATH": str(found[0].parent)} | ({} if ROOT.name == "site-packages" else {"PYTHONPATH": str(ROOT)})
        variables = {name: os.pathsep.join(filter(None, (value, os.environ.get(name)))) for name, value in prepended.items()}
        return Environment(found[0], os.environ | variables)

    def lower(self, spec: TrainSpec, artifacts: Path, *, documents: bool = False) -> dict[str, Any]:
        """What `backends.cerebras.lowering` finds of a train step, in a process of the SDK's environment that works in `artifacts`.

        documents: attention is confined to them. `artifacts` is made anew. Raises UserError where there is no such environment; "wrong" of
        what is returned says what did not lower.
        """
        there = self.environment()
        shutil.rmtree(artifacts, ignore_errors=True)  # or an earlier module would be read
        artifacts.mkdir(parents=True)
        told = {
            "model": asdict(spec.model), "adamw": asdict(spec.adamw), "pieces": [asdict(piece) for piece in spec.schedule.pieces],
            "batch_rows": spec.batch_rows, "documents": documents, "mode": "compile" if self.mode == "compile" else "validate",
            "options": asdict(self.options()) | {"artifact_dir": "artifacts", "device": "csx"},
        }  # fmt: skip
        (artifacts / "step.json").write_text(json.dumps(told, indent=2))
        found = artifacts / "found.json"
        with open(artifacts / "log.txt", "w") as log:
            subprocess.run(
                [there.python, "-m", "backends.cerebras.lowering", "step.json", found.name], cwd=artifacts, env=there.variables,
                stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if not found.exists():
            last = (artifacts / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"lowering ended early ({' '.join(last)}); expected a verdict; see {artifacts / 'log.txt'}")
        verdict: dict[str, Any] = json.loads(found.read_text())
        if "refused" in verdict:
            raise UserError(verdict["refused"])
        return verdict
