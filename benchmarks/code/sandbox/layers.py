"""Which layer isolates programs on this machine: the first that works of bubblewrap, namespaces of our own, and a system-call filter.

A layer counts as working when a program in it has tried to reach a listening port, a file and a process of this machine and could not. With
none that works, nothing is executed, unless sandbox=unsafe says so.

The surprise: bubblewrap's --die-with-parent is not used. It means the thread that started the worker; a worker ends when its socket closes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path

from benchmarks.code.sandbox import namespaces
from benchmarks.code.sandbox.limits import Limits

ISOLATING = ("bubblewrap", "namespaces", "seccomp")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
INSIDE = "/crystal"  # where a worker of bubblewrap's finds this folder's package

MAIN = "import sys; sys.path.insert(0, {root!r}); from benchmarks.code.sandbox.zygote import main; main()"
# What -I does, except to ignore PYTHONHASHSEED; and no site-packages: verdicts do not depend on what is installed.
FLAGS = ("-s", "-S", "-P", "-c")
# One arena: one for each thread would take 64 MiB of addresses, which the memory limit counts, and a program could have few threads.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}

# A program that tries to get out, and says of files and network whether it could. Who has that process number here may be itself.
ESCAPE = """
import os, signal, socket
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
def escapes(port, path, pid):
    found = []
    for name, attempt in {
        "network": lambda: socket.create_connection(("127.0.0.1", port), 1).close(),
        "files": lambda: open(path, "w").close(),
    }.items():
        try:
            attempt()
            found.append(name)
        except OSError:
            pass
    try:
        os.kill(pid, signal.SIGUSR1)
    except OSError:
        pass
    return found
"""


def command(layer: str, control: int, limits: Limits) -> list[str]:
    """The command line of a worker that talks on the descriptor `control`. Raises LookupError where the layer is not installed."""
    arguments = [str(control), layer, json.dumps(asdict(limits))]
    if layer != "bubblewrap":
        return [namespaces.interpreter(), *FLAGS, MAIN.format(root=str(ROOT)), *arguments]
    found = shutil.which("bwrap")
    if found is None:
        raise LookupError("not installed")
    return [found, *_bubblewrap(), "--", namespaces.interpreter(), *FLAGS, MAIN.format(root=INSIDE), *arguments]


def _bubblewrap() -> list[str]:
    """Namespaces and files of a worker, in bubblewrap's words. Root needs no user namespace, and is safer without."""
    options = [] if os.geteuid() == 0 else ["--unshare-user"]
    options += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    for path in namespaces.readable():
        for parent in reversed(Path(path).parents[:-1]):  # or else it makes them as they are outside: closed to others, if below a home
            options += ["--perms", "0755", "--dir", str(parent)]
        options += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    options += ["--ro-bind", str(HERE), f"{INSIDE}/{HERE.relative_to(ROOT)}", "--proc", "/proc", "--dev", "/dev", "--dir", "/tmp"]
    return [*options, "--remount-ro", "/", "--as-pid-1"]


def start(layer: str, limits: Limits, folder: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A worker's process, in its working folder, and our end of its socket. Raises LookupError as `command` does, and OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            command(layer, theirs.fileno(), limits),
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C is for us
        )
    return process, ours
