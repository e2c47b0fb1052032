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


class PointFailed(Exception):
    """A point of a sweep, perhaps in another process, has said what the user can mend. Hydra passes this on when all points have run."""


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
        if INTERRUPTED in statuses:  # or else a sweep would go on with its next point
            return
        statuses.append(guarded(composed, command, swept))
        if swept and statuses[-1] == USER_ERROR:
            raise PointFailed

    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        sys.argv += quoted(argv)
        swept |= swept_keys(sys.argv[1:])
        run()
    except PointFailed:
        return USER_ERROR
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
        hydra_config = HydraConfig.get()
        if hydra_config.mode is RunMode.MULTIRUN:
            swept |= set(hydra_config.sweeper.params or {})
            composed.run.dir = swept_dir(composed, list(hydra_config.overrides.task), swept)
        elif composed.sweep is not None and composed.task == "train":
            raise UserError(f"sweep={composed.sweep} without -m; expected python -m crystal -m sweep={composed.sweep}; put -m before it")
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
    from stages import coordcheck, exchange, tasks, transfer

    task = dict(
        train=lambda: tasks.train(config, composed, command),
        prepare=lambda: tasks.prepare_only(config),
        evaluate=lambda: tasks.evaluate(config),
        generate=lambda: tasks.generate(config),
        plan=lambda: tasks.plan(config),
        replay=lambda: tasks.replay(config),
        report=lambda: tasks.report(config),
        export=lambda: exchange.export_weights(config),
        **{"import": lambda: exchange.import_weights(config)},  # a keyword of the language
        doctor=lambda: tasks.doctor(config),
        coordcheck=lambda: coordcheck.coordcheck(config),
        transfer=lambda: transfer.transfer(config),
    )[config.task]
    try:
        task()
    except Stopped:
        print("stopped, and saved; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return DONE


def swept_dir(composed: DictConfig, overrides: list[str], swept: set[str]) -> str:
    """A point's run directory: the configured one and the swept keys that do not make another run (stage) or are in its name already.

    The points of a sweep= have a folder together.
    """
    given = [override.partition("=")[0] for override in overrides]
    named = {"stage", "task"} if "run.dir" in given else {"stage", "task", "model", "data", "parametrization" if composed.sweep else ""}
    added = [override for key, override in zip(given, overrides, strict=True) if key in swept - named]
    name = ",".join(re.sub(r"[^\w.=,+-]", "_", override.replace("'", "")) for override in added)
    return composed.run.dir + ("/" if composed.sweep else ",") * bool(name) + name


def complain(line: str) -> int:
    """One line on stderr and the status for what the user can mend."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
