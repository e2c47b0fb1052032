"""Runs every hostile and every honest program in one pool, side by side, and looks at what is left of them: a process of its own.

    python -m tests.benchmarks.sandbox.suite LAYER

prints one JSON object: the sandbox, the verdict of each program, and what was found outside when all was over. Everything that the
programs are to reach for (listeners, a folder that everybody may write, a bystander) is made here and is open to every user, so that
not the file system's permissions but the sandbox must keep them off.

The surprise: this process adopts what its descendants leave behind (a subreaper), so a daemon that got away is found as a child.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.code.execution import Job, Limits, Pool
from tests.benchmarks.sandbox.forgeries import FORGERIES, PEEKS
from tests.benchmarks.sandbox.honest import PLAIN, PRIVILEGED
from tests.benchmarks.sandbox.hostile import GROUPS, prelude
from tests.benchmarks.sandbox.trespasses import GROUPS as TRESPASSES

CHECKOUT = Path(__file__).parents[3]
LIMITS = Limits(timeout_s=0.5, memory_bytes=384 << 20)
WORKERS = 4  # more than cores, since many programs wait for the clock
ADOPT = 36  # PR_SET_CHILD_SUBREAPER
WATCHED = [Path(os.path.realpath(sys.executable)), Path(os.__file__), Path("/etc/passwd"), Path("/usr/bin/env")]
LITTER = ["/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/run", "/etc", "/root", str(CHECKOUT), str(CHECKOUT / "benchmarks/code")]


def main(layer: str) -> None:
    ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)
    children = _children()
    with ExitStack() as stack:
        canary = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True)))
        canary.chmod(0o777)
        (canary / "secret").write_text("secret")
        (canary / "secret").chmod(0o666)
        listeners = [stack.enter_context(one) for one in _listeners(canary)]
        bystander = _bystander()
        stack.callback(bystander.kill)
        facts = {
            "CANARY": str(canary), "HOME": "/root", "CHECKOUT": str(CHECKOUT), "TCP": listeners[0].getsockname()[1],
            "UDP": listeners[1].getsockname()[1], "ABSTRACT": listeners[2].getsockname(), "DATAGRAMS": listeners[3].getsockname(),
            "BYSTANDER": bystander.pid, "SHARED": stack.enter_context(_shared_memory()), "LAYER": layer,
        }  # fmt: skip
        made, before = sorted(canary.rglob("*")), _outside()
        jobs = dict(_jobs(facts))
        began = time.perf_counter()
        with Pool(LIMITS, workers=WORKERS, sandbox=layer) as pool:
            verdicts = pool.run(jobs.values())
            sandbox = pool.sandbox
        found = {
            "sandbox": sandbox,
            "seconds": time.perf_counter() - began,
            "verdicts": {"/".join(key): asdict(verdict) for key, verdict in zip(jobs, verdicts, strict=True)},
            "received": [name for name, one in zip(("TCP", "UDP", "abstract", "datagrams", "file"), listeners, strict=True) if _got(one)],
            "bystander": bystander.poll() is not None or "stopped" in _status(bystander.pid),
            "processes": _left(children | {bystander.pid}),
            "canary": sorted(map(str, {*made} ^ {*canary.rglob("*")})) or (canary / "secret").read_text() != "secret",
            "outside": [f"{one} -> {two}" for one, two in zip(before, _outside(), strict=True) if one != two],
        }
    print(json.dumps(found))


def _jobs(facts: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Job]]:
    """(group, name) and job, each hostile one followed by an honest one."""
    honest = itertools.cycle([(name, Job(program, check)) for name, program, check in PLAIN + PRIVILEGED])
    count = itertools.count()
    start = prelude(facts)
    for group, programs in (GROUPS | TRESPASSES).items():
        for one in programs:
            yield (group, one.name), Job(start + one.program, one.check)
            name, job = next(honest)
            yield ("honest", f"{name}/{next(count)}"), job
    for group, forgeries in FORGERIES.items():
        for forgery in forgeries:
            plain = forgery.program.startswith("#") or "__future__" in forgery.program or not forgery.program
            yield (group, forgery.name), Job(forgery.program if plain else start + PEEKS + forgery.program, forgery.check)
            yield ("right", f"{group}/{forgery.name}"), Job(forgery.right, forgery.check)


def _listeners(canary: Path) -> Iterator[socket.socket]:
    """TCP, UDP, abstract stream, abstract datagrams, a socket file: none blocks."""
    name = f"\0crystal-hostile-{os.getpid()}"
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, name),
        (socket.AF_UNIX, socket.SOCK_DGRAM, name + "-datagrams"),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(canary / "socket")),
    ):
        one = socket.socket(family, kind)
        one.bind(address)
        one.setblocking(False)
        if kind == socket.SOCK_STREAM:
            one.listen(100)
        yield one
    (canary / "socket").chmod(0o777)


@contextmanager
def _shared_memory() -> Iterator[int]:
    """The number of a shared memory segment that everybody may use."""
    libc = ctypes.CDLL(None)
    number = libc.shmget(0, 4096, 0o1666)
    try:
        yield number
    finally:
        libc.shmctl(number, 0, None)


def _bystander() -> subprocess.Popen[bytes]:
    """A process of this machine, whose number no process in a program's own namespace has too: those begin at 1."""
    while (process := subprocess.Popen(["sleep", "3600"])).pid < 1000:
        process.kill()
        process.wait()
    return process


def _got(listener: socket.socket) -> bool:
    try:
        listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(1)
    except BlockingIOError:
        return False
    return True


def _children() -> set[int]:
    tasks = Path("/proc/self/task")
    return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


def _left(known: set[int]) -> list[str]:
    """Descendants that go on, after at most 2 s; the dead ones among them are buried here."""
    for _ in range(100):
        left = _children() - known
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        if not left:
            return []
        time.sleep(0.02)
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def _outside() -> list[Any]:
    """What no program may have changed: some files, names in some folders, the system's shared memory, the machine's name."""
    files = [(str(path), path.stat().st_mtime_ns, path.stat().st_mode, path.stat().st_uid) for path in WATCHED if os.access(path, os.R_OK)]
    litter = [str(path) for folder in LITTER if os.access(folder, os.R_OK) for path in Path(folder).glob("*hostile*")]
    return [*files, litter, Path("/proc/sysvipc/shm").read_text().count("\n"), socket.gethostname(), os.nice(0)]


if __name__ == "__main__":
    main(*sys.argv[1:])
