"""A stage's training in a process of the backend's own environment: `python -m stages.elsewhere RUN_DIR STAGE OUTCOME`.

The surprise: that process needs no more than the run directory, whose config.yaml is whole. It is the same training as in this process;
preparing, scoring and the report stay here. How it ended comes back through a pipe, so that an error is still one line, said once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from crystal.config import Config, UserError
from crystal.engine import Environment
from crystal.errors import Stopped
from crystal.train import Diverged

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def train_elsewhere(there: Environment, run_dir: Path, stage: str) -> None:
    """Train `stage` of the run in a process of `there`. Raises what that process raised: Stopped, Diverged, UserError."""
    reading, writing = os.pipe()
    command = [str(there.python), "-m", "stages.elsewhere", str(run_dir), stage, str(writing)]
    process = subprocess.Popen(command, env=there.variables, pass_fds=[writing])
    os.close(writing)
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: process.terminate()}  # a terminal's Ctrl-C goes to both
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with open(reading) as outcome:
            told = json.loads(outcome.read() or "{}")
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    match told:
        case {"stopped": True}:
            raise Stopped
        case {"diverged": [name, step, total]}:
            raise Diverged(name, step, float(total))
        case {"error": str(line)}:
            raise UserError(line)
        case {"done": True}:
            return
    raise UserError(f"the process that trained stage {stage} ended with status {status}; expected it to train on; see above for the reason")


def main(run_dir: Path, stage: str, outcome: int) -> None:
    """Train, and tell the process that waits for it how that ended. What is a bug ends with its traceback."""
    from crystal.__main__ import mendable
    from crystal.data.shards import Prepared
    from stages.curriculum import Run, StageRun
    from stages.recipes import recipe
    from stages.tasks import instantiated, scoring_backend

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody would hold the run directory
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(run_dir / "config.yaml")))
    assert isinstance(config, Config)
    told: dict[str, object] = {}
    try:
        with mendable():
            backend, prepared = instantiated(config.backend, "backend"), Prepared.open(config.data.out, verify=False)
            run = Run(config, backend, prepared, sys.argv, scoring_backend(config))
            StageRun(run, recipe(config.stages[stage], config.scale)).train_here()
        told = {"done": True}
    except (Stopped, KeyboardInterrupt):
        told = {"stopped": True}
    except Diverged as error:
        told = {"diverged": [error.stage, error.step, str(error.total)]}
    except UserError as error:
        told = {"error": str(error)}
    finally:
        with open(outcome, "w") as file:
            json.dump(told, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
