"""A candidate and its judge without any sandbox: for what a verdict is made of. The sandbox itself has tests of its own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from benchmarks.code.sandbox import candidate, judge

Serve = Callable[[socket.socket, str], None]


def play(program: str, check: str, *, given: str = "", names: tuple[str, ...] = (), serve: Serve = candidate.serve) -> dict[str, Any]:
    """The verdict on `program`; `serve`: what the candidate's process does."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(nowhere, standard)
            candidate.make_room()
            serve(theirs, program)
        finally:
            os._exit(70)
    theirs.close()
    with ours:
        try:
            return judge.judge(ours, {"check": check, "given": given, "names": names})
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
