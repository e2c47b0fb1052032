"""`python -m crystal`: compose the configuration, check it, run the task.

The surprise: a UserError is caught inside the task function, because outside of it Hydra has already printed a traceback. In a sweep a
point that fails is reported and the others run; the status is 2 at the end.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crystal.cli import help_page, one_line, quoted
from crystal.config import Config, UserError

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130
ConfigStore.instance().store("schema", Config)


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(help_page())
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"
    statuses: list[int] = []
    command = ["crystal", *argv]

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def run(composed: DictConfig) -> None:
        statuses.append(guarded(composed, command))

    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        sys.argv += quoted(argv)
        run()
    except UserError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(one_line(error))
    finally:
        sys.argv = before
    return max(statuses, default=DONE)


def guarded(composed: DictConfig, command: list[str]) -> int:
    """Validate the composed configuration, run its task, and turn what the user can mend into one line and status 2."""
    from crystal.train import Stopped

    try:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            composed.run.dir += sweep_suffix(list(HydraConfig.get().overrides.task))
        config = OmegaConf.to_object(composed)
        assert isinstance(config, Config)
        run_task(config, composed, command)
    except Stopped:
        print("stopped, and saved; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except (UserError, OmegaConfBaseException) as error:
        return complain(str(error) if isinstance(error, UserError) else one_line(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return complain(f"the disk is full ({error.filename or error}); expected room for what is written; free some, or give another run.dir")
    return DONE


def run_task(config: Config, composed: DictConfig, command: list[str]) -> None:
    """Each task imports what it needs when it is asked for."""
    from stages import tasks

    dict(
        train=lambda: tasks.train(config, composed, command),
        prepare=lambda: tasks.prepare_data(config),
        evaluate=lambda: tasks.evaluate(config),
        generate=lambda: tasks.generate(config),
        plan=lambda: tasks.plan(config),
        report=lambda: tasks.report(config),
        doctor=lambda: tasks.doctor(config),
    )[config.task]()


def sweep_suffix(overrides: list[str]) -> str:
    """What a sweep adds to the run's name: every override that is not in it already; stages are one run."""
    named = ("stage", "model", "data", "run.dir", "task")
    return "".join(f",{override.replace('/', '_')}" for override in overrides if override.split("=")[0].lstrip("+") not in named)


def complain(line: str) -> int:
    """One line on stderr and the status for what the user can mend."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
