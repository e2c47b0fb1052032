"""A stage's training in a process of the backend's own environment.

The surprise: that process needs no more than the run directory, whose config.yaml is whole. It is the same training as in this process;
preparing, scoring and the report stay here. How it ended comes back through a pipe, so that an error is still one line, said once.
"""

from __future__ import annotations

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

# Killed with the process that waits for it, which holds the run directory; before anything is imported that takes long.
START = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) or os._exit(1); "
    "from stages.elsewhere import main; main(*sys.argv[2:])"
)


def train_elsewhere(there: Environment, run_dir: Path, stage: str, command: list[str]) -> None:
    """Train `stage` of the run in a process of `there`; `command` is what the user gave, for the record.

    Raises what that process raised: Stopped, Diverged, UserError; KeyboardInterrupt where a signal ended it before it could save.
    """
    reading, writing = os.pipe()
    arguments = [str(os.getpid()), str(run_dir), stage, str(writing), json.dumps(command)]
    sys.stdout.flush()
    # A session of its own, or a terminal's Ctrl-C would reach the SDK while it saves, which makes it give up the file.
    process = subprocess.Popen(
        [str(there.python), "-c", START, *arguments], env=there.variables, pass_fds=[writing], start_new_session=True
    )  # fmt: skip
    os.close(writing)
    signals: list[int] = []

    def forward(number: int, frame: object) -> None:
        if not signals:
            print("stopping at the next checkpoint; again: at once", file=sys.stderr)
        signals.append(number)
        process.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with open(reading) as outcome:
            told = json.loads(outcome.read() or "{}")
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    match told:
        case {"done": True}:
            return
        case {"stopped": True}:
            raise Stopped
        case {"diverged": [name, step, total]}:
            raise Diverged(name, step, float(total))
        case {"error": str(line)}:
            raise UserError(line)
    if signals:
        raise KeyboardInterrupt
    how = f"signal {-status} (9: killed, perhaps for want of memory)" if status < 0 else f"status {status}, for the reason above"
    raise UserError(f"the process that trained stage {stage} ended with {how}; expected it to train on; the same command tries again")


def main(run_dir: str, stage: str, outcome: str, command: str) -> None:
    """Train, and tell the process that waits for it how that ended. What is a bug ends with its traceback."""
    from crystal.__main__ import mendable
    from crystal.data.shards import Prepared
    from stages.curriculum import Run, StageRun
    from stages.recipes import recipe
    from stages.tasks import instantiated, scoring_backend

    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(Path(run_dir) / "config.yaml")))
    assert isinstance(config, Config)
    told: dict[str, object] = {}
    try:
        with mendable():
            backend, prepared = instantiated(config.backend, "backend"), Prepared.open(config.data.out, verify=False)
            run = Run(config, backend, prepared, json.loads(command), scoring_backend(config))
            StageRun(run, recipe(config.stages[stage], config.scale)).train_here()
        told = {"done": True}
    except Stopped:
        told = {"stopped": True}
    except Diverged as error:
        told = {"diverged": [error.stage, error.step, str(error.total)]}
    except UserError as error:
        told = {"error": str(error)}
    finally:
        with open(int(outcome), "w") as file:
            json.dump(told, file)
