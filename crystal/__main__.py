"""`python -m crystal`: compose the configuration, check it, run the task.

The surprise: a UserError is caught inside the task function, because outside of it Hydra has already printed a traceback. In a sweep a
point that fails is reported and the others run; the status is 2 at the end.
"""

from __future__ import annotations

import errno
import os
import re
import sys

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crystal.cli import help_page, one_line, quoted, swept_keys
from crystal.config import Config, UserError, refuse_strays

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
# What the user can mend among the errors of the operating system.
MENDABLE = dict.fromkeys(FULL, "the disk is full ({}); expected room for what is written; free some, or give another run.dir")
MENDABLE |= dict.fromkeys(FORBIDDEN, "no permission ({}); expected files that this user may use; change that, or give another path")
MENDABLE |= dict.fromkeys(IN_THE_WAY, "the path cannot be used ({}); expected a place for a folder; give another path")
ConfigStore.instance().store("schema", Config)


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(help_page())
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"
    statuses: list[int] = []
    swept: set[str] = set()
    command = ["crystal", *argv]

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def run(composed: DictConfig) -> None:
        if INTERRUPTED not in statuses:  # or else a sweep would go on with its next point
            statuses.append(guarded(composed, command, swept))

    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        sys.argv += quoted(argv)
        swept |= swept_keys(sys.argv[1:])
        run()
    except UserError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(one_line(error))
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        return complain(f"{error}; expected the names of choices; write them with commas between, as in stage=1,2")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is done", file=sys.stderr)
        return INTERRUPTED
    finally:
        sys.argv = before
    return max(statuses, default=DONE)


def guarded(composed: DictConfig, command: list[str], swept: set[str]) -> int:
    """Validate the composed configuration, run its task, and turn what the user can mend into one line and status 2."""
    try:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            composed.run.dir += sweep_suffix(list(HydraConfig.get().overrides.task), swept)
        config = OmegaConf.to_object(composed)
        assert isinstance(config, Config)
        refuse_strays(config)
        return run_task(config, composed, command)
    except (UserError, OmegaConfBaseException) as error:
        return complain(str(error) if isinstance(error, UserError) else one_line(error))
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        return complain(MENDABLE[error.errno].format(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without loading torch for it
            raise
        got = str(error).split(". ")[0]
        return complain(f"{got}; expected room for a batch; give backend.micro_rows=1, a smaller model or fewer scale.batch_rows")


def run_task(config: Config, composed: DictConfig, command: list[str]) -> int:
    """Each task imports what it needs when it is asked for; a configuration that is refused never loads torch."""
    from crystal.train import Stopped
    from stages import tasks

    task = dict(
        train=lambda: tasks.train(config, composed, command),
        prepare=lambda: tasks.prepare_only(config),
        evaluate=lambda: tasks.evaluate(config),
        generate=lambda: tasks.generate(config),
        plan=lambda: tasks.plan(config),
        report=lambda: tasks.report(config),
        doctor=lambda: tasks.doctor(config),
    )[config.task]
    try:
        task()
    except Stopped:
        print("stopped, and saved; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return DONE


def sweep_suffix(overrides: list[str], swept: set[str]) -> str:
    """What a sweep adds to the run's name: the swept keys that are not in it already; stages are one run."""
    given = [override.partition("=")[0] for override in overrides]
    named = {"stage", "task"} if "run.dir" in given else {"stage", "task", "model", "data"}
    added = [override for key, override in zip(given, overrides, strict=True) if key in swept - named]
    return "".join("," + re.sub(r"[^\w.=,+-]", "_", override.replace("'", "")) for override in added)


def complain(line: str) -> int:
    """One line on stderr and the status for what the user can mend."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
