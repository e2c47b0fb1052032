"""`python -m crystal`: compose the configuration, check it, run the task.

The surprise: what the user can mend is caught inside the task function, because outside of it Hydra has already printed a traceback. In a
sweep a point that fails returns its reason and the others run; at the end the first reason is printed, and the status is 2.
"""

from __future__ import annotations

import errno
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crystal.cli import PointFailed, help_page, one_line, quoted, refuse_bad_launch, refuse_bad_sweep, swept_keys
from crystal.config import Config, UserError, refuse_strays, require
from crystal.errors import Stopped

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
# What the user can mend among the errors of the operating system.
MENDABLE = dict.fromkeys(FULL, "the disk is full ({}); expected room for what is written; free some, or give another run.dir")
MENDABLE |= dict.fromkeys(FORBIDDEN, "no permission ({}); expected files that this user may use; change that, or give another path")
MENDABLE |= dict.fromkeys(IN_THE_WAY, "the path cannot be used ({}); expected a place for a folder; give another path")
TASKS = {
    "train": "stages.tasks:train",
    "prepare": "stages.tasks:prepare_only",
    "evaluate": "stages.tasks:evaluate",
    "generate": "stages.tasks:generate",
    "plan": "stages.tasks:plan",
    "replay": "stages.tasks:replay",
    "report": "stages.reporting:report",
    "score": "stages.score:score",
    "export": "stages.exchange:export_weights",
    "import": "stages.exchange:import_weights",
    "doctor": "stages.tasks:doctor",
    "coordcheck": "stages.coordcheck:coordcheck",
    "transfer": "stages.transfer:transfer",
    "validate": "stages.validate:validate",
    "ledger": "stages.ledger:ledger",
    "contamination": "stages.contamination:contamination",
}
AT_ONCE = ("task=evaluate", "task=score")  # they keep a benchmark's result when it is whole
ConfigStore.instance().store("schema", Config)


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(help_page())
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before, terminated = sys.argv, signal.getsignal(signal.SIGTERM)
    try:
        if {"-m", "--multirun", *AT_ONCE} & set(argv):  # as Ctrl-C, or else processes and folders of theirs would outlive this one
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.argv = [before[0], *quoted(argv)]
        return run_all(["crystal", *argv])
    except UserError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(one_line(error))
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        return complain(f"{error}; expected the names of choices; write them with commas between, as in stage=1,2")
    except KeyboardInterrupt:
        print("stopped" + "; the same command goes on from what is done" * (not {*AT_ONCE} & set(argv)), file=sys.stderr)
        return INTERRUPTED
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, terminated)


def run_all(command: list[str]) -> int:
    """Let Hydra run sys.argv: once, or under -m each of its points, perhaps in other processes."""
    statuses: list[int] = []
    swept = swept_keys(sys.argv[1:])
    refuse_bad_launch(sys.argv[1:])
    PointFailed.told.clear()

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def run(composed: DictConfig) -> PointFailed | None:
        if INTERRUPTED in statuses:  # or else a sweep would go on with its next point
            return None
        try:
            with mendable():
                statuses.append(run_point(composed, command, swept))
        except UserError as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                return PointFailed(f"{composed.run.dir}: {error}")
            statuses.append(complain(str(error)))
        return None

    run()
    if PointFailed.told:
        first, *others = PointFailed.told
        statuses.append(complain(first + f" (the first of {1 + len(others)} points that failed)" * bool(others)))
    return max(statuses, default=DONE)


def run_point(composed: DictConfig, command: list[str], swept: set[str]) -> int:
    """Check the composed configuration and run its task."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        swept = swept | set(hydra_config.sweeper.params or {})
        composed.run.dir = swept_dir(composed, list(hydra_config.overrides.task), swept)
        refuse_bad_sweep(composed, hydra_config.runtime.choices)
    elif composed.sweep is not None and composed.task != "transfer":
        got = "without -m" if composed.task == "train" else f"with task={composed.task}"
        expected = f"python -m crystal -m sweep={composed.sweep}, or task=transfer"
        raise UserError(f"sweep={composed.sweep} {got}; expected {expected}; put -m before it, or leave sweep= out")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    refuse_strays(config)
    return run_task(config, composed, command)


@contextmanager
def mendable() -> Iterator[None]:
    """Turn every error that the user can mend into a UserError."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        raise UserError(MENDABLE[error.errno].format(error)) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without loading torch for it
            raise
        remedy = "give backend.micro_rows=1, a smaller model or fewer scale.batch_rows"
        raise UserError(f"{str(error).split('. ')[0]}; expected room for a batch; {remedy}") from error


def run_task(config: Config, composed: DictConfig, command: list[str]) -> int:
    """Each task is imported when it is asked for; a configuration that is refused never loads torch."""
    require(config.task in TASKS, f"task={config.task}", f"one of {', '.join(TASKS)}", "mend task")
    task = pkgutil.resolve_name(TASKS[config.task])
    try:
        if config.task == "train":
            task(config, composed, command)
        else:
            task(config)
    except Stopped:
        print("stopped, and saved; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return DONE


def swept_dir(composed: DictConfig, overrides: list[str], swept: set[str]) -> str:
    """A point's run directory: the configured one and the swept keys that do not make another run (stage) or are in its name already.

    The points of a sweep= have the configured one together, with a folder in it for each parametrization.
    """
    given = [override.partition("=")[0] for override in overrides]
    named = {"stage", "task"} | ({"parametrization"} if composed.sweep else set()) | (set() if "run.dir" in given else {"model", "data"})
    added = [override for key, override in zip(given, overrides, strict=True) if key in swept - named]
    name = ",".join(re.sub(r"[^\w.=,+-]", "_", override.replace("'", "")) for override in added)
    if composed.sweep:
        return f"{composed.run.dir}/{composed.model.parametrization}/{name}"
    return composed.run.dir + "," * bool(name) + name


def complain(line: str) -> int:
    """One line on stderr and the status for what the user can mend."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
