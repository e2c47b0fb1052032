"""The limits of one program, and how a process takes them upon itself.

The surprise: CPU time decides a timeout, not the clock, so a loaded machine does not make right answers wrong. The clock only ends what
sleeps, and time spent waiting for a core does not count.
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass

WALL_FACTOR = 5  # clock time, without waiting for a core, in CPU limits
JUDGE_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Limits:
    """Of one program with its checks. CPU seconds and memory are those of all its processes together."""

    timeout_s: float = 3.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 64 << 20  # of one file, and of all of /tmp
    open_files: int = 128
    processes: int = 32  # and threads; in the layers that permit processes

    @property
    def wall_s(self) -> float:
        return WALL_FACTOR * self.timeout_s

    def apply(self, *, memory_bytes: int, processes: bool = True) -> None:
        """Limit this process and, each for itself, those that it starts."""
        cpu_s = math.ceil(self.timeout_s)
        _limit(resource.RLIMIT_CPU, cpu_s + 1, cpu_s + 2)  # who watches is exact; this holds if nobody did
        _limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)
        _limit(resource.RLIMIT_FSIZE, self.file_bytes, self.file_bytes)
        _limit(resource.RLIMIT_NOFILE, self.open_files, self.open_files)
        _limit(resource.RLIMIT_CORE, 0, 0)
        if processes:
            _limit(resource.RLIMIT_NPROC, self.processes, self.processes)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set one limit, never above what this process was given."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))
