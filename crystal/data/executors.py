"""Executors: where the steps of `task=prepare` run. Each step is a datatrove pipeline of one callable, `step(rank, n_tasks)`.

The surprise: datatrove's own record of what is complete is not used. A step looks at the files that it would write and leaves out those
that are there, so a restart may use another executor and another number of tasks. Each step logs in a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crystal.data.optional import need
from crystal.errors import UserError, require, require_positive
from crystal.machine import usable_cores
from crystal.runlog import write_text

TASKS_PER_WORKER = 4  # so that one slow task is not waited for
POLL_S = 2.0

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
        made = local([_Guarded(step, folder)], tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder), skip_completed=False)
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
            [_Guarded(step, folder)], tasks=tasks, time=self.time, partition=self.partition, workers=self.workers,
            cpus_per_task=self.cpus_per_task, mem_per_cpu_gb=self.mem_per_cpu_gb, env_command=self.env_command, qos=self.qos,
            sbatch_args=dict(self.sbatch_args), job_name=f"crystal-{folder.name}", requeue=False, logging_dir=str(folder),
            skip_completed=False,
        )  # fmt: skip
        _run(made, folder)
        while _unfinished(made):
            _raise_told(folder)
            got = f"job {made.job_id} has ended before its {tasks} tasks"
            require(_queued(made.job_id), got, "all of them done", f"see {folder}/slurm_logs; run the same command again")
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
            [_Guarded(step, folder)], tasks=tasks, workers=self.workers, cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb, logging_dir=str(folder), skip_completed=False,
        )  # fmt: skip
        _run(made, folder)
        got = f"{len(_unfinished(made))} of {tasks} Ray tasks did not finish"
        require(not _unfinished(made), got, "all of them", f"see {folder}/logs; run the same command again")


@dataclass(frozen=True)
class _Guarded:
    """`step` as datatrove calls one; what a user can mend is left in `folder`, since not every executor hands exceptions on."""

    step: Step
    folder: Path
    here: str = field(default_factory=os.getcwd)  # what relative paths are relative to

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        os.chdir(self.here)
        try:
            self.step(rank, world_size)
        except UserError as error:
            write_text(self.folder / f"error-{rank:05d}.txt", str(error))
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process: before datatrove says there what it does, and before `tokenizers` takes all cores for one of many tasks."""
        self.__dict__.update(state)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _quiet("datatrove")


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
