"""Executors: where the steps of `task=prepare` run. Each step is a datatrove pipeline of one callable, `step(rank, n_tasks)`.

The surprise: datatrove's own record of what is complete is not used. A step looks at the files that it would write and leaves out those
that are there, so a restart may use another executor and another number of tasks. Each step logs in a folder of its own.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from crystal.data.optional import need
from crystal.errors import UserError, require, require_positive
from crystal.machine import usable_cores
from crystal.runlog import write_text

TASKS_PER_WORKER = 4  # so that one slow task is not waited for
POLL_S = 2.0
PR_SET_PDEATHSIG = 1  # of Linux's prctl

Step = Callable[[int, int], None]


class Executor(Protocol):
    """Runs `step(rank, n_tasks)` for every rank below `n_tasks`, of which there are at most `n_items`; raises what a step raised."""

    def run(self, step: Step, n_items: int, folder: Path) -> None: ...


@dataclass(frozen=True)
class Here:
    """In this process, one task after the other; needs no datatrove."""

    tasks: int = 1

    def run(self, step: Step, n_items: int, folder: Path) -> None:
        for rank in range(self.tasks):
            step(rank, self.tasks)


@dataclass(frozen=True)
class Local:
    """By processes on this machine. `workers` at once, null: one for each core; `tasks` in all, null: four for each worker."""

    workers: int | None = None
    tasks: int | None = None

    def __post_init__(self) -> None:
        _check_counts(self, "workers", "tasks")

    def run(self, step: Step, n_items: int, folder: Path) -> None:
        workers = min(self.workers or usable_cores(), n_items)
        tasks = min(self.tasks or TASKS_PER_WORKER * workers, n_items)
        local = _quiet("datatrove.executor.local").LocalPipelineExecutor
        made = local(_guarded(step, folder), tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder), skip_completed=False)
        with _stoppable():
            _run(made, folder)


@dataclass(frozen=True)
class Slurm:
    """By a job array on a Slurm cluster; `data.out` and the corpora on a file system that the nodes share. `time` as sbatch's."""

    partition: str
    time: str = "24:00:00"
    tasks: int = 100
    workers: int = -1  # array tasks at once; -1: as many as Slurm gives
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    env_command: str | None = None  # to activate the environment on a node
    qos: str = ""
    sbatch_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_counts(self, "tasks", "cpus_per_task", "mem_per_cpu_gb")

    def run(self, step: Step, n_items: int, folder: Path) -> None:
        found = shutil.which("sbatch") is not None
        require(found, "executor=slurm, and no sbatch on this machine", "a Slurm cluster", "start on a login node, or give executor=local")
        tasks = min(self.tasks, n_items)
        made = _quiet("datatrove.executor.slurm").SlurmPipelineExecutor(
            _guarded(step, folder), tasks=tasks, time=self.time, partition=self.partition, workers=self.workers,
            cpus_per_task=self.cpus_per_task, mem_per_cpu_gb=self.mem_per_cpu_gb, env_command=self.env_command, qos=self.qos,
            sbatch_args=dict(self.sbatch_args), job_name=f"crystal-{folder.name}", requeue=False, logging_dir=str(folder),
            skip_completed=False,
        )  # fmt: skip
        _run(made, folder)
        while _unfinished(made):
            _raise_told(folder)
            got = f"job {made.job_id} has ended before its {tasks} tasks"
            alive = _queued(made.job_id) or not _unfinished(made)
            require(alive, got, "all of them done", f"see {folder}/slurm_logs; run the same command again")
            time.sleep(POLL_S)


@dataclass(frozen=True)
class Ray:
    """By tasks on a Ray cluster, `address` as ray.init's; null: one on this machine for as long as it takes. The file system is shared."""

    address: str | None = "auto"
    tasks: int = 100
    workers: int = -1
    cpus_per_task: int = 1
    mem_per_cpu_gb: float = 1.0

    def __post_init__(self) -> None:
        _check_counts(self, "tasks", "cpus_per_task", "mem_per_cpu_gb")

    def run(self, step: Step, n_items: int, folder: Path) -> None:
        ray = need("ray", extra="ray")
        try:
            ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            got = f"executor=ray finds no cluster at {self.address} ({reason})"
            raise UserError(f"{got}; expected one; start it by: ray start --head") from error
        tasks = min(self.tasks, n_items)
        made = _quiet("datatrove.executor.ray").RayPipelineExecutor(
            _guarded(step, folder), tasks=tasks, workers=self.workers, cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb, logging_dir=str(folder), skip_completed=False,
        )  # fmt: skip
        _run(made, folder)
        got = f"{len(_unfinished(made))} of {tasks} Ray tasks did not finish"
        require(not _unfinished(made), got, "all of them", f"see {folder}/logs; run the same command again")


@dataclass(frozen=True)
class _Guarded:
    """The step that lies in `folder`, as datatrove calls one; what a user can mend is left there, for not every executor raises it.

    Small on purpose: datatrove sends it with every task, and a pool whose pipe is full of tasks cannot be stopped.
    """

    folder: Path
    here: str = field(default_factory=os.getcwd)  # what relative paths are relative to

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        os.chdir(self.here)
        try:
            _step(self.folder / "step.pickle")(rank, world_size)
        except UserError as error:
            write_text(self.folder / f"error-{rank:05d}.txt", str(error))
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process: before datatrove says there what it does, and before `tokenizers` takes all cores for one of many tasks."""
        self.__dict__.update(state)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _quiet("datatrove")


def _guarded(step: Step, folder: Path) -> list[_Guarded]:
    """A pipeline of that step."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.pickle").write_bytes(pickle.dumps(step))
    return [_Guarded(folder.absolute())]


@lru_cache(maxsize=1)
def _step(path: Path) -> Step:
    found: Step = pickle.loads(path.read_bytes())
    return found


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM as Ctrl-C; and where this process is killed, what it has forked goes too."""
    parent = os.getpid()

    def follow() -> None:
        if os.getppid() == parent and sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    _FOLLOW.append(follow)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    finally:
        _FOLLOW.remove(follow)
        if main:
            signal.signal(signal.SIGTERM, before)


_FOLLOW: list[Callable[[], None]] = []  # what a fork does first; it cannot be unregistered
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [follow() for follow in _FOLLOW])


def _run(executor: Any, folder: Path) -> None:
    try:
        executor.run()
    except Exception:
        _raise_told(folder)
        raise
    _raise_told(folder)


def _raise_told(folder: Path) -> None:
    for path in sorted(folder.glob("error-*.txt")):
        raise UserError(path.read_text(encoding="utf-8"))


def _unfinished(executor: Any) -> list[int]:
    left: list[int] = executor.get_incomplete_ranks(skip_completed=True)
    return left


def _queued(job_id: object) -> bool:
    """Whether Slurm still knows of the job; where squeue cannot say, it does."""
    asked = subprocess.run(["squeue", "--noheader", f"--job={job_id}"], capture_output=True, text=True)
    return asked.returncode != 0 and "nvalid job id" not in asked.stderr or bool(asked.stdout.strip())


def _quiet(module: str) -> Any:
    """The module of datatrove, whose log lines do not reach the terminal."""
    os.environ.setdefault("LOGURU_AUTOINIT", "0")
    found = need(module)
    need("loguru").logger.disable("datatrove")
    return found


def _check_counts(executor: Executor, *names: str) -> None:
    require_positive("executor", {name: value for name in names if (value := getattr(executor, name)) is not None})
