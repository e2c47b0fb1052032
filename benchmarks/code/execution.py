"""Runs one program in a process of its own and says whether it passed: the seam behind which the sandbox stands.

What holds: a fresh interpreter with the standard library only, its own session, an empty environment, nothing on stdin,
output thrown away, a temporary working folder, limits on CPU time, memory, size of a file, open files and (not for
root) processes, a ceiling on wall-clock time, and SIGKILL for the whole process group at the end. A pass is a nonce
that arrives after the last check and exit status 0, so leaving early is not passing.

What does NOT hold: a program can use the network; read, change and delete every file that you can; fill the disk with
many files; leave a daemon behind in a session of its own; as root, start processes without limit and raise its other
limits; and, if it was written to do so, find the nonce in its interpreter's memory and forge a pass. This is enough for
the accidents of a language model and not for malice: run programs that you do not trust in a container.

The surprise: CPU time decides a timeout, not the clock, so a loaded machine does not make right answers wrong; and the
hash seed is fixed, so that set order does not change a verdict from one run to the next.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.code.child import NONCE_BYTES, READY
from crystal.machine import usable_cores

SANDBOX = "subprocess+rlimits"
MEMORY_BYTES = 1 << 30
FILE_BYTES = 64 << 20
WALL_FACTOR = 5  # the wall-clock ceiling in CPU limits: only sleepers and badly starved programs meet it
PROCESS_ROOM = 256  # processes and threads that a program, and the others that run beside it, may add to their user's

# What -I does, except to ignore PYTHONHASHSEED; and no site-packages: verdicts do not depend on what is installed.
PYTHON = (sys.executable, "-s", "-S", "-P", str(Path(__file__).with_name("child.py")))
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the child empties it before the program


@dataclass(frozen=True)
class Verdict:
    """`reason` is empty for a pass; otherwise the exception, the signal, or the limit that was met."""

    passed: bool
    result: Literal["passed", "failed", "timeout"]
    reason: str


@dataclass(frozen=True)
class _Ending:
    """How a process ended: exit code (or minus the signal), what it sent, CPU seconds, whether the clock ended it."""

    code: int
    sent: bytes
    cpu_s: float
    expired: bool


def run_programs(
    programs: Sequence[str],
    *,
    timeout_s: float,
    workers: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    file_bytes: int = FILE_BYTES,
) -> list[Verdict]:
    """Verdicts in the order of `programs`, `workers` (default: the cores this process may use) at a time."""

    def run(program: str) -> Verdict:
        return run_program(program, timeout_s=timeout_s, memory_bytes=memory_bytes, file_bytes=file_bytes)

    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        return list(pool.map(run, programs))


def run_program(program: str, *, timeout_s: float, memory_bytes: int = MEMORY_BYTES, file_bytes: int = FILE_BYTES) -> Verdict:
    """Run `program` to its end, or to one of its limits.

    `timeout_s` is CPU seconds, interpreter start included. Raises RuntimeError where no process with these limits could
    be had: that says nothing about the program, so it is no verdict.
    """
    nonce = secrets.token_hex(NONCE_BYTES // 2).encode()
    limits = (math.ceil(timeout_s), memory_bytes, file_bytes, _process_limit())
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="crystal-", ignore_cleanup_errors=True) as folder, ours:
        with theirs:
            process = _start(theirs.fileno(), limits, folder)
        with suppress(BrokenPipeError, ConnectionResetError):
            ours.sendall(nonce + program.encode("utf-8", "replace"))
            ours.shutdown(socket.SHUT_WR)
        ending = _wait(process, ours, wall_s=WALL_FACTOR * timeout_s)
    return _verdict(ending, nonce, timeout_s)


def _start(channel: int, limits: tuple[int, ...], folder: str) -> subprocess.Popen[bytes]:
    # No preexec_fn: Python code between fork and exec can deadlock under a trainer's threads. The child limits itself.
    return subprocess.Popen(
        [*PYTHON, str(channel), *map(str, limits)],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(channel,),
    )


def _wait(process: subprocess.Popen[bytes], channel: socket.socket, *, wall_s: float) -> _Ending:
    """Wait for the process, kill its group in any case, and read what it sent: a few bytes, buffered by now."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill_group(process.pid)

    timer = threading.Timer(wall_s, expire)
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)  # not process.wait(): that one has no CPU time to tell
    finally:
        timer.cancel()
        _kill_group(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    channel.setblocking(False)
    try:
        sent = channel.recv(4096)
    except (BlockingIOError, ConnectionResetError):  # nothing sent; BlockingIOError: an escaped process holds the end
        sent = b""
    return _Ending(process.returncode, sent, usage.ru_utime + usage.ru_stime, expired.is_set())


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone already; macOS refuses where only zombies are left
        os.killpg(leader, signal.SIGKILL)


def _verdict(ending: _Ending, nonce: bytes, timeout_s: float) -> Verdict:
    if ending.cpu_s >= timeout_s or ending.code == -signal.SIGXCPU:
        return Verdict(False, "timeout", f"more than {timeout_s:g} s of CPU time")
    if ending.expired:
        wall_s = WALL_FACTOR * timeout_s
        return Verdict(False, "timeout", f"no end after {wall_s:g} s ({ending.cpu_s:.2f} s of CPU time)")
    if not ending.sent.startswith(READY):
        raise RuntimeError(f"{PYTHON[0]} did not get as far as the program: {_describe(ending.code)}")
    if ending.sent == READY + nonce and ending.code == 0:
        return Verdict(True, "passed", "")
    said = ending.sent.removeprefix(READY).decode("utf-8", "replace")
    return Verdict(False, "failed", said or f"{_describe(ending.code)} before its last check")


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _process_limit() -> int:
    """RLIMIT_NPROC counts all of a user's threads, so the limit is what there is and some room.

    -1 for root, whom it does not bind, and without /proc, where there is no count to add the room to.
    """
    if os.getuid() == 0 or not Path("/proc/self/task").is_dir():
        return -1
    threads = 0
    for process in os.scandir("/proc"):
        if process.name.isdecimal():
            with suppress(OSError):  # gone between the listing and the look
                if process.stat().st_uid == os.getuid():
                    threads += len(os.listdir(f"/proc/{process.name}/task"))
    return threads + PROCESS_ROOM
