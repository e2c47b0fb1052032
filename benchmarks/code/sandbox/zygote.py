"""A worker: one warm interpreter that starts the programs, one after the other, so that none waits for an interpreter's start.

`layers` starts it, in namespaces where the layer has some. On one socket jobs come in, as files, and their endings go out, a line of JSON
each; when it closes, the worker ends. It imports this folder and the standard library only.

The surprise: it tries out what isolates before it says so, because what the system offers and what it permits differ.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.code.sandbox import candidate, kernel, namespaces, seccomp
from benchmarks.code.sandbox.limits import Limits
from benchmarks.code.sandbox.program import HAS_PROC, Files, Isolation, Program, SandboxBroken, restrict_files

# What solutions and checks import most, loaded once for all of them.
WARM = """
    abc bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools json math operator
    random re statistics string sys time traceback typing
""".split()  # noqa: SIM905  a list of words reads better than a list of strings


def main() -> None:
    """Arguments: the socket's number, the layer, the limits in JSON."""
    number, layer, limits = int(sys.argv[1]), sys.argv[2], Limits(**json.loads(sys.argv[3]))
    if layer == "namespaces":
        namespaces.enter({os.path.dirname(__file__): os.path.dirname(__file__)})
    if hasattr(os, "sched_getaffinity"):
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    if os.geteuid() == 0:
        with suppress(PermissionError):  # root of a user namespace with one user: it has no groups that count outside
            os.setgroups([])
    for name in WARM:
        importlib.import_module(name)
    isolation = found(layer)
    candidate.make_room()
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page
    with socket.socket(fileno=number) as control:
        _say(control, facts(isolation))
        with open(os.devnull, "wb") as nowhere:  # what a worker says of a failing start is read; what programs print is not
            os.dup2(nowhere.fileno(), 2)
        while True:
            asked, files, _, _ = socket.recv_fds(control, 1, len(Files._fields))
            if not asked:
                return
            _say(control, _run(Files(*files), limits, isolation, number))


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def _run(files: Files, limits: Limits, isolation: Isolation, control: int) -> dict[str, Any]:
    """Run one job; where programs share the system's files, in an empty folder in the working folder, which is this worker's."""
    folder = tempfile.mkdtemp(dir=".") if not isolation.contained else ""
    try:
        os.chdir(folder or "/")
        return Program(files, limits, isolation, control).run()
    except (SandboxBroken, OSError) as error:
        return {"broken": str(error)}
    finally:
        for file in files:
            os.close(file)
        if folder:
            os.chdir("..")
            shutil.rmtree(folder, ignore_errors=True)


def found(layer: str) -> Isolation:
    """What isolates here, by trying it."""
    contained, unsafe = layer in ("bubblewrap", "namespaces"), layer == "unsafe"
    own_namespaces = contained and _works(_try_namespaces)
    filtered = not unsafe and seccomp.available() and _works(lambda: seccomp.install(strict=True))
    if filtered:
        seccomp.program(kernel.MACHINE, strict=not own_namespaces, pid=0)  # to have its long part made before the forks
    if not unsafe and not own_namespaces:  # or else a program could look into this process, or be looked into by the next
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    return Isolation(contained, own_namespaces, filtered, layer == "seccomp" and _works(restrict_files), unsafe)


def facts(isolation: Isolation) -> dict[str, Any]:
    """What isolates a program here, in words, what is missing, and whether it is enough."""
    apart = isolation.contained or isolation.filtered
    parts = {
        "no network": apart,
        "read-only system": apart,
        "nothing to read but the system's files": isolation.contained or isolation.landlocked,
        "namespaces for each program": isolation.own_namespaces,
        "system calls filtered": isolation.filtered,
        "no privileges": not isolation.privileged,
        "resource limits": True,
        "memory and CPU time of all processes": HAS_PROC,
        "clock without waiting for a core": Path("/proc/self/schedstat").exists(),
    }
    return {
        "has": [name for name, there in parts.items() if there],
        "missing": [name for name, there in parts.items() if not there],
        "isolates": isolation.own_namespaces or isolation.filtered or isolation.privileged,
    }


def _try_namespaces() -> None:
    """Raise OSError where a program cannot have namespaces of its own."""
    go_on, go = os.pipe()
    pid = namespaces.clone_for_program()
    if pid == 0:
        os.read(go_on, 1)
        namespaces.settle(1 << 20)
        os._exit(0)
    namespaces.map_program(pid)
    os.write(go, b".")
    if os.waitpid(pid, 0)[1]:
        raise OSError("a program's namespaces cannot be set up")


def _works(attempt: Callable[[], None]) -> bool:
    """Whether `attempt`, in a process of its own, raises nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0
